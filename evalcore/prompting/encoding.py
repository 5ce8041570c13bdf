"""From text to token ids: the one place where contexts and continuations are split.

The rules are those lm-evaluation-harness publishes, so that scores can be compared: trailing
whitespace of the context moves to the continuation; context and continuation are encoded
together and split at the length of the context encoded alone; an empty context becomes the
beginning-of-text token, or the end-of-text token where there is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from evalcore.errors import DataError, InputError
from evalcore.identity import special_tokens, turn_end
from evalcore.prompting.faults import MergedBorderError
from evalcore.prompting.guarding import MARK, GuardedTokenizer
from evalcore.prompting.pieces import pieces_of, split_pieces
from evalcore.types import EncodingSettings

Pair = tuple[list[int], list[int]]
_CHUNK = 4096


class Encoder:
    """A tokenizer with a BOS policy: text -> ids that begin with exactly the wanted prefix.

    Attributes:
        prefix: Ids put before every text (usually the BOS id), unless the text brings them.
        empty_context: Id that stands for an empty context.
    """

    def __init__(
        self, tokenizer: Any, settings: EncodingSettings, *, by_pieces: bool = True
    ) -> None:
        """Takes a tokenizer.

        Args:
            tokenizer: Of the transformers library.
            settings: Hold the BOS policy.
            by_pieces: Whether ids may be put together from those of words, where they are known to
                be the same (see :mod:`evalcore.prompting.pieces`); else texts are encoded whole.
        """
        self._tokenizer = tokenizer
        self._pieces = pieces_of(tokenizer) if by_pieces else None
        self.bos: int | None = tokenizer.bos_token_id
        self.eos: int | None = tokenizer.eos_token_id
        self.prefix = self._find_prefix(settings.add_bos)
        self._merged: set[tuple[str, str]] = set()
        fallback = self.bos if self.bos is not None else self.eos
        self.empty_context: int | None = self.prefix[0] if self.prefix else fallback

    def _find_prefix(self, policy: str) -> list[int]:
        if policy == "never":
            return []
        if policy == "always":
            if self.bos is None:
                raise InputError("add_bos=always: the tokenizer has no beginning-of-text token")
            return [self.bos]
        with_special = self._plain(["a"], special=True)[0]
        without = self._plain(["a"])[0]
        for start in range(len(with_special) - len(without) + 1):
            if with_special[start : start + len(without)] == without:
                return with_special[:start]  # what follows the text (EOS) is never wanted
        return []

    def _plain(self, texts: Sequence[str], *, special: bool = False) -> list[list[int]]:
        if self._pieces is not None and not special:
            return self._pieces.encode(texts)
        ids: list[list[int]] = []
        for start in range(0, len(texts), _CHUNK):
            chunk = list(texts[start : start + _CHUNK])
            encoded = self._tokenizer(
                chunk,
                add_special_tokens=special,
                return_attention_mask=False,
                return_token_type_ids=False,
                verbose=False,
            )
            ids += encoded["input_ids"]
        return ids

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, the prefix exactly once at its start (chat templates write it too)."""
        return [self._prefixed(ids) for ids in self._plain(texts)]

    def _prefixed(self, ids: list[int]) -> list[int]:
        prefix = self.prefix
        return ids if not prefix or ids[: len(prefix)] == prefix else prefix + ids

    def encode_pairs(self, items: Sequence[tuple[str, Sequence[str]]]) -> list[list[Pair]]:
        """Encodes (context, continuations) items in few tokenizer calls.

        Returns:
            For each item one (context ids, continuation ids) per continuation. Contexts of one
            item are the same list; a continuation is empty only if its text has no tokens at all.

        Raises:
            InputError: If a context is empty and the tokenizer has neither BOS nor EOS.
        """
        moved = [split_spaces(context) for context, _ in items]
        tails = [
            [spaces + text for text in texts]
            for (_, spaces), (_, texts) in zip(moved, items, strict=True)
        ]
        contexts = [context for context, _ in moved]
        encode = self._after_context if self._pieces is None else self._after_context_by_pieces
        given = [(c, own) for c, own in zip(contexts, tails, strict=True) if c]
        after_context = iter(encode(given))
        alone = [tail for c, own in zip(contexts, tails, strict=True) if not c for tail in own]
        after_nothing = iter([self._after_nothing(ids) for ids in self._plain(alone)])
        return [
            next(after_context) if context else [next(after_nothing) for _ in own]
            for context, own in zip(contexts, tails, strict=True)
        ]

    def merges(self, context: str, continuation: str) -> bool:
        """Whether a pair that was encoded has tokens across its border.

        The published rule takes what comes after as many tokens as the context alone has: ids that
        do not spell the two texts then, such as ``a|ttic`` scored as ``a`` and what follows
        ``att``.
        """
        bare, spaces = split_spaces(context)
        return (bare, spaces + continuation) in self._merged

    def _after_context(self, items: Sequence[tuple[str, Sequence[str]]]) -> list[list[Pair]]:
        """Pairs of contexts that end in a letter or sign, every text encoded whole."""
        contexts = list(dict.fromkeys(context for context, _ in items))
        context_ids = dict(zip(contexts, self.encode(contexts), strict=True))
        wholes = iter(self.encode([context + tail for context, own in items for tail in own]))
        return [
            [self._split(context, context_ids[context], next(wholes), tail) for tail in own]
            for context, own in items
        ]

    def _after_context_by_pieces(
        self, items: Sequence[tuple[str, Sequence[str]]]
    ) -> list[list[Pair]]:
        """The same: a context and its continuations have all pieces but the context's last in
        common, so only what follows those has to be encoded together."""
        assert self._pieces is not None
        split = {context: split_pieces(context) for context in dict.fromkeys(c for c, _ in items)}
        heads = self._pieces.encode_split([pieces[:-1] for pieces in split.values()])
        head_ids = dict(zip(split, heads, strict=True))
        ends: dict[str, list[int]] = {pieces[-1]: [] for pieces in split.values()}
        ends.update((split[context][-1] + tail, []) for context, own in items for tail in own)
        ends = dict(zip(ends, self._pieces.encode(list(ends)), strict=True))
        result = []
        for context, own in items:
            head, end = head_ids[context], split[context][-1]
            ids = self._prefixed(head + ends[end])
            if head and len(head) >= len(self.prefix):  # then the same stands before every end
                skipped = len(ends[end])
                self._merged.update(
                    (context, tail) for tail in own if ends[end + tail][:skipped] != ends[end]
                )
                found = [ends[end + tail][skipped:] for tail in own]
                pairs = [
                    (ids, tokens or self._plain([tail])[0])
                    for tokens, tail in zip(found, own, strict=True)
                ]
            else:
                pairs = [
                    self._split(context, ids, self._prefixed(head + ends[end + tail]), tail)
                    for tail in own
                ]
            result.append(pairs)
        return result

    def encode_prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of texts to go on from: whole, trailing white space included; never empty.

        Raises:
            InputError: If a text has no tokens and the tokenizer has neither BOS nor EOS.
        """
        return [ids or [self._stand_in()] for ids in self.encode(texts)]

    def rolling_windows(self, texts: Sequence[str], max_length: int) -> list[list[Pair]]:
        """Windows that score every token of long texts once (see :func:`rolling_windows`).

        A tokenizer that begins texts with BOS has that token predicted too, after a BOS, as
        lm-evaluation-harness does it.

        Raises:
            InputError: If the tokenizer has neither BOS nor EOS.
        """
        start = self._stand_in()
        return [rolling_windows(ids, start, max_length) for ids in self.encode(texts)]

    def _stand_in(self) -> int:
        if self.empty_context is None:
            raise InputError("empty context: the tokenizer has neither BOS nor EOS to stand for it")
        return self.empty_context

    def _split(self, text: str, context: list[int], whole: list[int], tail: str) -> Pair:
        if whole[: len(context)] != context:
            self._merged.add((text, tail))
        if not context:  # the context's text has no tokens (normalised away)
            return self._after_nothing(self._plain([tail])[0])
        continuation = whole[len(context) :]
        if not continuation:
            # The texts melt into as few tokens as the context alone: nothing would be left to
            # score. The continuation is then encoded by itself.
            continuation = self._plain([tail])[0]
        return context, continuation

    def _after_nothing(self, continuation: list[int]) -> Pair:
        prefix = self.prefix or [self._stand_in()]
        if len(continuation) > len(prefix) and continuation[: len(prefix)] == prefix:
            continuation = continuation[len(prefix) :]
        return list(prefix), continuation

    def check_one_bos(self, ids: Sequence[int], where: str) -> None:
        """Checks that a chat's ids hold the BOS token once (a token that also ends turns aside).

        Raises:
            InputError: If there are more, or none where the policy wants one.
        """
        if self.bos is None or self.bos == self.eos:
            return
        count = list(ids).count(self.bos)
        if count > 1 or (self.prefix and count == 0):
            raise InputError(f"{where}: the chat holds {count} beginning-of-text tokens, not one")


def split_spaces(context: str) -> tuple[str, str]:
    """Splits trailing whitespace off a context."""
    bare = context.rstrip()
    return bare, context[len(bare) :]


def rolling_windows(tokens: Sequence[int], start: int, max_length: int) -> list[Pair]:
    """Cuts a text into (context, continuation) windows in which every token is predicted once.

    The published rule of lm-evaluation-harness: the first window predicts ``max_length`` tokens
    after ``start`` alone; each later one predicts as many new tokens, or what is left, after as
    many earlier tokens as fit. The model reads ``max_length`` tokens at most; the last token of a
    window is predicted, not read.

    Args:
        tokens: Ids of the text.
        start: Id that stands before the text (BOS, or EOS).
        max_length: Tokens the model reads, at least 1.
    """
    first = min(max_length, len(tokens))
    windows = [([start], list(tokens[:first]))] if tokens else []
    done = first
    while done < len(tokens):
        end = min(done + max_length, len(tokens))
        windows.append((list(tokens[end - max_length - 1 : done]), list(tokens[done:end])))
        done = end
    return windows


def encode_pair(
    tokenizer: Any, context: str, continuation: str, settings: EncodingSettings
) -> Pair:
    """Encodes one pair: (context ids, continuation ids), both not empty.

    Raises:
        DataError: If the continuation has no tokens.
        InputError: If the tokenizer lacks a token the policy needs.
    """
    (pair,) = Encoder(tokenizer, settings).encode_pairs([(context, [continuation])])[0]
    if not pair[1]:
        raise DataError(f"continuation {continuation!r} has no tokens")
    return pair


def encode_training(
    tokenizer: Any, prompt: str, completion: str, settings: EncodingSettings, *, chat: bool = False
) -> Pair:
    """Ids to train on: (prompt ids, completion ids with the end token).

    The same ids are scored for the same text, but for control tokens that data names: those are
    learned as letters. The end is where generation stops: EOS, or in a chat the token with which
    the chat template closes an answer.

    Raises:
        InputError: If the tokenizer has no EOS.
        MergedBorderError: If a token lies across the border of the two: neither would be learned.
    """
    end = _turn_end(tokenizer) if chat else None
    end = tokenizer.eos_token_id if end is None else end
    if end is None:
        raise InputError("the tokenizer has no end-of-text token to train")
    if MARK in prompt or MARK in completion:
        encoder = Encoder(GuardedTokenizer(tokenizer), settings, by_pieces=False)
    else:
        encoder = Encoder(tokenizer, settings)
    [[(prompt_ids, completion_ids)]] = encoder.encode_pairs([(prompt, [completion])])
    if not completion_ids:
        raise DataError(f"continuation {completion!r} has no tokens")
    if encoder.merges(prompt, completion):
        raise MergedBorderError(
            f"{prompt[-20:]!r} and {completion[:20]!r} have a token in common; give the prompt a "
            "delimiter, or end it with a sign"
        )
    return prompt_ids, [*completion_ids, end]


def encode_turns(
    tokenizer: Any, turns: Sequence[tuple[str, str]], settings: EncodingSettings, *, chat: bool
) -> tuple[list[int], list[int], tuple[int, ...]]:
    """Ids to train on of a conversation (see ``training_turns``), each answer with its end token.

    Returns:
        Ids up to the first answer; those from there on; and borders in the latter, two for each
        later question: from where to where nothing is learned.

    Raises:
        InputError: If the tokenizer has no EOS.
    """
    prompt, rest = encode_training(tokenizer, *turns[0], settings, chat=chat)
    if len(turns) == 1:
        return prompt, rest, ()
    prefix = Encoder(tokenizer, settings, by_pieces=False).prefix
    ids, borders = list(rest), []
    for asked, answer in turns[1:]:
        question, learned = encode_training(tokenizer, asked, answer, settings, chat=chat)
        if prefix and question[: len(prefix)] == prefix:
            question = question[len(prefix) :]
        borders += [len(ids), len(ids) + len(question)]
        ids += [*question, *learned]
    return prompt, ids, tuple(borders)


@lru_cache(maxsize=16)
def _turn_end(tokenizer: Any) -> int | None:
    return turn_end(tokenizer, special_tokens(tokenizer))

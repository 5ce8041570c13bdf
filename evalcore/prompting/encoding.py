"""From text to token ids: the one place where contexts and continuations are split.

The rules are those lm-evaluation-harness publishes, so that scores can be compared: trailing
whitespace of the context moves to the continuation; context and continuation are encoded
together and split at the length of the context encoded alone; an empty context becomes the
beginning-of-text token, or the end-of-text token where there is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from evalcore.errors import DataError, InputError
from evalcore.types import EncodingSettings

Pair = tuple[list[int], list[int]]
_CHUNK = 4096


class Encoder:
    """A tokenizer with a BOS policy: text -> ids that begin with exactly the wanted prefix.

    Attributes:
        prefix: Ids put before every text (usually the BOS id), unless the text brings them.
        empty_context: Id that stands for an empty context.
    """

    def __init__(self, tokenizer: Any, settings: EncodingSettings) -> None:
        self._tokenizer = tokenizer
        self.bos: int | None = tokenizer.bos_token_id
        self.eos: int | None = tokenizer.eos_token_id
        self.prefix = self._find_prefix(settings.add_bos)
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
        prefix = self.prefix
        return [
            ids if not prefix or ids[: len(prefix)] == prefix else prefix + ids
            for ids in self._plain(texts)
        ]

    def encode_pairs(self, items: Sequence[tuple[str, Sequence[str]]]) -> list[list[Pair]]:
        """Encodes (context, continuations) items in few tokenizer calls.

        Returns:
            For each item one (context ids, continuation ids) per continuation. Contexts of one
            item are the same list; a continuation is empty only if its text has no tokens at all.

        Raises:
            InputError: If a context is empty and the tokenizer has neither BOS nor EOS.
        """
        moved = [split_spaces(context) for context, _ in items]
        contexts = list(dict.fromkeys(context for context, _ in moved if context))
        context_ids = dict(zip(contexts, self.encode(contexts), strict=True))
        tails = [
            [spaces + text for text in texts]
            for (_, spaces), (_, texts) in zip(moved, items, strict=True)
        ]
        wholes = self.encode(
            [
                context + tail
                for (context, _), group in zip(moved, tails, strict=True)
                if context
                for tail in group
            ]
        )
        alone = self._plain(
            [t for (c, _), group in zip(moved, tails, strict=True) if not c for t in group]
        )
        next_whole, next_alone = iter(wholes), iter(alone)
        result: list[list[Pair]] = []
        for (context, _), group in zip(moved, tails, strict=True):
            if context:
                own = context_ids[context]
                result.append([self._split(own, next(next_whole), tail) for tail in group])
            else:
                result.append([self._after_nothing(next(next_alone)) for _ in group])
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

    def _split(self, context: list[int], whole: list[int], tail: str) -> Pair:
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
    tokenizer: Any, prompt: str, completion: str, settings: EncodingSettings
) -> Pair:
    """Ids to train on: (prompt ids, completion ids with the end token).

    The same ids are scored for the same text; the end token (EOS) is where generation stops.

    Raises:
        InputError: If the tokenizer has no EOS.
    """
    if tokenizer.eos_token_id is None:
        raise InputError("the tokenizer has no end-of-text token to train")
    prompt_ids, completion_ids = encode_pair(tokenizer, prompt, completion, settings)
    return prompt_ids, [*completion_ids, tokenizer.eos_token_id]

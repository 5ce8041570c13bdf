"""Where a generation ends and what text is kept: one rule for every engine.

An engine may stop early in its own way; what counts is this rule, applied to its token ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from evalcore.identity import end_token_ids, load_tokenizer, special_tokens
from evalcore.types import Checkpoint, GenerationSettings


@dataclass(frozen=True)
class Ending:
    """A finished generation: text before the stop, tokens used, ``stop`` or ``length``."""

    text: str
    token_count: int
    finish_reason: str


def tokenizer_and_ends(checkpoint: Checkpoint) -> tuple[Any, tuple[int, ...]]:
    """(tokenizer, ids that end a generation): those the plan was made with, if it names them.

    Raises:
        InputError: If there is no tokenizer.
    """
    tokenizer = load_tokenizer(checkpoint.tokenizer)
    if checkpoint.end_tokens is not None:
        return tokenizer, checkpoint.end_tokens
    return tokenizer, end_token_ids(checkpoint.path, tokenizer)


def first_stop(text: str, stops: Sequence[str]) -> int | None:
    """Position of the earliest stop string in a text, None if there is none."""
    found = [at for stop in stops if (at := text.find(stop)) >= 0]
    return min(found) if found else None


@dataclass(frozen=True)
class StopRule:
    """What ends a generation under a tokenizer.

    Attributes:
        ends: Tokens that end it: end tokens, of chats the end of a turn, and stop strings that are
            one special token.
        plain: Stop strings looked for in the text, in which special tokens are not written.
        marked: Stop strings that hold a special token and more, looked for where they are written.
    """

    ends: frozenset[int]
    plain: tuple[str, ...]
    marked: tuple[str, ...]

    @classmethod
    def of(cls, tokenizer: Any, end_ids: Sequence[int], settings: GenerationSettings) -> StopRule:
        """The rule for settings; where text runs on or thinks, only tokens end it."""
        special = _special_tokens(tokenizer)
        tokens = [special[stop] for stop in settings.stops if stop in special]
        if settings.turn_end is not None:
            tokens.append(settings.turn_end)
        others = [stop for stop in settings.stops if stop not in special]
        if settings.run_on or settings.think_end:
            return cls(frozenset([*end_ids, *tokens]), (), ())
        marked = [stop for stop in others if any(token in stop for token in special)]
        plain = [stop for stop in others if stop not in marked]
        return cls(frozenset([*end_ids, *tokens]), tuple(plain), tuple(marked))

    @property
    def strings(self) -> tuple[str, ...]:
        return self.plain + self.marked

    def ended(self, ids: Sequence[int], tokenizer: Any, decode: Any = None) -> bool:
        """Whether the last of some ids ends a generation that none before it has ended.

        Only the last tokens are decoded, so that a generation costs no more the longer it is. What
        that misses (a stop string with many tokens of no text in it) goes on and is cut later.
        """
        if not ids or ids[-1] in self.ends:
            return bool(ids)
        longest = max(map(len, self.strings), default=0)
        near = ids[-(4 * longest + 8) :]  # four bytes a character, each a token
        if not longest or self.cut(near, tokenizer, decode) is None:
            return False
        return len(near) == len(ids) or self.cut(ids, tokenizer, decode) is not None

    def cut(self, ids: Sequence[int], tokenizer: Any, decode: Any = None) -> str | None:
        """Text of ids before the first stop string in it; None if there is none."""
        decode = decode or tokenizer.decode
        text = decode(ids, skip_special_tokens=True) if self.plain else ""
        at = first_stop(text, self.plain)
        if at is not None:
            return str(text[:at])
        if not self.marked:
            return None
        written = decode(ids, skip_special_tokens=False)
        at = first_stop(written, self.marked)
        if at is None:
            return None
        before = next(  # the most tokens that lie before the stop string
            n
            for n in range(len(ids), -1, -1)
            if len(decode(ids[:n], skip_special_tokens=False)) <= at
        )
        begun = written[len(decode(ids[:before], skip_special_tokens=False)) : at]
        return str(decode(ids[:before], skip_special_tokens=True) + begun)


_special_tokens = lru_cache(maxsize=16)(special_tokens)


def finish(
    token_ids: Sequence[int],
    tokenizer: Any,
    end_ids: Sequence[int],
    settings: GenerationSettings,
) -> Ending:
    """Ends a greedy generation: at the first end token, or with the first token that completes a
    stop string.

    Args:
        token_ids: Generated ids; may run past the end.
        tokenizer: Turns ids into text.
        end_ids: Tokens that end a generation; counted, not part of the text.
        settings: Longest length and stop strings.
    """
    rule = StopRule.of(tokenizer, end_ids, settings)
    ids = list(token_ids)[: settings.max_tokens]
    end = next((i for i, token in enumerate(ids) if token in rule.ends), None)
    body = ids if end is None else ids[:end]
    whole = tokenizer.decode(body, skip_special_tokens=True)
    count = _first_complete(rule, body, tokenizer, whole) if rule.strings else None
    if count is not None:
        return Ending(str(rule.cut(body[:count], tokenizer)), count, "stop")
    if end is not None:
        return Ending(whole, end + 1, "stop")
    return Ending(whole, len(ids), "length")


def _first_complete(rule: StopRule, ids: list[int], tokenizer: Any, whole: str) -> int | None:
    """Tokens up to the first with which a stop string is complete; None if none ever is.

    Text only grows to the right, so the place is found by halving. It does not where bytes of no
    character are decoded together, or where blanks before signs are cleaned away; then every
    beginning is looked at.
    """
    unsettled = "\ufffd" in whole or getattr(tokenizer, "clean_up_tokenization_spaces", False)
    if unsettled:
        counts = range(1, len(ids) + 1)
        return next((n for n in counts if rule.cut(ids[:n], tokenizer) is not None), None)
    if rule.cut(ids, tokenizer) is None:
        return None
    low, high = 0, len(ids)  # not complete, complete
    while high - low > 1:
        middle = (low + high) // 2
        if rule.cut(ids[:middle], tokenizer) is None:
            low = middle
        else:
            high = middle
    return high

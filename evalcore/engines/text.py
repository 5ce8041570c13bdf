"""Where a generation ends and what text is kept: one rule for every engine.

An engine may stop early in its own way; what counts is this rule, applied to its token ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from evalcore.identity import end_token_ids, load_tokenizer
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


def finish(
    token_ids: Sequence[int],
    tokenizer: Any,
    end_ids: Sequence[int],
    settings: GenerationSettings,
) -> Ending:
    """Ends a greedy generation.

    Args:
        token_ids: Generated ids; may run past the end.
        tokenizer: Turns ids into text.
        end_ids: Tokens that end a generation; counted, not part of the text.
        settings: Longest length and stop strings.
    """
    ids = list(token_ids)[: settings.max_tokens]
    reason = "length"
    ends = set(end_ids)
    for index, token in enumerate(ids):
        if token in ends:
            ids, reason = ids[: index + 1], "stop"
            break
    body = ids[:-1] if reason == "stop" else ids
    text = tokenizer.decode(body, skip_special_tokens=True)
    at = first_stop(text, settings.stops)
    if at is None:
        return Ending(text, len(ids), reason)

    # The first token with which a stop string is complete: decoding only grows to the right.
    def complete(n: int) -> bool:
        text = tokenizer.decode(body[:n], skip_special_tokens=True)
        return first_stop(text, settings.stops) is not None

    count = next(n for n in range(1, len(body) + 1) if complete(n))
    return Ending(text[:at], count, "stop")

"""Up to which length of prompts engines were seen to agree with transformers.

The canaries are 38 tokens at most. What decides in longer texts only (windows, scaled positions, a
kernel's second block, a cache's) does not show in them. So the first prompt of a kind that is
longer than what was compared so far is compared as well: its last tokens, at the positions they
have there. Kinds are those of :mod:`evalcore.scoring.witnessing`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np

from evalcore.scoring.shares import Share
from evalcore.types import IntArray, ScoreBatch

SHORT = 64
"""Tokens: prompts up to this length are believed for the canaries' sake."""
STEP = 1.25
"""How many times longer than what was compared a prompt may be."""
TAIL = 48
"""Tokens that are compared, the last ones of the prompt."""


def longest_of(shares: Sequence[Share]) -> IntArray:
    """int32 [L]: the longest text of a unit, with the longest answer it is given; may be empty.

    A generated answer is not known yet: the prompt from its begin stands for it.
    """
    found = np.zeros(0, dtype=np.int32)
    for share in shares:
        batch = share.scored.batch
        contexts = np.diff(batch.context_offsets)[batch.continuation_context]
        lengths = contexts + np.diff(batch.continuation_offsets)
        if len(lengths) and lengths.max() > len(found):
            i = int(lengths.argmax())
            context = batch.context(int(batch.continuation_context[i]))
            found = np.concatenate([context, batch.continuation(i)])
        for asked in share.generated:
            if asked is None or not asked.batch.num_contexts:
                continue
            sizes = np.diff(asked.batch.context_offsets)
            length = int(sizes.max()) + asked.batch.settings.max_tokens
            if length > len(found):
                found = np.resize(asked.batch.context(int(sizes.argmax())), length)
    return found


def reach_batch(tokens: IntArray) -> ScoreBatch:
    """The end of a text as two continuations of one context, so that they are packed as others are.

    Args:
        tokens: int32 [L], L > :data:`SHORT`.
    """
    ids = [int(token) for token in tokens]
    return ScoreBatch.from_lists([(ids[:-TAIL], [ids[-TAIL:], ids[: TAIL // 2]])])


@dataclass
class _Known:
    """Of one kind.

    Attributes:
        agreed: Longest text that agrees, in tokens.
        open: Lengths that were asked about and are not answered yet.
        beyond: Why longer texts are not compared.
        refused: How far a longer text is from transformers.
    """

    agreed: int = SHORT
    open: list[int] = field(default_factory=list)
    beyond: str = ""
    refused: str = ""


def _covers(reach: int, tokens: int) -> bool:
    """Whether a text of so many tokens is believed once one of ``reach`` was seen to agree."""
    return tokens <= (reach * STEP if reach > SHORT else SHORT)


class Reach:
    """What is known of each kind; see the module."""

    def __init__(self) -> None:
        self._known: defaultdict[Hashable, _Known] = defaultdict(_Known)

    def wants(self, kind: Hashable, tokens: int) -> bool:
        """Whether a text of so many tokens should be asked about."""
        known = self._known[kind]
        return not (known.beyond or known.refused) and self.longer(kind, tokens)

    def ask(self, kind: Hashable, tokens: int) -> None:
        """A text of so many tokens is asked about."""
        self._known[kind].open.append(tokens)

    def agrees(self, kind: Hashable, tokens: int) -> None:
        """A text that was asked about agrees."""
        known = self._known[kind]
        known.open.remove(tokens)
        if not known.refused:
            known.agreed = max(known.agreed, tokens)

    def disagrees(self, kind: Hashable, tokens: int | None, why: str) -> None:
        """Longer texts than what agrees are not believed.

        Args:
            kind: Of which kind.
            tokens: Length that was asked about and does not agree; None: nothing was asked.
            why: What is to be said of them.
        """
        known = self._known[kind]
        if tokens is not None:
            known.open.remove(tokens)
        known.refused = known.refused or why

    def stops(self, kind: Hashable, why: str, tokens: int | None = None) -> None:
        """Longer texts than what agrees cannot be compared.

        Args:
            kind: Of which kind.
            why: For what reason.
            tokens: Length that was asked about and is not answered.
        """
        known = self._known[kind]
        if tokens is not None:
            known.open.remove(tokens)
        known.beyond = known.beyond or why

    def longer(self, kind: Hashable, tokens: int) -> bool:
        """Whether a text of so many tokens says more than those that were asked about."""
        known = self._known[kind]
        return not _covers(max([known.agreed, *known.open]), tokens)

    def waits(self, kind: Hashable, tokens: int) -> bool:
        """Whether a text of so many tokens waits for an answer about its kind."""
        known = self._known[kind]
        return bool(known.open) and not _covers(known.agreed, tokens)

    def refused(self, kind: Hashable, tokens: int) -> str:
        """Why a text of so many tokens is not believed; empty if it may be."""
        known = self._known[kind]
        return "" if _covers(known.agreed, tokens) else known.refused

    def beyond(self, kind: Hashable, tokens: int) -> str:
        """What is to be said of a text of so many tokens that could not be compared."""
        known = self._known[kind]
        if not known.beyond or _covers(known.agreed, tokens):
            return ""
        return f"not beyond {known.agreed:,} tokens: {known.beyond}"

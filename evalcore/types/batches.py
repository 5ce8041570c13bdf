"""What an engine is given, and what it gives back.

Shape suffixes used in the whole package: ``N`` contexts of a batch, ``M`` continuations,
``T`` token positions. Flat arrays come with ``offsets`` of one entry more than there are items:
item ``i`` is ``flat[offsets[i]:offsets[i + 1]]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from evalcore.types.asking import GenerationSettings

IntArray = npt.NDArray[np.int32]
OffsetArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ScoreBatch:
    """Continuations to score, grouped by context; flat arrays.

    Attributes:
        context_tokens: int32 [T_context], one context after the other, none empty.
        context_offsets: int64 [N + 1].
        continuation_tokens: int32 [T_continuation]. Never empty per continuation.
        continuation_offsets: int64 [M + 1].
        continuation_context: int32 [M], non-decreasing: the context each continuation follows.
    """

    context_tokens: IntArray
    context_offsets: OffsetArray
    continuation_tokens: IntArray
    continuation_offsets: OffsetArray
    continuation_context: IntArray

    @property
    def num_contexts(self) -> int:
        return len(self.context_offsets) - 1

    @property
    def num_continuations(self) -> int:
        return len(self.continuation_offsets) - 1

    @classmethod
    def from_lists(
        cls, items: Sequence[tuple[Sequence[int], Sequence[Sequence[int]]]]
    ) -> ScoreBatch:
        """Builds a batch from (context, continuations) pairs of token-id lists."""
        contexts = [context for context, _ in items]
        continuations = [tokens for _, group in items for tokens in group]
        owner = [i for i, (_, group) in enumerate(items) for _ in group]
        return cls(*flatten(contexts), *flatten(continuations), np.asarray(owner, dtype=np.int32))

    def context(self, i: int) -> IntArray:
        return self.context_tokens[self.context_offsets[i] : self.context_offsets[i + 1]]

    def continuation(self, i: int) -> IntArray:
        return self.continuation_tokens[
            self.continuation_offsets[i] : self.continuation_offsets[i + 1]
        ]


@dataclass(frozen=True)
class GenerateBatch:
    """Contexts to continue greedily.

    Attributes:
        context_tokens: int32 [T_context].
        context_offsets: int64 [N + 1].
        settings: One per batch: the caller groups contexts by settings.
    """

    context_tokens: IntArray
    context_offsets: OffsetArray
    settings: GenerationSettings

    @property
    def num_contexts(self) -> int:
        return len(self.context_offsets) - 1

    def context(self, i: int) -> IntArray:
        return self.context_tokens[self.context_offsets[i] : self.context_offsets[i + 1]]


@dataclass(frozen=True)
class ScoreResult:
    """Answer to a :class:`ScoreBatch`.

    Attributes:
        token_logprobs: float64 [T_continuation], natural log, aligned with continuation_tokens.
        is_greedy: bool [M], whether every token of the continuation is the model's arg max.
        computed_tokens: int64 [N], prompt tokens run through the model for each context's group.
        cached_tokens: int64 [N], prompt tokens of the group served from a cache or shared.
        fallbacks: Continuations that were scored again the slow exact way.
    """

    token_logprobs: FloatArray
    is_greedy: npt.NDArray[np.bool_]
    computed_tokens: OffsetArray
    cached_tokens: OffsetArray
    fallbacks: int = 0


@dataclass(frozen=True)
class GenerateResult:
    """Answer to a :class:`GenerateBatch`; every list has N entries.

    Attributes:
        texts: Generated text (after its thinking), cut before the first stop string.
        token_counts: Tokens generated, the end token included.
        finish_reasons: ``stop`` (end token or stop string) or ``length``; of texts that were cut
            afterwards also ``run_on`` and ``empty`` (see ``scoring.generating``).
        computed_tokens: int64 [N] prompt tokens computed.
        cached_tokens: int64 [N] prompt tokens served from a cache.
        raw_texts: With ``run_on`` or ``think_end``: all of the text; else empty.
    """

    texts: list[str]
    token_counts: list[int]
    finish_reasons: list[str]
    computed_tokens: OffsetArray
    cached_tokens: OffsetArray
    raw_texts: list[str] = field(default_factory=list)


def flatten(items: Sequence[Sequence[int]]) -> tuple[IntArray, OffsetArray]:
    """Concatenates token-id lists into (flat int32 [T], offsets int64 [len + 1])."""
    offsets = np.zeros(len(items) + 1, dtype=np.int64)
    np.cumsum([len(item) for item in items], out=offsets[1:])
    flat = np.fromiter((t for item in items for t in item), dtype=np.int32, count=int(offsets[-1]))
    return flat, offsets

"""Generations as continuations of a prefix tree whose tokens become known one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evalcore.engines.text import Ending, StopRule, finish
from evalcore.types import GenerateBatch, GenerateResult, GenerationSettings, ScoreBatch


def with_generations(batch: ScoreBatch, generations: Sequence[GenerateBatch]) -> ScoreBatch:
    """A batch with every context to be continued appended, followed by tokens not known yet.

    The unknown tokens are negative, and different ones for each generation.
    """
    parts = [g for g in generations if g.num_contexts]
    lengths = np.concatenate(
        [
            np.diff(batch.continuation_offsets),
            *(np.full(g.num_contexts, g.settings.max_tokens) for g in parts),
        ]
    )
    contexts = np.concatenate(
        [np.diff(batch.context_offsets), *(np.diff(g.context_offsets) for g in parts)]
    )
    growing = len(lengths) - batch.num_continuations
    unknown = np.repeat(-1 - np.arange(growing), lengths[batch.num_continuations :])
    owner = np.arange(batch.num_contexts, batch.num_contexts + growing)
    return ScoreBatch(
        np.concatenate([batch.context_tokens, *(g.context_tokens for g in parts)]),
        _offsets(contexts),
        np.concatenate([batch.continuation_tokens, unknown]).astype(np.int32),
        _offsets(lengths),
        np.concatenate([batch.continuation_context, owner]).astype(np.int32),
    )


def _offsets(lengths: Any) -> Any:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


@dataclass
class Growth:
    """Generations on their way.

    Attributes:
        settings: Of each generation.
        tokenizer: Turns ids into text, in which stop strings are looked for.
        end_ids: Tokens that end a generation.
        ids: Tokens of each so far.
        endings: Of each one that has ended.
    """

    settings: list[GenerationSettings]
    tokenizer: Any
    end_ids: Sequence[int]

    def __post_init__(self) -> None:
        self._rules = [StopRule.of(self.tokenizer, self.end_ids, each) for each in self.settings]
        # The tokenizer's own core decodes the same text several times faster, unless it is cleaned.
        plain = getattr(self.tokenizer, "backend_tokenizer", None)
        cleaned = getattr(self.tokenizer, "clean_up_tokenization_spaces", False)
        self._decode = self.tokenizer.decode if plain is None or cleaned else plain.decode
        self.ids: list[list[int]] = [[] for _ in self.settings]
        self.endings: list[Ending | None] = [None] * len(self.settings)

    @classmethod
    def of(cls, generations: Sequence[GenerateBatch], tokenizer: Any, end_ids: Any) -> Growth:
        """Growth of all contexts of some batches, in order."""
        return cls(
            [g.settings for g in generations for _ in range(g.num_contexts)], tokenizer, end_ids
        )

    def add(self, number: int, token: int) -> bool:
        """Appends a token to a generation; whether that ended it."""
        ids, settings, rule = self.ids[number], self.settings[number], self._rules[number]
        ids.append(token)
        last = len(ids) >= settings.max_tokens
        if not last and not rule.ended(ids, self.tokenizer, self._decode):
            return False
        self.endings[number] = finish(ids, self.tokenizer, self.end_ids, settings)
        return True

    def results(
        self, generations: Sequence[GenerateBatch], computed: Any, cached: Any
    ) -> list[GenerateResult]:
        """One result for each batch; ``computed`` and ``cached`` are int64 [all contexts]."""
        results, first = [], 0
        for batch in generations:
            rows = slice(first, first + batch.num_contexts)
            endings = [ending for ending in self.endings[rows] if ending is not None]
            assert len(endings) == batch.num_contexts, "a generation never ended"
            results.append(
                GenerateResult(
                    [e.text for e in endings],
                    [e.token_count for e in endings],
                    [e.finish_reason for e in endings],
                    computed[rows],
                    cached[rows],
                )
            )
            first += batch.num_contexts
        return results

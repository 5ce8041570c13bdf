"""``--certify``: a sample of what a worker has scored is scored again, see ``judging``.

It is done while the subject is still in place, because loading every subject a second time would
cost more than the sample. What is compared is what is stored: the sample's rows, and a second
scoring of their requests with an empty cache, in another order, in small batches.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import pyarrow as pa

from evalcore.engines.protocol import Engine
from evalcore.planning import Plan
from evalcore.scoring.batching import generate_requests, score_requests
from evalcore.scoring.certificates.judging import CONTEXTS_PER_BATCH, Rescored, part_of, score_again
from evalcore.scoring.generating import score_and_generate
from evalcore.types import (
    AnswerWay,
    FloatArray,
    GenerateBatch,
    GenerationSettings,
    ScoreBatch,
    flatten,
)

LEAST_ROWS = 300
"""Rows of each subject that are scored again: a fault of 5 % of its rows shows in 15 of them."""


@dataclass(frozen=True, eq=False)
class SampledRows:
    """Sampled rows of one cell.

    Attributes:
        cell: Its key.
        requests: Rows of its request table.
        stored: The same documents as ``store.EXAMPLE_SCHEMA`` rows, as they were scored.
        answer: How a choice is made; None where there is none to make.
        generation: Settings of what was generated; None where nothing was.
    """

    cell: str
    requests: pa.Table
    stored: pa.Table
    answer: AnswerWay | None
    generation: GenerationSettings | None


def choose_sample(plan: Plan, share: float, seed: int = 0) -> dict[str, np.ndarray]:
    """Rows of each cell that are scored again, ascending (see :func:`sample_sizes`).

    Cells are subject x task x variant, so the sample is stratified by all three.
    """
    rows: dict[str, list[np.ndarray]] = {}
    for unit in plan.units:
        for part in unit.slices:
            rows.setdefault(part.cell_key, []).append(part.rows)
    every = {key: np.concatenate(parts) for key, parts in rows.items()}
    cells: dict[str, list[str]] = {}
    for key in every:
        cells.setdefault(plan.cells[key].subject.id, []).append(key)
    sizes = {who: [len(every[key]) for key in keys] for who, keys in cells.items()}
    sample = {}
    for who, counts in sample_sizes(sizes, share).items():
        for key, count in zip(cells[who], counts, strict=True):
            rng = np.random.default_rng([seed, zlib.crc32(key.encode())])
            sample[key] = np.sort(rng.choice(every[key], size=count, replace=False))
    return sample


Who = TypeVar("Who")


def sample_sizes(sizes: Mapping[Who, Sequence[int]], share: float) -> dict[Who, list[int]]:
    """How many rows of each subject's cells are scored again.

    Args:
        sizes: Subject -> rows of each of its cells.
        share: Least share of each cell; at least one row.

    Returns:
        As many for each subject as show a fault of some of its rows (:data:`LEAST_ROWS`), or all
        there are.
    """
    found = {}
    for who, counts in sizes.items():
        own = max(share, min(1.0, LEAST_ROWS / max(sum(counts), 1)))
        found[who] = [min(count, max(1, math.ceil(own * count - 1e-9))) for count in counts]
    return found


def sampled_of(sample: Mapping[str, np.ndarray], cell_key: str, rows: np.ndarray) -> np.ndarray:
    """Positions in ``rows`` of those that belong to the sample."""
    chosen = sample.get(cell_key)
    if chosen is None:
        return np.zeros(0, dtype=np.int64)
    return np.flatnonzero(np.isin(rows, chosen))


def rescore(engine: Engine, sample: Sequence[SampledRows], seed: int = 0) -> Rescored:
    """Scores and generates a sample of the loaded subject again."""
    rng = np.random.default_rng(seed)
    sample = [part for part in sample if len(part.requests)]
    if not sample:
        return Rescored()
    scored = score_requests(pa.concat_tables([part.requests for part in sample]))
    values = score_again(engine, scored.batch, rng)
    texts = changed = 0
    for part in sample:
        if part.generation is not None:
            counts = _generate_again(engine, part, part.generation, rng)
            texts, changed = texts + counts[0], changed + counts[1]
    cells = [(part.cell, len(part.requests)) for part in sample]
    told = Rescored.of(
        cells,
        _flat(sample, "choice_logprobs"),
        values[scored.slots],
        np.diff(scored.choice_offsets),
        np.repeat([part.answer is not None for part in sample], [count for _, count in cells]),
    )
    bare = Rescored.of(
        cells,
        _flat(sample, "unconditional_logprobs"),
        values[scored.unconditional_slots],
        np.diff(scored.unconditional_offsets),
        np.zeros(len(told.moved), dtype=bool),
    )
    return replace(
        told,
        moved=np.maximum(told.moved, bare.moved),
        choices=told.choices + bare.choices,
        texts=texts,
        changed_texts=changed,
    )


def rows_to_witness(
    sample: Sequence[SampledRows], most_tokens: int
) -> tuple[ScoreBatch, FloatArray] | None:
    """A few of a sample's contexts, spread over it, and float64 [M] what was stored of them.

    Args:
        sample: Of one subject.
        most_tokens: Tokens of all sequences together; one context at least.
    """
    sample = [part for part in sample if len(part.requests)]
    if not sample:
        return None
    scored = score_requests(pa.concat_tables([part.requests for part in sample]))
    batch = scored.batch
    stored = np.full(batch.num_continuations, np.nan)
    stored[scored.slots] = _flat(sample, "choice_logprobs")
    stored[scored.unconditional_slots] = _flat(sample, "unconditional_logprobs")
    lengths = np.diff(batch.context_offsets)[batch.continuation_context]
    tokens = np.bincount(
        batch.continuation_context,
        lengths + np.diff(batch.continuation_offsets),
        minlength=batch.num_contexts,
    )
    # Rows that are never stored (a mask's other choices) have nothing to be compared with.
    whole = np.bincount(batch.continuation_context, np.isnan(stored), batch.num_contexts) == 0
    order = np.random.default_rng(batch.num_contexts).permutation(np.flatnonzero(whole))
    count = int(np.searchsorted(np.cumsum(tokens[order]), most_tokens, side="right"))
    chosen = order[: max(count, 1)]
    if not len(chosen):
        return None
    part, rows = part_of(batch, chosen)
    return part, stored[rows]


def _flat(sample: Sequence[SampledRows], column: str) -> FloatArray:
    """float64: a column of lists, one after the other (null is empty)."""
    lists = [value or [] for part in sample for value in part.stored[column].to_pylist()]
    return np.asarray([number for value in lists for number in value], dtype=np.float64)


def _generate_again(
    engine: Engine, part: SampledRows, settings: GenerationSettings, rng: np.random.Generator
) -> tuple[int, int]:
    """(texts, those that differ) of a cell's sample."""
    asked = generate_requests(part.requests, settings)
    texts: dict[int, str] = {}
    order = [int(i) for i in rng.permutation(asked.batch.num_contexts)]
    for begin in range(0, len(order), CONTEXTS_PER_BATCH):
        chosen = order[begin : begin + CONTEXTS_PER_BATCH]
        batch = GenerateBatch(*flatten([asked.batch.context(i).tolist() for i in chosen]), settings)
        engine.forget()
        _, (made,) = score_and_generate(engine, ScoreBatch.from_lists([]), [batch])
        texts |= dict(zip(chosen, made.texts, strict=True))
    stored = part.stored["text"].to_pylist()
    pairs = [(stored[e], texts[int(s)]) for e, s in enumerate(asked.slots) if s >= 0]
    return len(pairs), sum(before != after for before, after in pairs)

"""``--certify``: a sample of what a worker has scored is scored again (see ``engines.certify``).

It is done while the subject is still in place, because loading every subject a second time would
cost more than the sample. What is compared is what is stored: the sample's rows, and a second
scoring of their requests with an empty cache, in another order, in small batches.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from evalcore.engines.certify import CONTEXTS_PER_BATCH, Rescored, score_again
from evalcore.engines.protocol import Engine
from evalcore.planning import Plan
from evalcore.scoring.batching import generate_requests, score_requests
from evalcore.scoring.generating import score_and_generate
from evalcore.types import (
    AnswerWay,
    FloatArray,
    GenerateBatch,
    GenerationSettings,
    ScoreBatch,
    flatten,
)


@dataclass(frozen=True, eq=False)
class SampledRows:
    """Sampled rows of one cell.

    Attributes:
        requests: Rows of its request table.
        stored: The same documents as ``store.EXAMPLE_SCHEMA`` rows, as they were scored.
        answer: How a choice is made; None where there is none to make.
        generation: Settings of what was generated; None where nothing was.
    """

    requests: pa.Table
    stored: pa.Table
    answer: AnswerWay | None
    generation: GenerationSettings | None


def choose_sample(plan: Plan, share: float, seed: int = 0) -> dict[str, np.ndarray]:
    """Rows of each cell that are scored again, ascending: a share of each, at least one.

    Cells are subject x task x variant, so the sample is stratified by all three.
    """
    rows: dict[str, list[np.ndarray]] = {}
    for unit in plan.units:
        for part in unit.slices:
            rows.setdefault(part.cell_key, []).append(part.rows)
    sample = {}
    for key, parts in rows.items():
        every = np.concatenate(parts)
        count = max(1, round(share * len(every)))
        rng = np.random.default_rng([seed, zlib.crc32(key.encode())])
        sample[key] = np.sort(rng.choice(every, size=count, replace=False))
    return sample


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
    bare = values[scored.unconditional_slots]
    texts = changed = 0
    for part in sample:
        if part.generation is not None:
            counts = _generate_again(engine, part, part.generation, rng)
            texts, changed = texts + counts[0], changed + counts[1]
    return Rescored(
        np.concatenate([_flat(sample, "choice_logprobs"), _flat(sample, "unconditional_logprobs")]),
        np.concatenate([values[scored.slots], bare]),
        np.concatenate([_sizes(sample, scored.choice_offsets), np.ones(len(bare), dtype=np.int64)]),
        texts,
        changed,
    )


def _flat(sample: Sequence[SampledRows], column: str) -> FloatArray:
    """float64: a column of lists, one after the other (null is empty)."""
    lists = [value or [] for part in sample for value in part.stored[column].to_pylist()]
    return np.asarray([number for value in lists for number in value], dtype=np.float64)


def _sizes(sample: Sequence[SampledRows], offsets: np.ndarray) -> np.ndarray:
    """Choices of each example; where nothing is chosen, every continuation by itself."""
    sizes: list[int] = []
    counts = iter(np.diff(offsets).tolist())
    for part in sample:
        own = [next(counts) for _ in range(len(part.requests))]
        sizes += own if part.answer is not None else [1] * sum(own)
    return np.asarray(sizes, dtype=np.int64)


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

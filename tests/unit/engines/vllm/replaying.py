"""Packed plans, executed on a cache that holds token ids."""

from __future__ import annotations

import numpy as np

from evalcore.engines.vllm.growth import Growth
from evalcore.engines.vllm.packed import _grow
from evalcore.engines.vllm.packing import Limits, Plan, Steps
from evalcore.types import ScoreBatch


def random_batch(seed: int, groups: int, longest: int = 40) -> ScoreBatch:
    """A two-letter alphabet, so that contexts share prefixes of every length, or are equal."""
    rng = np.random.default_rng(seed)
    items = []
    for _ in range(groups):
        context = rng.integers(0, 2, int(rng.integers(1, longest))).tolist()
        choices = [
            rng.integers(0, 3, int(rng.integers(1, 12))).tolist()
            for _ in range(int(rng.integers(1, 6)))
        ]
        items.append((context, choices))
    return ScoreBatch.from_lists(items)


def replay(
    batch: ScoreBatch, plan: Plan, limits: Limits, growth: Growth | None = None
) -> dict[int, tuple[int, ...]]:
    """Runs the steps on a cache that holds token ids instead of keys and values.

    Returns, for each continuation token, the prefix its prediction was made from (all tokens the
    row attends to).
    """
    scored = batch.num_continuations - (len(growth.settings) if growth else 0)
    passes = Steps(batch, plan, limits)
    cache = np.full((limits.first_block + limits.blocks) * limits.block_size, -1)
    seen: dict[int, tuple[int, ...]] = {}
    for step in passes:
        assert len(step.token_ids) <= limits.tokens
        assert len(step.query_lens) <= limits.seqs
        assert len(set(step.slots.tolist())) == len(step.slots)  # no two rows write one slot
        assert step.slots.min() >= limits.first_block * limits.block_size
        size = limits.block_size
        kept = cache.reshape(-1, size)
        assert not set(step.copies[:, 0]) & set(step.copies[:, 1])
        kept[step.copies[:, 1]] = kept[step.copies[:, 0]]
        cache[step.slots] = step.token_ids  # all rows write before any row attends
        attended = []
        row = 0
        for r, (query, length) in enumerate(zip(step.query_lens, step.seq_lens, strict=True)):
            for n in range(query):
                position = int(length - query + n)
                assert step.positions[row] == position
                at = np.arange(position + 1)
                block = step.block_table[r, at // size]
                attended.append(cache[block * size + at % size])
                row += 1
        for row, target, out in zip(step.rows, step.targets, step.slots_out, strict=True):
            assert target == max(batch.continuation_tokens[out], 0)
            assert out not in seen
            seen[int(out)] = tuple(attended[row].tolist())
        if growth is not None:
            best = np.asarray([follow(tuple(attended[row].tolist())) for row in step.rows])
            _grow(batch, scored, growth, passes, step.slots_out, best)
    return seen


def follow(prefix: tuple[int, ...]) -> int:
    """A model: which token comes next."""
    return hash(prefix) % 3


def wanted(batch: ScoreBatch, skip: set[int]) -> dict[int, tuple[int, ...]]:
    """The obviously right answer: context and the continuation's earlier tokens."""
    answer = {}
    for i, owner in enumerate(batch.continuation_context):
        context, tokens = batch.context(int(owner)).tolist(), batch.continuation(i).tolist()
        for n in range(len(tokens) if i not in skip else 0):
            answer[int(batch.continuation_offsets[i]) + n] = (*context, *tokens[:n])
    return answer

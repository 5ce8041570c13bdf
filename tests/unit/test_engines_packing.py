"""The packed plan, executed symbolically: every row must see exactly its own prefix."""

from __future__ import annotations

import numpy as np
import pytest

from evalcore.engines.vllm.packing import (
    Limits,
    Plan,
    common_prefix,
    make_plan,
    sort_contexts,
    steps,
)
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


def replay(batch: ScoreBatch, plan: Plan, limits: Limits) -> dict[int, tuple[int, ...]]:
    """Runs the steps on a cache that holds token ids instead of keys and values.

    Returns, for each continuation token, the prefix its prediction was made from (all tokens the
    row attends to).
    """
    cache = np.full((limits.first_block + limits.blocks) * limits.block_size, -1)
    seen: dict[int, tuple[int, ...]] = {}
    for step in steps(batch, plan, limits):
        assert len(step.token_ids) <= limits.tokens
        assert len(step.query_lens) <= limits.seqs
        assert len(set(step.slots.tolist())) == len(step.slots)  # no two rows write one slot
        assert step.slots.min() >= limits.first_block * limits.block_size
        cache[step.slots] = step.token_ids  # all rows write before any row attends
        attended = []
        row = 0
        for r, (query, length) in enumerate(zip(step.query_lens, step.seq_lens, strict=True)):
            for n in range(query):
                position = int(length - query + n)
                assert step.positions[row] == position
                at = np.arange(position + 1)
                block = step.block_table[r, at // limits.block_size]
                attended.append(cache[block * limits.block_size + at % limits.block_size])
                row += 1
        for row, target, out in zip(step.rows, step.targets, step.slots_out, strict=True):
            assert target == batch.continuation_tokens[out]
            assert out not in seen
            seen[int(out)] = tuple(attended[row].tolist())
    return seen


def wanted(batch: ScoreBatch, skip: set[int]) -> dict[int, tuple[int, ...]]:
    """The obviously right answer: context and the continuation's earlier tokens."""
    answer = {}
    for i, owner in enumerate(batch.continuation_context):
        context, tokens = batch.context(int(owner)).tolist(), batch.continuation(i).tolist()
        for n in range(len(tokens) if i not in skip else 0):
            answer[int(batch.continuation_offsets[i]) + n] = (*context, *tokens[:n])
    return answer


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("block_size", [1, 4, 8])
def test_every_row_sees_exactly_its_own_prefix(seed: int, block_size: int) -> None:
    batch = random_batch(seed, 60)
    limits = Limits(block_size, tokens=90, seqs=16, blocks=160 // block_size, length=48)
    plan = make_plan(batch, limits)
    assert replay(batch, plan, limits) == wanted(batch, set(plan.leftover))
    total = np.diff(batch.context_offsets)[batch.continuation_context]
    lengths = np.diff(batch.continuation_offsets)
    assert set(plan.leftover) == set(np.flatnonzero(total + lengths - 1 > 48).tolist())


def test_counts_are_what_is_forwarded() -> None:
    batch = random_batch(5, 40)
    limits = Limits(4, tokens=64, seqs=8, blocks=100, length=1000)
    plan = make_plan(batch, limits)
    assert plan.computed_tokens.sum() == sum(len(s.token_ids) for s in steps(batch, plan, limits))
    needed = np.zeros(batch.num_contexts, dtype=np.int64)
    for i, owner in enumerate(batch.continuation_context):
        if i not in plan.leftover:
            needed[owner] += len(batch.context(int(owner))) + len(batch.continuation(i)) - 1
    assert (plan.computed_tokens + plan.cached_tokens == needed).all()


def test_shared_shots_are_forwarded_once_even_across_steps() -> None:
    rng = np.random.default_rng(0)
    shots = rng.integers(0, 9, 400).tolist()
    batch = ScoreBatch.from_lists(
        [([*shots, *rng.integers(0, 9, 20)], [[1], [2]]) for _ in range(50)]
    )
    limits = Limits(16, tokens=512, seqs=64, blocks=200, length=1000)
    plan = make_plan(batch, limits)
    assert len(list(steps(batch, plan, limits))) > 1
    assert plan.computed_tokens.sum() <= 400 + 50 * (20 + 16)
    assert replay(batch, plan, limits) == wanted(batch, set())


def test_a_group_larger_than_a_step_is_split() -> None:
    rng = np.random.default_rng(1)
    choices = [rng.integers(0, 9, 7).tolist() for _ in range(40)]
    batch = ScoreBatch.from_lists([(rng.integers(0, 9, 21).tolist(), choices)])
    limits = Limits(4, tokens=40, seqs=3, blocks=16, length=100)
    plan = make_plan(batch, limits)
    assert not plan.leftover
    assert replay(batch, plan, limits) == wanted(batch, set())


def test_what_fits_no_step_is_left_over_and_nothing_else() -> None:
    batch = ScoreBatch.from_lists([([1] * 30, [[2, 3]]), ([1] * 5, [[2], [2] * 40, [3, 3]])])
    limits = Limits(4, tokens=20, seqs=4, blocks=30, length=100)
    plan = make_plan(batch, limits)
    assert plan.leftover == [2, 0] or sorted(plan.leftover) == [0, 2]
    assert replay(batch, plan, limits) == wanted(batch, {0, 2})


def test_sort_and_common_prefix() -> None:
    batch = ScoreBatch.from_lists(
        [([300], [[1]]), ([2, 70000], [[1]]), ([2], [[1]]), ([2, 5], [[1]])]
    )
    assert sort_contexts(batch) == [2, 3, 1, 0]
    assert common_prefix(np.array([1, 2, 3]), np.array([1, 2, 4])) == 2
    assert common_prefix(np.array([1, 2]), np.array([1, 2, 4])) == 2
    assert common_prefix(np.array([1]), np.array([2])) == 0

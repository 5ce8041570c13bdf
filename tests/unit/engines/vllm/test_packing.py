"""The packed plan, executed symbolically: every row must see exactly its own prefix."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evalcore.engines.text import finish
from evalcore.engines.vllm.growth import Growth, with_generations
from evalcore.engines.vllm.packing import (
    Limits,
    Steps,
    make_plan,
    sort_contexts,
)
from evalcore.planning import token_limit
from evalcore.types import GenerateBatch, GenerationSettings, ScoreBatch, flatten
from tests.unit.engines.vllm.replaying import follow, random_batch, replay, wanted


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


def test_every_distinct_position_is_forwarded_once() -> None:
    """Computed tokens are the token limit, whatever the limits of steps and cache."""
    for seed, blocks in ((5, 20), (6, 40), (7, 400)):
        batch = random_batch(seed, 80)
        limits = Limits(4, tokens=64, seqs=8, blocks=blocks, length=1000)
        plan = make_plan(batch, limits)
        assert not plan.leftover
        forwarded = sum(len(s.token_ids) for s in Steps(batch, plan, limits))
        assert plan.computed_tokens.sum() == forwarded == token_limit([batch])
        needed = np.zeros(batch.num_contexts, dtype=np.int64)
        for i, owner in enumerate(batch.continuation_context):
            needed[owner] += len(batch.context(int(owner))) + len(batch.continuation(i)) - 1
        assert (plan.computed_tokens + plan.cached_tokens == needed).all()
        assert (plan.cached_tokens >= 0).all()


def paths(batch: ScoreBatch) -> set[tuple[int, ...]]:
    """The obviously right tree: every distinct prefix that is needed."""
    return {
        (*batch.context(int(owner)).tolist(), *batch.continuation(i).tolist())[:n]
        for i, owner in enumerate(batch.continuation_context)
        for n in range(1, len(batch.context(int(owner))) + len(batch.continuation(i)))
    }


TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=9)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(TOKENS, st.lists(TOKENS, max_size=4)), max_size=8),
    st.integers(1, 4), st.integers(1, 12), st.integers(1, 5), st.integers(1, 40),
)  # fmt: skip
def test_any_tree_under_any_limits(
    items: list, block_size: int, tokens: int, seqs: int, blocks: int
) -> None:
    batch = ScoreBatch.from_lists(items)
    limits = Limits(block_size, tokens=tokens, seqs=seqs, blocks=blocks, length=14)
    plan = make_plan(batch, limits)
    assert replay(batch, plan, limits) == wanted(batch, set(plan.leftover))
    kept = ScoreBatch.from_lists(
        [
            (
                batch.context(int(batch.continuation_context[i])).tolist(),
                [batch.continuation(i).tolist()],
            )
            for i in range(batch.num_continuations)
            if i not in plan.leftover
        ]
    )
    assert plan.computed_tokens.sum() == token_limit([kept]) == len(paths(kept))
    if blocks == 40:  # room for everything but what is too long
        assert all(
            len(batch.context(int(batch.continuation_context[i]))) + len(batch.continuation(i)) > 15
            for i in plan.leftover
        )


class Digits:
    """A tokenizer of one character per id."""

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return "".join(map(str, ids))


GENERATIONS = st.lists(
    st.tuples(
        st.lists(TOKENS, max_size=4),
        st.builds(GenerationSettings, st.integers(1, 6), st.sampled_from([(), ("12",), ("0",)])),
    ),
    max_size=2,
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(TOKENS, st.lists(TOKENS, max_size=3)), max_size=5), GENERATIONS,
    st.integers(1, 4), st.integers(1, 12), st.integers(1, 5), st.integers(28, 60),
)  # fmt: skip
def test_generations_grow_in_the_same_tree(
    items: list, asked: list, block_size: int, tokens: int, seqs: int, blocks: int
) -> None:
    score = ScoreBatch.from_lists(items)
    generations = [GenerateBatch(*flatten(contexts), how) for contexts, how in asked]
    batch = with_generations(score, generations)
    growth = Growth.of(generations, Digits(), [])
    limits = Limits(block_size, tokens=tokens, seqs=seqs, blocks=blocks, length=20)
    plan = make_plan(batch, limits, len(growth.settings))
    assert not plan.leftover
    seen = replay(batch, plan, limits, growth)
    assert {k: v for k, v in seen.items() if k < len(score.continuation_tokens)} == wanted(
        score, set()
    )
    assert plan.computed_tokens.sum() == token_limit([score, *generations])
    results = growth.results(generations, plan.computed_tokens, plan.cached_tokens)
    for result, (contexts, how) in zip(results, asked, strict=True):
        for i, context in enumerate(contexts):
            ids: list[int] = []
            while len(ids) < how.max_tokens:
                ids.append(follow((*context, *ids)))
            ending = finish(ids, Digits(), [], how)
            assert (result.texts[i], result.token_counts[i]) == (ending.text, ending.token_count)


def test_shared_shots_are_forwarded_once_and_steps_are_full() -> None:
    rng = np.random.default_rng(0)
    shots = rng.integers(0, 9, 401).tolist()
    batch = ScoreBatch.from_lists(
        [
            ([*shots, *rng.integers(0, 9, 20)], [rng.integers(0, 9, 4).tolist() for _ in range(4)])
            for _ in range(200)
        ]
    )
    limits = Limits(16, tokens=512, seqs=64, blocks=400, length=1000)
    plan = make_plan(batch, limits)
    assert plan.computed_tokens.sum() == token_limit([batch])
    assert replay(batch, plan, limits) == wanted(batch, set())
    made = list(Steps(batch, plan, limits))
    least = max(
        sum(len(s.token_ids) for s in made) / limits.tokens,
        sum(len(s.query_lens) for s in made) / limits.seqs,
    )
    assert len(made) <= least + 8


def test_a_branch_longer_than_a_step_takes_several() -> None:
    rng = np.random.default_rng(1)
    choices = [rng.integers(0, 9, 7).tolist() for _ in range(40)]
    batch = ScoreBatch.from_lists([(rng.integers(0, 9, 121).tolist(), choices)])
    limits = Limits(4, tokens=40, seqs=3, blocks=50, length=130)
    plan = make_plan(batch, limits)
    assert not plan.leftover
    assert replay(batch, plan, limits) == wanted(batch, set())


def test_what_does_not_fit_is_left_over_and_nothing_else() -> None:
    batch = ScoreBatch.from_lists([([1] * 50, [[2, 3]]), ([1] * 5, [[2], [2] * 40, [3, 3]])])
    for limits in (Limits(4, 20, 4, blocks=10, length=1000), Limits(4, 20, 4, 50, length=40)):
        plan = make_plan(batch, limits)
        assert sorted(plan.leftover) == [0, 2]
        assert replay(batch, plan, limits) == wanted(batch, {0, 2})


def test_sort_contexts() -> None:
    batch = ScoreBatch.from_lists(
        [([300], [[1]]), ([2, 70000], [[1]]), ([2], [[1]]), ([2, 5], [[1]])]
    )
    assert sort_contexts(batch) == [2, 3, 1, 0]

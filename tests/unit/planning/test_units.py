"""Units, shards and the queue: nothing lost, nothing twice, weights moved as little as possible."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evalcore.errors import InputError
from evalcore.planning import (
    Plan,
    PlannedCell,
    Unit,
    WorkQueue,
    estimate_seconds,
    plan_units,
    shard,
)
from evalcore.planning.sharding import balanced_bounds, unit_cost
from evalcore.store.coverage import Coverage, SegmentCoverage
from tests.toys.grids import make_cell, make_grid, make_subject, ranked


def pairs(units: list[Unit] | tuple[Unit, ...], grid: list[PlannedCell]) -> Counter:
    doc_ids = {planned.cell.key: planned.doc_ids for planned in grid}
    return Counter(
        (part.cell_key, doc_ids[part.cell_key][row])
        for unit in units
        for part in unit.slices
        for row in part.rows.tolist()
    )


def everything(grid: list[PlannedCell]) -> set[tuple[str, str]]:
    return {(planned.cell.key, doc_id) for planned in grid for doc_id in planned.doc_ids}


GRIDS = st.builds(
    make_grid, st.integers(1, 4), st.integers(0, 3), st.integers(1, 3), st.integers(1, 9)
)


@st.composite
def grid_and_covered(draw: st.DrawFn) -> tuple[list[PlannedCell], dict[str, set[str]]]:
    grid = draw(GRIDS)
    seed = draw(st.integers(0, 2**32))
    share = draw(st.sampled_from([0.0, 0.3, 0.9, 1.0]))
    rng = random.Random(seed)
    covered: dict[str, set[str]] = {"cell of another run": {"x"}}
    for planned in grid:
        have = {doc_id for doc_id in planned.doc_ids if rng.random() < share}
        if have:
            covered[planned.cell.key] = have | {"a document no longer planned"}
    return grid, covered


def as_coverage(covered: dict[str, set[str]]) -> Coverage:
    doc_ids = sorted({doc_id for have in covered.values() for doc_id in have})
    sets = [
        np.array([doc_ids.index(doc_id) for doc_id in sorted(have)], dtype=np.int32)
        for have in covered.values()
    ]
    numbers = tuple(range(len(sets)))
    return Coverage([SegmentCoverage(tuple(covered), numbers, tuple(sets), tuple(doc_ids))])


@settings(max_examples=150, deadline=None)
@given(grid_and_covered(), st.integers(1, 12), st.none() | st.integers(1, 60))
def test_units_are_exactly_what_is_not_covered(
    case: tuple, max_examples: int, max_tokens: int | None
) -> None:
    grid, covered = case
    limits = {"max_examples_per_unit": max_examples, "max_prompt_tokens_per_unit": max_tokens}
    plan = plan_units(grid, covered, **limits)  # type: ignore[arg-type]
    left = {pair for pair in everything(grid) if pair[1] not in covered.get(pair[0], ())}
    assert pairs(plan.units, grid) == Counter(left)

    costs = {
        (planned.cell.key, doc_id): cost
        for planned in grid
        for doc_id, cost in zip(planned.doc_ids, planned.costs.tolist(), strict=True)
    }
    for unit in plan.units:
        held = pairs([unit], grid)
        assert unit.num_examples == held.total() <= max_examples
        assert unit.prompt_tokens == sum(costs[pair] for pair in held)
        assert max_tokens is None or unit.prompt_tokens <= max_tokens or unit.num_examples == 1
        assert all(plan.cells[part.cell_key].subject.id == unit.subject.id for part in unit.slices)
        assert all(len(part.rows) for part in unit.slices)
    assert len({unit.id for unit in plan.units}) == len(plan.units)

    counts = plan.counts
    assert counts.examples_planned == len(left)
    assert counts.examples_covered == len(everything(grid)) - len(left)
    assert counts.prompt_tokens == sum(costs[pair] for pair in left)
    assert counts.cells == len(grid)
    assert counts.cells_planned == len({cell for cell, _ in left})
    assert counts.model_loads == counts.subjects == len({u.subject.id for u in plan.units})

    fast = plan_units(grid, as_coverage(covered), **limits)  # type: ignore[arg-type]
    assert [unit.id for unit in fast.units] == [unit.id for unit in plan.units]


def test_order_is_checkpoint_then_base_then_adapters() -> None:
    grid = make_grid(checkpoints=2, adapters=2, tasks=2, docs=5)
    grid = grid[::-1]  # adapters first, last checkpoint first
    plan = plan_units(grid, {}, max_examples_per_unit=4)
    subjects = list(dict.fromkeys(unit.subject.label for unit in plan.units))
    assert subjects == [
        *("step-1", "step-1 + a1.1", "step-1 + a1.0"),
        *("step-0", "step-0 + a0.1", "step-0 + a0.0"),
    ]
    # 10 rows of a subject in units of at most 4: cut evenly, spanning its two cells.
    assert [unit.num_examples for unit in plan.units[:3]] == [4, 4, 2]
    assert [len(part.rows) for part in plan.units[1].slices] == [1, 3]
    assert plan.counts.model_loads == 6


def test_repeated_cells_and_documents_are_planned_once() -> None:
    planned = make_cell(make_subject(0), 0, ["a", "b", "a"], [5, 6, 5])
    plan = plan_units([planned, dataclasses.replace(planned)], {}, max_examples_per_unit=9)
    assert [part.rows.tolist() for unit in plan.units for part in unit.slices] == [[0, 1]]
    other = dataclasses.replace(planned, doc_ids=["a", "b", "c"])
    with pytest.raises(InputError, match="planned twice"):
        plan_units([planned, other], {})


def test_wrong_limits_are_refused() -> None:
    grid = make_grid(1, 0, 1, 2)
    with pytest.raises(InputError, match="at least 1"):
        plan_units(grid, {}, max_examples_per_unit=0)
    with pytest.raises(InputError, match="0/2 to 1/2"):
        plan_units(grid, {}, shard=(2, 2))
    with pytest.raises(InputError, match="costs for"):
        plan_units([dataclasses.replace(grid[0], costs=np.zeros(5, dtype=np.int64))], {})


# Shards -------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(GRIDS, st.integers(1, 5), st.integers(1, 9))
def test_shards_are_a_partition(grid: list[PlannedCell], max_examples: int, n: int) -> None:
    plan = plan_units(grid, {}, max_examples_per_unit=max_examples)
    parts = [shard(plan, i, n) for i in range(n)]
    assert [unit.id for part in parts for unit in part.units] == [unit.id for unit in plan.units]

    subjects = list(dict.fromkeys(unit.subject.id for unit in plan.units))
    whole = len(subjects) >= n
    if whole:
        held = Counter(s for part in parts for s in {unit.subject.id for unit in part.units})
        assert set(held.values()) == {1}
        assert all(part.units for part in parts)
    costs = [sum(map(unit_cost, part.units)) for part in parts]
    items = Counter()
    for unit in plan.units:
        items[unit.subject.id if whole else unit.id] += unit_cost(unit)
    assert max(costs) <= sum(costs) / n + max(items.values())
    assert sum(part.counts.prompt_tokens for part in parts) == plan.counts.prompt_tokens


@settings(max_examples=100, deadline=None)
@given(grid_and_covered(), st.integers(1, 5), st.integers(0, 2**32))
def test_array_jobs_that_start_late_leave_no_gap(case: tuple, n: int, seed: int) -> None:
    """Each job plans when the jobs before it have committed: together still everything, once."""
    grid, covered = case
    committed = {key: set(have) for key, have in covered.items()}
    done: Counter = Counter()
    order = list(range(n))
    random.Random(seed).shuffle(order)
    for i in order:
        plan = plan_units(grid, committed, max_examples_per_unit=3, shard=(i, n))
        mine = pairs(plan.units, grid)
        done += mine
        for key, doc_id in mine:
            committed.setdefault(key, set()).add(doc_id)
    left = {pair for pair in everything(grid) if pair[1] not in covered.get(pair[0], ())}
    assert done == Counter(left)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 20), max_size=7), st.integers(1, 4))
def test_bounds_are_the_best_there_are(costs: list[int], n: int) -> None:
    bounds = balanced_bounds(costs, n)
    assert bounds[0] == 0
    assert bounds[-1] == len(costs)
    assert bounds == sorted(bounds)
    assert len(bounds) == n + 1
    largest = max(sum(costs[a:b]) for a, b in itertools.pairwise(bounds))

    def best(start: int, parts: int) -> int:
        if parts == 1:
            return sum(costs[start:])
        return min(
            max(sum(costs[start:cut]), best(cut, parts - 1)) for cut in range(start, len(costs) + 1)
        )

    assert largest == best(0, n)


# Queue --------------------------------------------------------------------------------------------


def run_queue(plan: Plan, workers: int, seed: int, lose: float = 0.0) -> list[list[Unit]]:
    """Workers ask in a random order; some units come back unfinished."""
    queue = WorkQueue(plan)
    rng = random.Random(seed)
    done: list[list[Unit]] = [[] for _ in range(workers)]
    while len(queue):
        worker = rng.randrange(workers)
        unit = queue.next(worker)
        assert unit is not None
        if rng.random() < lose:
            queue.requeue(unit)
            queue.release(worker)
        else:
            done[worker].append(unit)
    assert all(queue.next(worker) is None for worker in range(workers))
    return done


@settings(max_examples=100, deadline=None)
@given(GRIDS, st.integers(1, 7), st.integers(0, 2**32), st.sampled_from([0.0, 0.3]))
def test_queue_hands_out_each_unit_once(
    grid: list[PlannedCell], workers: int, seed: int, lose: float
) -> None:
    plan = plan_units(grid, {}, max_examples_per_unit=2)
    done = run_queue(plan, workers, seed, lose)
    ids = [unit.id for units in done for unit in units]
    assert sorted(ids) == sorted(unit.id for unit in plan.units)
    again = run_queue(plan, workers, seed, lose)
    assert [[unit.id for unit in units] for units in again] == [
        [unit.id for unit in units] for units in done
    ]


def test_one_worker_gets_plan_order() -> None:
    plan = plan_units(make_grid(3, 2, 2, 6), {}, max_examples_per_unit=5)
    (order,) = run_queue(plan, 1, seed=0)
    assert [unit.id for unit in order] == [unit.id for unit in plan.units]


def round_robin(plan: Plan, workers: int) -> list[list[str]]:
    """Subject labels each worker goes through when all are equally fast, repeats left out."""
    queue = WorkQueue(plan)
    seen: list[list[str]] = [[] for _ in range(workers)]
    while len(queue):
        for worker in range(workers):
            unit = queue.next(worker)
            if unit is not None and seen[worker][-1:] != [unit.subject.label]:
                seen[worker].append(unit.subject.label)
    return seen


def test_workers_keep_to_their_checkpoint() -> None:
    plan = plan_units(make_grid(2, 2, 1, 8), {}, max_examples_per_unit=2)
    assert round_robin(plan, 2) == [
        ["step-0", "step-0 + a0.0", "step-0 + a0.1"],
        ["step-1", "step-1 + a1.0", "step-1 + a1.1"],
    ]


def test_more_workers_than_checkpoints_split_by_subject() -> None:
    plan = plan_units(make_grid(1, 3, 1, 8), {}, max_examples_per_unit=2)
    assert round_robin(plan, 4) == [
        ["step-0"],
        ["step-0 + a0.0"],
        ["step-0 + a0.1"],
        ["step-0 + a0.2"],
    ]


def test_a_helper_takes_the_end_of_the_last_subject() -> None:
    plan = plan_units(make_grid(1, 0, 1, 12), {}, max_examples_per_unit=2)
    queue = WorkQueue(plan)
    ids = [unit.id for unit in plan.units]
    order = [queue.next(worker).id for worker in (0, 1, 1, 0, 1, 0)]  # type: ignore[union-attr]
    assert order == [ids[0], ids[5], ids[4], ids[1], ids[3], ids[2]]
    assert queue.next(0) is None
    queue.requeue(plan.units[3])
    assert queue.next(1).id == ids[3]  # type: ignore[union-attr]


def test_estimate() -> None:
    assert estimate_seconds(1000, 100.0) == 10.0
    assert estimate_seconds(1000, 100.0, model_loads=4, load_s=2.5, workers=2) == 10.0
    with pytest.raises(InputError, match="positive rate"):
        estimate_seconds(1000, 0.0)


def test_ranked_rows_of_all_cells_are_cut_as_neighbours() -> None:
    subject, docs = make_subject(0), ["d0", "d1", "d2", "d3"]
    first, second = (make_cell(subject, task, docs, [5] * 4) for task in (0, 1))
    ranked = [
        dataclasses.replace(first, ranks=np.array([0, 4, 2, 6])),
        dataclasses.replace(second, ranks=np.array([6, 0, 4, 2])),
    ]
    plan = plan_units(ranked, {}, max_examples_per_unit=4)
    rows = [[(part.cell_key, part.rows.tolist()) for part in unit.slices] for unit in plan.units]
    a, b = first.cell.key, second.cell.key
    assert rows == [[(a, [0, 2]), (b, [1, 3])], [(a, [1, 3]), (b, [0, 2])]]
    parts = [plan_units(ranked, {}, max_examples_per_unit=4, shard=(i, 2)) for i in range(2)]
    assert [unit.id for part in parts for unit in part.units] == [unit.id for unit in plan.units]


@settings(max_examples=100, deadline=None)
@given(grid_and_covered(), st.integers(1, 12), st.integers(1, 4), st.integers(0, 2**16))
def test_siblings_share_units_and_nothing_is_lost(
    case: tuple, max_examples: int, most: int, seed: int
) -> None:
    grid, covered = case
    rng = random.Random(seed)
    adapters = {p.cell.subject.id for p in grid if p.cell.subject.adapter is not None}
    beside = {i for i in sorted(adapters) if rng.random() < 0.7}
    plan = plan_units(
        ranked(grid), covered, max_examples_per_unit=max_examples, beside=beside, most_together=most
    )
    left = {pair for pair in everything(grid) if pair[1] not in covered.get(pair[0], ())}
    assert pairs(plan.units, grid) == Counter(left)
    for unit in plan.units:
        assert unit.num_examples <= max_examples
        assert len(unit.subjects) <= most
        assert len({subject.checkpoint.fingerprint for subject in unit.subjects}) == 1
        if unit.siblings:
            assert {subject.id for subject in unit.subjects} <= beside
        for part in unit.slices:
            assert plan.cells[part.cell_key].subject == unit.subjects[part.member]
        alone = unit.apart()
        assert pairs(alone, grid) == pairs([unit], grid)
        assert all(not one.siblings and {p.member for p in one.slices} == {0} for one in alone)


def test_siblings_ask_the_same_in_a_unit_and_merged_ones_come_last() -> None:
    grid = ranked(make_grid(2, 4, 2, 8))
    beside = {f"c{c}+a{c}.{a}" for c in (0, 1) for a in (0, 1, 3)}
    beside &= {planned.cell.subject.id for planned in grid}
    assert len(beside) == 6
    plan = plan_units(grid, {}, max_examples_per_unit=24, beside=beside, most_together=8)
    assert [unit.label for unit in plan.units] == [
        "step-0", f"{labels(grid, 'c0', 0)} +2 adapters", f"{labels(grid, 'c0', 0)} +2 adapters",
        labels(grid, "c0", 2),
        "step-1", f"{labels(grid, 'c1', 0)} +2 adapters", f"{labels(grid, 'c1', 0)} +2 adapters",
        labels(grid, "c1", 2),
    ]  # fmt: skip
    for unit in plan.units:
        asked: dict[int, set] = {i: set() for i in unit.members}
        for part in unit.slices:
            asked[part.member] |= {(part.requests_path, row) for row in part.rows.tolist()}
        assert all(rows == asked[unit.members[0]] for rows in asked.values())
    assert plan.counts.subjects == 10
    assert plan.counts.model_loads == 6


def labels(grid: list[PlannedCell], checkpoint: str, adapter: int) -> str:
    name = f"a{checkpoint[1:]}.{adapter}"
    found = {
        p.cell.subject.label
        for p in grid
        if p.cell.subject.adapter is not None and p.cell.subject.adapter.name == name
    }
    return found.pop()

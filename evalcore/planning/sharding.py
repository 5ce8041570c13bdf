"""One of n parts of a plan, for array jobs without a common driver."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from evalcore.errors import InputError

if TYPE_CHECKING:
    from evalcore.planning.unit import Unit


def pick_shard(units: Sequence[Unit], i: int, n: int) -> list[Unit]:
    """The i-th of n parts (from 0): neighbours in order, the dearest part as cheap as can be.

    Subjects stay whole while there are at least n of them, so each is loaded by one part only;
    otherwise parts are cut between units. All parts together are the units, without overlap.

    Raises:
        InputError: Not 0 <= i < n.
    """
    check_shard(i, n)
    subjects: dict[str, list[Unit]] = {}
    for unit in units:
        subjects.setdefault(unit.subject.id, []).append(unit)
    groups = list(subjects.values())
    if len(groups) < n:
        groups = [[unit] for unit in units]
    costs = [sum(unit_cost(unit) for unit in group) for group in groups]
    bounds = balanced_bounds(costs, n)
    return [unit for group in groups[bounds[i] : bounds[i + 1]] for unit in group]


def check_shard(i: int, n: int) -> None:
    """Raises InputError unless 0 <= i < n."""
    if not 0 <= i < n:
        raise InputError(f"shard {i}/{n} does not exist; shards of {n} are 0/{n} to {n - 1}/{n}")


def unit_cost(unit: Unit) -> int:
    """Work of a unit in prompt tokens; one more per example, so that no unit is free."""
    return unit.prompt_tokens + unit.num_examples


def balanced_bounds(costs: Sequence[int], n: int) -> list[int]:
    """Cuts a row of items into n neighbouring parts with the smallest largest sum.

    Args:
        costs: Positive costs.
        n: Number of parts.

    Returns:
        n + 1 bounds; part k is ``[bounds[k], bounds[k + 1])``. No part is empty when there are at
        least n items.
    """
    low, high = max(costs, default=0), sum(costs)
    while low < high:  # smallest cap with which n parts suffice
        cap = (low + high) // 2
        if len(_fill(costs, cap, n, spread=False)) <= n:
            high = cap
        else:
            low = cap + 1
    starts = _fill(costs, low, n, spread=True)
    return starts + [len(costs)] * (n + 1 - len(starts))


def _fill(costs: Sequence[int], cap: int, n: int, *, spread: bool) -> list[int]:
    """Starts of parts when each takes items until ``cap``; ``spread`` leaves one for each part."""
    starts: list[int] = []
    total = 0
    for k, cost in enumerate(costs):
        # As many items as parts are left to begin: each item begins one.
        must = spread and len(costs) - k <= n - len(starts)
        if not starts or total + cost > cap or must:
            starts.append(k)
            total = 0
        total += cost
    return starts

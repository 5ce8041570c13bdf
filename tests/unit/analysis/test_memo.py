"""What was computed comes back from a file bit for bit, each estimate once."""

from __future__ import annotations

import struct
from dataclasses import fields
from typing import Any

import numpy as np
import pytest

from evalcore.analysis.estimates import estimate_of_table, mean_of_estimates, with_p
from evalcore.analysis.memo import KEPT_SCHEMA, Kept, Memo, written
from evalcore.analysis.stats import EMPTY, Estimate


def estimates() -> dict[str, Estimate]:
    """Of every kind: with and without bounds, prompts, seeds, an interval."""
    rng = np.random.default_rng(5)
    docs = np.arange(40)
    found = {
        f"{prompts} {seeds} {bounds}": with_p(
            estimate_of_table(
                (rng.random((40, prompts, seeds)) < 0.7).astype(np.float64), docs, bounds
            )
        )
        for prompts in (1, 3) for seeds in (1, 2) for bounds in (None, (0.0, 1.0), (-1.0, 1.0))
    }  # fmt: skip
    found["one document"] = estimate_of_table(np.ones((1, 2, 1)), docs[:1], (0.0, 1.0))
    found["all alike"] = estimate_of_table(np.zeros((40, 1, 1)), docs, None)
    return found


def bits(estimate: Estimate) -> list[Any]:
    values = [getattr(estimate, f.name) for f in fields(estimate)][:-1]
    limits = [None] if estimate.limits is None else [*estimate.limits(0.8), *estimate.limits(0.999)]
    return [
        struct.pack("<d", v) if isinstance(v, float) else bits(v) if isinstance(v, Estimate) else v
        for v in (*values, *limits)
    ]


def test_estimates_come_back_bit_for_bit() -> None:
    given = estimates()
    assert len({e.claim for e in given.values()}) == 5, "every claim, and none"
    results = {name: {"one": e, "more": [e, EMPTY], "n": 3} for name, e in given.items()}
    kept = Kept([written(results)])
    assert set(kept) == set(results)
    for name, estimate in given.items():
        found = kept[name]
        assert bits(found["one"]) == bits(estimate), name
        assert found["more"][0] is found["one"], "one row, one object"
        assert found["more"][1] is EMPTY
        assert found["n"] == 3


def test_a_shared_estimate_is_one_row() -> None:
    (estimate,) = [e for e in estimates().values() if e.seeds > 1][:1]
    rows = 1 + (estimate.documents is not None)
    table = written({str(n): {"e": estimate} for n in range(7)})
    assert table.schema == KEPT_SCHEMA
    assert table.num_rows == rows + 7


def test_what_was_kept_is_kept_again() -> None:
    first = Memo()
    given = estimates()
    for name, estimate in given.items():
        first.get((name,), lambda e=estimate: {"e": e})  # type: ignore[misc]

    def never() -> Any:
        raise AssertionError("computed again")

    second = Memo(known=Kept([first.table(everything=False)]))
    names = list(given)[:5]
    for name in names:
        second.get((name,), never)
    second.get(("new",), lambda: {"e": EMPTY})
    assert len(Kept([second.table(everything=False)])) == 1
    third = Memo(known=Kept([second.table(everything=True)]))
    for name in names:
        assert bits(third.get((name,), never)["e"]) == bits(given[name])


def test_a_mean_over_tasks_is_refused() -> None:
    with pytest.raises(TypeError, match="intervals of a layout"):
        written({"mean": {"e": mean_of_estimates(list(estimates().values())[:2])}})


def test_what_is_forgotten_is_not_kept_and_made_anew() -> None:
    memo, made = Memo(), iter(range(9))
    for n in range(2):
        assert memo.get(("documents", 1), lambda: {"n": next(made)}) == {"n": n}
        memo.forget(("documents", 1))
    assert memo.get(("documents", 2), lambda: {"n": 7}) == {"n": 7}
    assert memo.table(everything=True).num_rows == 1

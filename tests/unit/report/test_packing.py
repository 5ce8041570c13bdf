"""What is packed into the page comes out as it went in."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evalcore.report.packing import pack, unpack

NUMBERS = st.one_of(st.none(), st.integers(-1000, 10**6))
DECIMALS = st.one_of(st.none(), st.floats(-500, 500, allow_nan=False).map(lambda v: round(v, 4)))
TEXTS = st.one_of(st.none(), st.booleans(), st.text(max_size=4), st.lists(st.text(max_size=2)))
ROWS = st.lists(
    st.fixed_dictionaries({"count": NUMBERS, "score": DECIMALS, "name": TEXTS}), max_size=30
)


@given(ROWS, st.dictionaries(st.text(max_size=3), st.text(max_size=5)))
@settings(max_examples=150, deadline=None)
def test_rows_come_back(rows: list[dict[str, Any]], about: dict[str, str]) -> None:
    text = pack({"about": about}, {"rows": rows})
    assert re.fullmatch(r"[A-Za-z0-9+/=]+", text), "nothing in it can end its element"
    head, found = unpack(text)
    assert head["about"] == {k: v.encode("utf-8", "replace").decode() for k, v in about.items()}
    assert len(found["rows"]) == len(rows)
    for one, two in zip(found["rows"], rows, strict=True):
        assert one["count"] == two["count"]
        assert one["score"] == (None if two["score"] is None else pytest.approx(two["score"]))
        assert one["name"] == two["name"]


def test_odd_columns() -> None:
    rows: list[dict[str, Any]] = [
        {"large": 2**40, "none": None, "nan": float("nan"), "mixed": 1, "fine": 1 / 3},
        {"large": -(2**40), "none": None, "nan": 0.5, "mixed": "a", "late": True},
    ]
    _, found = unpack(pack({}, {"rows": rows, "empty": []}))
    one, two = found["rows"]
    assert found["empty"] == []
    assert (one["large"], two["large"]) == (2**40, -(2**40))
    assert (one["none"], one["nan"], two["nan"]) == (None, None, 0.5)
    assert (one["mixed"], two["mixed"], one["late"], two["late"]) == (1, "a", None, True)
    assert one["fine"] == pytest.approx(1 / 3, abs=1e-6)


def test_the_same_rows_are_the_same_bytes() -> None:
    rows = [{"score": n / 7, "name": f"n{n % 3}"} for n in range(1000)]
    assert pack({}, {"rows": rows}) == pack({}, {"rows": rows})
    assert len(pack({}, {"rows": rows})) < len(json.dumps(rows)) / 3

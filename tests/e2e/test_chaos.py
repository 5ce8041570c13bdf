"""Random strikes, each resumed with other numbers: a few trials of bench.chaos."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.chaos import differences, run, unaccounted
from bench.strikes import ENGINES


@pytest.mark.slow
def test_runs_that_are_struck_and_resumed_end_as_undisturbed_ones(tmp_path: Path) -> None:
    """One trial of one strike with a stub engine; others are in test_kill.py, with real ones."""
    for _ in range(2):
        assert run(tmp_path, range(1), minutes=20, deeds=("both",), most_strikes=1) == 0
    lines = [json.loads(line) for line in (tmp_path / "chaos.jsonl").read_text().splitlines()]
    assert [line["seed"] for line in lines] == [0], "none is done again"
    assert [strike["struck"] for strike in lines[0]["strikes"]] == [True]


@pytest.mark.proof
@pytest.mark.parametrize("engine", ["stub", "hf"])
def test_each_strike(tmp_path: Path, engine: str) -> None:
    seeds = range(1000, 1000 + len(ENGINES[engine]))
    assert run(tmp_path, seeds, minutes=20, engine=engine, most_strikes=1) == 0
    lines = [json.loads(line) for line in (tmp_path / "chaos.jsonl").read_text().splitlines()]
    assert [line["seed"] for line in lines] == [*seeds]
    assert {line["strikes"][0]["deed"] for line in lines} == {*ENGINES[engine]}
    assert any(strike["struck"] for line in lines for strike in line["strikes"])


def test_tokens_that_were_computed_twice_are_seen() -> None:
    rows = {i: {"computed_tokens": 10} for i in range(4)}
    told = [{"event": "worker", "state": "starting"}] * 2
    strike = {"deed": "worker", "unit": 2, "struck": True}

    def wrong(found: dict, again: int, *, alike: bool = True) -> int:
        line = {"strikes": [strike], "rows_again": again, "longest_commit": 2}
        return len(unaccounted(line, told, rows, found, units_alike=alike))

    assert wrong(rows, 2) == 0
    assert wrong(rows, 3) == 1, "more than the unit at hand is on disk twice"
    more = {i: {"computed_tokens": 13} for i in range(4)}
    assert wrong(more, 0) == 1, "more than a prefix per process started again"
    assert wrong(more, 0, alike=False) == 0


def test_differences_are_seen() -> None:
    row = {"choice_logprobs": [-1.0, -2.0], "prediction": 0, "text": None}
    assert differences({"a": row}, {"a": row}) == []
    assert differences({"a": row}, {}) == ["keys: 1 differ"]
    assert differences({"a": row}, {"a": row | {"prediction": 1}}) == ["a: prediction 0 is 1"]
    assert len(differences({"a": row}, {"a": row | {"choice_logprobs": [-1.001, -2.0]}})) == 1
    tie = {"choice_logprobs": [-1.0, -1.00001], "prediction": 0, "text": None}
    assert differences({"a": tie}, {"a": tie | {"prediction": 1}}) == []

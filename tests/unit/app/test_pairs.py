"""Scores from drawn pairs say what is odd about the pairs, in the table, the file and the API.

The estimates themselves are tested elsewhere: chains are short here, and pages have no charts.
"""

from __future__ import annotations

import csv
import logging
import re
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import evalcore
from evalcore.analysis import prompteval
from evalcore.app.pairs import draw, prompt_scores
from evalcore.app.report import report
from evalcore.planning import PlannedCell
from evalcore.report import html, prompt_score_lines
from evalcore.report.packing import unpack
from evalcore.types import Cell, Task, Variant
from tests.toys.filled import fill
from tests.toys.grids import make_subject
from tests.toys.tables import cell_rows, subject_columns, task_columns, to_table

NLI, QA = task_columns("nli"), task_columns("qa")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompteval, "SWEEPS", 60)
    monkeypatch.setattr(prompteval, "WARM_UP", 20)
    monkeypatch.setattr(html, "write_pictures", lambda *_: [])
    monkeypatch.setattr(html, "all_figures", lambda *_: [])
    monkeypatch.setattr(html, "vega_script", lambda: "")


def test_notes_stand_where_the_scores_do(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = cell_rows(subject_columns(100), QA, "default", rng.random(8) < 0.5)
    for n in range(12):
        drawn = cell_rows(subject_columns(100), NLI, f"prompt-{n:02d}", rng.random(6 + n % 2) < 0.5)
        for row in drawn:  # one answer, whatever is asked
            row["prediction"] = 0
            row["choice_logprobs"] = [-1.0, *[-9.0] * (len(row["choice_logprobs"]) - 1)]
        rows += drawn
        rows += cell_rows(subject_columns(200), NLI, f"prompt-{n:02d}", rng.random(6) < 0.5)
    store = fill(tmp_path / "results", to_table(rows))
    how = {"prompts": 12, "documents": 40, "budget": 0.1, "seed": 0}
    store.mark_sampled({r["cell"]: how for r in rows if r["task"] == "nli"})
    flat, plain = prompt_scores(store)
    flat_note = "one answer for nearly all documents"
    assert flat_note in flat.notes
    assert flat_note not in plain.notes
    assert not any("under" in note or "other numbers" in note for note in flat.notes)
    lines = prompt_score_lines([flat, plain])
    assert any(flat_note in line for line in lines)
    assert max(map(len, lines)) <= 130
    page = report(store.path, tmp_path / "report", title="t").page.read_text()
    packed = re.search(r'id="data">(.*?)</script>', page)
    assert packed is not None
    (table,) = [t for t in unpack(packed[1])[0]["tables"] if t["id"] == "budget"]
    assert [row[:2] for row in table["rows"]] == [[r.model, r.task] for r in (flat, plain)]
    assert table["rows"][0][4] == f"{flat.scores.scored} of 480"
    assert table["rows"][0][5].startswith(f"{flat.scores.mean:.3f} [")
    assert table["rows"][0][-1] == "; ".join(flat.notes)
    with (tmp_path / "report" / "prompt_scores.csv").open(newline="") as file:
        notes = [row["notes"] for row in csv.DictReader(file)]
    assert notes == ["; ".join(row.notes) for row in (flat, plain)]
    frame = evalcore.open(tmp_path / "results").prompt_scores().to_arrow()
    assert frame.column("notes").to_pylist() == notes


def test_metrics_that_are_no_shares_are_scored_whole_or_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = []
    for task in (NLI, {**QA, "primary_metric": "gold_logprob"}, task_columns("void")):
        for n in range(10):
            rows += cell_rows(subject_columns(100), task, f"p{n}", np.arange(6) % 2)
            if task["task"] == "void":
                for row in rows[-6:]:
                    row["choice_logprobs"] = [float("nan")] * 3
    store = fill(tmp_path / "results", to_table(rows))
    how = {"prompts": 10, "documents": 40, "budget": 0.1, "seed": 0}
    store.mark_sampled({r["cell"]: how for r in rows})
    with caplog.at_level(logging.WARNING, "evalcore"):
        found = prompt_scores(store)
    assert [row.task for row in found] == ["nli"]
    assert "qa: no estimate over prompts: gold_logprob does not lie between 0 and 1" in caplog.text
    assert "void: no estimate over prompts: no drawn pair has a value" in caplog.text


@dataclass
class Cells:
    """A grid's cells, as :func:`draw` uses them."""

    listed: list[PlannedCell]
    wanted: dict[str, Any] = field(default_factory=dict)

    def __iter__(self) -> Any:
        return iter(self.listed)


def test_a_budget_is_for_shares_of_right_answers() -> None:
    cells, rows = [], []
    for name, metric in (("nli", "acc"), ("text", "brier")):
        task = Task(name, 1, name, "multiple_choice", (metric,), metric)
        for n in range(12):
            cell = Cell(f"{name}/{n}", make_subject(1), task, Variant(f"p{n}", name, "x"))
            docs = [f"{name}-{i}" for i in range(20)]
            cells.append(PlannedCell(cell, "x", docs, np.ones(20, dtype=np.int64)))
            rows.append({"cell": cell.key, "subject": "s", "task": name, "variant": f"p{n}",
                         "shots": 0, "shots_seed": 0, "shots_order": 0, "shots_balance": False,
                         "chat": False, "listing": "cloze", "answer": "choices"})  # fmt: skip
    grid: Any = SimpleNamespace(cells=Cells(cells), lm_eval=None,
                                rows=SimpleNamespace(to_pylist=lambda _: rows))  # fmt: skip
    marks, lines = draw(grid, 0.1, 0)
    assert {key.partition("/")[0] for key, how in marks.items() if how is None} == {"text"}
    assert set(grid.cells.wanted) == {c.cell.key for c in cells[:12]}
    assert sum(int(w.sum()) for w in grid.cells.wanted.values()) == 24
    assert "budget: text: the metric does not lie between 0 and 1, scored whole" in lines

"""Scores from drawn pairs say what is odd about the pairs, in the table, the file and the API."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

import evalcore
from evalcore.app.pairs import prompt_scores
from evalcore.app.report import report
from evalcore.report import html, prompt_score_lines
from tests.toys.filled import fill
from tests.toys.tables import cell_rows, subject_columns, task_columns, to_table

NLI, QA = task_columns("nli"), task_columns("qa")


def test_notes_stand_where_the_scores_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    monkeypatch.setattr(html, "write_pictures", lambda *_: [])
    report(store.path, tmp_path / "report", title="t")
    with (tmp_path / "report" / "prompt_scores.csv").open(newline="") as file:
        notes = [row["notes"] for row in csv.DictReader(file)]
    assert notes == ["; ".join(row.notes) for row in (flat, plain)]
    frame = evalcore.open(tmp_path / "results").prompt_scores().to_arrow()
    assert frame.column("notes").to_pylist() == notes

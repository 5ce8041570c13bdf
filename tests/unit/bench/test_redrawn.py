"""Redrawn studies: the study file is one, and the table counts what intervals hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import yaml

from bench.redrawn import SEEDS, shares, study, table
from finetune import parse_study
from tests.toys.filled import fill
from tests.toys.tables import cell_rows, subject_columns, task_columns, to_table


def test_no_seed_and_no_rows_are_drawn_twice(tmp_path: Path) -> None:
    spec = parse_study(yaml.safe_dump(study(5, 100, ("own", "shared"))), tmp_path / "s.yaml")
    assert len(spec.tunings) == 2 * 5 * 3
    of_nli = [t for t in spec.tunings if t.task == "pocket_nli"]
    seeds = [seed for t in of_nli for seed in t.seeds]
    assert len(set(seeds)) == len(seeds) == 2 * 5 * SEEDS
    rows = [t.data_seed for t in of_nli if t.name.startswith("pocket_nli+shared")]
    assert len(set(rows)) == 5
    assert {t.data_seed for t in of_nli if "+own" in t.name} == {"per_seed"}


def test_pairs_of_runs_are_counted(tmp_path: Path) -> None:
    """Gains of three runs: two alike, one far from both."""
    task = task_columns("nli", tuned_by="nli", domain="in")
    rows = cell_rows(subject_columns(100), task, "default", np.arange(200) < 60)
    gains = [(20, 24, 28), (22, 24, 26), (90, 91, 92)]
    for run, counts in enumerate(gains):
        for number, more in enumerate(counts):
            tuned = subject_columns(100, f"nli+own{run}", seed=10 * run + number)
            rows += cell_rows(tuned, task, "default", np.arange(200) < 60 + more)
    fill(tmp_path / "results", to_table(rows))
    (row,) = table(tmp_path)
    assert (row["rows"], row["tuned on"], row["redraws"], row["pairs"]) == ("own", "nli", 3, 6)
    assert row["means"] == [0.12, 0.12, 0.455]
    assert (row["prediction"], row["plain"]) == (2, 2), "each of the first two holds the other"
    assert shares([row])[2].startswith("| own | tuned task: 1 | 6 | 0.333 | 0.333 |")

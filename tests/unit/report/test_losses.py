"""Training losses as rows of a chart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from evalcore.report import write_report
from evalcore.report.losses import LOSS_COLUMNS, loss_rows, moving_mean
from tests.toys.tables import cell_rows, subject_columns, task_columns, to_table


def losses(*jobs: tuple[str, str, str | None, str], steps: int = 6) -> pa.Table:
    rows = [
        dict(
            zip(LOSS_COLUMNS, (tuning, checkpoint, control, 0, kind, s, 3.0 / (s + 1)), strict=True)
        )
        for tuning, checkpoint, control, kind in jobs
        for s in range(steps)
    ]
    return pa.Table.from_pylist(rows)


def test_a_picture_per_tuning(tmp_path: Path) -> None:
    table = losses(
        ("nli", "step-1", None, "lora"),
        ("nli", "step-2", None, "lora"),
        ("nli", "step-2", "shuffled_labels", "lora"),
        ("tales/a", "step-1", None, "full"),
    )
    rows = cell_rows(subject_columns(1), task_columns("t"), "default", np.arange(8) % 2)
    write_report(to_table(rows), tmp_path, title="Losses", losses=table)
    pictures = sorted(path.name for path in tmp_path.glob("loss_*.png"))
    assert [name[:8] for name in pictures] == ["loss_nli", "loss_tal"]


def test_a_line_per_job_in_the_order_of_steps() -> None:
    table = losses(
        ("nli", "step-1", None, "lora"), ("nli", "step-1", None, "full"),
        ("nli", "step-1", "shuffled_labels", "lora"),
    )  # fmt: skip
    rows = loss_rows(table.take(pa.array(range(table.num_rows))[::-1]))
    series = {row["series"]: row["job"] for row in rows}
    assert sorted(series.values()) == ["all parameters", "control", "tuned"]
    for name in series:
        assert [row["step"] for row in rows if row["series"] == name] == list(range(6))


def test_long_trainings_are_thinned_and_keep_their_ends() -> None:
    rows = loss_rows(losses(("nli", "step-1", None, "lora"), steps=5000))
    assert len(rows) == 200
    assert (rows[0]["step"], rows[-1]["step"]) == (0, 4999)


def test_moving_mean_keeps_length_and_ends() -> None:
    values = np.arange(7, dtype=np.float64)
    assert moving_mean(values).tolist() == [1.0, 1.5, 2.0, 3.0, 4.0, 4.5, 5.0]

"""Pictures of training losses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from evalcore.report.losses import LOSS_COLUMNS, draw_losses, draw_tuning, moving_mean
from evalcore.report.pictures import panel


def losses(*jobs: tuple[str, str, str | None, str], steps: int = 6) -> pa.Table:
    rows = [
        dict(
            zip(LOSS_COLUMNS, (tuning, checkpoint, control, 0, kind, s, 3.0 / (s + 1)), strict=True)
        )
        for tuning, checkpoint, control, kind in jobs
        for s in range(steps)
    ]
    return pa.Table.from_pylist(rows)


def test_one_picture_per_tuning(tmp_path: Path) -> None:
    table = losses(
        ("nli", "step-1", None, "lora"),
        ("nli", "step-2", None, "lora"),
        ("nli", "step-2", "shuffled_labels", "lora"),
        ("tales/a", "step-1", None, "full"),
    )
    pictures = draw_losses(table, tmp_path)
    assert [picture.section for picture in pictures] == ["losses", "losses"]
    assert all(picture.path.is_file() and picture.path.parent == tmp_path for picture in pictures)


def test_lines_and_labels() -> None:
    jobs = {
        ("step-1", None, 0, "lora"): [(2, 1.0), (1, 2.0)],
        ("step-1", None, 0, "full"): [(1, 2.0), (2, 1.5)],
        ("step-1", "shuffled_labels", 0, "lora"): [(1, 2.0), (2, 1.9)],
    }
    with panel() as (_, axes):
        draw_tuning(axes, "nli", jobs)
        lines = {line.get_label(): line for line in axes.get_lines()}
    assert set(lines) == {"step-1, lora", "step-1, full", "control"}
    assert lines["step-1, lora"].get_xdata().tolist() == [1, 2]
    assert lines["step-1, full"].get_linestyle() == "--"


def test_moving_mean_keeps_length_and_ends() -> None:
    values = np.arange(7.0)
    assert moving_mean(values).tolist() == [1.0, 1.5, 2.0, 3.0, 4.0, 4.5, 5.0]

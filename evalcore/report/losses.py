"""Training losses as rows of a chart."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from evalcore.report.rows import Row
from evalcore.report.words import visible

LOSS_COLUMNS = ("tuning", "checkpoint", "control", "seed", "kind", "step", "loss")
"""Columns of a table of losses: one row per optimizer step of each trained job, jobs in order of
their checkpoints; ``control`` is null for ordinary tunings; loss in nats per completion token."""
_MOVING_MEAN = 5
_MOST_POINTS = 200


def loss_rows(losses: pa.Table | None) -> list[Row]:
    """A row per step of each job, smoothed; of long trainings steps at even distances."""
    if losses is None or not losses.num_rows:
        return []
    jobs: dict[tuple[str, str, str | None, int | None, str], list[tuple[int, float]]]
    jobs = defaultdict(list)
    for row in losses.select(list(LOSS_COLUMNS)).to_pylist():
        job = (row["tuning"], row["checkpoint"], row["control"], row["seed"], row["kind"])
        jobs[job].append((row["step"], row["loss"]))
    rows = []
    for (tuning, checkpoint, control, seed, kind), points in jobs.items():
        steps, values = zip(*sorted(points), strict=True)
        smooth = moving_mean(np.asarray(values, dtype=np.float64))
        what = "control" if control else "all parameters" if kind == "full" else "tuned"
        count = min(len(steps), _MOST_POINTS)
        for place in np.linspace(0, len(steps) - 1, count).round().astype(int).tolist():
            rows.append({
                "tuning": visible(tuning), "checkpoint": visible(checkpoint), "job": what,
                "seed": "none" if seed is None else str(seed),
                "series": f"{checkpoint}|{what}|{seed}", "step": steps[place],
                "loss": round(float(smooth[place]), 5),
            })  # fmt: skip
    return rows


def moving_mean(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Mean over a window that is shorter at the ends, so that first and last steps are seen."""
    half = _MOVING_MEAN // 2
    return np.array([values[max(0, i - half) : i + half + 1].mean() for i in range(len(values))])

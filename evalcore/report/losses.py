"""Pictures of training losses: one panel per tuning, one line per trained job."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from evalcore.report.pictures import BASE_COLOUR, Picture, legend, panel, save

LOSS_COLUMNS = ("tuning", "checkpoint", "control", "seed", "kind", "step", "loss")
"""Columns of a table of losses: one row per optimizer step of each trained job, jobs in order of
their checkpoints; ``control`` is null for ordinary tunings; loss in nats per completion token."""
_MOVING_MEAN = 5
_MOST_LABELS = 10

Job = tuple[str, str | None, int | None, str]  # checkpoint, control, seed, kind


def draw_losses(losses: pa.Table, out_dir: Path) -> list[Picture]:
    """Draws one PNG per tuning into ``out_dir``."""
    tunings: dict[str, dict[Job, list[tuple[int, float]]]] = defaultdict(lambda: defaultdict(list))
    for row in losses.select(list(LOSS_COLUMNS)).to_pylist():
        job = (row["checkpoint"], row["control"], row["seed"], row["kind"])
        tunings[row["tuning"]][job].append((row["step"], row["loss"]))
    pictures = []
    for tuning, jobs in tunings.items():
        with panel() as (figure, axes):
            draw_tuning(axes, tuning, jobs)
            alt = f"Training loss of {tuning} against optimizer step, one line per job"
            pictures.append(save(figure, out_dir, "losses", f"loss_{tuning}", alt))
    return pictures


def draw_tuning(axes: Any, tuning: str, jobs: dict[Job, list[tuple[int, float]]]) -> None:
    """Later checkpoints darker; full tuning dashed, controls grey and dotted."""
    checkpoints = list(dict.fromkeys(job[0] for job in jobs))
    several_kinds = len({job[3] for job in jobs}) > 1
    labels: set[str] = set()
    for (checkpoint, control, _, kind), points in jobs.items():
        place = (checkpoints.index(checkpoint) + 1) / len(checkpoints)
        label = "control" if control else checkpoint + (f", {kind}" if several_kinds else "")
        steps, values = zip(*sorted(points), strict=True)
        axes.plot(
            steps, moving_mean(np.asarray(values, dtype=np.float64)),
            ":" if control else "--" if kind == "full" else "-", lw=1.6,
            color=BASE_COLOUR if control else _shade(place),
            label=None if label in labels else label,
        )  # fmt: skip
        labels.add(label)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss (nats per completion token)")
    axes.set_title(tuning)
    if len(labels) <= _MOST_LABELS:
        legend(axes)


def moving_mean(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Mean over a window that is shorter at the ends, so that first and last steps are seen."""
    half = _MOVING_MEAN // 2
    return np.array([values[max(0, i - half) : i + half + 1].mean() for i in range(len(values))])


def _shade(place: float) -> tuple[float, float, float]:
    light, dark = (0.62, 0.79, 0.88), (0.03, 0.19, 0.42)
    red, green, blue = (a + (b - a) * place for a, b in zip(light, dark, strict=True))
    return red, green, blue

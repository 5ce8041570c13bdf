"""What ``bench/peers.py`` measured, as Arrow, Markdown and a picture."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.peers_grid import GridSize
from evalcore.app.bench_tables import markdown, number
from evalcore.report.pictures import PALETTE, legend, panel, save

Row = dict[str, Any]


def summarise(runs: Sequence[Row], size: GridSize) -> list[Row]:
    """One row per number of documents and system.

    A peer's grid is the sum over its subjects of the median over rounds; where not all subjects
    were measured it is their mean times the number of subjects (``measured_subjects`` says so).
    Start-up of evalcore is a run of one cell with one document; that of a peer is the time until
    its model is ready, summed over subjects.

    Returns:
        Rows with ``total_s``, ``startup_s``, ``steady_s`` (their difference), both per cell,
        ``times`` and ``steady_times`` (how many times evalcore's).
    """
    rows = []
    for docs in sorted({run["documents"] for run in runs}):
        own = [run for run in runs if run["documents"] == docs]
        for system in ("evalcore", "lm-eval-hf", "lm-eval-vllm"):
            row = _one(own, system, size)
            if row is not None:
                rows.append({"documents": docs, **row})
    base = {row["documents"]: row for row in rows if row["system"] == "evalcore"}
    for row in rows:
        ours = base.get(row["documents"])
        row["times"] = row["total_s"] / ours["total_s"] if ours else None
        known = ours and ours["steady_s"] and row["steady_s"]
        row["steady_times"] = row["steady_s"] / ours["steady_s"] if ours and known else None
    return rows


def _one(runs: Sequence[Row], system: str, size: GridSize) -> Row | None:
    walls: dict[str | None, list[float]] = {}
    starts: dict[str | None, list[float]] = {}
    for run in runs:
        if run["system"] == system:
            walls.setdefault(run["subject"], []).append(run["wall_s"])
        if run["system"] == system and "start_s" in run:
            starts.setdefault(run["subject"], []).append(run["start_s"])
        if system == "evalcore" and run["system"] == "evalcore-start":
            starts.setdefault(None, []).append(run["wall_s"])
    if not walls:
        return None
    measured = 1 if system == "evalcore" else len(walls)
    scale = 1.0 if system == "evalcore" else size.subjects / measured
    total = scale * sum(statistics.median(own) for own in walls.values())
    startup = scale * sum(statistics.median(own) for own in starts.values())
    rounds = min(len(own) for own in walls.values())
    spread = [scale * sum(f(own) for own in walls.values()) for f in (min, max)]
    return {
        "system": system,
        "measured_subjects": size.subjects if system == "evalcore" else measured,
        "subjects": size.subjects,
        "cells": size.cells,
        "rounds": rounds,
        "total_s": total,
        "least_s": spread[0],
        "most_s": spread[1],
        "startup_s": startup,
        # On a machine with other work a start alone can take longer than a whole small grid.
        "steady_s": total - startup if total > startup else None,
        "total_s_per_cell": total / size.cells,
        "steady_s_per_cell": (total - startup) / size.cells if total > startup else None,
    }


def as_markdown(rows: Sequence[Row], size: GridSize, facts: dict[str, Any]) -> str:
    """The table, what the grid was and what ran."""
    titles = ["system", "docs/task", "subjects measured", "total s", "start-up s", "s/cell",
              "one more cell, s", "times evalcore", "steady state"]  # fmt: skip
    cells = [
        [
            row["system"], number(row["documents"]),
            f"{row['measured_subjects']} of {row['subjects']}", number(row["total_s"], 1),
            number(row["startup_s"], 1), number(row["total_s_per_cell"], 3),
            number(row["steady_s_per_cell"], 3), _times(row["times"]), _times(row["steady_times"]),
        ]
        for row in rows
    ]  # fmt: skip
    grid = (
        f"{size.checkpoints} checkpoints x (1 + {size.adapters} adapters) x {size.tasks} tasks x "
        f"{size.variants} variants = {size.cells} cells, {size.shots} shots"
    )
    said = ", ".join(f"{name} {value}" for name, value in facts.items())
    return f"{grid}; {said}\n\n{markdown(titles, cells)}"


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}x"


def write_summary(
    runs: Sequence[Row], size: GridSize, out: Path, facts: dict[str, Any]
) -> list[Path]:
    """Writes ``peers.arrow`` (summary), ``peers-runs.arrow``, ``peers.md`` and ``peers.png``."""
    import pyarrow as pa
    import pyarrow.feather as feather

    if not runs:
        return []
    rows = summarise(runs, size)
    table = pa.Table.from_pylist(rows).replace_schema_metadata({"facts": json.dumps(facts)})
    names = list(dict.fromkeys(name for run in runs for name in run))
    every = pa.Table.from_pylist([{name: run.get(name) for name in names} for run in runs])
    summary, details, page = out / "peers.arrow", out / "peers-runs.arrow", out / "peers.md"
    feather.write_feather(table, str(summary), compression="uncompressed")
    feather.write_feather(every, str(details), compression="uncompressed")
    page.write_text(as_markdown(rows, size, facts))
    return [summary, details, page, _draw(rows, size, out)]


def _draw(rows: Sequence[Row], size: GridSize, out: Path) -> Path:
    documents = sorted({row["documents"] for row in rows})
    systems = list(dict.fromkeys(row["system"] for row in rows))
    width = 0.8 / len(systems)
    with panel(width=6.4, height=3.8) as (figure, axes):
        for place, system in enumerate(systems):
            own = [row for row in rows if row["system"] == system]
            at = [documents.index(r["documents"]) + (place + 0.5) * width - 0.4 for r in own]
            colour = PALETTE[place % len(PALETTE)]
            axes.bar(at, [r["startup_s"] for r in own], width, color=colour, alpha=0.45)
            axes.bar(at, [r["steady_s"] or 0.0 for r in own], width, color=colour, label=system,
                     bottom=[r["startup_s"] for r in own])  # fmt: skip
            for x, row in zip(at, own, strict=True):
                axes.text(x, row["total_s"], f"{row['total_s']:.0f}", ha="center", va="bottom",
                          fontsize=8)  # fmt: skip
        axes.set_xticks(range(len(documents)), [f"{n:,} documents a task" for n in documents])
        axes.set_ylabel("seconds for the grid (pale: start-up)")
        axes.set_title(f"{size.cells} cells over {size.subjects} subjects")
        legend(axes)
        return save(figure, out, "bench", "peers", "seconds for the grid").path

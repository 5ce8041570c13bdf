"""Curves over the steps of a tuning: what a trainer's folder of checkpoints shows."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from evalcore.analysis import ScoreRow, SubjectInfo
from evalcore.report.pictures import (
    BASE_COLOUR,
    PALETTE,
    Picture,
    legend,
    metric_words,
    panel,
    save,
)

Run = tuple[str, str, str, str]
"""(base, tuning, seed, control) of the steps of one tuning."""


def run_of(subject: SubjectInfo) -> Run:
    """What the steps of one tuning have in common."""
    seed = f"{len(subject.runs)} seeds" if subject.runs else ""
    if not subject.runs and subject.seed is not None:
        seed = f"seed {subject.seed}"
    return (subject.base or "", subject.tuning or "", seed, subject.control or "")


def draw_steps(rows: Sequence[ScoreRow], out_dir: Path) -> list[Picture]:
    """One picture per task: score against the step of the tuning, one line per tuning.

    Args:
        rows: By task (``analysis.score_rows``); of several ways of asking the one most models
            were asked in is drawn.
        out_dir: Where PNGs are written.
    """
    pictures = []
    for task in dict.fromkeys(row.task.name for row in rows):
        own = [r for r in rows if r.task.name == task and r.score.n]
        steps = [r for r in own if r.subject.base and r.subject.tuning_step is not None]
        if not steps:
            continue
        way = Counter((r.way, r.numerics) for r in steps).most_common(1)[0][0]
        lines = _lines(r for r in steps if (r.way, r.numerics) == way)
        if all(len(line) < 2 for line in lines.values()):
            continue
        bases = {r.subject.id: r for r in own if (r.way, r.numerics) == way}
        alt = f"{own[0].task.metric} on {task} against the step of the tuning, {way[0].label}"
        with panel() as (figure, axes):
            _draw(axes, lines, bases, f"{task}, {way[0].label}")
            pictures.append(save(figure, out_dir, "steps", f"steps_{task}", alt))
    return pictures


def _lines(rows: Iterable[ScoreRow]) -> dict[Run, list[ScoreRow]]:
    lines: dict[Run, list[ScoreRow]] = defaultdict(list)
    for row in rows:
        lines[run_of(row.subject)].append(row)
    return {
        run: sorted(line, key=lambda r: r.subject.tuning_step or 0)
        for run, line in sorted(lines.items())
    }


def _draw(
    axes: Any, lines: dict[Run, list[ScoreRow]], bases: dict[str, ScoreRow], title: str
) -> None:
    several_bases = len({run[0] for run in lines}) > 1
    for number, ((base, tuning, seed, control), line) in enumerate(lines.items()):
        shown = [bases[base], *line] if base in bases else line  # a tuning begins at its base
        x = [0 if r.subject.base is None else r.subject.tuning_step for r in shown]
        colour = PALETTE[number % len(PALETTE)]
        name = tuning + (f", {seed}" if seed else "") + (", control" if control else "")
        if several_bases:
            name += f" ({line[0].subject.checkpoint})"
        axes.plot(x, [r.score.value for r in shown], "-o", color=colour, lw=1.8, ms=5, label=name)
        axes.fill_between(x, [r.score.low95 for r in shown], [r.score.high95 for r in shown],
                          color=colour, alpha=0.15, lw=0)  # fmt: skip
    for base in {run[0] for run in lines} & bases.keys():
        axes.axhline(bases[base].score.value, color=BASE_COLOUR, ls="--", lw=1.2, label="base")
    axes.set_xlabel("step of the tuning")
    axes.set_ylabel(metric_words(next(iter(lines.values()))[0].task.metric))
    axes.set_title(title)
    legend(axes)

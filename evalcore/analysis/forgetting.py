"""Change on tasks a model was not tuned on, read as forgetting where there was something."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from evalcore.analysis.book import ScoreBook
from evalcore.analysis.cells import CellValues
from evalcore.analysis.estimates import mean_of_estimates
from evalcore.analysis.gains import Gain
from evalcore.analysis.pooling import Part, difference_bounds, pool
from evalcore.analysis.stats import EMPTY, Estimate, finite
from evalcore.analysis.subjects import SubjectInfo
from evalcore.metrics import higher_is_better, metric_bounds

SMALL_DENOMINATOR = 0.05
"""Base scores below this make a ratio of change meaningless."""


@dataclass(frozen=True)
class Forgetting:
    """Change on a task outside the tuned group.

    Attributes:
        gain: The raw paired change.
        above_floor: Base score minus the trivial answer's (in the better direction), for these
            prompts; paired by document where the trivial answer's score per document is known
            (always the same choice; a text chosen on other documents), else it is taken as exact.
        floor_paired: Whether it is paired.
        measurable: The 99 % lower bound of ``above_floor`` is above 0; otherwise there was
            nothing to forget and the change says nothing.
        corrected: Change over (1 - baseline): what part of the room above the trivial answer was
            won or lost. None for metrics without an upper bound of 1.
        ratio: Change over base score (a term of the study's MRC).
        small_denominator: The base score is too near 0 for the ratio to mean anything.
    """

    gain: Gain
    above_floor: Estimate
    floor_paired: bool
    measurable: bool
    corrected: Estimate | None
    ratio: float
    small_denominator: bool


def forgetting(book: ScoreBook, gain: Gain) -> Forgetting:
    """Reads a gain on a task outside the tuned group as forgetting."""
    task, base = gain.task, gain.other
    upward = higher_is_better(task.metric)
    paired = _paired_floor(book, gain)
    above = paired or base.over_documents.shifted(-task.baseline)
    above = above.scaled(1.0 if upward else -1.0)
    room = 1.0 - task.baseline
    corrected = gain.pooled.scaled(1.0 / room) if upward and room > 0 else None
    return Forgetting(
        gain=gain,
        above_floor=above,
        floor_paired=paired is not None,
        measurable=finite(above.low99) > 0,
        corrected=corrected,
        ratio=gain.pooled.value / base.value if base.value else float("nan"),
        small_denominator=abs(base.value) < SMALL_DENOMINATOR,
    )


def _paired_floor(book: ScoreBook, gain: Gain) -> Estimate | None:
    """Base minus trivial answer by document: one choice for all, or a text chosen on the others."""
    choice = gain.task.metric == "acc" and gain.task.output_type == "multiple_choice"
    if not choice and gain.task.output_type != "generate_until":
        return None
    every = [
        (name, run, cell)
        for name, runs in book.strata(gain.reference, gain.task.name)
        .get((gain.way, gain.numerics), {}).items()
        for run, cell in runs.items() if name in gain.by_variant
    ]  # fmt: skip

    def compute() -> dict[str, Any]:
        parts: list[Part] = []
        for name, run, cell in every:
            trivial = _trivial(cell, gain.task.baseline) if choice else cell.floors
            if trivial is None or np.isnan(trivial).any():
                return {"above": EMPTY}
            parts.append((name, run, cell.docs, cell.values - trivial))
        bounds = difference_bounds(metric_bounds(gain.task.metric))
        return {"above": pool(parts, bounds, book.clusters)}

    keys = [(name, run, cell.key) for name, run, cell in every]
    what = ("floor", gain.task.metric, repr(gain.task.baseline), keys)
    found: Estimate = book.memo.get(what, compute)["above"]
    return found.over_documents if found.n > 1 else None


def _trivial(cell: CellValues, baseline: float) -> npt.NDArray[np.float64] | None:
    """Accuracy by document of always the same choice."""
    constant = _constant_choice(cell.golds, baseline)
    return None if constant is None else (cell.golds == constant).astype(np.float64)


def _constant_choice(golds: npt.NDArray[np.int64], baseline: float) -> int | None:
    """The choice that is right as often as the trivial answer is, if there is one."""
    known = golds[golds >= 0]
    if len(known) < max(2, len(golds)) or baseline != baseline:
        return None
    counts = np.bincount(known)
    share = counts.max() / len(known)
    # Of other rows than these the baseline says nothing about single documents.
    return int(counts.argmax()) if abs(share - baseline) <= 0.5 / len(known) else None


@dataclass(frozen=True)
class ForgettingSummary:
    """Forgetting of one tuned model over all tasks outside its group.

    Attributes:
        measurable, unmeasurable: Numbers of tasks.
        mean: Mean chance-corrected change over the measurable tasks.
        median: Median of the same.
        by_metric: Metric -> mean over its tasks alone.
        mrc: Mean ratio of change over all outside tasks, as the study defines it.
        median_ratio: Median of those ratios.
        small_denominators: Tasks whose base score is too near 0 (they are in ``mrc``).
    """

    subject: SubjectInfo
    measurable: int
    unmeasurable: int
    mean: Estimate
    median: float
    by_metric: dict[str, Estimate]
    mrc: float
    median_ratio: float
    small_denominators: tuple[str, ...]


def summarize_forgetting(subject: SubjectInfo, rows: Sequence[Forgetting]) -> ForgettingSummary:
    """Mean and median over the tasks outside the tuned group of one model."""
    metrics: dict[str, list[Estimate]] = {}
    good = []
    for row in rows:
        if row.measurable and row.corrected is not None:
            good.append(row.corrected)
            metrics.setdefault(row.gain.task.metric, []).append(row.corrected)
    ratios = [r.ratio for r in rows if r.ratio == r.ratio]
    return ForgettingSummary(
        subject=subject,
        measurable=len(good),
        unmeasurable=len(rows) - len(good),
        mean=mean_of_estimates(good) if good else EMPTY,
        median=median(e.value for e in good) if good else float("nan"),
        by_metric={m: mean_of_estimates(e) for m, e in sorted(metrics.items())},
        mrc=float(np.mean(ratios)) if ratios else float("nan"),
        median_ratio=median(ratios) if ratios else float("nan"),
        small_denominators=tuple(r.gain.task.name for r in rows if r.small_denominator),
    )

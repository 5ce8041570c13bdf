"""Differences between subjects on the same documents: gain, control, forgetting, transfer."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from statistics import median

import numpy as np
import numpy.typing as npt

from evalcore.analysis.book import (
    CellValues,
    ScoreBook,
    SubjectInfo,
    TaskInfo,
    require_same_numerics,
)
from evalcore.analysis.stats import (
    EMPTY,
    Estimate,
    Method,
    finite,
    mean_estimate,
    mean_of_estimates,
)
from evalcore.metrics import higher_is_better

SMALL_DENOMINATOR = 0.05
"""Base scores below this make a ratio of change meaningless."""

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Gain:
    """Score of a subject minus score of another on the same documents and prompts.

    Attributes:
        subject: The tuned subject (minuend).
        reference: What it is compared with: its base, or its control (subtrahend).
        task: The task.
        pooled: Mean over documents of the mean over shared variants; intervals by document.
        own: Score of ``subject`` on the paired documents.
        other: Score of ``reference`` on the paired documents.
        by_variant: The same difference under each single prompt.
        continuous: Difference of the task's continuous metric (bits: negative is better).
        missing_variants: Variants only one side was scored under.
        missing_rows: Rows (variant, document) only one side has.
        missing_documents: Some of their ids, for a message.
        uneven: Documents paired under fewer variants than others.
    """

    subject: SubjectInfo
    reference: SubjectInfo
    task: TaskInfo
    pooled: Estimate
    own: Estimate
    other: Estimate
    by_variant: dict[str, Estimate]
    continuous: Estimate
    missing_variants: tuple[str, ...] = ()
    missing_rows: int = 0
    missing_documents: str = ""
    uneven: int = 0


@dataclass(frozen=True)
class Pooled:
    """Values of paired documents, mean over the variants both sides have.

    Attributes:
        docs: int64 [n] document codes.
        own, other: float64 [n].
        counts: int64 [n] variants behind each document.
    """

    docs: npt.NDArray[np.int64]
    own: FloatArray
    other: FloatArray
    counts: npt.NDArray[np.int64]


def paired_gain(
    book: ScoreBook,
    subject: str,
    reference: str,
    task: str,
    *,
    variants: Collection[str] | None = None,
    allow_mixed: bool = False,
    method: Method = "t",
    seed: int = 0,
) -> Gain | None:
    """Gain of ``subject`` over ``reference`` on one task, paired by document.

    Args:
        variants: Compare under these only; None: under all.

    Returns:
        None if the two share no variant with a common document.

    Raises:
        IncompatibleError: The two were scored in different numerics classes (and mixing is not
            allowed).
    """
    a, b = (
        {n: c for n, c in book.variants(id_, task).items() if variants is None or n in variants}
        for id_ in (subject, reference)
    )
    info, mine, theirs = book.tasks[task], book.subjects[subject], book.subjects[reference]
    what = f"{mine.label} against {theirs.label}, {task}"
    shared = []
    for name in a.keys() & b.keys():
        require_same_numerics(a[name], b[name], f"{what}, {name}", allow_mixed)
        if a[name].setting == b[name].setting:
            shared.append(name)
    shared.sort()
    pairs = {name: _pair(a[name], b[name], "values") for name in shared}
    pooled = _pool(list(pairs.values()))
    if len(pooled.docs) == 0:
        return None
    lost = [np.setxor1d(a[n].docs, b[n].docs, assume_unique=True) for n in shared]
    absent = np.concatenate(lost)
    continuous = _pool([_pair(a[name], b[name], "continuous") for name in shared])
    estimate: Callable[[FloatArray], Estimate] = lambda v: mean_estimate(v, method, seed)  # noqa: E731
    return Gain(
        subject=mine,
        reference=theirs,
        task=info,
        pooled=estimate(pooled.own - pooled.other),
        own=estimate(pooled.own),
        other=estimate(pooled.other),
        by_variant={n: estimate(own - other) for n, (_, own, other) in pairs.items()},
        continuous=estimate(continuous.own - continuous.other),
        missing_variants=tuple(sorted((a.keys() | b.keys()) - set(shared))),
        missing_rows=len(absent),
        missing_documents=book.document_names(np.unique(absent).tolist()),
        uneven=int((pooled.counts < pooled.counts.max()).sum()),
    )


def pooled_score(cells: dict[str, CellValues], field: str = "values") -> Estimate:
    """Score of one subject on one task: mean over documents of the mean over its variants."""
    pooled = _pool([_pair(cell, cell, field) for cell in cells.values()])
    return mean_estimate(pooled.own)


def _pair(
    a: CellValues, b: CellValues, field: str
) -> tuple[npt.NDArray[np.int64], FloatArray, FloatArray]:
    docs, i, j = np.intersect1d(a.docs, b.docs, assume_unique=True, return_indices=True)
    own, other = getattr(a, field)[i], getattr(b, field)[j]
    known = ~(np.isnan(own) | np.isnan(other))
    return docs[known], own[known], other[known]


def _pool(pairs: list[tuple[npt.NDArray[np.int64], FloatArray, FloatArray]]) -> Pooled:
    if not pairs:
        none = np.zeros(0)
        return Pooled(np.zeros(0, dtype=np.int64), none, none, np.zeros(0, dtype=np.int64))
    docs, group = np.unique(np.concatenate([p[0] for p in pairs]), return_inverse=True)
    counts = np.bincount(group, minlength=len(docs))
    own, other = (
        np.bincount(group, np.concatenate([p[k] for p in pairs]), len(docs)) / np.maximum(counts, 1)
        for k in (1, 2)
    )
    return Pooled(docs, own, other, counts)


@dataclass(frozen=True)
class ControlComparison:
    """An adapter against its format-only control (same tuning, labels shuffled).

    Attributes:
        difference: Gain of the adapter minus gain of the control. The base cancels, so this is
            adapter minus control on the documents both were scored on.
        control_gain: The control's own gain over the base (None: the base lacks the task).
    """

    difference: Gain
    control_gain: Gain | None


def controls_of(book: ScoreBook, subject: SubjectInfo) -> list[SubjectInfo]:
    """Controls of an adapter: same base and tuning; those of its own seed if there are any."""
    found = [
        s for s in book.subjects.values()
        if s.control is not None and s.base == subject.base and s.tuning == subject.tuning
    ]  # fmt: skip
    return [s for s in found if s.seed == subject.seed] or found


@dataclass(frozen=True)
class Forgetting:
    """Change on a task outside the tuned group.

    Attributes:
        gain: The raw paired change.
        above_floor: Base score minus the trivial baseline (in the better direction).
        measurable: The 99 % lower bound of ``above_floor`` is above 0; otherwise there was
            nothing to forget and the change says nothing.
        corrected: Change over (1 - baseline): what part of the room above the trivial answer was
            won or lost. None for metrics without an upper bound of 1.
        ratio: Change over base score (a term of the study's MRC).
        small_denominator: The base score is too near 0 for the ratio to mean anything.
    """

    gain: Gain
    above_floor: Estimate
    measurable: bool
    corrected: Estimate | None
    ratio: float
    small_denominator: bool


def forgetting(gain: Gain) -> Forgetting:
    """Reads a gain on a task outside the tuned group as forgetting."""
    task, base = gain.task, gain.other
    upward = higher_is_better(task.metric)
    above = base.shifted(-task.baseline).scaled(1.0 if upward else -1.0)
    room = 1.0 - task.baseline
    corrected = gain.pooled.scaled(1.0 / room) if upward and room > 0 else None
    return Forgetting(
        gain=gain,
        above_floor=above,
        measurable=finite(above.low99) > 0,
        corrected=corrected,
        ratio=gain.pooled.value / base.value if base.value else float("nan"),
        small_denominator=abs(base.value) < SMALL_DENOMINATOR,
    )


@dataclass(frozen=True)
class ForgettingSummary:
    """Forgetting of one tuned subject over all tasks outside its group.

    Attributes:
        measurable, unmeasurable: Numbers of tasks.
        mean: Mean chance-corrected change over the measurable tasks.
        median: Median of the same.
        mrc: Mean ratio of change over all outside tasks, as the study defines it.
        median_ratio: Median of those ratios.
        small_denominators: Tasks whose base score is too near 0 (they are in ``mrc``).
    """

    subject: SubjectInfo
    measurable: int
    unmeasurable: int
    mean: Estimate
    median: float
    mrc: float
    median_ratio: float
    small_denominators: tuple[str, ...]


def summarize_forgetting(subject: SubjectInfo, rows: list[Forgetting]) -> ForgettingSummary:
    """Mean and median over the tasks outside the tuned group of one subject."""
    good = [r.corrected for r in rows if r.measurable and r.corrected is not None]
    ratios = [r.ratio for r in rows if r.ratio == r.ratio]
    return ForgettingSummary(
        subject=subject,
        measurable=len(good),
        unmeasurable=len(rows) - len(good),
        mean=mean_of_estimates(good) if good else EMPTY,
        median=median(e.value for e in good) if good else float("nan"),
        mrc=float(np.mean(ratios)) if ratios else float("nan"),
        median_ratio=median(ratios) if ratios else float("nan"),
        small_denominators=tuple(r.gain.task.name for r in rows if r.small_denominator),
    )

"""What prompts do, beyond the range: spread with intervals, agreement, change with training, ranks.

Intervals for *these prompts* come from a jackknife over documents (groups of them where there are
many): the spread is computed again without each, and t has one degree less than there are groups
(Efron and Stein 1981, "The jackknife estimate of variance", Annals of Statistics 9). Those for
*other prompts* take the prompts as a normal sample: (P - 1) times the variance between their means
over its expectation is chi-square with P - 1 degrees of freedom.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from math import log2, nan, sqrt
from typing import Any
from zlib import crc32

import numpy as np
import numpy.typing as npt

from evalcore.analysis.agreement import PromptChoice, fleiss_kappa, kendalls_w
from evalcore.analysis.book import ScoreBook
from evalcore.analysis.cells import Cells, Stratum
from evalcore.analysis.prompts import PromptSpread, cell_keys, document_matrix
from evalcore.analysis.stats import t_quantile
from evalcore.analysis.subjects import SubjectInfo, TaskInfo
from evalcore.analysis.ways import Way
from evalcore.metrics import higher_is_better, metric_bounds

FloatArray = npt.NDArray[np.float64]
GROUPS = 100
"""Most groups of documents that a jackknife leaves out in turn."""


@dataclass(frozen=True, slots=True)
class Jackknifed:
    """A statistic of documents with its standard error.

    Attributes:
        value: Of all documents.
        stderr: Over documents; NaN below two groups.
        degrees: Groups less one.
    """

    value: float
    stderr: float
    degrees: int

    def limits(self, level: float = 0.95) -> tuple[float, float]:
        """Two-sided t interval."""
        if self.degrees < 1 or self.stderr != self.stderr:
            return nan, nan
        half = t_quantile(0.5 + level / 2, self.degrees) * self.stderr
        return self.value - half, self.value + half

    @property
    def p(self) -> float:
        """Two-sided p of 0; NaN where nothing varies."""
        if self.degrees < 1 or not self.stderr > 0:
            return nan
        from scipy.special import stdtr  # heavy, and only this needs it

        return float(2 * stdtr(self.degrees, -abs(self.value) / self.stderr))


def jackknife(value: float, left: FloatArray) -> Jackknifed:
    """From the statistic of all documents and, float64 [G], of all but each of the groups."""
    groups = len(left)
    if groups < 2:
        return Jackknifed(value, nan, 0)
    error = sqrt((groups - 1) / groups * float(((left - left.mean()) ** 2).sum()))
    return Jackknifed(value, error, groups - 1)


def groups_of(book: ScoreBook, docs: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """int64 [documents]: groups for the jackknife, by content: whatever codes documents have."""
    clusters = docs if book.clusters is None else book.clusters(docs)
    names, at = np.unique(clusters, return_inverse=True)
    key = np.array([crc32(book.documents[d].encode()) for d in docs], dtype=np.int64)
    least = np.full(len(names), np.iinfo(np.int64).max)
    np.minimum.at(least, at, key)
    place = np.empty(len(names), dtype=np.int64)
    place[np.argsort(least, kind="stable")] = np.arange(len(names))
    return jackknife_groups(place[at])


def jackknife_groups(clusters: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """int64 [documents]: which group each is left out with; clusters stay together."""
    names, at = np.unique(clusters, return_inverse=True)
    groups = min(len(names), GROUPS)
    return np.asarray(at * groups // max(len(names), 1), dtype=np.int64)


def left_variances(values: FloatArray, group: npt.NDArray[np.int64]) -> tuple[float, FloatArray]:
    """:func:`variance_beyond_noise` of all documents, and of all but each group's, from sums.

    Args:
        values: float64 [documents, prompts].
        group: int64 [documents], 0 to G - 1.
    """
    p = values.shape[1]
    count = np.bincount(group).astype(np.float64)
    # Values near one constant would cancel in the sums of squares.
    values = values - values.mean()
    sums = np.stack([np.bincount(group, column) for column in values.T], axis=1)
    squares = np.bincount(group, (values**2).sum(axis=1))
    of_rows = np.bincount(group, values.mean(axis=1) ** 2)

    def variance(n: FloatArray, s: FloatArray, q: FloatArray, r: FloatArray) -> FloatArray:
        means = s / n[:, None]
        middle = means.mean(axis=1)
        residual = q - p * r - n * (means**2).sum(axis=1) + n * p * middle**2
        found: FloatArray = means.var(axis=1, ddof=1) - residual / ((n - 1) * (p - 1) * n)
        return found

    parts = (count, sums, squares, of_rows)
    whole = [part.sum(axis=0, keepdims=True) for part in parts]
    value = float(variance(*whole)[0])
    if len(count) < 2 or count.sum() - count.max() < 2:
        return value, np.zeros(0)
    return value, variance(*(w - part for w, part in zip(whole, parts, strict=True)))


def variance_beyond_noise(values: FloatArray) -> float:
    """Variance between prompt means less sampling variance (``stats.prompt_spread``); may be < 0.

    Args:
        values: float64 [documents, prompts].
    """
    n, p = values.shape
    means = values.mean(axis=0)
    residual = values - values.mean(axis=1, keepdims=True) - means + values.mean()
    noise = float((residual**2).sum()) / ((n - 1) * (p - 1) * n)
    return float(means.var(ddof=1) - noise)


@dataclass(frozen=True)
class Sensitivity:
    """How much a model's score moves with the prompt, in one way of asking.

    Attributes:
        subject, task, way, prompts: What of; ``prompts`` their names.
        mean, range: Mean score over prompts; largest minus smallest.
        variance: Beyond noise, jackknifed.
        low95, high95: Of the standard deviation beyond noise, for these prompts.
        low95_prompts, high95_prompts: The same for other prompts of the kind.
        change: Variance beyond noise minus the base's under the same prompts; None for a base.
        choice: MaxP, AvgP, Sat, CPS; None where larger is not better or values leave 0 to 1.
        kappa: Fleiss' kappa of the choices made (mean over seeds); NaN for texts.
    """

    subject: SubjectInfo
    task: TaskInfo
    way: Way
    prompts: tuple[str, ...]
    mean: float
    range: float
    variance: Jackknifed
    low95: float
    high95: float
    low95_prompts: float
    high95_prompts: float
    change: Jackknifed | None
    choice: PromptChoice | None
    kappa: float

    @property
    def sd(self) -> float:
        """Standard deviation beyond noise; 0 where noise explains all of it."""
        return sqrt(max(self.variance.value, 0.0))


def sensitivities(book: ScoreBook, spreads: Sequence[PromptSpread]) -> list[Sensitivity]:
    """One for each spread (``prompts.prompt_spreads``) of the book."""
    return [_sensitivity(book, spread) for spread in spreads]


def _sensitivity(book: ScoreBook, row: PromptSpread) -> Sensitivity:
    names = list(row.variants)
    cells = _cells_of(book, row.subject, row.task.name, row.way, names)
    base = book.base_of(row.subject)
    theirs: Cells = {}
    if base is not None and row.base is not None:
        theirs = _cells_of(book, base, row.task.name, row.way, names)

    def compute() -> dict[str, Any]:
        docs, values = document_matrix([cells[n] for n in names])
        value, left = left_variances(values, groups_of(book, docs))
        noise = float(values.mean(axis=0).var(ddof=1)) - value
        found: dict[str, Any] = {
            "variance": _record(jackknife(value, left)),
            "noise": noise, "means": values.mean(axis=0).tolist(), "kappa": _kappa(cells, names),
            "change": None,
        }  # fmt: skip
        if theirs:
            docs, both = document_matrix([cells[n] for n in names] + [theirs[n] for n in names])
            group, k = groups_of(book, docs), len(names)
        if theirs and len(docs) > 1:
            own, own_left = left_variances(both[:, :k], group)
            other, other_left = left_variances(both[:, k:], group)
            found["change"] = _record(jackknife(own - other, own_left - other_left))
        return found

    keys = [cell_keys(cells, names), cell_keys(theirs, names) if theirs else []]
    found = book.memo.get(("sensitivity", keys), compute)
    means = np.array(found["means"])
    variance = Jackknifed(*found["variance"])
    low, high = variance.limits()
    low_prompts, high_prompts = _for_other_prompts(float(means.var(ddof=1)), found["noise"],
                                                   len(names))  # fmt: skip
    upward = higher_is_better(row.task.metric) and metric_bounds(row.task.metric) == (0.0, 1.0)
    return Sensitivity(
        subject=row.subject, task=row.task, way=row.way, prompts=row.variants,
        mean=float(means.mean()), range=float(np.ptp(means)), variance=variance,
        low95=_root(low), high95=_root(high), low95_prompts=low_prompts,
        high95_prompts=high_prompts,
        change=None if found["change"] is None else Jackknifed(*found["change"]),
        choice=PromptChoice.of(means) if upward else None, kappa=found["kappa"],
    )  # fmt: skip


def _record(found: Jackknifed) -> list[float]:
    return [found.value, found.stderr, found.degrees]


def _root(variance: float) -> float:
    return sqrt(max(variance, 0.0)) if variance == variance else nan


def _for_other_prompts(between: float, noise: float, prompts: int) -> tuple[float, float]:
    """95 % interval of the standard deviation of a population of prompts."""
    from scipy.special import chdtri  # heavy, and only this needs it

    degrees = prompts - 1
    low = between * degrees / float(chdtri(degrees, 0.025)) - noise
    high = between * degrees / float(chdtri(degrees, 0.975)) - noise
    return _root(low), _root(high)


def _cells_of(
    book: ScoreBook, subject: SubjectInfo, task: str, way: Way, names: Sequence[str]
) -> Cells:
    """The cells under some prompts, of the numerics class that has all of them."""
    for (of, _), cells in book.strata(subject, task).items():
        if of == way and all(n in cells for n in names):
            return {n: cells[n] for n in names}
    return {}


def _kappa(cells: Cells, names: Sequence[str]) -> float:
    """Mean over seeds of Fleiss' kappa between the choices made under each prompt."""
    found = []
    runs = set.intersection(*(set(cells[n]) for n in names))
    for run in sorted(runs):
        own = [cells[n][run] for n in names]
        docs = reduce(lambda a, b: np.intersect1d(a, b, assume_unique=True), [c.docs for c in own])
        answers = np.stack([c.answers[np.searchsorted(c.docs, docs)] for c in own], axis=1)
        if len(docs) == 0 or answers.max() < 0:
            return nan  # texts
        found.append(fleiss_kappa(answers))
    return float(np.mean(found)) if found else nan


@dataclass(frozen=True)
class SpreadTrend:
    """Change of the spread over prompts with pre-training.

    Attributes:
        subjects: The models, by step.
        tuning, method, tuning_step: Which tuning; None for untuned checkpoints.
        task, way, prompts: Asked what and how.
        steps: Steps of the checkpoints.
        slope: Of the variance beyond noise, per doubling of the steps, jackknifed over the
            documents that all checkpoints share. For these prompts.
        sds: Standard deviation beyond noise at each step.
    """

    subjects: tuple[SubjectInfo, ...]
    tuning: str | None
    method: str | None
    tuning_step: int | None
    task: TaskInfo
    way: Way
    prompts: tuple[str, ...]
    steps: tuple[int, ...]
    slope: Jackknifed
    sds: tuple[float, ...]


def spread_trends(book: ScoreBook, spreads: Sequence[PromptSpread]) -> list[SpreadTrend]:
    """Of each tuning (and of the untuned), task and way with three checkpoints or more.

    Controls are left out, and lines in which a checkpoint stands twice; the prompts are those that
    every checkpoint has.
    """
    lines: dict[tuple[Any, ...], list[PromptSpread]] = defaultdict(list)
    for row in spreads:
        s = row.subject
        if s.step is not None and s.step > 0 and s.control is None:
            lines[(s.tuning, s.method, s.tuning_step, row.task.name, row.way)].append(row)
    found = []
    for line in lines.values():
        steps = [row.subject.step for row in line]
        names = sorted(set.intersection(*(set(row.variants) for row in line)))
        if len(line) < 3 or len(set(steps)) < len(steps) or len(names) < 2:
            continue
        line.sort(key=lambda row: row.subject.step or 0)
        trend = _trend(book, line, names)
        if trend is not None:
            found.append(trend)
    return found


def _trend(book: ScoreBook, line: list[PromptSpread], names: list[str]) -> SpreadTrend | None:
    first = line[0]
    steps = [row.subject.step or 1 for row in line]
    each = [_cells_of(book, row.subject, row.task.name, row.way, names) for row in line]
    if not all(each):
        return None
    x = np.array([log2(step) for step in steps])
    x -= x.mean()
    p = len(names)

    def compute() -> dict[str, Any]:
        docs, values = document_matrix([cells[n] for cells in each for n in names])
        if len(docs) < 3:
            return {"slope": None}
        group = groups_of(book, docs)
        parts = [left_variances(part, group) for part in np.split(values, len(each), axis=1)]
        weights = x / (x**2).sum()
        variances = np.array([value for value, _ in parts])
        left = np.stack([left for _, left in parts], axis=1) @ weights
        return {
            "slope": _record(jackknife(float(variances @ weights), left)),
            "variances": variances.tolist(),
        }

    keys = [[step, cell_keys(cells, names)] for step, cells in zip(steps, each, strict=True)]
    found = book.memo.get(("trend", p, keys), compute)
    if found["slope"] is None:
        return None
    s = first.subject
    return SpreadTrend(
        subjects=tuple(row.subject for row in line), tuning=s.tuning, method=s.method,
        tuning_step=s.tuning_step, task=first.task, way=first.way,
        prompts=tuple(names), steps=tuple(steps),
        slope=Jackknifed(*found["slope"]), sds=tuple(_root(v) for v in found["variances"]),
    )  # fmt: skip


@dataclass(frozen=True)
class RankStability:
    """Whether prompts put the models in the same order (Kendall's W; 1: all alike).

    Attributes:
        task, way, numerics: Asked what and how.
        prompts, models: What was ranked: models that have every prompt.
        w: Kendall's W.
        documents: Least and largest number of documents of a cell.
    """

    task: TaskInfo
    way: Way
    numerics: str
    prompts: tuple[str, ...]
    models: tuple[SubjectInfo, ...]
    w: float
    documents: tuple[int, int]


def rank_stability(book: ScoreBook) -> list[RankStability]:
    """Of every task and way with two prompts and two models or more, controls left out."""
    scores: dict[tuple[str, Stratum], dict[str, dict[str, float]]] = defaultdict(dict)
    for subject in book.models:
        for task in book.tasks if subject.control is None else ():
            for stratum, cells in book.strata(subject, task).items():
                scores[(task, stratum)][subject.id] = {
                    name: float(np.mean([c.facts.mean for c in runs.values()]))
                    for name, runs in cells.items() if any(c.n for c in runs.values())
                }  # fmt: skip
    of_id = {subject.id: subject for subject in book.models}
    found = []
    for (task, (way, numerics)), by_model in scores.items():
        prompts = sorted({name for own in by_model.values() for name in own})
        ranked = [id_ for id_, own in by_model.items() if len(own) == len(prompts)]
        whole = [by_model[id_] for id_ in ranked]
        if len(prompts) > 1 and len(whole) > 1:
            matrix = np.array([[own[name] for own in whole] for name in prompts])
            w = kendalls_w(matrix)
            models = tuple(of_id[id_] for id_ in ranked)
            sizes = [
                c.n for model in models
                for runs in book.strata(model, task)[(way, numerics)].values()
                for c in runs.values()
            ]  # fmt: skip
            found.append(
                RankStability(book.tasks[task], way, numerics, tuple(prompts), models, w,
                              (min(sizes), max(sizes)))
            )  # fmt: skip
    return found

"""How gains go with something: with the base's score, with the method; forgetting by metric."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import nan, sqrt
from statistics import median
from typing import Any

import numpy as np

from evalcore.analysis.book import ScoreBook
from evalcore.analysis.estimates import mean_of_estimates
from evalcore.analysis.forgetting import Forgetting, forgetting
from evalcore.analysis.gains import Gain, paired_gain
from evalcore.analysis.prompts import cell_keys, document_matrix, in_first_half
from evalcore.analysis.sensitivity import Jackknifed
from evalcore.analysis.stats import Estimate
from evalcore.analysis.summary import method_name


@dataclass(frozen=True)
class HalvedGain:
    """A gain and its base's score on two halves of the documents.

    Attributes:
        gain: The gain.
        bases: Base score on the first and on the second half.
        gains: Gain on each of them.
    """

    gain: Gain
    bases: tuple[float, float]
    gains: tuple[float, float]

    @property
    def held_out(self) -> list[tuple[float, float]]:
        """(base score on one half, gain on the other), both ways round."""
        return [(self.bases[0], self.gains[1]), (self.bases[1], self.gains[0])]


@dataclass(frozen=True)
class GainByBase:
    """Slope of the gain over the base's score, within one metric and method.

    Base score and gain share the base's noise: where they come from the same documents the slope is
    too steep downward (regression to the mean). ``slope`` takes them from different halves.

    Attributes:
        metric, method: Of which gains.
        points, tasks: How many gains, of how many tasks.
        slope: Jackknifed over tasks; without an interval below three tasks.
        same_documents: The slope where both come from all documents.
        refused: Why there is no interval; empty where there is one.
    """

    metric: str
    method: str
    points: int
    tasks: int
    slope: Jackknifed
    same_documents: float
    refused: str


def halved_gains(book: ScoreBook, gains: Sequence[Gain], seed: int = 0) -> list[HalvedGain]:
    """Gains whose two halves both have documents (two or more)."""
    found = (_halved(book, gain, seed) for gain in gains)
    return [h for h in found if h is not None]


def _halved(book: ScoreBook, gain: Gain, seed: int) -> HalvedGain | None:
    names = sorted(gain.by_variant)
    stratum = (gain.way, gain.numerics)
    mine = book.strata(gain.subject, gain.task.name).get(stratum, {})
    theirs = book.strata(gain.reference, gain.task.name).get(stratum, {})
    if not names or any(n not in mine or n not in theirs for n in names):
        return None

    def compute() -> dict[str, Any]:
        docs, values = document_matrix([mine[n] for n in names] + [theirs[n] for n in names])
        half = np.array([in_first_half(book.documents[d], seed) for d in docs], dtype=bool)
        if min(half.sum(), (~half).sum()) < 2:
            return {"bases": None}
        own, base = values[:, : len(names)].mean(axis=1), values[:, len(names) :].mean(axis=1)
        sides = (half, ~half)
        return {
            "bases": [float(base[side].mean()) for side in sides],
            "gains": [float((own - base)[side].mean()) for side in sides],
        }

    keys = [cell_keys(mine, names), cell_keys(theirs, names)]
    found = book.memo.get(("halves", seed, keys), compute)
    if found["bases"] is None:
        return None
    (base_1, base_2), (gain_1, gain_2) = found["bases"], found["gains"]
    return HalvedGain(gain, (base_1, base_2), (gain_1, gain_2))


def gain_by_base(halves: Sequence[HalvedGain]) -> list[GainByBase]:
    """The slope for each metric and way of tuning."""
    lines: dict[tuple[str, str], list[HalvedGain]] = defaultdict(list)
    for h in halves:
        lines[(h.gain.task.metric, method_name(h.gain.subject))].append(h)
    return [_by_base(*key, rows) for key, rows in sorted(lines.items())]


def _by_base(metric: str, method: str, rows: Sequence[HalvedGain]) -> GainByBase:
    tasks = sorted({h.gain.task.name for h in rows})
    value = _slope([point for h in rows for point in h.held_out])
    left = [
        _slope([p for h in rows if h.gain.task.name != task for p in h.held_out]) for task in tasks
    ]
    k, refused, error = len(tasks), "", nan
    if k < 3:
        refused = f"{k} task{'s' * (k > 1)}: nothing can be said about others"
    elif any(v != v for v in left) or value != value:
        refused = "base scores are all alike: no slope"
    else:
        mean = sum(left) / k
        error = sqrt((k - 1) / k * sum((v - mean) ** 2 for v in left))
    plain = _slope([(h.gain.other.value, h.gain.pooled.value) for h in rows])
    slope = Jackknifed(value, error, k - 1)
    return GainByBase(metric, method, len(rows), k, slope, plain, refused)


def _slope(points: Sequence[tuple[float, float]]) -> float:
    if len(points) < 2:
        return nan
    x, y = np.array(points).T
    spread = float(((x - x.mean()) ** 2).sum())
    return float(((x - x.mean()) * (y - y.mean())).sum()) / spread if spread > 1e-12 else nan


@dataclass(frozen=True)
class MethodContrast:
    """One way of tuning minus another: same checkpoint, same data, same task, same documents.

    Attributes:
        method, other: The two ways (``lora``, ``full``); a grid point is a way of its own.
        difference: Of the scores, which is that of the gains: the base cancels.
    """

    method: str
    other: str
    difference: Gain


def method_contrasts(book: ScoreBook, gains: Sequence[Gain]) -> list[MethodContrast]:
    """LoRA minus full tuning, for each pair of models of one checkpoint and tuning data."""
    by_key: dict[tuple[Any, ...], list[Gain]] = defaultdict(list)
    for g in gains:
        s = g.subject
        if s.control is None and s.tuned_on is not None:
            by_key[(s.base, s.tuned_on, g.task.name, g.way, g.numerics)].append(g)
    found = []
    for several in by_key.values():
        full = [g for g in several if g.subject.method == "full"]
        for a in (g for g in several if g.subject.method == "lora"):
            for b in full:
                stratum = (a.way, a.numerics)
                gap = paired_gain(book, a.subject, b.subject, a.task.name, stratum)
                if gap is not None:
                    names = method_name(a.subject), method_name(b.subject)
                    found.append(MethodContrast(*names, gap))
    return found


@dataclass(frozen=True)
class ChangeByMetric:
    """Change of one model on tasks that are not its own, by metric.

    Attributes:
        gains: The changes, one per task, of one model.
        kind: ``forgetting`` (tasks of another kind) or ``transfer`` (its own kind, other data).
        metric: Of these tasks.
        tasks: Their names.
        raw: Mean change of the score.
        corrected: Mean change over (1 - trivial score); of all tasks, measurable or not.
        measurable: Tasks whose base lies above the trivial answer.
        mean_ratio, median_ratio: Of the change over the base's score.
    """

    gains: tuple[Gain, ...]
    kind: str
    metric: str
    tasks: tuple[str, ...]
    raw: Estimate
    corrected: Estimate | None
    measurable: int
    mean_ratio: float
    median_ratio: float


def changes_by_metric(
    book: ScoreBook, outside: Sequence[Forgetting], far: Sequence[Gain]
) -> list[ChangeByMetric]:
    """Forgetting and transfer of every model, raw, corrected and as a ratio, by metric."""
    rows = [("forgetting", f) for f in outside]
    rows += [("transfer", forgetting(book, gain)) for gain in far]
    groups: dict[tuple[str, str, str], list[Forgetting]] = defaultdict(list)
    for kind, f in rows:
        groups[(kind, f.gain.subject.id, f.gain.task.metric)].append(f)
    found = []
    for (kind, _, metric), several in groups.items():
        corrected = [f.corrected for f in several if f.corrected is not None]
        ratios = [f.ratio for f in several if f.ratio == f.ratio]
        found.append(
            ChangeByMetric(
                tuple(f.gain for f in several), kind, metric,
                tuple(f.gain.task.name for f in several),
                mean_of_estimates([f.gain.pooled for f in several]),
                mean_of_estimates(corrected) if len(corrected) == len(several) else None,
                sum(f.measurable for f in several),
                sum(ratios) / len(ratios) if ratios else nan, median(ratios) if ratios else nan,
            )
        )  # fmt: skip
    return found

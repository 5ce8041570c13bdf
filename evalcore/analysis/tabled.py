"""Score tables from outside: what a score, its error and its place in a study allow to be said.

Such a table has no documents. Differences are therefore unpaired: their error is that of two
independent samples, larger than the true one where both sides saw the same documents, and there is
none where the table gives neither errors nor numbers of documents.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import nan, sqrt

import numpy as np

from evalcore.analysis.agreement import PromptChoice, kendalls_w
from evalcore.analysis.intervals import normal_quantile
from evalcore.analysis.stats import Estimate, Limits, normal_range
from evalcore.analysis.subjects import Flag

UNPAIRED = "documents, unpaired"
"""``claim`` of intervals of score tables."""
LIMITS = (
    "a score table has no documents: differences are unpaired (too wide where both sides saw the "
    "same documents), nothing is said about other prompts or seeds, and best prompts, answers that "
    "agree and halves of documents cannot be had",
)  # fmt: skip
SUSPECT = 0.995
"""Accuracy of untuned models from which on every answer may be of the one class there is."""
OTHER_SIZE = 0.1
"""Share by which a number of documents from a score's error must differ from another to be told."""
_LOSSES = ("ppl", "loss", "nll", "ece", "wer", "cer", "ter", "bpb")
_LOSS_PARTS = ("perplexity", "bits_per", "brier")
_BOUNDED = ("rouge", "f1", "token_f1", "gold_prob")


@dataclass(frozen=True)
class TableScore:
    """One row of a score table.

    Attributes:
        model: Name of the checkpoint.
        step: Its step, for the order; None where there is none.
        tuned_on: What it was tuned on; empty for an untuned one.
        task, metric, prompt: Names.
        way: How it was asked, apart from the prompt (suite, protocol).
        shots: Worked examples.
        score: The score.
        stderr: Its standard error; NaN where it is not given and no number of documents is either.
        n: Documents, where they are given.
        where: File and line.
    """

    model: str
    step: int | None
    tuned_on: str
    task: str
    metric: str
    prompt: str
    way: str
    shots: int
    score: float
    stderr: float
    n: int | None
    where: str

    @property
    def key(self) -> tuple[object, ...]:
        """What a score stands for."""
        return (self.model, self.tuned_on, *self.asked, self.prompt)

    @property
    def asked(self) -> tuple[str, str, str, int]:
        """What may be compared: task, metric, way and shots."""
        return (self.task, self.metric, self.way, self.shots)

    @property
    def is_share(self) -> bool:
        """Whether the score is a share of right answers."""
        return self.metric.partition("_")[0] in ("acc", "accuracy", "exact", "em")

    @property
    def upward(self) -> bool:
        """Whether more is better, as far as the metric's name says."""
        return is_upward(self.metric)

    @property
    def in_range(self) -> bool:
        """Whether a metric that lies between 0 and 1 does."""
        return not self.is_bounded or 0.0 <= self.score <= 1.0

    @property
    def is_bounded(self) -> bool:
        """Whether the metric is one of those between 0 and 1."""
        return self.is_share or self.metric.lower().startswith(_BOUNDED)

    @property
    def error(self) -> float:
        """The standard error where one can be used; NaN for one of 0, which no sample has."""
        return self.stderr if self.stderr > 0 else nan

    @property
    def implied_n(self) -> float:
        """Documents behind a share of right answers, by its error: s (1 - s) / stderr^2."""
        if not self.is_share or not self.stderr > 0 or not 0 < self.score < 1:
            return nan
        return self.score * (1 - self.score) / self.stderr**2

    def estimate(self) -> Estimate:
        """The score with its normal interval."""
        return normal_estimate(self.score, self.stderr, self.n or 1)


def is_upward(metric: str) -> bool:
    """Whether more is better, as far as a metric's name says."""
    name = metric.lower()
    return name not in _LOSSES and not any(part in name for part in _LOSS_PARTS)


def normal_estimate(value: float, stderr: float, n: int) -> Estimate:
    """A number with a standard error that somebody else computed."""

    def limits(level: float) -> tuple[float, float]:
        half = normal_quantile(0.5 + level / 2) * stderr
        return value - half, value + half

    known: Limits | None = limits if stderr > 0 else None
    (low95, high95), (low99, high99) = (
        (limits(0.95), limits(0.99)) if known else ((nan, nan), (nan, nan))
    )
    claim = UNPAIRED if known else ""
    return Estimate(
        value, stderr, n, low95, high95, low99, high99, claim=claim, limits=known,
        smallest=(normal_quantile(0.975) + normal_quantile(0.8)) * stderr,
    )  # fmt: skip


class ScoreTable:
    """Rows of a score table by what they stand for; keys with several values are left out."""

    def __init__(self, rows: Sequence[TableScore], sizes: Mapping[str, int] | None = None) -> None:
        self.rows = list(rows)
        by_key: dict[tuple[object, ...], list[TableScore]] = defaultdict(list)
        for row in rows:
            by_key[row.key].append(row)
        self.doubled = {
            k: found for k, found in by_key.items() if len({(r.score, r.stderr) for r in found}) > 1
        }
        self.by_key = {k: found[0] for k, found in by_key.items() if k not in self.doubled}
        self.sizes = dict(sizes or {})

    @property
    def models(self) -> list[str]:
        """Checkpoints, by step; those without one last."""
        first = {row.model: row.step for row in reversed(self.rows)}
        return sorted(first, key=lambda m: (first[m] is None, first[m] or 0, m))

    def flags(self) -> list[Flag]:
        """What a reader of these scores must know."""
        return [
            *self._doubled_flags(), *self._scale_flags(), *self._class_flags(),
            *self._size_flags(), *self._edge_flags(),
        ]  # fmt: skip

    def _doubled_flags(self) -> list[Flag]:
        flags = []
        for rows in self.doubled.values():
            values = ", ".join(f"{r.score:.3f} ({r.where})" for r in rows)
            text = f"{len(rows)} values for one key: {values}; none is used"
            flags.append(Flag("doubled", _place(rows[0]), text, len(rows)))
        return flags

    def _scale_flags(self) -> list[Flag]:
        """Scores of metrics between 0 and 1 that are not; and two scales in one column."""
        flags = []
        of_metric: dict[str, list[TableScore]] = defaultdict(list)
        for row in self.rows:
            if row.is_bounded:
                of_metric[row.metric].append(row)
        for metric, rows in of_metric.items():
            out = [r for r in rows if not r.in_range]
            if not out:
                continue
            worst = max(out, key=lambda r: abs(r.score))
            text = f"{len(out)} of {len(rows)} scores are not between 0 and 1, as {worst.score:g} "
            text += f"({worst.where})"
            if all(0 <= r.score <= 100 for r in rows):
                text += "; percent? divide by 100"
            text += "; no error is made of n, and MaxP, Sat and CPS are not given"
            if len(out) < len(rows):
                text += "; gains between the two scales are left out"
            flags.append(Flag("scale", metric, text, len(out)))
        wide = [r for r in self.rows if r.is_share and r.in_range and r.stderr > 0.5]
        if wide:
            text = f"stderr of {wide[0].stderr:g} ({wide[0].where}) is more than a share can have"
            flags.append(Flag("scale", wide[0].metric, text, len(wide)))
        return flags

    def _class_flags(self) -> list[Flag]:
        """Untuned models that answer everything right: the gold column may hold one class."""
        untuned: dict[tuple[str, str], list[TableScore]] = defaultdict(list)
        for row in self.by_key.values():
            if row.is_share and not row.tuned_on:
                untuned[(row.task, row.way)].append(row)
        flags = []
        for (task, way), rows in untuned.items():
            high = [r for r in rows if r.score >= SUSPECT]
            if len(high) >= 2 and 2 * len(high) >= len(rows):
                text = (
                    f"single-class suspect: {len(high)} of {len(rows)} scores of untuned models "
                    f"are {SUSPECT} or more; with labels of one class the score is the share of "
                    "answers of that class"
                )
                flags.append(Flag("one class", f"{task}{f' ({way})' * bool(way)}", text, len(high)))
        return flags

    def _size_flags(self) -> list[Flag]:
        """Numbers of documents that an error implies, against those given and the other rows'."""
        of_task: dict[tuple[str, str], list[TableScore]] = defaultdict(list)
        for row in self.rows:
            if row.implied_n == row.implied_n:
                of_task[(row.task, row.way)].append(row)
        flags = []
        for (task, way), rows in of_task.items():
            usual = float(np.median([r.implied_n for r in rows]))
            where = f"{task}{f' ({way})' * bool(way)}"
            given = self.sizes.get(task) or next((r.n for r in rows if r.n), None)
            if given and abs(usual / given - 1) > OTHER_SIZE:
                text = f"stderr implies another n: about {usual:,.0f} documents, not {given:,}"
                flags.append(Flag("size", where, text, len(rows)))
            # A bootstrap of a few thousand draws leaves the error of an error at 1 to 2 %; near 0
            # and 1 a handful of documents decide it.
            odd = [
                r for r in rows
                if abs(r.implied_n / usual - 1) > OTHER_SIZE and 0.02 < r.score < 0.98
            ]  # fmt: skip
            if odd:
                some = ", ".join(f"{r.implied_n:,.0f} ({r.where})" for r in odd[:3])
                text = f"stderr implies another n than in the other rows ({usual:,.0f}): {some}"
                flags.append(Flag("size", where, text, len(odd)))
        return flags

    def _edge_flags(self) -> list[Flag]:
        """Errors of 0, which no sample has."""
        flat: dict[str, int] = defaultdict(int)
        for row in self.rows:
            if row.stderr == 0:
                flat[f"{row.task}{f' ({row.way})' * bool(row.way)}"] += 1
        text = "scores with an error of 0 (every document alike); no interval is made of it"
        return [Flag("degenerate", task, f"{n} {text}", n) for task, n in flat.items()]

    def gains(self) -> list[TableGain]:
        """Score of each tuned model minus that of its checkpoint, asked alike."""
        found = []
        for row in self.by_key.values():
            if row.tuned_on:
                base = self.by_key.get((row.model, "", *row.asked, row.prompt))
                if base is not None and base.in_range == row.in_range:
                    found.append(TableGain(row, base))
        return found

    def sensitivity(self) -> list[TableSpread]:
        """Spread over prompts of every model asked in one way under two prompts or more."""
        lines: dict[tuple[object, ...], list[TableScore]] = defaultdict(list)
        for row in self.by_key.values():
            lines[(row.model, row.tuned_on, *row.asked, row.in_range)].append(row)
        return [TableSpread.of(rows) for rows in lines.values() if len(rows) > 1]

    def stability(self) -> list[tuple[tuple[str, str, str, int], int, int, float]]:
        """(asked, prompts, models, Kendall's W of the models' order) where it can be told."""
        found = []
        asked = dict.fromkeys(row.asked for row in self.by_key.values())
        for what in asked:
            rows = [r for r in self.by_key.values() if r.asked == what]
            prompts = sorted({r.prompt for r in rows})
            scores: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
            for r in rows:
                scores[(r.model, r.tuned_on)][r.prompt] = r.score
            whole = [s for s in scores.values() if len(s) == len(prompts)]
            if len(prompts) > 1 and len(whole) > 1:
                matrix = np.array([[s[p] for s in whole] for p in prompts])
                found.append((what, len(prompts), len(whole), kendalls_w(matrix)))
        return found


def _place(row: TableScore) -> str:
    parts = [row.model, row.tuned_on or "untuned", row.task, row.way, row.prompt]
    return ", ".join(p for p in parts if p) + f", {row.shots} shots"


@dataclass(frozen=True)
class TableGain:
    """A tuned model's score minus its base's."""

    own: TableScore
    base: TableScore

    @property
    def gain(self) -> Estimate:
        error = sqrt(self.own.error**2 + self.base.error**2)
        return normal_estimate(self.own.score - self.base.score, error, self.own.n or 1)


@dataclass(frozen=True)
class TableSpread:
    """Spread over prompts of one model on one task.

    Attributes:
        rows: The scores.
        range: Largest minus smallest.
        range_noise: Expected range of as many prompts without any effect, their errors being
            independent (too large where they saw the same documents); NaN without errors, or with
            one of 0.
        std: Standard deviation beyond noise; 0 where the noise explains all of it.
        choice: MaxP, AvgP, Sat and CPS; None for losses and where scores leave 0 to 1.
    """

    rows: tuple[TableScore, ...]
    range: float
    range_noise: float
    std: float
    choice: PromptChoice | None

    @classmethod
    def of(cls, rows: Iterable[TableScore]) -> TableSpread:
        rows = tuple(sorted(rows, key=lambda r: r.prompt))
        scores = np.array([r.score for r in rows])
        noise = float(np.mean([r.error**2 for r in rows]))
        between = float(scores.var(ddof=1)) - noise
        return cls(
            rows, float(np.ptp(scores)), normal_range(len(rows)) * sqrt(noise),
            sqrt(max(between, 0.0)) if between == between else nan,
            PromptChoice.of(scores) if rows[0].upward and scores.min() >= 0 and scores.max() <= 1
            else None,
        )  # fmt: skip

"""Means of gains over groups of tasks of a score table (``analysis.tabled``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan, sqrt
from statistics import median

import numpy as np

from evalcore.analysis.forgetting import SMALL_DENOMINATOR
from evalcore.analysis.stats import Estimate
from evalcore.analysis.subjects import Flag
from evalcore.analysis.tabled import ScoreTable, TableGain, normal_estimate


@dataclass(frozen=True)
class Member:
    """A task of a group: which tuned model's gain counts, asked how.

    Attributes:
        task: Its name.
        tuned_on: The tuning; empty: the only one that has scores of it.
        way: How it was asked; empty: the only way.
    """

    task: str
    tuned_on: str = ""
    way: str = ""


@dataclass(frozen=True)
class TableGroup:
    """Tasks whose gains are averaged; one that stands twice counts twice.

    Attributes:
        name: What it is called.
        members: The tasks.
        prompt: Only this prompt; empty: the mean over those there are.
        shots: Only so many.
    """

    name: str
    members: tuple[Member, ...]
    prompt: str = ""
    shots: int | None = None

    @property
    def doubled(self) -> list[str]:
        """Tasks that are counted more than once."""
        names = [m.task for m in self.members]
        return sorted({n for n in names if names.count(n) > 1})

    def once(self) -> TableGroup:
        """The same with each task counted once."""
        return TableGroup(self.name, tuple(dict.fromkeys(self.members)), self.prompt, self.shots)


@dataclass(frozen=True)
class TableMean:
    """Mean gain of a group at one checkpoint.

    Attributes:
        model: The checkpoint.
        group: The group; ``tasks`` how many of its members have a gain.
        missing: The others.
        unknown: Tasks without an error, for which there is no interval of the mean.
        base: Mean score before tuning.
        gain: Mean gain.
        mean_ratio, median_ratio: Of the gains over their base scores (MRC and its median).
        small: Tasks whose base score is too near 0 for a ratio (they are in both).
    """

    model: str
    group: TableGroup
    tasks: int
    missing: tuple[str, ...]
    unknown: tuple[str, ...]
    base: float
    gain: Estimate
    mean_ratio: float
    median_ratio: float
    small: tuple[str, ...]


def group_means(
    table: ScoreTable, groups: Sequence[TableGroup]
) -> tuple[list[TableMean], list[Flag]]:
    """Mean gains by checkpoint and group, each task once; and as given, where one counts twice."""
    gains = table.gains()
    flags = [
        Flag("group", f"{group.name}: {task}", "counted more than once; both means are shown", 2)
        for group in groups
        for task in group.doubled
    ]
    rows = []
    for model in table.models:
        mine = [g for g in gains if g.own.model == model]
        for group in groups:
            for variant in [group.once(), *([group] if group.doubled else [])]:
                mean, unclear = _mean(model, variant, mine)
                rows.append(mean)
                flags += unclear
    return rows, list(dict.fromkeys(flags))


def _mean(
    model: str, group: TableGroup, gains: Sequence[TableGain]
) -> tuple[TableMean, list[Flag]]:
    found: list[tuple[float, float, float]] = []
    fits = [m.task for m in group.members]
    losses = {g.own.task for g in gains if g.own.task in fits and not g.own.upward}
    losses = losses if any(g.own.task in fits and g.own.upward for g in gains) else set()
    missing, unknown, small, flags = [], [], [], []
    for member in group.members:
        own = [
            g for g in gains
            if g.own.task == member.task
            and member.tuned_on in ("", g.own.tuned_on)
            and member.way in ("", g.own.way)
            and group.prompt in ("", g.own.prompt)
            and group.shots in (None, g.own.shots)
        ]  # fmt: skip
        kinds = {(g.own.tuned_on, *g.own.asked) for g in own}
        if member.task in losses:
            missing.append(member.task)
            text = "less is better there; not averaged with the others"
            flags.append(Flag("group", f"{group.name}: {member.task}", text))
            continue
        if len(kinds) != 1:
            missing.append(member.task)
            if kinds:
                text = "several tunings, ways or shots fit; say which (task@tuning/way); not used"
                flags.append(Flag("group", f"{group.name}: {member.task}", text, len(kinds)))
            continue
        values = [g.gain for g in own]
        if abs(float(np.mean([g.base.score for g in own]))) < SMALL_DENOMINATOR:
            small.append(member.task)
        if any(v.stderr != v.stderr for v in values):
            unknown.append(member.task)
        # The prompts of a task may share documents: their errors are averaged, the cautious end.
        found.append((
            float(np.mean([v.value for v in values])),
            float(np.mean([v.stderr for v in values])),
            float(np.mean([g.base.score for g in own])),
        ))  # fmt: skip
    k = len(found)
    ratios = [f[0] / f[2] for f in found if f[2]]
    value = sum(f[0] for f in found) / k if k else nan
    # A task that counts twice is the same sample twice.
    error = sqrt(sum(f[1] ** 2 * found.count(f) for f in found)) / k if k else nan
    base = sum(f[2] for f in found) / k if k else nan
    estimate = normal_estimate(value, error, max(k, 1))
    absent = tuple(missing), tuple(dict.fromkeys(unknown))
    return TableMean(
        model, group, k, *absent, base, estimate,
        sum(ratios) / len(ratios) if ratios else nan, median(ratios) if ratios else nan,
        tuple(small),
    ), flags  # fmt: skip

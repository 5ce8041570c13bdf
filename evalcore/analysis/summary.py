"""The table per checkpoint, in the manner of the study's Table 6: groups of tasks by method."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from evalcore.analysis.book import ScoreBook
from evalcore.analysis.estimates import mean_of_estimates
from evalcore.analysis.gains import Gain, lower_text, paired_gain
from evalcore.analysis.groups import Group, gains_of
from evalcore.analysis.pooling import pooled_score
from evalcore.analysis.stats import EMPTY, Estimate
from evalcore.analysis.subjects import Flag, SubjectInfo
from evalcore.metrics import higher_is_better


@dataclass(frozen=True)
class GroupMean:
    """Mean over the tasks of one group.

    Attributes:
        group: Which tasks; ``tasks`` has those with a gain here.
        tasks: Their names.
        missing: Tasks of the group without a gain here.
        base: Mean score of the untuned checkpoint over ``tasks`` (over all that were scored, where
            there is no gain).
        gain: Mean gain over ``tasks``; of a task with several tunings their mean.
        gains: Those that were averaged.
    """

    group: Group
    tasks: tuple[str, ...]
    missing: tuple[str, ...]
    base: Estimate
    gain: Estimate
    gains: tuple[Gain, ...]


@dataclass(frozen=True)
class CheckpointSummary:
    """One checkpoint and one way of tuning. Methods and grid points are never averaged.

    Attributes:
        checkpoint, step: Which.
        method: ``full``, ``lora`` and what follows a plus sign in the tunings' names; empty where
            nothing was tuned.
        groups: One mean per group of tasks.
    """

    checkpoint: str
    step: int | None
    method: str
    groups: tuple[GroupMean, ...]


def method_name(subject: SubjectInfo) -> str:
    """``lora, rank8``: how a model was tuned, apart from what on."""
    suffix = (subject.tuning or "").partition("+")[2]
    parts = [subject.method or "", *(p for p in suffix.split("+") if p != subject.method)]
    if subject.tuning_step is not None:
        parts.append(f"step {subject.tuning_step}")
    return ", ".join(p for p in parts if p)


def summarize(
    book: ScoreBook, gains: Sequence[Gain], groups: Sequence[Group], flags: list[Flag]
) -> list[CheckpointSummary]:
    """Rows by checkpoint and method.

    Args:
        book: What was scored.
        gains: Of the primary strata, controls left out.
        groups: The groups of tasks.
        flags: Told what is not averaged.
    """
    tuned = {s.tuned_on for s in book.models if s.base and s.tuned_on}
    groups = [_one_direction(book, group, flags) for group in groups]
    by_row: dict[tuple[str, str], list[Gain]] = defaultdict(list)
    for gain in gains:
        s = gain.subject
        if s.base is not None and s.tuning is not None:
            by_row[(s.base, method_name(s))].append(gain)
    by_base: dict[str, list[str]] = defaultdict(list)
    for base, method in sorted(by_row):
        by_base[base].append(method)
    rows = []
    for subject in book.models:
        if subject.base is not None:
            continue
        methods = by_base.get(subject.id) or [""]
        for method in methods:
            mine = by_row.get((subject.id, method), [])
            means = tuple(_mean(book, subject, g, mine, tuned, flags, method) for g in groups)
            rows.append(CheckpointSummary(subject.checkpoint, subject.step, method, means))
    return rows


def _one_direction(book: ScoreBook, group: Group, flags: list[Flag]) -> Group:
    """The group without tasks in which less is better, if there are others."""
    down = [book.tasks[t] for t in group.tasks
            if t in book.tasks and not higher_is_better(book.tasks[t].metric)]  # fmt: skip
    names = {task.name for task in down}
    kept = tuple(t for t in group.tasks if t not in names)
    if not down or not any(t in book.tasks for t in kept):
        return group
    flags += [Flag("group", f"{group.name}", lower_text(task)) for task in down]
    return replace(group, tasks=kept)


def _mean(
    book: ScoreBook, base: SubjectInfo, group: Group, gains: Sequence[Gain],
    tuned: set[str], flags: list[Flag], method: str,
) -> GroupMean:  # fmt: skip
    found: dict[str, Estimate] = {}
    taken: list[Gain] = []
    for task, several in gains_of(group, gains, tuned).items():
        several = _chosen(book, several, group)
        kinds = [g.subject.tuned_on for g in several]
        if len(set(kinds)) < len(kinds):
            names = ", ".join(sorted(g.subject.tuning or "?" for g in several))
            text = f"{names}: several models of one tuning ({method or 'no method'}); not averaged"
            flags.append(Flag("doubled", f"{base.checkpoint}, {task}", text, len(several)))
        elif several:
            found[task] = mean_of_estimates([g.pooled for g in several], shared=True)
            taken += several
    scored = [t for t in group.tasks if book.variants(base.id, t)]
    of = [t for t in dict.fromkeys(group.tasks) if t in found] or list(dict.fromkeys(scored))
    scores = [_base_score(book, base, task, group) for task in of]
    return GroupMean(
        group=group,
        tasks=tuple(found),
        missing=tuple(t for t in dict.fromkeys(group.tasks) if t not in found),
        base=mean_of_estimates([s for s in scores if s.n]) if any(s.n for s in scores) else EMPTY,
        gain=mean_of_estimates(list(found.values())) if found else EMPTY,
        gains=tuple(taken),
    )


def _chosen(book: ScoreBook, gains: Sequence[Gain], group: Group) -> list[Gain]:
    """The gains under the group's own prompts."""
    if not group.prompts:
        return list(gains)
    found = (
        paired_gain(book, g.subject, g.reference, g.task.name, (g.way, g.numerics),
                    variants=[n for n in g.by_variant if group.asks(n)], allow_mixed=True)
        for g in gains
    )  # fmt: skip
    return [g for g in found if g is not None]


def _base_score(book: ScoreBook, base: SubjectInfo, task: str, group: Group) -> Estimate:
    stratum = book.primary_stratum(base, task)
    if stratum is None:
        return EMPTY
    cells = book.strata(base, task)[stratum]
    kept = {n: c for n, c in cells.items() if group.asks(n)}
    return pooled_score(book, kept, book.tasks[task])

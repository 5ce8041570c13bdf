"""The whole analysis of one results table: every quantity of the study in one frozen value."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

import pyarrow as pa

from evalcore.analysis.book import ScoreBook
from evalcore.analysis.forgetting import (
    Forgetting,
    ForgettingSummary,
    forgetting,
    summarize_forgetting,
)
from evalcore.analysis.gains import (
    Contrast,
    ControlComparison,
    Gain,
    contrast,
    controls_of,
    paired_gain,
    paired_gains,
)
from evalcore.analysis.groups import Group, Role, check_groups, default_groups, mixes_of, role_of
from evalcore.analysis.pooling import pooled_score
from evalcore.analysis.prompts import (
    BestOfPrompts,
    PromptSpread,
    best_of_prompts,
    prompt_spreads,
)
from evalcore.analysis.stats import Estimate
from evalcore.analysis.subjects import Flag, SubjectInfo, TaskInfo
from evalcore.analysis.summary import CheckpointSummary, summarize
from evalcore.analysis.ways import Way


@dataclass(frozen=True)
class CurvePoint:
    """Score of one model on one task in the primary way; a point of a learning curve."""

    subject: SubjectInfo
    task: TaskInfo
    way: Way
    score: Estimate
    continuous: Estimate
    variants: tuple[str, ...]


@dataclass(frozen=True)
class Analysis:
    """All derived quantities of a results table; nothing in it needs a device or the data.

    Attributes:
        book: What was scored.
        gains: In every stratum; headlines are those of :meth:`primary_gains`.
        curves, forgetting, forgetting_summaries, out_of_domain, summary, contrasts: Of each task's
            primary way of asking (``book.primary``) alone.
        controls, spreads, best_of: In every stratum.
        groups: The groups of ``summary``; ``declared`` says whether a study named them.
        mixes: Tunings that are instruction mixes.
        kept: What readers worked out of it and ask for again.
    """

    book: ScoreBook
    curves: list[CurvePoint]
    gains: list[Gain]
    controls: list[ControlComparison]
    forgetting: list[Forgetting]
    forgetting_summaries: list[ForgettingSummary]
    out_of_domain: list[Gain]
    spreads: list[PromptSpread]
    best_of: list[BestOfPrompts]
    contrasts: list[Contrast]
    groups: list[Group]
    declared: bool
    summary: list[CheckpointSummary]
    mixes: frozenset[str]
    flags: list[Flag]
    kept: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def role(self, gain: Gain) -> Role:
        """What the task is to the gain's model."""
        return role_of(gain.task, gain.subject, self.mixes)

    def is_primary(self, gain: Gain) -> bool:
        """Whether it is of the stratum that headlines are about."""
        stratum = self.book.primary_stratum(gain.subject, gain.task.name)
        return stratum == (gain.way, gain.numerics)

    def primary_gains(self) -> list[Gain]:
        return list(self._primary)

    def own_gains(self) -> list[Gain]:
        """Primary gains of models (controls left out) on the tasks of their own tuning."""
        return list(self._own)

    def control_of(self, gain: Gain) -> list[ControlComparison]:
        """Control comparisons of the same model, task and stratum."""
        return self._controls.get(_key(gain), [])

    def forgetting_of(self, subject: SubjectInfo) -> ForgettingSummary | None:
        """The summary of one model's forgetting."""
        return self._forgetting.get(subject.id)

    @cached_property
    def _primary(self) -> tuple[Gain, ...]:
        return tuple(g for g in self.gains if self.is_primary(g))

    @cached_property
    def _own(self) -> tuple[Gain, ...]:
        return tuple(
            g for g in self._primary if self.role(g) == "own" and g.subject.control is None
        )

    @cached_property
    def _controls(self) -> dict[tuple[str, str, Way, str], list[ControlComparison]]:
        found: dict[tuple[str, str, Way, str], list[ControlComparison]] = defaultdict(list)
        for c in self.controls:
            found[_key(c.difference)].append(c)
        return dict(found)

    @cached_property
    def _forgetting(self) -> dict[str, ForgettingSummary]:
        return {s.subject.id: s for s in self.forgetting_summaries}


def _key(gain: Gain) -> tuple[str, str, Way, str]:
    return (gain.subject.id, gain.task.name, gain.way, gain.numerics)


def analyse(
    source: pa.Table | ScoreBook,
    *,
    numerics: str | None = None,
    allow_mixed: bool = False,
    seed: int = 0,
    groups: Sequence[Group] | None = None,
    primary: Way | None = None,
) -> Analysis:
    """Derives the study's quantities.

    Args:
        source: What ``ResultStore.read()`` gives, or a book (then ``numerics`` and ``primary``
            were its builder's to say).
        numerics: Use only this numerics class (label).
        allow_mixed: Allow differences between scores of different numerics classes.
        seed: Of the halves on which best prompts are chosen.
        groups: Groups of tasks of the table per checkpoint; None: ``default_groups``.
        primary: The way of asking that headlines are about; None: see ``ScoreBook.primary``.

    Raises:
        InputError: The table lacks columns or rows.
        IncompatibleError: A difference would mix numerics classes.
    """
    if isinstance(source, ScoreBook):
        book = source
    else:
        chosen_way = (primary,) if primary else ()
        book = ScoreBook.from_table(source, numerics=numerics, preferred=chosen_way)
    flags = list(book.flags)
    tuned = {s.tuned_on for s in book.models if s.base and s.tuned_on}
    mixes = mixes_of(book.tasks, tuned)
    gains = _all_gains(book, flags, allow_mixed)
    controls = _all_controls(book, gains, allow_mixed, flags)
    main = [g for g in gains if (g.way, g.numerics) == book.primary_stratum(g.subject, g.task.name)]
    roles = [(g, role_of(g.task, g.subject, mixes)) for g in main]
    outside = [forgetting(book, g) for g, role in roles if role == "outside"]
    by_subject: dict[str, list[Forgetting]] = defaultdict(list)
    for row in outside:
        by_subject[row.gain.subject.id].append(row)
        if row.measurable and row.small_denominator:
            where = f"{row.gain.subject.label}, {row.gain.task.name}"
            flags.append(Flag("ratio", where, f"base score {row.gain.other.value:.3f} is small"))
    best = [
        best_of_prompts(book, g.subject, g.task, (g.way, g.numerics), seed=seed)
        for g in gains
        if g.task.tuned_by == g.subject.tuned_on
    ]
    _flag_apart(book, flags)
    spreads = prompt_spreads(book)
    chosen = list(groups) if groups is not None else default_groups(book.tasks, tuned)
    flags += check_groups(chosen, book.tasks)
    tuned_gains = [g for g in main if g.subject.control is None]
    return Analysis(
        book=book,
        curves=_curves(book),
        gains=gains,
        controls=controls,
        forgetting=outside,
        forgetting_summaries=[
            summarize_forgetting(rows[0].gain.subject, rows) for rows in by_subject.values()
        ],
        out_of_domain=[g for g, role in roles if role == "far"],
        spreads=spreads,
        best_of=[b for b in best if b is not None],
        contrasts=_contrasts(book, [g for g, r in roles if r == "own" and not g.subject.control]),
        groups=chosen,
        declared=groups is not None,
        summary=summarize(book, tuned_gains, chosen, flags),
        mixes=mixes,
        flags=flags,
    )


def _all_gains(book: ScoreBook, flags: list[Flag], allow_mixed: bool) -> list[Gain]:
    gains = []
    for subject in book.models:
        if subject.base is None:
            continue
        base = book.subjects.get(subject.base)
        if base is None:
            flags.append(Flag("missing", subject.label, "its base was not scored; no gain"))
            continue
        for task in book.tasks:
            own, theirs = book.strata(subject, task), book.strata(base, task)
            where = f"{subject.label}, {task}"
            if not own and not theirs:
                continue
            found = paired_gains(book, subject, base, task, allow_mixed=allow_mixed)
            if not found:
                side = "tuned" if not own else "base" if not theirs else "common"
                flags.append(Flag("missing", where, f"no {side} scores; no gain"))
                continue
            gains += found
            _flag_missing(found, {n for s in (own, theirs) for c in s.values() for n in c}, where,
                          flags)  # fmt: skip
    return gains


def _flag_missing(found: Sequence[Gain], names: set[str], where: str, flags: list[Flag]) -> None:
    lost = sorted(names - {n for g in found for n in g.by_variant})
    if lost:
        text = f"not comparable on both sides: {', '.join(lost)}"
        flags.append(Flag("missing", where, text, len(lost)))
    rows = sum(g.missing_rows for g in found)
    if rows:
        some = next(g.missing_documents for g in found if g.missing_rows)
        flags.append(Flag("missing", where, f"{rows} rows on one side only ({some})", rows))


def _all_controls(
    book: ScoreBook, gains: Sequence[Gain], allow_mixed: bool, flags: list[Flag]
) -> list[ControlComparison]:
    by_key = {_key(g): g for g in gains}
    rows, without = [], set()
    for gain in gains:
        if gain.subject.control is not None or gain.task.tuned_by != gain.subject.tuned_on:
            continue
        if gain.subject.tuning is None:
            continue
        found = controls_of(book, gain.subject)
        if not found:
            without.add(gain.subject.label)
        for control in found:
            stratum = (gain.way, gain.numerics)
            difference = paired_gain(
                book, gain.subject, control, gain.task.name, stratum, allow_mixed=allow_mixed
            )
            if difference is None:
                where = f"{gain.subject.label}, {gain.task.name}, {gain.way.label}"
                flags.append(Flag("missing", where, f"control {control.label} lacks scores"))
                continue
            of = (control.id, gain.task.name, *stratum)
            comparison = ControlComparison(difference, by_key.get(of))
            rows.append(comparison)
            where = f"{gain.subject.label}, {gain.task.name}, {gain.way.label}"
            flags += [Flag("control", where, note) for note in comparison.notes]
    if without:
        listed = sorted(without)
        have = "model has" if len(listed) == 1 else "models have"
        text = f"{len(listed)} tuned {have} no format-only control: the gain may be format"
        flags.append(Flag("control", ", ".join(listed[:3]) + (" ..." if listed[3:] else ""), text,
                          len(listed)))  # fmt: skip
    return rows


def _contrasts(book: ScoreBook, own: Sequence[Gain]) -> list[Contrast]:
    """Of each tuning and task: every checkpoint against the one before, the last against the first.

    Tunings are the same where name, method and step of the tuning are.
    """
    lines: dict[tuple[object, ...], list[Gain]] = defaultdict(list)
    for g in own:
        s = g.subject
        if s.step is not None and s.tuning is not None:
            lines[(s.tuning, s.method, s.tuning_step, g.task.name, g.way, g.numerics)].append(g)
    found: list[Contrast | None] = []
    for line in lines.values():
        steps = [g.subject.step for g in line]
        if len(set(steps)) < len(steps):
            continue  # two models of one tuning at a checkpoint: nobody can say which is meant
        line = sorted(line, key=lambda g: g.subject.step or 0)
        pairs = list(pairwise(line))
        if len(line) > 2:
            pairs.append((line[0], line[-1]))
        found += [contrast(book, later, earlier) for earlier, later in pairs]
    return [c for c in found if c is not None]


def _curves(book: ScoreBook) -> list[CurvePoint]:
    points = []
    for subject in book.models:
        for task in book.tasks.values():
            stratum = book.primary_stratum(subject, task.name)
            if stratum is None:
                continue
            cells = book.strata(subject, task.name)[stratum]
            score = pooled_score(book, cells, task)
            if score.n:
                continuous = pooled_score(book, cells, task, "continuous")
                points.append(
                    CurvePoint(subject, task, stratum[0], score, continuous, tuple(cells))
                )
    return points


def _flag_apart(book: ScoreBook, flags: list[Flag]) -> None:
    """Says where models were scored under other prompts or on other numbers of documents."""
    sizes: dict[tuple[str, Way], set[int]] = defaultdict(set)
    prompts: dict[tuple[str, Way], set[frozenset[str]]] = defaultdict(set)
    for (_, task), cells in book.cells.items():
        own: dict[Way, dict[str, int]] = defaultdict(dict)
        for name, cell in cells.items():
            own[cell.way][name] = cell.n + cell.unscored
        for way, found in own.items():
            sizes[(task, way)].add(max(found.values()))
            prompts[(task, way)].add(frozenset(found))
    for (task, way), counts in sizes.items():
        if len(counts) > 1:
            text = (
                f"models were scored on {min(counts):,} to {max(counts):,} documents: their scores "
                "are not of the same ones (gains and contrasts are)"
            )
            flags.append(Flag("documents", f"{task}, {way.label}", text, len(counts)))
    for (task, way), sets in prompts.items():
        if len(sets) > 1:
            least, most = min(map(len, sets)), max(map(len, sets))
            many = f"{least} to {most}" if least < most else f"{most}, not the same"
            text = (
                f"models were scored under different prompts ({many}): their scores and ranges are "
                "not of the same ones (gains and contrasts are)"
            )
            flags.append(Flag("prompts", f"{task}, {way.label}", text, len(sets)))

"""The whole analysis of one results table: every quantity of the study in one frozen value."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass

import pyarrow as pa

from evalcore.analysis.book import Flag, ScoreBook, SubjectInfo, TaskInfo
from evalcore.analysis.gains import (
    ControlComparison,
    Forgetting,
    ForgettingSummary,
    Gain,
    controls_of,
    forgetting,
    paired_gain,
    pooled_score,
    summarize_forgetting,
)
from evalcore.analysis.prompts import (
    BestOfPrompts,
    PromptSpread,
    best_of_prompts,
    prompt_spreads,
)
from evalcore.analysis.stats import EMPTY, Estimate, Method, mean_of_estimates


@dataclass(frozen=True)
class CurvePoint:
    """Score of one subject on one task, pooled over its prompts; a point of a learning curve."""

    subject: SubjectInfo
    task: TaskInfo
    score: Estimate
    continuous: Estimate
    variants: tuple[str, ...]


@dataclass(frozen=True)
class CheckpointSummary:
    """One checkpoint in the manner of the study's Table 6.

    Attributes:
        own_tasks: In-domain tasks that have a tuning of their own.
        own_gain: Mean gain over them, each under its own tuning.
        other_tasks: Tasks no tuning here was meant for.
        other_base: Mean score of the untuned checkpoint over those.
        other_gain: Mean over those of the change under the tunings.
    """

    checkpoint: str
    step: int | None
    own_tasks: tuple[str, ...]
    own_gain: Estimate
    other_tasks: tuple[str, ...]
    other_base: Estimate
    other_gain: Estimate


@dataclass(frozen=True)
class Analysis:
    """All derived quantities of a results table; nothing in it needs a device or the data."""

    book: ScoreBook
    curves: list[CurvePoint]
    gains: list[Gain]
    controls: list[ControlComparison]
    forgetting: list[Forgetting]
    forgetting_summaries: list[ForgettingSummary]
    out_of_domain: list[Gain]
    spreads: list[PromptSpread]
    best_of: list[BestOfPrompts]
    summary: list[CheckpointSummary]
    flags: list[Flag]

    def own_gains(self) -> list[Gain]:
        """Gains of adapters (controls left out) on in-domain tasks of their own tuning."""
        return [g for g in self.gains if is_own(g) and g.subject.control is None]

    def control_of(self, gain: Gain) -> list[ControlComparison]:
        """Control comparisons of the same adapter and task."""
        key = (gain.subject.id, gain.task.name)
        return [
            c for c in self.controls if (c.difference.subject.id, c.difference.task.name) == key
        ]


def is_own(gain: Gain) -> bool:
    """Whether the task belongs to the subject's tuning and is in its domain."""
    return gain.task.tuned_by == gain.subject.tuned_on is not None and gain.task.domain != "out"


def analyse(
    table: pa.Table,
    *,
    numerics: str | None = None,
    allow_mixed: bool = False,
    method: Method = "t",
    seed: int = 0,
) -> Analysis:
    """Derives the study's quantities.

    Args:
        table: What ``ResultStore.read()`` gives.
        numerics: Use only this numerics class (label).
        allow_mixed: Allow differences between scores of different numerics classes.
        method: Intervals by Student's t, or by bootstrap over documents.
        seed: Of bootstrap and of the halves on which best prompts are chosen.

    Raises:
        InputError: The table lacks columns or rows.
        IncompatibleError: A difference would mix numerics classes.
    """
    book = ScoreBook.from_table(table, numerics=numerics)
    flags = list(book.flags)
    gains = _all_gains(book, flags, allow_mixed, method, seed)
    controls = _all_controls(book, gains, allow_mixed, method, seed, flags)
    outside = [
        forgetting(g) for g in gains
        if g.subject.tuned_on is not None and g.task.tuned_by != g.subject.tuned_on
    ]  # fmt: skip
    by_subject: dict[str, list[Forgetting]] = defaultdict(list)
    for row in outside:
        by_subject[row.gain.subject.id].append(row)
    for row in outside:
        if row.measurable and row.small_denominator:
            where = f"{row.gain.subject.label}, {row.gain.task.name}"
            flags.append(Flag("ratio", where, f"base score {row.gain.other.value:.3f} is small"))
    best = [
        best_of_prompts(book, g.subject, g.task, seed=seed, method=method)
        for g in gains
        if g.task.tuned_by == g.subject.tuned_on
    ]
    spreads = prompt_spreads(book)
    _flag_prompt_counts(spreads, flags)
    return Analysis(
        book=book,
        curves=_curves(book),
        gains=gains,
        controls=controls,
        forgetting=outside,
        forgetting_summaries=[
            summarize_forgetting(book.subjects[s], rows) for s, rows in by_subject.items()
        ],
        out_of_domain=[
            g for g in gains
            if g.task.tuned_by == g.subject.tuned_on is not None and g.task.domain == "out"
        ],
        spreads=spreads,
        best_of=[b for b in best if b is not None],
        summary=_summaries(book, gains),
        flags=flags,
    )  # fmt: skip


def _all_gains(
    book: ScoreBook, flags: list[Flag], allow_mixed: bool, method: Method, seed: int
) -> list[Gain]:
    gains = []
    for subject in book.ordered_subjects():
        if subject.base is None:
            continue
        if subject.base not in book.subjects:
            flags.append(Flag("missing", subject.label, "its base was not scored; no gain"))
            continue
        for task in book.tasks.values():
            own = book.variants(subject.id, task.name)
            theirs = book.variants(subject.base, task.name)
            where = f"{subject.label}, {task.name}"
            if not own and not theirs:
                continue
            gain = paired_gain(
                book, subject.id, subject.base, task.name,
                allow_mixed=allow_mixed, method=method, seed=seed,
            )  # fmt: skip
            if gain is None:
                side = "tuned" if not own else "base" if not theirs else "common"
                flags.append(Flag("missing", where, f"no {side} scores; no gain"))
                continue
            gains.append(gain)
            if gain.missing_variants:
                names = ", ".join(gain.missing_variants)
                flags.append(
                    Flag("missing", where, f"not comparable on both sides: {names}",
                         len(gain.missing_variants))
                )  # fmt: skip
            if gain.missing_rows:
                text = f"{gain.missing_rows} rows on one side only ({gain.missing_documents})"
                flags.append(Flag("missing", where, text, gain.missing_rows))
    return gains


def _all_controls(
    book: ScoreBook, gains: list[Gain], allow_mixed: bool, method: Method, seed: int,
    flags: list[Flag],
) -> list[ControlComparison]:  # fmt: skip
    by_key = {(g.subject.id, g.task.name): g for g in gains}
    rows, without = [], []
    for gain in gains:
        if gain.subject.control is not None or gain.task.tuned_by != gain.subject.tuned_on:
            continue
        if gain.subject.tuning is None:
            continue
        found = controls_of(book, gain.subject)
        if not found:
            without.append(gain.subject.label)
        for control in found:
            difference = paired_gain(
                book, gain.subject.id, control.id, gain.task.name,
                allow_mixed=allow_mixed, method=method, seed=seed,
            )  # fmt: skip
            if difference is None:
                where = f"{gain.subject.label}, {gain.task.name}"
                flags.append(Flag("missing", where, f"control {control.adapter} lacks scores"))
                continue
            rows.append(ControlComparison(difference, by_key.get((control.id, gain.task.name))))
    if without:
        listed = sorted(set(without))
        text = f"{len(listed)} tuned subjects have no format-only control: their gain may be format"
        flags.append(Flag("control", ", ".join(listed[:3]) + (" ..." if listed[3:] else ""), text,
                          len(listed)))  # fmt: skip
    return rows


def _curves(book: ScoreBook) -> list[CurvePoint]:
    points = []
    for subject in book.ordered_subjects():
        for task in book.tasks.values():
            cells = book.variants(subject.id, task.name)
            score = pooled_score(cells)
            if score.n:
                continuous = pooled_score(cells, "continuous")
                points.append(CurvePoint(subject, task, score, continuous, tuple(cells)))
    return points


def _flag_prompt_counts(spreads: list[PromptSpread], flags: list[Flag]) -> None:
    counts: dict[tuple[str, int], set[int]] = defaultdict(set)
    for row in spreads:
        counts[(row.task.name, row.shots)].add(row.spread.prompts)
    for (task, shots), found in counts.items():
        if len(found) > 1:
            text = "prompt counts differ between subjects: ranges are not comparable"
            flags.append(Flag("prompts", f"{task}, {shots} shots", text, len(found)))


def _summaries(book: ScoreBook, gains: list[Gain]) -> list[CheckpointSummary]:
    doubled = Counter(
        (s.base, s.tuning, s.seed, s.tuning_step)
        for s in book.subjects.values()
        if s.base and not s.control
    )
    own: dict[str, dict[str, list[Estimate]]] = defaultdict(lambda: defaultdict(list))
    other: dict[str, dict[str, list[Estimate]]] = defaultdict(lambda: defaultdict(list))
    tunings = {s.tuned_on for s in book.subjects.values() if s.base and s.tuned_on}
    for gain in gains:
        s = gain.subject
        if (
            s.control
            or s.base is None
            or s.tuning is None
            or doubled[(s.base, s.tuning, s.seed, s.tuning_step)] > 1
        ):
            continue  # two adapters of one tuning and seed: flagged, not averaged
        if is_own(gain):
            own[s.base][gain.task.name].append(gain.pooled)
        elif gain.task.tuned_by not in tunings:
            other[s.base][gain.task.name].append(gain.pooled)
    rows = []
    for subject in book.ordered_subjects():
        if subject.base is not None:
            continue
        mine, rest = own.get(subject.id, {}), sorted(
            t.name for t in book.tasks.values()
            if t.tuned_by not in tunings and book.variants(subject.id, t.name)
        )  # fmt: skip
        changed = other.get(subject.id, {})
        base = [pooled_score(book.variants(subject.id, t)) for t in rest]
        rows.append(
            CheckpointSummary(
                checkpoint=subject.checkpoint,
                step=subject.step,
                own_tasks=tuple(sorted(mine)),
                own_gain=mean_of_estimates([_same_documents(mine[t]) for t in sorted(mine)]),
                other_tasks=tuple(rest),
                other_base=mean_of_estimates(base),
                other_gain=mean_of_estimates(
                    [_same_documents(changed[t]) for t in sorted(changed)]
                ),
            )
        )
    return rows


def _same_documents(estimates: list[Estimate]) -> Estimate:
    """Mean of estimates that share documents (seeds, tunings): errors taken as fully correlated.

    That is the cautious end: independent errors would give a smaller one.
    """
    if not estimates:
        return EMPTY
    k = len(estimates)
    value, stderr = sum(e.value for e in estimates) / k, sum(e.stderr for e in estimates) / k
    half95, half99 = 1.959963984540054 * stderr, 2.5758293035489004 * stderr
    n = min(e.n for e in estimates)
    return Estimate(
        value, stderr, n, value - half95, value + half95, value - half99, value + half99
    )

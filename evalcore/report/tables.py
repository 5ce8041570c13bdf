"""The study table: its rows, and the table as text."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from evalcore.analysis import Analysis, Estimate, Gain, SubjectInfo
from evalcore.analysis.estimates import mean_of_estimates, p_value
from evalcore.analysis.families import benjamini_hochberg, holm
from evalcore.analysis.gains import one_direction
from evalcore.analysis.notes import gain_notes
from evalcore.analysis.stats import EMPTY
from evalcore.analysis.subjects import names_apart, subject_order
from evalcore.report.words import (
    adapter_lines,
    both_errors,
    by_prompt,
    fit,
    mark,
    note_lines,
    plain,
    short_names,
    signed,
)

SERIOUS = ("missing", "doubled", "overflow", "untrained", "unscored", "task", "group")
"""Kinds of warnings that the first screen counts."""


@dataclass(frozen=True)
class StudyRow:
    """One line of the study table: a tuned model on its own tasks, in the primary way of asking.

    Attributes:
        tasks: Its own tasks (empty if the tuning is unknown); several are averaged.
        base, tuned, gain: On the same documents, pooled over prompts and seeds.
        control_gain: Gain of the format-only control, if there is one.
        over_control: Model minus control.
        forgetting: Mean chance-corrected change on measurable tasks outside its group.
        measurable, outside: How many of the outside tasks that mean has, of how many.
        upward: Whether more is better on these tasks.
        p, p_holm, p_bh: Of the gain; the family is the table.
        notes: What a reader must know of the row.
    """

    subject: SubjectInfo
    tasks: tuple[str, ...]
    base: Estimate
    tuned: Estimate
    gain: Estimate
    control_gain: Estimate
    over_control: Estimate
    forgetting: Estimate
    measurable: int
    outside: int
    upward: bool
    p: float
    p_holm: float
    p_bh: float
    notes: tuple[str, ...]


def study_rows(analysis: Analysis) -> list[StudyRow]:
    """One row per tuned model (controls are columns, not rows), by step and tuning."""
    if "study rows" not in analysis.kept:
        analysis.kept["study rows"] = _study_rows(analysis)
    return list(analysis.kept["study rows"])


def _study_rows(analysis: Analysis) -> list[StudyRow]:
    gains: dict[str, list[Gain]] = {}
    for gain in analysis.primary_gains():
        gains.setdefault(gain.subject.id, []).append(gain)
    subjects = {g.subject.id: g.subject for g in analysis.gains if g.subject.control is None}
    rows = [
        _row(analysis, subject, [g for g in gains.get(subject.id, ()) if analysis.role(g) == "own"])
        for subject in sorted(subjects.values(), key=subject_order)
    ]
    p = np.array([row.p for row in rows], dtype=np.float64)
    return [
        replace(row, p_holm=float(one), p_bh=float(two))
        for row, one, two in zip(rows, holm(p), benjamini_hochberg(p), strict=True)
    ]


def _row(analysis: Analysis, subject: SubjectInfo, own: Sequence[Gain]) -> StudyRow:
    own, apart = one_direction(own)
    controls = [c for g in own for c in analysis.control_of(g)]
    # With several controls of a task the first (by seed) stands here; all are in the CSV.
    first = {c.difference.task.name: c for c in reversed(controls)}
    control_gains = [c.control_gain.pooled for c in first.values() if c.control_gain]
    summary = analysis.forgetting_of(subject)
    gain = mean_of_estimates([g.pooled for g in own])
    notes = apart + [n for g in own for n in gain_notes(analysis.book, g)]
    notes += [n for c in first.values() for n in c.notes]
    return StudyRow(
        subject=subject,
        tasks=tuple(g.task.name for g in own),
        base=mean_of_estimates([g.other for g in own]),
        tuned=mean_of_estimates([g.own for g in own]),
        gain=gain,
        control_gain=mean_of_estimates(control_gains),
        over_control=mean_of_estimates([c.difference.pooled for c in first.values()]),
        forgetting=summary.mean if summary else EMPTY,
        measurable=summary.measurable if summary else 0,
        outside=summary.measurable + summary.unmeasurable if summary else 0,
        upward=all(g.upward for g in own),
        p=p_value(gain),
        p_holm=float("nan"),
        p_bh=float("nan"),
        notes=tuple(dict.fromkeys(notes)),
    )


def labelled_rows(analysis: Analysis) -> list[StudyRow]:
    """The rows of subjects whose tuning is known; of the others there are scores and gains."""
    return [row for row in study_rows(analysis) if row.subject.tuned_on is not None]


def study_table(analysis: Analysis) -> str:
    """The study table as plain text, at most 118 columns wide.

    One line per checkpoint and tuning: score of the base and of the tuned model on the tuning's
    own task, gain with its standard error over documents and its 95 % interval of the widest claim,
    gains under the worst and best prompt, gain of the
    format-only control, mean chance-corrected change on the other tasks (in brackets: tasks above
    the trivial answer, of all). Marks lead to the notes below.
    """
    head = (
        "checkpoint", "tuned on", "base", "tuned", "gain ±docs  [95 % interval]", "by prompt",
        "contr.", "forgetting", "",
    )  # fmt: skip
    widths = (12, 17, 5, 5, 28, 14, 6, 11, 4)
    rows = labelled_rows(analysis)
    notes = list(dict.fromkeys(n for row in rows for n in row.notes))
    named = short_names((row.subject.checkpoint for row in rows), widths[0])
    lines = [_aligned(head, widths)]
    lines.append("-" * (sum(widths) + 2 * (len(widths) - 1)))
    last, texts = "", _tuning_texts(rows, widths[1])
    for row, tuning in zip(rows, texts, strict=True):
        forgot = signed(row.forgetting.value, 2)
        share = f" ({row.measurable}/{row.outside})" if row.outside else ""
        values = (
            "" if row.subject.checkpoint == last else named[row.subject.checkpoint],
            tuning, plain(row.base.value), plain(row.tuned.value),
            both_errors(row.gain), by_prompt(row.gain, 2), signed(row.control_gain.value, 2),
            forgot + share, " ".join(mark(notes.index(n)) for n in row.notes[:1])
            + ("+" if len(row.notes) > 1 else ""),
        )  # fmt: skip
        lines.append(_aligned(values, widths))
        last = row.subject.checkpoint
    if not rows:
        lines.append("(no subject of known tuning with a scored base)")
    lines.append("-" * len(lines[1]))
    lines += adapter_lines((t, row.subject) for row, t in zip(rows, texts, strict=True))
    lines += _foot(analysis, rows)
    lines += note_lines(notes)
    serious = sum(f.kind in SERIOUS for f in analysis.flags)
    if serious:
        lines.append(f"{serious} warnings about missing, doubled or unscored rows: see the report")
    return "\n".join(line.rstrip() for line in lines)


def _aligned(values: Sequence[str], widths: Sequence[int]) -> str:
    cells = zip(values, widths, strict=True)
    return "  ".join(fit(v, w, 1 < i < len(widths) - 1) for i, (v, w) in enumerate(cells))


def _foot(analysis: Analysis, rows: Sequence[StudyRow]) -> list[str]:
    claims = list(dict.fromkeys(r.gain.claim for r in rows if r.gain.claim))
    ways = dict.fromkeys(analysis.book.primary(t).label for row in rows for t in row.tasks)
    lines = [f"asked with {'; '.join(ways)}; other ways are in scores.csv"] if ways else []
    if claims:
        lines.append(
            f"±: standard error for these prompts, this run; intervals: {'; '.join(claims)}"
        )
    lines.append("forgetting: chance-corrected, (measurable/all)")
    turned = sum(bool(r.gain.turned) for r in rows)
    if turned:
        lines.append(f"in {turned} rows some prompts have the other sign than the mean")
    return lines


def _tuning_texts(rows: Sequence[StudyRow], width: int) -> list[str]:
    """The tuning of each row, with the seed or step where rows of its base and tuning differ."""
    apart = names_apart(r.subject for r in rows)
    seeds: dict[tuple[str | None, str | None], set[int | None]] = defaultdict(set)
    steps: dict[tuple[str | None, str | None], set[int | None]] = defaultdict(set)
    for s in (row.subject for row in rows):
        seeds[s.base, s.tuning].add(s.seed)
        steps[s.base, s.tuning].add(s.tuning_step)
    short: dict[int, dict[str, str]] = {}
    texts = []
    for s in (row.subject for row in rows):
        tuning, own = s.tuning or "?", apart.get(s.id)
        if own is not None:  # the tuning's name would say nothing
            texts.append(fit(own, min(len(own), width), False))
            continue
        about = [f"{len(s.runs)} seeds"] if s.runs else []
        if not s.runs and len(seeds[s.base, s.tuning]) > 1 and s.seed is not None:
            about.append(f"seed {s.seed}")
        if len(steps[s.base, s.tuning]) > 1 and s.tuning_step is not None:
            about.append(f"step {s.tuning_step}")
        if not about:
            texts.append(tuning)
            continue
        text = f" ({', '.join(about)})"
        left = width - len(text)
        if left not in short:  # cut, they still differ
            short[left] = short_names((r.subject.tuning or "?" for r in rows), left)
        named = short[left]
        texts.append(fit(named[tuning], min(len(named[tuning]), left), False) + text)
    return texts

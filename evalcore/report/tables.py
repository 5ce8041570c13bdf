"""The study table: its rows, and the table as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from evalcore.analysis import Analysis, Estimate, Gain, SubjectInfo
from evalcore.analysis.estimates import mean_of_estimates, p_value
from evalcore.analysis.families import benjamini_hochberg, holm
from evalcore.analysis.scores import cell_notes
from evalcore.analysis.stats import EMPTY
from evalcore.analysis.subjects import names_apart, subject_order
from evalcore.report.words import (
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
    p: float
    p_holm: float
    p_bh: float
    notes: tuple[str, ...]


def study_rows(analysis: Analysis) -> list[StudyRow]:
    """One row per tuned model (controls are columns, not rows), by step and tuning."""
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
    controls = [c for g in own for c in analysis.control_of(g)]
    # With several controls of a task the first (by seed) stands here; all are in the CSV.
    first = {c.difference.task.name: c for c in reversed(controls)}
    control_gains = [c.control_gain.pooled for c in first.values() if c.control_gain]
    summary = next((s for s in analysis.forgetting_summaries if s.subject.id == subject.id), None)
    gain = mean_of_estimates([g.pooled for g in own])
    notes = [n for g in own for n in gain_notes(analysis, g)]
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
        p=p_value(gain),
        p_holm=float("nan"),
        p_bh=float("nan"),
        notes=tuple(dict.fromkeys(notes)),
    )


def gain_notes(analysis: Analysis, gain: Gain) -> list[str]:
    """What is odd about either side of a gain."""
    notes = list(gain.notes)
    for who, model in (("", gain.subject), ("base: ", gain.reference)):
        cells = analysis.book.strata(model, gain.task.name).get((gain.way, gain.numerics), {})
        compared = {n: runs for n, runs in cells.items() if n in gain.by_variant}
        notes += [who + note for note in cell_notes(model, gain.task, compared)]
    if gain.missing_rows:
        notes.append(f"{gain.missing_rows} answers on one side only")
    return notes


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
    last = ""
    for row in rows:
        forgot = signed(row.forgetting.value, 2)
        share = f" ({row.measurable}/{row.outside})" if row.outside else ""
        values = (
            "" if row.subject.checkpoint == last else named[row.subject.checkpoint],
            _tuning_text(rows, row, widths[1]), plain(row.base.value), plain(row.tuned.value),
            both_errors(row.gain), by_prompt(row.gain, 2), signed(row.control_gain.value, 2),
            forgot + share, " ".join(mark(notes.index(n)) for n in row.notes[:1])
            + ("+" if len(row.notes) > 1 else ""),
        )  # fmt: skip
        lines.append(_aligned(values, widths))
        last = row.subject.checkpoint
    if not rows:
        lines.append("(no subject of known tuning with a scored base)")
    lines.append("-" * len(lines[1]))
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


def _tuning_text(rows: Sequence[StudyRow], row: StudyRow, width: int) -> str:
    tuning, s = row.subject.tuning or "?", row.subject
    own = names_apart(r.subject for r in rows).get(s.id)
    if own is not None:  # the tuning's name would say nothing
        return fit(own, min(len(own), width), False)
    about = [f"{len(s.runs)} seeds"] if s.runs else []
    if not s.runs and _differ(rows, row, "seed") and s.seed is not None:
        about.append(f"seed {s.seed}")
    if _differ(rows, row, "tuning_step") and s.tuning_step is not None:
        about.append(f"step {s.tuning_step}")
    if not about:
        return tuning
    text = f" ({', '.join(about)})"
    left = width - len(text)
    named = short_names((r.subject.tuning or "?" for r in rows), left)  # cut, they still differ
    return fit(named[tuning], min(len(named[tuning]), left), False) + text


def _differ(rows: Sequence[StudyRow], row: StudyRow, name: str) -> bool:
    """Whether rows of the same base and tuning have several seeds, or steps."""
    mine = row.subject
    same = [
        r.subject for r in rows if (r.subject.base, r.subject.tuning) == (mine.base, mine.tuning)
    ]
    return len({getattr(s, name) for s in same}) > 1

"""Analysis to rows: the study table as text, and every quantity as CSV."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from evalcore.analysis import Analysis, Estimate, Gain, SpreadEstimate, SubjectInfo
from evalcore.analysis.stats import EMPTY, mean_of_estimates
from evalcore.analysis.study import is_own
from evalcore.analysis.subjects import subject_order
from evalcore.store import text_cell

Row = dict[str, Any]


@dataclass(frozen=True)
class StudyRow:
    """One line of the study table: a tuned subject on its own in-domain tasks.

    Attributes:
        tasks: Its own tasks (empty if the tuning is unknown); several are averaged.
        base, tuned, gain: On the same documents, pooled over prompts.
        control_gain: Gain of the format-only control, if there is one.
        over_control: Adapter minus control.
        forgetting: Mean chance-corrected change on measurable tasks outside its group.
        measurable, outside: How many of the outside tasks that mean has, of how many.
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


def study_rows(analysis: Analysis) -> list[StudyRow]:
    """One row per tuned subject (controls are columns, not rows), by step and tuning."""
    gains: dict[str, list[Gain]] = {}
    for gain in analysis.gains:
        gains.setdefault(gain.subject.id, []).append(gain)
    forgot = {s.subject.id: s for s in analysis.forgetting_summaries}
    subjects = {g.subject.id: g.subject for g in analysis.gains if g.subject.control is None}
    rows = []
    for subject in sorted(subjects.values(), key=subject_order):
        own = [g for g in gains[subject.id] if is_own(g)]
        controls = [c for g in own for c in analysis.control_of(g)]
        # With several controls of a task the first (by seed) stands here; all are in the CSV.
        first = {c.difference.task.name: c for c in reversed(controls)}
        control_gains = [c.control_gain.pooled for c in first.values() if c.control_gain]
        summary = forgot.get(subject.id)
        rows.append(
            StudyRow(
                subject=subject,
                tasks=tuple(g.task.name for g in own),
                base=_mean([g.other for g in own]),
                tuned=_mean([g.own for g in own]),
                gain=_mean([g.pooled for g in own]),
                control_gain=_mean(control_gains),
                over_control=_mean([c.difference.pooled for c in first.values()]),
                forgetting=summary.mean if summary else EMPTY,
                measurable=summary.measurable if summary else 0,
                outside=summary.measurable + summary.unmeasurable if summary else 0,
            )
        )
    return rows


def labelled_rows(analysis: Analysis) -> list[StudyRow]:
    """The rows of subjects whose tuning is known; of the others there are scores and gains."""
    return [row for row in study_rows(analysis) if row.subject.tuned_on is not None]


def _mean(estimates: list[Estimate]) -> Estimate:
    return estimates[0] if len(estimates) == 1 else mean_of_estimates(estimates)


def study_table(analysis: Analysis) -> str:
    """The study table as plain text, at most 110 columns wide.

    One line per checkpoint and tuning: score of the base and of the tuned model on the tuning's
    own task, gain with its 99 % interval, gain of the format-only control, mean chance-corrected
    change on the other tasks (in brackets: tasks above the trivial answer, of all).
    """
    head = (
        "checkpoint",
        "tuned on",
        "base",
        "tuned",
        "gain   [99 % interval]",
        "control",
        "forgetting",
    )
    widths = (16, 18, 6, 6, 24, 8, 16)
    rows = labelled_rows(analysis)
    lines = ["  ".join(fit(h, w, i > 1) for i, (h, w) in enumerate(zip(head, widths, strict=True)))]
    lines.append("-" * (sum(widths) + 2 * (len(widths) - 1)))
    last = ""
    for row in rows:
        tuning = row.subject.tuning or "?"
        about = []
        if _differ(rows, row, "seed") and row.subject.seed is not None:
            about.append(f"seed {row.subject.seed}")
        if _differ(rows, row, "tuning_step") and row.subject.tuning_step is not None:
            about.append(f"step {row.subject.tuning_step}")
        if about:
            seed = f" ({', '.join(about)})"
            tuning = fit(tuning, min(len(tuning), widths[1] - len(seed)), False) + seed
        forgot = signed(row.forgetting.value)
        share = f" ({row.measurable}/{row.outside})" if row.outside else ""
        values = (
            "" if row.subject.checkpoint == last else row.subject.checkpoint, tuning,
            plain(row.base.value), plain(row.tuned.value), interval(row.gain),
            signed(row.control_gain.value), forgot + share,
        )  # fmt: skip
        lines.append(
            "  ".join(fit(v, w, i > 1) for i, (v, w) in enumerate(zip(values, widths, strict=True)))
        )
        last = row.subject.checkpoint
    if not rows:
        lines.append("(no subject of known tuning with a scored base)")
    serious = sum(f.kind in ("missing", "doubled", "overflow", "untrained") for f in analysis.flags)
    lines.append("-" * len(lines[1]))
    lines.append(
        "gain: paired by document, mean over prompts; "
        "forgetting: chance-corrected, (measurable/all)"
    )
    if serious:
        lines.append(f"{serious} warnings about missing, doubled or unscored rows: see the report")
    return "\n".join(line.rstrip() for line in lines)


def _differ(rows: list[StudyRow], row: StudyRow, name: str) -> bool:
    """Whether rows of the same base and tuning have several seeds, or steps."""
    mine = row.subject
    same = [
        r.subject for r in rows if (r.subject.base, r.subject.tuning) == (mine.base, mine.tuning)
    ]
    return len({getattr(s, name) for s in same}) > 1


def fit(text: str, width: int, right: bool) -> str:
    """``text`` in ``width`` columns, cut with a sign where it is longer."""
    if len(text) > width:
        text = text[: width - 1] + "…"
    return text.rjust(width) if right else text.ljust(width)


def plain(value: float, digits: int = 3) -> str:
    """A number, or a dash where there is none."""
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


def signed(value: float, digits: int = 3) -> str:
    """A difference with its sign, or a dash where there is none."""
    if math.isnan(value):
        return "–"
    text = f"{value:+.{digits}f}"
    return text.replace("-", "−") if float(text) else f"{0:.{digits}f}"


def interval(estimate: Estimate) -> str:
    """``+0.466 [+0.380, +0.552]``: a difference with its 99 % interval."""
    if math.isnan(estimate.value):
        return "–"
    if math.isnan(estimate.low99):
        return signed(estimate.value)
    return f"{signed(estimate.value)} [{signed(estimate.low99)}, {signed(estimate.high99)}]"


def write_tables(analysis: Analysis, cells: pa.Table, out_dir: Path) -> list[Path]:
    """Writes every quantity as CSV into ``out_dir``; returns the paths."""
    tables: dict[str, list[Row]] = {
        "study": [_study_row(r) for r in study_rows(analysis)],
        "summary": [
            {
                "checkpoint": s.checkpoint, "step": s.step,
                "own_tasks": " ".join(s.own_tasks), **_columns("own_gain", s.own_gain),
                "other_tasks": " ".join(s.other_tasks), **_columns("other_base", s.other_base),
                **_columns("other_gain", s.other_gain),
            }
            for s in analysis.summary
        ],
        "curves": [
            {
                **_subject(p.subject), "task": p.task.name, "metric": p.task.metric,
                "baseline": p.task.baseline, **_columns("score", p.score),
                "continuous_metric": p.task.continuous, **_columns("continuous", p.continuous),
                "variants": " ".join(p.variants),
            }
            for p in analysis.curves
        ],
        "gains": [_gain_row(g) for g in analysis.gains],
        "gains_by_prompt": [
            {**_subject(g.subject), "task": g.task.name, "variant": name, **_columns("gain", e)}
            for g in analysis.gains
            for name, e in g.by_variant.items()
        ],
        "controls": [
            {
                **_gain_row(c.difference), "control": c.difference.reference.adapter,
                **(_columns("control_gain", c.control_gain.pooled) if c.control_gain else {}),
            }
            for c in analysis.controls
        ],
        "forgetting": [
            {
                **_subject(f.gain.subject), "task": f.gain.task.name, "measurable": f.measurable,
                "base": f.gain.other.value, "baseline": f.gain.task.baseline,
                "above_floor_low99": f.above_floor.low99,
                **_columns("corrected_change", f.corrected or EMPTY),
                **_columns("change", f.gain.pooled), "ratio": f.ratio,
                "small_denominator": f.small_denominator,
            }
            for f in analysis.forgetting
        ],
        "forgetting_means": [
            {
                **_subject(s.subject), "measurable": s.measurable, "unmeasurable": s.unmeasurable,
                **_columns("mean", s.mean), "median": s.median, "mrc": s.mrc,
                "median_ratio": s.median_ratio,
                "small_denominators": " ".join(s.small_denominators),
            }
            for s in analysis.forgetting_summaries
        ],
        "out_of_domain": [_gain_row(g) for g in analysis.out_of_domain],
        "prompt_spread": [
            {
                **_subject(s.subject), "task": s.task.name, "shots": s.shots,
                **_spread(s.spread, ""), **(_spread(s.base, "base_") if s.base else {}),
                "above_floor": s.above_floor, "variants": " ".join(s.variants),
            }
            for s in analysis.spreads
        ],
        "best_of_prompts": [
            {
                **_subject(b.subject), "task": b.task.name, "prompts": b.prompts,
                "base": b.base.value, "tuned": b.own.value, **_columns("gain", b.gain),
                "chosen_base": " ".join(b.chosen_base), "chosen_tuned": " ".join(b.chosen_own),
            }
            for b in analysis.best_of
        ],
        "flags": [asdict(f) for f in analysis.flags],
        "cells": [{**r, "flags": " ".join(r["flags"])} for r in cells.to_pylist()],
    }  # fmt: skip
    return [_write(out_dir / f"{name}.csv", rows) for name, rows in tables.items()]


def _columns(name: str, estimate: Estimate) -> Row:
    fields = ("value", "stderr", "n", "low95", "high95", "low99", "high99")
    return {
        name if field == "value" else f"{name}_{field}": getattr(estimate, field)
        for field in fields
    }


def _spread(spread: SpreadEstimate, prefix: str) -> Row:
    return {f"{prefix}{key}": value for key, value in asdict(spread).items()}


def _subject(subject: SubjectInfo) -> Row:
    return {
        "checkpoint": subject.checkpoint, "step": subject.step, "adapter": subject.adapter,
        "tuning": subject.tuning, "control": subject.control, "seed": subject.seed,
        "tuning_step": subject.tuning_step,
    }  # fmt: skip


def _gain_row(gain: Gain) -> Row:
    return {
        **_subject(gain.subject), "task": gain.task.name, "metric": gain.task.metric,
        "reference_score": gain.other.value, "own_score": gain.own.value,
        **_columns("gain", gain.pooled), "degenerate": gain.pooled.degenerate,
        "continuous_metric": gain.task.continuous, **_columns("continuous_gain", gain.continuous),
        "missing_variants": " ".join(gain.missing_variants), "missing_rows": gain.missing_rows,
    }  # fmt: skip


def _study_row(row: StudyRow) -> Row:
    return {
        **_subject(row.subject), "tasks": " ".join(row.tasks), **_columns("base", row.base),
        **_columns("tuned", row.tuned), **_columns("gain", row.gain),
        **_columns("control_gain", row.control_gain),
        **_columns("gain_minus_control", row.over_control),
        **_columns("forgetting", row.forgetting), "measurable": row.measurable,
        "outside": row.outside,
    }  # fmt: skip


def _write(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    rows = list(rows)
    names = list(dict.fromkeys(key for row in rows for key in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, restval="")
        writer.writeheader()
        for row in rows:
            empty = {k: "" for k, v in row.items() if v is None or v != v}
            texts = {k: text_cell(v) for k, v in row.items() if isinstance(v, str)}
            writer.writerow({**row, **texts, **empty})
    return path

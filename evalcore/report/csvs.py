"""Every quantity of an analysis as CSV."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from evalcore.analysis import (
    Analysis,
    BestOfPrompts,
    Estimate,
    Gain,
    SpreadEstimate,
    SubjectInfo,
    TaskInfo,
    Way,
)
from evalcore.analysis.estimates import p_value
from evalcore.analysis.families import benjamini_hochberg, holm
from evalcore.analysis.findings import FINDINGS
from evalcore.analysis.notes import contrast_notes, gain_notes, notes_by_task, score_notes
from evalcore.analysis.stats import EMPTY
from evalcore.report.tables import StudyRow, study_rows
from evalcore.store import text_cell

Row = dict[str, Any]


def _summary_rows(analysis: Analysis) -> list[Row]:
    return [
        {
            "checkpoint": s.checkpoint, "step": s.step, "method": s.method,
            "group": m.group.name, "tasks": " ".join(m.tasks),
            "missing": " ".join(m.missing), **_columns("base", m.base),
            **_columns("gain", m.gain), **_prompts(m.gain),
            "notes": "; ".join(notes_by_task(analysis.book, m.gains)),
        }
        for s in analysis.summary
        for m in s.groups
    ]  # fmt: skip


def _contrasts_rows(analysis: Analysis) -> list[Row]:
    return [
        {
            "tuning": c.later.subject.tuning, "method": c.later.subject.method,
            "task": c.later.task.name, "way": c.later.way.label,
            "earlier": c.earlier.subject.checkpoint, "later": c.later.subject.checkpoint,
            "gain_earlier": c.earlier.pooled.value, "gain_later": c.later.pooled.value,
            **_columns("difference", c.difference), **_prompts(c.difference),
            **p, "notes": "; ".join(contrast_notes(analysis.book, c)),
        }
        for c, p in zip(
            analysis.contrasts, p_columns([c.difference for c in analysis.contrasts]),
            strict=True,
        )
    ]  # fmt: skip


def _curves_rows(analysis: Analysis) -> list[Row]:
    return [
        {
            **_subject(p.subject), "task": p.task.name, "metric": p.task.metric,
            "way": p.way.label, "baseline": p.task.baseline, **_columns("score", p.score),
            "continuous_metric": p.task.continuous, **_columns("continuous", p.continuous),
            "variants": " ".join(p.variants),
            "notes": _notes(analysis, p.subject, p.task, p.way, p.variants),
        }
        for p in analysis.curves
    ]  # fmt: skip


def _gains_rows(analysis: Analysis) -> list[Row]:
    return [_gain_row(analysis, g, p) for g, p in _with_p(analysis.gains)]


def _gains_by_prompt_rows(analysis: Analysis) -> list[Row]:
    return [
        {
            **_subject(g.subject), "task": g.task.name, "way": g.way.label, "variant": name,
            **_columns("gain", e),
            "notes": "; ".join(gain_notes(analysis.book, g, [name])),
        }
        for g in analysis.gains
        for name, e in g.by_variant.items()
    ]  # fmt: skip


def _controls_rows(analysis: Analysis) -> list[Row]:
    return [
        {
            **_gain_row(analysis, c.difference, p), "control": c.difference.reference.label,
            "note": "; ".join(c.notes),
            **(_columns("control_gain", c.control_gain.pooled) if c.control_gain else {}),
        }
        for c, (_, p) in zip(
            analysis.controls, _with_p([c.difference for c in analysis.controls]), strict=True
        )
    ]  # fmt: skip


def _forgetting_rows(analysis: Analysis) -> list[Row]:
    return [
        {
            **_subject(f.gain.subject), "task": f.gain.task.name, "measurable": f.measurable,
            "base": f.gain.other.value, "baseline": f.gain.task.baseline,
            "metric": f.gain.task.metric, "way": f.gain.way.label,
            "floor_paired": f.floor_paired,
            "above_floor": f.above_floor.value, "above_floor_stderr": f.above_floor.stderr,
            "above_floor_low95": f.above_floor.low95,
            "above_floor_high95": f.above_floor.high95,
            "above_floor_low99": f.above_floor.low99,
            **_columns("corrected_change", f.corrected or EMPTY),
            **_columns("change", f.gain.pooled), "ratio": f.ratio,
            "small_denominator": f.small_denominator,
            "notes": "; ".join(gain_notes(analysis.book, f.gain)),
        }
        for f in analysis.forgetting
    ]  # fmt: skip


def _forgetting_means_rows(analysis: Analysis) -> list[Row]:
    outside: dict[str, list[Gain]] = defaultdict(list)
    for f in analysis.forgetting:
        outside[f.gain.subject.id].append(f.gain)
    return [
        {
            **_subject(s.subject), "measurable": s.measurable, "unmeasurable": s.unmeasurable,
            **_columns("mean", s.mean), "median": s.median, "mrc": s.mrc,
            **{f"mean_{metric}": e.value for metric, e in s.by_metric.items()},
            "median_ratio": s.median_ratio,
            "small_denominators": " ".join(s.small_denominators),
            "notes": "; ".join(notes_by_task(analysis.book, outside[s.subject.id])),
        }
        for s in analysis.forgetting_summaries
    ]  # fmt: skip


def _out_of_domain_rows(analysis: Analysis) -> list[Row]:
    return [_gain_row(analysis, g, p) for g, p in _with_p(analysis.out_of_domain)]


def _prompt_spread_rows(analysis: Analysis) -> list[Row]:
    return [
        {
            **_subject(s.subject), "task": s.task.name, "way": s.way.label,
            "shots": s.way.shots,
            **_spread(s.spread, ""), **(_spread(s.base, "base_") if s.base else {}),
            "above_floor": s.above_floor, "variants": " ".join(s.variants),
            "notes": _notes(analysis, s.subject, s.task, s.way, s.variants),
        }
        for s in analysis.spreads
    ]  # fmt: skip


def _best_of_prompts_rows(analysis: Analysis) -> list[Row]:
    return [
        {
            **_subject(b.subject), "task": b.task.name, "way": b.way.label,
            "prompts": b.prompts,
            "base": b.base.value, "tuned": b.own.value, **_columns("gain", b.gain),
            "chosen_base": " ".join(b.chosen_base), "chosen_tuned": " ".join(b.chosen_own),
            "notes": "; ".join(best_notes(analysis, b)),
        }
        for b in analysis.best_of
    ]  # fmt: skip


_TABLES: dict[str, Callable[[Analysis], list[Row]]] = {
    "study": lambda analysis: [_study_row(row) for row in study_rows(analysis)],
    "summary": _summary_rows,
    "contrasts": _contrasts_rows,
    "curves": _curves_rows,
    "gains": _gains_rows,
    "gains_by_prompt": _gains_by_prompt_rows,
    "controls": _controls_rows,
    "forgetting": _forgetting_rows,
    "forgetting_means": _forgetting_means_rows,
    "out_of_domain": _out_of_domain_rows,
    "prompt_spread": _prompt_spread_rows,
    "best_of_prompts": _best_of_prompts_rows,
    **FINDINGS,
    "flags": lambda analysis: [asdict(flag) for flag in analysis.flags],
}
"""Name of a file -> its rows."""


def write_tables(analysis: Analysis, cells: pa.Table, out_dir: Path) -> list[Path]:
    """Writes every quantity as CSV into ``out_dir``; returns the paths."""
    tables = {name: rows(analysis) for name, rows in _TABLES.items()}
    tables["cells"] = [{**row, "flags": " ".join(row["flags"])} for row in cells.to_pylist()]
    return [write_csv(out_dir / f"{name}.csv", rows) for name, rows in tables.items()]


def best_notes(analysis: Analysis, best: BestOfPrompts) -> list[str]:
    """What is odd about the cells under the prompts that were chosen on either side."""
    book, base = analysis.book, analysis.book.base_of(best.subject)
    notes = score_notes(book, best.subject, best.task, best.way, best.chosen_own)
    if base is not None:
        theirs = score_notes(book, base, best.task, best.way, best.chosen_base)
        notes += [f"base: {note}" for note in theirs]
    return notes


def _notes(
    analysis: Analysis, subject: SubjectInfo, task: TaskInfo, way: Way, prompts: Sequence[str]
) -> str:
    return "; ".join(score_notes(analysis.book, subject, task, way, prompts))


def _columns(name: str, estimate: Estimate) -> Row:
    """Value, error and intervals of the widest claim, the claim, and those of documents alone."""
    fields = ("value", "stderr", "n", "low95", "high95", "low99", "high99")
    row: Row = {
        name if field == "value" else f"{name}_{field}": getattr(estimate, field)
        for field in fields
    }
    within = estimate.over_documents
    row[f"{name}_error_of"] = estimate.claim
    row[f"{name}_smallest_effect"] = estimate.smallest
    for field in ("stderr", "low95", "high95", "low99", "high99"):
        row[f"{name}_{field}_documents"] = getattr(within, field)
    return row


def _prompts(estimate: Estimate) -> Row:
    next_low, next_high = estimate.next_run()
    return {
        "prompts": estimate.prompts, "seeds": estimate.seeds,
        "prompt_low": estimate.low_prompt, "prompt_high": estimate.high_prompt,
        "prompts_turned": estimate.turned, "seed_sd": estimate.seed_sd,
        "next_run_low95": next_low, "next_run_high95": next_high,
    }  # fmt: skip


def p_columns(estimates: Sequence[Estimate]) -> list[Row]:
    """p, and p adjusted by Holm and by Benjamini and Hochberg, the estimates being the family."""
    p = np.array([p_value(e) for e in estimates], dtype=np.float64)
    return [
        {"p": float(a), "p_holm": float(b), "p_bh": float(c)}
        for a, b, c in zip(p, holm(p), benjamini_hochberg(p), strict=True)
    ]


def _with_p(gains: Sequence[Gain]) -> list[tuple[Gain, Row]]:
    return list(zip(gains, p_columns([g.pooled for g in gains]), strict=True))


def _spread(spread: SpreadEstimate, prefix: str) -> Row:
    return {f"{prefix}{key}": value for key, value in asdict(spread).items()}


def _subject(subject: SubjectInfo) -> Row:
    return {
        "checkpoint": subject.checkpoint, "step": subject.step,
        "adapter": ", ".join(subject.run_adapters) or None,
        "tuning": subject.tuning, "method": subject.method, "control": subject.control,
        "seed": " ".join("" if s is None else str(s) for s in subject.run_seeds),
        "tuning_step": subject.tuning_step,
    }  # fmt: skip


def _gain_row(analysis: Analysis, gain: Gain, p: Row) -> Row:
    return {
        **_subject(gain.subject), "task": gain.task.name, "metric": gain.task.metric,
        "way": gain.way.label, "primary": analysis.is_primary(gain), "role": analysis.role(gain),
        "reference_score": gain.other.value, "own_score": gain.own.value,
        **_columns("gain", gain.pooled), **_prompts(gain.pooled), **p,
        "degenerate": gain.pooled.degenerate,
        "continuous_metric": gain.task.continuous, **_columns("continuous_gain", gain.continuous),
        "missing_variants": " ".join(gain.missing_variants), "missing_rows": gain.missing_rows,
        "notes": "; ".join(gain_notes(analysis.book, gain)),
    }  # fmt: skip


def _study_row(row: StudyRow) -> Row:
    return {
        **_subject(row.subject), "tasks": " ".join(row.tasks), **_columns("base", row.base),
        **_columns("tuned", row.tuned), **_columns("gain", row.gain), **_prompts(row.gain),
        "p": row.p, "p_holm": row.p_holm, "p_bh": row.p_bh,
        **_columns("control_gain", row.control_gain),
        **_columns("gain_minus_control", row.over_control),
        **_columns("forgetting", row.forgetting), "measurable": row.measurable,
        "outside": row.outside, "notes": "; ".join(row.notes),
    }  # fmt: skip


def write_csv(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Writes rows of any columns; numbers that do not exist are empty."""
    rows = list(rows)
    names = list(dict.fromkeys(key for row in rows for key in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows([_shown(row.get(name)) for name in names] for row in rows)
    return path


def _shown(value: Any) -> Any:
    """What stands in a file: nothing for numbers that do not exist, texts safe in a spreadsheet."""
    if isinstance(value, str):
        return text_cell(value)
    return "" if value is None or value != value else value

"""The study's findings as tables of plain values: what the CSV files and the Python front show."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from evalcore.analysis.estimates import p_value
from evalcore.analysis.families import benjamini_hochberg, holm
from evalcore.analysis.notes import counted, gain_notes, notes_by_task, score_notes
from evalcore.analysis.relations import (
    changes_by_metric,
    gain_by_base,
    halved_gains,
    method_contrasts,
)
from evalcore.analysis.sensitivity import (
    Jackknifed,
    rank_stability,
    sensitivities,
    spread_trends,
)
from evalcore.analysis.stats import EMPTY, Estimate
from evalcore.analysis.study import Analysis
from evalcore.analysis.subjects import SubjectInfo, TaskInfo
from evalcore.analysis.summary import method_name
from evalcore.analysis.ways import Way

Row = dict[str, Any]


def sensitivity_rows(analysis: Analysis) -> list[Row]:
    """Spread over prompts of every model, task and way: sd beyond noise, MaxP ..., kappa."""
    found = sensitivities(analysis.book, analysis.spreads)
    rows = [
        {
            **_subject(s.subject), "task": s.task.name, "metric": s.task.metric,
            "way": s.way.label, "prompts": len(s.prompts), "mean": s.mean, "range": s.range,
            "sd": s.sd, "sd_low95": s.low95, "sd_high95": s.high95,
            "sd_low95_prompts": s.low95_prompts, "sd_high95_prompts": s.high95_prompts,
            "variance": s.variance.value, "variance_stderr": s.variance.stderr,
            "max_p": s.choice.best if s.choice else None,
            "avg_p": s.choice.mean if s.choice else None,
            "sat": s.choice.saturation if s.choice else None,
            "cps": s.choice.combined if s.choice else None,
            "fleiss_kappa": s.kappa,
            **_jackknifed("variance_minus_base", s.change), "names": " ".join(s.prompts),
            "notes": "; ".join(
                score_notes(analysis.book, s.subject, s.task, s.way, s.prompts)
                + [f"base: {n}" for base in [analysis.book.base_of(s.subject)]
                   if base is not None and s.change is not None
                   for n in score_notes(analysis.book, base, s.task, s.way, s.prompts)]
            ),
        }
        for s in found
    ]  # fmt: skip
    return _adjusted(rows, "variance_minus_base_p")


def trend_rows(analysis: Analysis) -> list[Row]:
    """Slope of the spread over prompts with pre-training, per doubling of the steps."""
    rows = [
        {
            "tuning": t.tuning, "method": t.method, "tuning_step": t.tuning_step,
            "task": t.task.name, "way": t.way.label, "prompts": len(t.prompts),
            "steps": " ".join(map(str, t.steps)), "sds": " ".join(f"{v:.4f}" for v in t.sds),
            **_jackknifed("slope", t.slope), "error_of": "documents, these prompts",
            "notes": _counted(analysis, t.subjects, t.task, t.way, t.prompts, "checkpoints"),
        }
        for t in spread_trends(analysis.book, analysis.spreads)
    ]  # fmt: skip
    return _adjusted(rows, "slope_p")


def rank_rows(analysis: Analysis) -> list[Row]:
    """Kendall's W of the models' order under the prompts."""
    return [
        {
            "task": r.task.name, "metric": r.task.metric, "way": r.way.label,
            "numerics": r.numerics, "prompts": len(r.prompts), "models": len(r.models),
            "kendall_w": r.w,
            "notes": "; ".join(filter(None, [
                f"scores are of {r.documents[0]:,} to {r.documents[1]:,} documents"
                * (r.documents[0] < r.documents[1]),
                _counted(analysis, r.models, r.task, r.way, r.prompts, "models"),
            ])),
        }
        for r in rank_stability(analysis.book)
    ]  # fmt: skip


def gain_by_base_rows(analysis: Analysis) -> list[Row]:
    """Points and slopes of the gain over the base's score, on halves of the documents."""
    gains = [g for g in analysis.own_gains() if g.task.metric]
    halves = halved_gains(analysis.book, gains)
    rows: list[Row] = [
        {
            "kind": "slope", "metric": s.metric, "method": s.method, "points": s.points,
            "tasks": s.tasks, **_jackknifed("slope", s.slope),
            "slope_same_documents": s.same_documents, "refused": s.refused,
            "notes": "; ".join(counted(
                [gain_notes(analysis.book, h.gain) for h in halves
                 if (h.gain.task.metric, method_name(h.gain.subject)) == (s.metric, s.method)],
                "gains",
            )),
        }
        for s in gain_by_base(halves)
    ]  # fmt: skip
    return rows + [
        {
            "kind": "point", "metric": h.gain.task.metric, **_subject(h.gain.subject),
            "task": h.gain.task.name, "way": h.gain.way.label,
            "base_first": h.bases[0], "gain_second": h.gains[1],
            "base_second": h.bases[1], "gain_first": h.gains[0],
            "notes": "; ".join(gain_notes(analysis.book, h.gain)),
        }
        for h in halves
    ]  # fmt: skip


def method_rows(analysis: Analysis) -> list[Row]:
    """LoRA minus full tuning on the same documents."""
    found = method_contrasts(analysis.book, analysis.primary_gains())
    rows = [
        {
            "checkpoint": c.difference.subject.checkpoint, "step": c.difference.subject.step,
            "tuned_on": c.difference.subject.tuned_on, "method": c.method, "minus": c.other,
            "task": c.difference.task.name, "metric": c.difference.task.metric,
            "role": analysis.role(c.difference), "way": c.difference.way.label,
            "score": c.difference.own.value, "other_score": c.difference.other.value,
            **_estimate("difference", c.difference.pooled),
            "p": p_value(c.difference.pooled),
            "notes": "; ".join(gain_notes(analysis.book, c.difference)),
        }
        for c in found
    ]  # fmt: skip
    return _adjusted(rows, "p")


def change_rows(analysis: Analysis) -> list[Row]:
    """Forgetting and transfer by metric: raw, chance-corrected, ratio with its median."""
    found = changes_by_metric(analysis.book, analysis.forgetting, analysis.out_of_domain)
    return [
        {
            **_subject(c.gains[0].subject), "kind": c.kind, "metric": c.metric,
            "tasks": " ".join(c.tasks), **_estimate("raw", c.raw),
            **_estimate("corrected", c.corrected or EMPTY), "measurable": c.measurable,
            "mean_ratio": c.mean_ratio, "median_ratio": c.median_ratio,
            "notes": "; ".join(notes_by_task(analysis.book, c.gains)),
        }
        for c in found
    ]  # fmt: skip


FINDINGS: dict[str, Callable[[Analysis], list[Row]]] = {
    "sensitivity": sensitivity_rows,
    "sensitivity_trends": trend_rows,
    "rank_stability": rank_rows,
    "gain_by_base": gain_by_base_rows,
    "methods": method_rows,
    "changes_by_metric": change_rows,
}
"""Name of the table (and of its CSV file) -> its rows."""


def _subject(subject: SubjectInfo) -> Row:
    return {
        "checkpoint": subject.checkpoint, "step": subject.step, "adapter": subject.adapter,
        "tuning": subject.tuning, "method": subject.method, "control": subject.control,
        "seeds": len(subject.run_ids), "tuning_step": subject.tuning_step,
    }  # fmt: skip


def _counted(
    analysis: Analysis, models: Sequence[SubjectInfo], task: TaskInfo, way: Way,
    prompts: Sequence[str], of: str,
) -> str:  # fmt: skip
    """Notes of the scores of several models, with how many have each."""
    notes = [score_notes(analysis.book, model, task, way, prompts) for model in models]
    return "; ".join(counted(notes, of))


def _jackknifed(name: str, found: Jackknifed | None) -> Row:
    """Its columns; empty ones for what there is not."""
    if found is None:
        found = Jackknifed(float("nan"), float("nan"), 0)
    low, high = found.limits()
    return {
        name: found.value, f"{name}_stderr": found.stderr, f"{name}_low95": low,
        f"{name}_high95": high, f"{name}_p": found.p,
    }  # fmt: skip


def _estimate(name: str, estimate: Estimate) -> Row:
    return {
        name: estimate.value, f"{name}_stderr": estimate.stderr, f"{name}_n": estimate.n,
        f"{name}_low95": estimate.low95, f"{name}_high95": estimate.high95,
        f"{name}_error_of": estimate.claim,
    }  # fmt: skip


def _adjusted(rows: Sequence[Row], name: str) -> list[Row]:
    """Rows with p by Holm and by Benjamini and Hochberg, all of them being one family."""
    p = np.array([row[name] for row in rows], dtype=np.float64)
    several = zip(rows, holm(p).tolist(), benjamini_hochberg(p).tolist(), strict=True)
    return [{**row, f"{name}_holm": a, f"{name}_bh": b} for row, a, b in several]

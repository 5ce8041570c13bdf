"""Comparisons of models as text and as rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from evalcore.analysis import Estimate, Gain
from evalcore.analysis.estimates import p_value
from evalcore.report.csvs import p_columns
from evalcore.report.words import by_prompt, interval, plain, visible

if TYPE_CHECKING:
    from evalcore.app.compare import Compared


def compared_lines(found: Sequence[Compared]) -> list[str]:
    """What ``evalcore compare`` prints."""
    lines: list[str] = []
    for c in found:
        lines.append(f"{c.name} minus {c.reference}")
        adjusted = p_columns([g.pooled for g in c.gains])
        for gain, odd, p in zip(c.gains, c.notes, adjusted, strict=True):
            few = f", under single prompts {text}" if (text := by_prompt(gain.pooled)) else ""
            less = "" if gain.upward else " (less is better)"
            lines.append(
                f"  {gain.task.name}, {gain.task.metric}{less}, {gain.way.label}: "
                f"{plain(gain.other.value)} to {plain(gain.own.value)}, {interval(gain.pooled)}, "
                f"{_p(p['p'])}, by Holm {_p(p['p_holm'], False)}; {_about(gain.pooled)}{few}"
                + "".join(f"; {note}" for note in _notes(gain, odd))
            )
        for metric, mean in c.mean.items():
            several = f" of {metric}" if len(c.mean) > 1 else ""
            lines.append(f"  mean over tasks{several}: {interval(mean)}, {_p(p_value(mean))}")
        lines += [f"  ! {task}: {why}; left out" for task, why in c.missing.items()]
    claims = {g.pooled.claim for c in found for g in c.gains if g.pooled.claim}
    lines.append(f"95 % intervals are about: {'; '.join(sorted(claims)) or 'nothing'}")
    return [visible(line) for line in lines]


def _about(estimate: Estimate) -> str:
    prompts = f", {estimate.prompts} prompts" if estimate.prompts > 1 else ""
    return f"{estimate.n:,} documents{prompts}"


def _notes(gain: Gain, odd: Sequence[str]) -> list[str]:
    notes = list(odd)
    if gain.missing_variants:
        notes.append(f"prompts not on both sides: {', '.join(gain.missing_variants)}")
    return notes


def _p(value: float, named: bool = True) -> str:
    if value != value:
        return "no p" if named else "none"
    text = "<.0001" if value < 1e-4 else f"{value:.4f}".lstrip("0") or "0"
    return (f"p {text}" if text[0] == "<" else f"p = {text}") if named else text


def compared_rows(found: Sequence[Compared]) -> list[dict[str, Any]]:
    """The same with every number, a row per task and way of asking, and the means."""
    rows: list[dict[str, Any]] = []
    for c in found:
        adjusted = p_columns([g.pooled for g in c.gains])
        for gain, odd, p in zip(c.gains, c.notes, adjusted, strict=True):
            rows.append(
                {
                    "model": c.name, "reference": c.reference, "task": gain.task.name,
                    "metric": gain.task.metric, "way": gain.way.label,
                    "score": gain.own.value, "reference_score": gain.other.value,
                    **_numbers(gain.pooled), **p, "notes": "; ".join(_notes(gain, odd)),
                }
            )  # fmt: skip
        rows += [
            {
                "model": c.name, "reference": c.reference, "task": "(mean over tasks)",
                "metric": metric, **_numbers(mean), "p": p_value(mean),
            }
            for metric, mean in c.mean.items()
        ]  # fmt: skip
        rows += [
            {"model": c.name, "reference": c.reference, "task": task, "notes": f"left out: {why}"}
            for task, why in c.missing.items()
        ]
    return rows


def _numbers(estimate: Estimate) -> dict[str, Any]:
    within = estimate.over_documents
    return {
        "difference": estimate.value, "stderr": estimate.stderr, "n": estimate.n,
        "low95": estimate.low95, "high95": estimate.high95, "low99": estimate.low99,
        "high99": estimate.high99, "error_of": estimate.claim, "prompts": estimate.prompts,
        "prompt_low": estimate.low_prompt, "prompt_high": estimate.high_prompt,
        "stderr_documents": within.stderr, "low95_documents": within.low95,
        "high95_documents": within.high95, "smallest_effect": estimate.smallest,
    }  # fmt: skip

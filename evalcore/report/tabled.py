"""Analyses of score tables as text and as CSV."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from evalcore.analysis import Flag
from evalcore.analysis.agreement import PromptChoice
from evalcore.analysis.estimates import p_value
from evalcore.analysis.tabled import (
    LIMITS,
    ScoreTable,
    TableGain,
    TableScore,
    TableSpread,
    is_upward,
)
from evalcore.analysis.tabled_groups import TableMean
from evalcore.report.csvs import p_columns, write_csv
from evalcore.report.words import fit, interval, plain, signed, visible

_SHOWN_FLAGS = 40


def table_lines(table: ScoreTable, means: Sequence[TableMean], flags: Sequence[Flag]) -> list[str]:
    """What ``evalcore import`` prints."""
    models = table.models
    lines = [f"{len(table.rows):,} scores of {len(models)} checkpoints", *LIMITS, ""]
    lines += [f"! {f.where}: {f.text}" for f in flags[:_SHOWN_FLAGS]]
    if len(flags) > _SHOWN_FLAGS:
        lines.append(f"... {len(flags) - _SHOWN_FLAGS} more: see flags.csv (-o)")
    if means:
        lines += ["", "Mean gain by group (95 % interval, documents, unpaired)"]
        lines += _mean_lines(means)
    else:
        lines += ["", "Gains by task (95 % interval, documents, unpaired); --group averages them"]
        lines += _gain_lines(table.gains())
    spreads = table.sensitivity()
    if spreads:
        lines += ["", "Largest minus smallest score over prompts"]
        lines += _spread_lines(models, spreads)
    stable = table.stability()
    if stable:
        lines += ["", "Do prompts rank the models alike? Kendall's W (1: all alike)"]
        lines += [
            f"{_asked(asked)}: {w:.3f} ({prompts} prompts, {count} models)"
            for asked, prompts, count, w in stable
        ]
    return [visible(line) for line in lines]


def _asked(asked: tuple[str, str, str, int]) -> str:
    task, metric, way, shots = asked
    metric += "" if is_upward(metric) else " (less is better)"
    return ", ".join(p for p in (task, metric, way, f"{shots} shots") if p)


def _mean_lines(means: Sequence[TableMean]) -> list[str]:
    lines = []
    for m in means:
        twice = f", {' and '.join(m.group.doubled)} counted twice" if m.group.doubled else ""
        lost = f"; without {', '.join(m.missing)}" if m.missing else ""
        if m.unknown:
            lost += f"; no interval: {', '.join(m.unknown)} without stderr or n"
        gain = interval(m.gain)
        lines.append(
            f"{fit(m.model, 12, False)} {m.group.name}{twice}: base {plain(m.base)}, gain {gain} "
            f"({m.tasks} tasks{lost}){_ratio(m)}"
        )
    return lines


def _ratio(m: TableMean) -> str:
    if m.mean_ratio != m.mean_ratio:
        return ""
    near = f", base near 0: {', '.join(m.small)}" if m.small else ""
    return f"; over the base {signed(m.mean_ratio)} (median {signed(m.median_ratio)}{near})"


def _gain_lines(gains: Sequence[TableGain]) -> list[str]:
    return [
        f"{g.own.model} + {g.own.tuned_on}, {_asked(g.own.asked)}"
        f"{f', {g.own.prompt}' if g.own.prompt else ''}: {plain(g.base.score)} to "
        f"{plain(g.own.score)}, gain {interval(g.gain)}"
        for g in gains
    ]


def _spread_lines(models: Sequence[str], spreads: Sequence[TableSpread]) -> list[str]:
    """A line per tuning and way of asking, a column per checkpoint; prompts in brackets if few."""
    rows: dict[tuple[str, tuple[Any, ...]], dict[str, TableSpread]] = defaultdict(dict)
    most: dict[tuple[str, tuple[Any, ...]], int] = defaultdict(int)
    for s in spreads:
        key = (s.rows[0].tuned_on or "untuned", s.rows[0].asked)
        rows[key][s.rows[0].model] = s
        most[key] = max(most[key], len(s.rows))
    head = fit("", 50, False) + "".join(fit(m, 11, True) for m in models)
    lines = [head]
    for key, found in sorted(rows.items()):
        texts = []
        for model in models:
            spread = found.get(model)
            text = "–"
            if spread is not None:
                few = f" ({len(spread.rows)})" * (len(spread.rows) < most[key])
                text = f"{spread.range:.3f}{few}"
            texts.append(fit(text, 11, True))
        name = f"{key[0]}: {_asked(key[1])}"
        lines.append(fit(name, 50, False) + "".join(texts) + f"  {most[key]} prompts")
    return lines


def write_table_csvs(
    table: ScoreTable, means: Sequence[TableMean], flags: Sequence[Flag], out: Path
) -> list[Path]:
    """Writes scores, gains, groups, sensitivity, stability and flags as CSV."""
    gains = table.gains()
    files: Mapping[str, list[dict[str, Any]]] = {
        "scores": [asdict(r) | {"implied_n": r.implied_n} for r in table.rows],
        "gains": [
            {**_score(g.own), "base_score": g.base.score, "own_score": g.own.score,
             "gain": g.gain.value, "gain_stderr": g.gain.stderr, "gain_low95": g.gain.low95,
             "gain_high95": g.gain.high95, "gain_error_of": g.gain.claim,
             "smallest_effect": g.gain.smallest, **p}
            for g, p in zip(gains, p_columns([g.gain for g in gains]), strict=True)
        ],
        "groups": [
            {"checkpoint": m.model, "group": m.group.name, "tasks": m.tasks,
             "counted_twice": " ".join(m.group.doubled),
             "missing": " ".join(m.missing), "without_error": " ".join(m.unknown),
             "base": m.base, "gain": m.gain.value, "gain_stderr": m.gain.stderr,
             "gain_low95": m.gain.low95, "gain_high95": m.gain.high95, "p": p_value(m.gain),
             "mean_ratio": m.mean_ratio, "median_ratio": m.median_ratio,
             "small_denominators": " ".join(m.small)}
            for m in means
        ],
        "sensitivity": [
            {**_score(s.rows[0]), "prompt": " ".join(r.prompt for r in s.rows),
             "prompts": len(s.rows), "range": s.range, "range_noise": s.range_noise,
             "sd_beyond_noise": s.std, **_choice(s.choice)}
            for s in table.sensitivity()
        ],
        "rank_stability": [
            {"task": a[0], "metric": a[1], "way": a[2], "shots": a[3], "prompts": p, "models": m,
             "kendall_w": w}
            for a, p, m, w in table.stability()
        ],
        "flags": [asdict(f) for f in flags],
    }  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    return [write_csv(out / f"{name}.csv", rows) for name, rows in files.items()]


def _choice(choice: PromptChoice | None) -> dict[str, Any]:
    if choice is None:
        return dict.fromkeys(("max_p", "avg_p", "sat", "cps", "min_p"))
    return {
        "max_p": choice.best, "avg_p": choice.mean, "sat": choice.saturation,
        "cps": choice.combined, "min_p": choice.worst,
    }  # fmt: skip


def _score(row: TableScore) -> dict[str, Any]:
    return {
        "checkpoint": row.model, "step": row.step, "tuned_on": row.tuned_on, "task": row.task,
        "metric": row.metric, "way": row.way, "shots": row.shots, "prompt": row.prompt,
    }  # fmt: skip

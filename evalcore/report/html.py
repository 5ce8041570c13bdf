"""The report: one HTML file that needs nothing else, with PNG and CSV files beside it."""

from __future__ import annotations

import base64
import json
import os
import struct
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from evalcore.analysis import (
    Analysis,
    Estimate,
    Flag,
    ScoreBook,
    ScoreRow,
    analyse,
    score_rows,
)
from evalcore.analysis.scores import metric_table
from evalcore.errors import InputError
from evalcore.metrics import METRICS_VERSION
from evalcore.report.csvs import p_columns, write_tables
from evalcore.report.losses import draw_losses
from evalcore.report.pictures import Picture, draw_all
from evalcore.report.scores import page_rows, write_scores
from evalcore.report.steps import draw_steps
from evalcore.report.tables import SERIOUS, gain_notes, labelled_rows, study_rows
from evalcore.report.words import by_prompt, interval, plain, signed

REPORT_NAME = "report.html"
SHOWN_FLAGS = 6
SHOWN_SCORES = 1000
FLAG_TITLES = {
    "missing": "Missing: a comparison lacks a side",
    "doubled": "Several entries for one key (never averaged)",
    "overflow": "Prompts that did not fit and were not scored",
    "unscored": "Rows without a value",
    "untrained": "Adapters that change nothing",
    "shots_dropped": "Prompts that lost shots to fit",
    "control": "Format-only controls",
    "group": "Tasks in no group, or in several, of the table per checkpoint",
    "ratio": "Base score too small for a ratio",
    "prompts": "Different numbers of prompts",
    "metric": "Primary metric without a value per document",
    "tuning": "Adapters whose tuning is not known",
    "task": "Tasks that changed between runs",
    "data": "What the checks of the data found",
}
MAIN_FIGURES = (
    "examples", "per_s", "wall", "elapsed", "computed", "limit", "ratio", "swap", "model_load",
    "cells", "failed", "tokens", "restart", "fallback", "workers", "engine", "device",
)  # fmt: skip


def write_report(
    read_table_or_path: pa.Table | str | Path | None,
    out_dir: str | Path,
    *,
    title: str,
    run_records: Sequence[Mapping[str, Any]] | None = None,
    analysis: Analysis | None = None,
    losses: pa.Table | None = None,
    numerics: str | None = None,
    allow_mixed: bool = False,
) -> Path:
    """Writes ``report.html`` (self-contained), its pictures as PNG and every table as CSV.

    Args:
        read_table_or_path: What ``ResultStore.read()`` gives, or a results folder; None where
            ``analysis`` is of a book with scores.
        out_dir: Created if need be; files of an earlier report there are replaced.
        title: Heading of the page.
        run_records: Run records as the store keeps them (any keys); None: those of the results
            folder, if one is given.
        analysis: The analysis of the same table, if it is at hand.
        losses: Training losses with the columns ``losses.LOSS_COLUMNS``, if there are any.
        numerics: Use only this numerics class.
        allow_mixed: Allow differences across numerics classes.

    Returns:
        Path of the page.

    Raises:
        InputError: No rows, or the folder cannot be written.
        IncompatibleError: A difference would mix numerics classes.
    """
    stored_runs: Sequence[Mapping[str, Any]] = ()
    scored = analysis.book if analysis is not None else None
    if read_table_or_path is not None:
        table, stored_runs = _read(read_table_or_path)
        scored = ScoreBook.from_table(table, numerics=numerics, scores=True)
    assert scored is not None, "rows, or an analysis of them"
    if analysis is None:
        analysis = analyse(scored, allow_mixed=allow_mixed)
    out = Path(out_dir)
    try:
        out.mkdir(parents=True, exist_ok=True)
        tables = write_tables(analysis, metric_table(scored), out)
        by_task, by_prompt = (score_rows(analysis.book, by) for by in ("task", "prompt"))
        tables += write_scores(by_task, by_prompt, out)
        pictures = draw_all(analysis, out)
        pictures += draw_steps(by_task, out)
        if losses is not None and losses.num_rows:
            pictures += draw_losses(losses, out)
        page = render(analysis, pictures, title,
                      stored_runs if run_records is None else run_records,
                      [t.name for t in tables], by_task, by_prompt)  # fmt: skip
        path = out / REPORT_NAME
        partial = path.with_suffix(".html.partial")
        partial.write_text(page, encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise InputError(
            f"report folder {out}: cannot write ({error.strerror or error}); give another folder"
        ) from error
    return path


def _read(source: pa.Table | str | Path) -> tuple[pa.Table, Sequence[Mapping[str, Any]]]:
    """The joined table, and the run records if a results folder was given."""
    if isinstance(source, pa.Table):
        return source, ()
    from evalcore.store import ResultStore  # only readers of a folder need the store

    store = ResultStore(source, read_only=True)
    return store.read(), store.runs.list()


def render(
    analysis: Analysis,
    pictures: Sequence[Picture],
    title: str,
    run_records: Sequence[Mapping[str, Any]],
    tables: Sequence[str],
    by_task: Sequence[ScoreRow],
    by_prompt: Sequence[ScoreRow],
) -> str:
    """The page as text."""
    from jinja2 import Environment, PackageLoader, StrictUndefined  # only reports need it

    environment = Environment(
        loader=PackageLoader("evalcore.report", "."),
        autoescape=True, undefined=StrictUndefined,
    )  # fmt: skip
    from markupsafe import Markup

    style = (Path(__file__).parent / "style.css").read_text(encoding="utf-8")
    return environment.get_template("template.html.j2").render(
        title=title,
        style=Markup(style),
        facts=_facts(analysis),
        lead=_lead(analysis),
        serious=sum(f.kind in SERIOUS for f in analysis.flags),
        study=_study(analysis),
        tuned=any(s.base is not None for s in analysis.book.subjects.values()),
        scores=page_rows(by_task, "task", SHOWN_SCORES),
        prompt_scores=page_rows(by_prompt, "prompt", SHOWN_SCORES),
        summary=_summary(analysis),
        best=_best(analysis),
        spreads=_spreads(analysis),
        forgetting=_forgetting(analysis),
        far=_far(analysis),
        flags=_flag_groups(analysis.flags),
        runs=[_run(i, r) for i, r in enumerate(run_records)],
        versions=_versions(analysis),
        pictures=[_embed(p) for p in pictures],
        tables=tables,
        contrasts=_contrasts(analysis),
        ways=_ways(analysis),
    )  # fmt: skip


def _embed(picture: Picture) -> dict[str, Any]:
    data = picture.path.read_bytes()
    width, height = struct.unpack(">II", data[16:24])  # the PNG header: size for a steady layout
    return {
        "section": picture.section, "alt": picture.alt, "width": width, "height": height,
        "data": base64.b64encode(data).decode("ascii"),
    }  # fmt: skip


def _ways(analysis: Analysis) -> str:
    """The ways of asking that headlines are about, with their tasks where they differ."""
    ways: dict[str, list[str]] = defaultdict(list)
    for task in analysis.book.tasks:
        ways[analysis.book.primary(task).label].append(task)
    if len(ways) == 1:
        return next(iter(ways))
    return "; ".join(f"{way} ({', '.join(tasks)})" for way, tasks in ways.items())


def _sure(estimates: Sequence[Estimate]) -> list[bool]:
    """Which of a column differ from 0 at 1 %, all of them being tested at once (Holm)."""
    return [p["p_holm"] < 0.01 for p in p_columns(estimates)]


def _facts(analysis: Analysis) -> list[tuple[str, str]]:
    book = analysis.book
    bases = [s for s in book.subjects.values() if s.base is None]
    tuned = [s for s in book.subjects.values() if s.base is not None and not s.control]
    controls = [s for s in book.subjects.values() if s.control]
    variants = {(book.tasks[t].group, v) for (_, t), cells in book.cells.items() for v in cells}
    most = max(Counter(group for group, _ in variants).values())
    counts = [
        (len(bases), "checkpoint"), (len(tuned), "tuned model"), (len(controls), "control"),
        (len(book.tasks), "task"), (sum(len(c) for c in book.cells.values()), "cell"),
        (book.num_rows, "stored row"),
    ]  # fmt: skip
    facts = [(f"{n:,}", name + ("" if n == 1 else "s")) for n, name in counts if n]
    return [*facts[:-2], (f"up to {most}", "prompts a task"), *facts[-2:]]


def _lead(analysis: Analysis) -> list[str]:
    """What came out at the last checkpoint, in sentences that claim no more than the intervals."""
    rows = [r for r in study_rows(analysis) if r.tasks]
    if not rows:
        return []
    last = rows[-1].subject.base
    lines = []
    for row in (r for r in rows if r.subject.base == last):
        tasks = ", ".join(row.tasks)
        seeds = f" ({len(row.subject.runs)} seeds)" if row.subject.runs else ""
        text = (
            f"{row.subject.checkpoint} tuned on {row.subject.tuning}{seeds}: "
            f"{plain(row.base.value)} becomes {plain(row.tuned.value)} on {tasks}, "
            f"{_verdict(row.gain, 'a gain', 'a loss', 'a change that could be chance')}"
        )
        if row.gain.prompts > 1:
            text += f"; by prompt {by_prompt(row.gain)}"
        if row.gain.turned:
            text += f" ({row.gain.turned} of {row.gain.prompts} have the other sign)"
        if row.over_control.n:
            words = ("above", "below", "not credibly different")
            text += f"; to the format-only control: {_verdict(row.over_control, *words)}"
        else:
            text += "; there is no control to tell format from ability"
        if row.notes:
            text += f" (note: {'; '.join(row.notes)})"
        lines.append(text + ".")
    return lines


def _verdict(gain: Estimate, more: str, less: str, neither: str) -> str:
    """What may be said for these prompts and this run, and for the widest claim, with intervals."""
    within = gain.over_documents

    def word(estimate: Estimate) -> str:
        return more if estimate.low95 > 0 else less if estimate.high95 < 0 else neither

    if not within.claim:
        return f"{neither} ({signed(gain.value)}, no interval)"
    text = f"{word(within)} for {within.claim}: {interval(within)}"
    if gain.claim != within.claim:
        bounds = f"[{signed(gain.low95)}, {signed(gain.high95)}]"
        text += f"; {word(gain)} for {gain.claim}: {bounds}"
    return text


def _named(subject: Any) -> dict[str, Any]:
    tuning = subject.tuning or subject.adapter or "untuned"
    if subject.base is None:
        tuning = "untuned"
    if subject.control:
        tuning += " (control)"
    if subject.runs:
        tuning += f", {len(subject.runs)} seeds"
    elif subject.seed:
        tuning += f", seed {subject.seed}"
    if subject.tuning_step is not None:
        tuning += f", step {subject.tuning_step:,}"
    return {"checkpoint": subject.checkpoint, "tuning": tuning}


def _study(analysis: Analysis) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    rows = labelled_rows(analysis)
    sure_over, sure_forgot = (
        _sure([r.over_control for r in rows]),
        _sure([r.forgetting for r in rows]),
    )
    for row, over, forgot in zip(rows, sure_over, sure_forgot, strict=True):
        named = _named(row.subject)
        out.append(
            {
                **named, "first": not out or out[-1]["checkpoint"] != named["checkpoint"],
                "base": plain(row.base.value), "tuned": plain(row.tuned.value),
                "gain": interval(row.gain), "gain_sure": row.p_holm < 0.01,
                "range": by_prompt(row.gain), "turned": row.gain.turned or "",
                "within": interval(row.gain.over_documents), "claim": row.gain.claim,
                "smallest": plain(row.gain.smallest), "seed_sd": plain(row.gain.seed_sd),
                "note": "; ".join(row.notes),
                "control": signed(row.control_gain.value),
                "over": interval(row.over_control), "over_sure": over,
                "forgetting": interval(row.forgetting), "forgetting_sure": forgot,
                "measurable": f"{row.measurable} of {row.outside}", "n": f"{row.gain.n:,}",
            }
        )  # fmt: skip
    return out


def _summary(analysis: Analysis) -> list[dict[str, Any]]:
    return [
        {
            "checkpoint": s.checkpoint, "method": s.method, "group": m.group.name,
            "base": plain(m.base.value), "gain": interval(m.gain),
            "tasks": f"{len(m.tasks)} of {len(m.tasks) + len(m.missing)}",
            "claim": m.gain.claim, "first": number == 0,
        }
        for s in analysis.summary
        for number, m in enumerate(s.groups)
    ]  # fmt: skip


def _contrasts(analysis: Analysis) -> list[dict[str, Any]]:
    found = analysis.contrasts
    sure = _sure([c.difference for c in found])
    return [
        {
            "tuning": c.later.subject.tuning, "task": c.later.task.name,
            "earlier": c.earlier.subject.checkpoint, "later": c.later.subject.checkpoint,
            "before": signed(c.earlier.pooled.value), "after": signed(c.later.pooled.value),
            "difference": interval(c.difference), "sure": own,
            "range": by_prompt(c.difference), "claim": c.difference.claim,
            "smallest": plain(c.difference.smallest),
        }
        for c, own in zip(found, sure, strict=True)
    ]  # fmt: skip


def _best(analysis: Analysis) -> list[dict[str, Any]]:
    best = {(b.subject.id, b.task.name, b.way): b for b in analysis.best_of}
    rows = []
    for gain in analysis.own_gains():
        single = [e.value for e in gain.by_variant.values() if e.n]
        found = best.get((gain.subject.id, gain.task.name, gain.way))
        rows.append(
            {
                **_named(gain.subject), "task": gain.task.name, "gain": interval(gain.pooled),
                "range": f"{signed(min(single))} to {signed(max(single))}" if single else "–",
                "best": interval(found.gain) if found else "–",
                "continuous": interval(gain.continuous),
                "measure": {"gold_prob": "probability", "gold_bits_per_byte": "bits per byte"}.get(
                    gain.task.continuous, gain.task.continuous
                ),
            }
        )  # fmt: skip
    return rows


def _spreads(analysis: Analysis) -> list[dict[str, Any]]:
    def beyond(spread: Any) -> str:
        return "0*" if spread.clipped else plain(spread.prompt_std)

    return [
        {
            **_named(s.subject), "task": s.task.name, "way": s.way.label,
            "prompts": s.spread.prompts, "range": plain(s.spread.range),
            "noise": plain(s.spread.range_noise), "std": beyond(s.spread),
            "base_std": beyond(s.base) if s.base else "–", "above": signed(s.above_floor),
        }
        for s in analysis.spreads
        if s.subject.base is None or s.task.tuned_by == s.subject.tuned_on
    ]  # fmt: skip


def _forgetting(analysis: Analysis) -> list[dict[str, Any]]:
    return [
        {
            **_named(s.subject), "measurable": f"{s.measurable} of {s.measurable + s.unmeasurable}",
            "mean": interval(s.mean), "median": signed(s.median), "mrc": signed(s.mrc),
            "median_ratio": signed(s.median_ratio), "small": ", ".join(s.small_denominators) or "–",
            "metrics": ", ".join(f"{m} {signed(e.value)}" for m, e in s.by_metric.items()),
            "claim": s.mean.claim, "smallest": plain(s.mean.smallest),
        }
        for s in analysis.forgetting_summaries
    ]  # fmt: skip


def _far(analysis: Analysis) -> list[dict[str, Any]]:
    return [
        {
            **_named(g.subject), "task": g.task.name, "base": plain(g.other.value),
            "tuned": plain(g.own.value), "gain": interval(g.pooled), "sure": sure,
            "range": by_prompt(g.pooled), "claim": g.pooled.claim,
            "smallest": plain(g.pooled.smallest), "note": "; ".join(gain_notes(analysis, g)),
        }
        for g, sure in zip(
            analysis.out_of_domain, _sure([g.pooled for g in analysis.out_of_domain]), strict=True
        )
    ]  # fmt: skip


def _flag_groups(flags: Sequence[Flag]) -> list[dict[str, Any]]:
    groups: dict[str, list[Flag]] = defaultdict(list)
    for flag in flags:
        groups[flag.kind].append(flag)
    order = sorted(groups, key=lambda kind: (kind not in SERIOUS, kind))
    return [
        {
            "title": FLAG_TITLES.get(kind, kind), "total": len(groups[kind]),
            "shown": groups[kind][:SHOWN_FLAGS], "rest": groups[kind][SHOWN_FLAGS:],
        }
        for kind in order
    ]  # fmt: skip


def _run(number: int, record: Mapping[str, Any]) -> dict[str, Any]:
    rows = _flatten(record)
    main = [(k, v) for k, v in rows if any(word in k for word in MAIN_FIGURES)][:16]
    names = {k for k, _ in main}
    started = next((v for k, v in rows if k in ("started", "time", "utc", "id", "run_id")), "")
    return {
        "title": f"Run {number + 1}" + (f", {started}" if started else ""),
        "main": [(k.replace("_", " "), v) for k, v in main],
        "rest": [(k.replace("_", " "), v) for k, v in rows if k not in names],
    }


def _flatten(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, item in value.items():
        name = f"{prefix}{key}"
        if isinstance(item, Mapping):
            rows.extend(_flatten(item, f"{name} / "))
        elif isinstance(item, bool) or item is None:
            rows.append((name, {True: "yes", False: "no", None: "–"}[item]))
        elif isinstance(item, int):
            rows.append((name, f"{item:,}"))
        elif isinstance(item, float):
            rows.append((name, f"{item:,.4g}" if abs(item) < 1000 else f"{item:,.0f}"))
        else:
            text = item if isinstance(item, str) else json.dumps(item, default=str)
            rows.append((name, text if len(text) <= 300 else text[:297] + "..."))
    return rows


def _versions(analysis: Analysis) -> list[tuple[str, str]]:
    records = [cell.about for cell in analysis.book.read]

    def distinct(name: str) -> str:
        return ", ".join(sorted({str(r[name]) for r in records if name in r})) or "–"

    rows = [
        ("evalcore", distinct("evalcore_version")), ("metrics version", str(METRICS_VERSION)),
        ("numerics", distinct("numerics")),
    ]  # fmt: skip
    found: dict[str, set[str]] = defaultdict(set)
    for text in {r.get("versions") for r in records}:
        try:
            for key, value in _flatten(json.loads(text or "{}")):
                found[key].add(value)
        except (ValueError, AttributeError):
            found["versions"].add(str(text))
    return rows + [(key, ", ".join(sorted(values))) for key, values in sorted(found.items())]

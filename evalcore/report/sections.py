"""Tables of the page beside the table of scores: columns, rows, and what filters find in them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from evalcore.analysis import (
    Analysis,
    Estimate,
    Forgetting,
    Gain,
    ScoreBook,
    SpreadEstimate,
    SubjectInfo,
)
from evalcore.analysis.findings import FINDINGS
from evalcore.analysis.notes import contrast_notes, gain_notes, notes_by_task, score_notes
from evalcore.analysis.reduction import TOKEN_COLUMNS
from evalcore.report.charts import UNTUNED
from evalcore.report.csvs import best_notes, p_columns
from evalcore.report.rows import seed_names, tuning_name
from evalcore.report.tables import labelled_rows
from evalcore.report.words import metric_words, signed, visible

Cell = Any


@dataclass(frozen=True)
class Column:
    """A column: its heading, and its kind.

    Kinds: ``text``; ``count``; ``number``; ``change`` (with a sign); ``score`` and ``gain`` are
    [value, low, high, whether it is sure] with 95 % intervals; ``range`` is [low, high].
    """

    title: str
    kind: str = "text"


@dataclass(frozen=True)
class Table:
    """A table of the page.

    Attributes:
        facets: Per row what filters choose by, in the order of ``rows.FACETS``: names, or None
            where the row does not depend on it. A row that averages over several has all of them.
    """

    id: str
    section: str
    title: str
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    facets: Sequence[Sequence[list[str] | None]]
    file: str

    def as_json(self, known: Sequence[dict[tuple[str, ...], int]]) -> dict[str, Any]:
        """For the page; lists of facets by their place in ``known``, which grows (-1: none)."""
        facets = [
            [-1 if names is None else lists.setdefault(tuple(names), len(lists))
             for names, lists in zip(row, known, strict=True)]
            for row in self.facets
        ]  # fmt: skip
        return {
            "id": self.id, "section": self.section, "title": self.title, "caption": self.caption,
            "columns": [[c.title, c.kind] for c in self.columns], "rows": self.rows,
            "facets": facets, "file": self.file,
        }  # fmt: skip


SURE = "Bold: differs from 0 at 1 % when the whole column is tested at once (Holm)."


def extra_tables(analysis: Analysis) -> list[Table]:
    """Every table of what was analysed that has rows."""
    made = [
        _study(analysis), _summary(analysis), _contrasts(analysis), _best(analysis),
        _spreads(analysis), *findings_tables(analysis), _forgetting(analysis), _far(analysis),
    ]  # fmt: skip
    return [t for t in made if t.rows]


def _number(value: float | None) -> float | None:
    return None if value is None or not isfinite(value) else round(float(value), 4)


def _estimate(estimate: Estimate, sure: bool = False) -> list[Any] | None:
    if not estimate.n or estimate.value != estimate.value:
        return None
    return [_number(estimate.value), _number(estimate.low95), _number(estimate.high95), int(sure)]


def _range(estimate: Estimate) -> list[Any] | None:
    if not estimate.n or estimate.prompts < 2:
        return None
    return [_number(estimate.low_prompt), _number(estimate.high_prompt)]


def _next_run(estimate: Estimate) -> list[Any] | None:
    low, high = estimate.next_run()
    return None if low != low else [_number(low), _number(high)]


def _sure(estimates: Sequence[Estimate]) -> list[bool]:
    return [p["p_holm"] < 0.01 for p in p_columns(estimates)]


def _facets(
    subject: SubjectInfo, tasks: Iterable[str], prompts: Iterable[str] | None, way: str | None
) -> list[list[str] | None]:
    return [
        [visible(subject.checkpoint)], [tuning_name(subject)], seed_names(subject),
        [visible(t) for t in tasks], None if prompts is None else [visible(p) for p in prompts],
        None if way is None else [way],
    ]  # fmt: skip


def _seeds(subject: SubjectInfo) -> str:
    names = seed_names(subject)
    return names[0] if len(names) == 1 else f"{len(names)} seeds"


def _who(subject: SubjectInfo, analysis: Analysis) -> list[Cell]:
    about = "" if subject.tuning_step is None else f", step {subject.tuning_step:,}"
    own = analysis.book.apart.get(subject.id)
    about += "" if own is None else f", {visible(own)}"
    return [visible(subject.checkpoint), tuning_name(subject) + about, _seeds(subject)]


_WHO = (Column("checkpoint"), Column("tuned on"), Column("seed"))


def _study(analysis: Analysis) -> Table:
    found = labelled_rows(analysis)
    over = _sure([r.over_control for r in found])
    forgot = _sure([r.forgetting for r in found])
    own: dict[str, list[Gain]] = {}
    for gain in analysis.own_gains():
        own.setdefault(gain.subject.id, []).append(gain)
    rows, facets = [], []
    for row, above, less in zip(found, over, forgot, strict=True):
        rows.append([
            *_who(row.subject, analysis),
            ", ".join(visible(t) for t in row.tasks), _number(row.base.value),
            _number(row.tuned.value), _estimate(row.gain, row.p_holm < 0.01), _range(row.gain),
            row.gain.turned or None, row.gain.claim, _estimate(row.gain.over_documents),
            _number(row.gain.seed_sd), _next_run(row.gain), _number(row.gain.smallest),
            _number(row.control_gain.value), _estimate(row.over_control, above),
            _estimate(row.forgetting, less), f"{row.measurable} of {row.outside}",
            row.gain.n, "; ".join(row.notes),
        ])  # fmt: skip
        gains = own.get(row.subject.id, [])
        prompts = sorted({p for g in gains for p in g.by_variant})
        facets.append(_facets(row.subject, row.tasks, prompts, None))
    columns = (
        *_WHO, Column("task"), Column("base", "number"), Column("tuned", "number"),
        Column("gain [95 %]", "gain"), Column("gain by prompt", "range"),
        Column("prompts with the other sign", "count"), Column("interval about"),
        Column("these prompts, this run [95 %]", "gain"), Column("sd of seeds", "number"),
        Column("next run of as many seeds [95 %]", "range"),
        Column("smallest effect to be found", "number"), Column("gain of the control", "change"),
        Column("gain over control [95 %]", "gain"), Column("change elsewhere [95 %]", "gain"),
        Column("measurable tasks"), Column("documents", "count"), Column("note"),
    )  # fmt: skip
    caption = (
        "Each tuned model on the tasks it was tuned on, against the same checkpoint untuned, on "
        f"the same documents and prompts. {SURE}"
    )
    return Table("study", "gains", "What tuning gave", caption, columns, rows, facets, "study.csv")


def _summary(analysis: Analysis) -> Table:
    rows, facets = [], []
    for s in analysis.summary:
        for m in s.groups:
            rows.append([
                visible(s.checkpoint), s.method, m.group.name, _number(m.base.value),
                _estimate(m.gain), f"{len(m.tasks)} of {len(m.tasks) + len(m.missing)}",
                m.gain.claim, "; ".join(notes_by_task(analysis.book, m.gains)),
            ])  # fmt: skip
            facets.append([[visible(s.checkpoint)], None, None, [visible(t) for t in m.tasks],
                           None, None])  # fmt: skip
    columns = (
        Column("checkpoint"), Column("tuned by"), Column("tasks"),
        Column("mean untuned score", "number"), Column("mean gain [95 %]", "gain"),
        Column("tasks averaged"), Column("interval about"), Column("note"),
    )  # fmt: skip
    caption = (
        "Mean over the tasks of a group, which are taken as fixed; tasks of different metrics are "
        "averaged as they are."
    )
    title = "Per checkpoint: what tuning gives, and what pre-training gives"
    return Table("summary", "gains", title, caption, columns, rows, facets, "summary.csv")


def _contrasts(analysis: Analysis) -> Table:
    found = analysis.contrasts
    rows, facets = [], []
    for c, sure in zip(found, _sure([c.difference for c in found]), strict=True):
        earlier, later = c.earlier.subject, c.later.subject
        rows.append([
            tuning_name(later), visible(c.later.task.name), visible(earlier.checkpoint),
            visible(later.checkpoint), _number(c.earlier.pooled.value),
            _number(c.later.pooled.value), _estimate(c.difference, sure), _range(c.difference),
            _number(c.difference.smallest), c.difference.claim,
            "; ".join(contrast_notes(analysis.book, c)),
        ])  # fmt: skip
        mine = _facets(later, [c.later.task.name], c.later.by_variant, c.later.way.label)
        mine[0] = [visible(earlier.checkpoint), visible(later.checkpoint)]
        facets.append(mine)
    columns = (
        Column("tuned on"), Column("task"), Column("earlier"), Column("later"),
        Column("gain, earlier", "change"), Column("gain, later", "change"),
        Column("difference [95 %]", "gain"), Column("by prompt", "range"),
        Column("smallest effect to be found", "number"), Column("interval about"),
        Column("note"),
    )  # fmt: skip
    caption = (
        "Gain at the later checkpoint minus gain at the earlier one, paired by document, prompt "
        f"and seed. {SURE}"
    )
    title = "Does tuning give more at a later checkpoint?"
    return Table("contrasts", "gains", title, caption, columns, rows, facets, "contrasts.csv")


def _best(analysis: Analysis) -> Table:
    best = {(b.subject.id, b.task.name, b.way): b for b in analysis.best_of}
    rows, facets = [], []
    names = {"gold_prob": "probability", "gold_bits_per_byte": "bits per byte"}
    for g in analysis.own_gains():
        found = best.get((g.subject.id, g.task.name, g.way))
        rows.append([
            *_who(g.subject, analysis), visible(g.task.name), _estimate(g.pooled), _range(g.pooled),
            _estimate(found.gain) if found else None, _estimate(g.continuous),
            names.get(g.task.continuous, g.task.continuous),
            "; ".join(dict.fromkeys([
                *gain_notes(analysis.book, g), *(best_notes(analysis, found) if found else ()),
            ])),
        ])  # fmt: skip
        facets.append(_facets(g.subject, [g.task.name], g.by_variant, g.way.label))
    columns = (
        *_WHO, Column("task"), Column("gain, mean over prompts [95 %]", "gain"),
        Column("under single prompts", "range"), Column("gain, best prompt each [95 %]", "gain"),
        Column("continuous change [95 %]", "gain"), Column("measure"), Column("note"),
    )  # fmt: skip
    caption = (
        "Best prompt: each side uses the prompt that was best on the other half of the documents. "
        "The continuous measure needs no threshold (bits per byte: lower is better)."
    )
    title = "Same prompt, mean over prompts, or best prompt each"
    return Table("best", "prompts", title, caption, columns, rows, facets, "best_of_prompts.csv")


def _spreads(analysis: Analysis) -> Table:
    def beyond(spread: SpreadEstimate | None) -> float | None:
        return None if spread is None else _number(spread.prompt_std)

    rows, facets = [], []
    for s in analysis.spreads:
        if s.subject.base is not None and s.task.tuned_by != s.subject.tuned_on:
            continue
        rows.append([
            *_who(s.subject, analysis), visible(s.task.name), s.way.label, s.spread.prompts,
            _number(s.spread.range), _number(s.spread.range_noise), beyond(s.spread),
            beyond(s.base), _number(s.above_floor),
            "; ".join(score_notes(analysis.book, s.subject, s.task, s.way, s.variants)),
        ])  # fmt: skip
        facets.append(_facets(s.subject, [s.task.name], s.variants, s.way.label))
    columns = (
        *_WHO, Column("task"), Column("asked"), Column("prompts", "count"),
        Column("range", "number"), Column("range by chance", "number"),
        Column("beyond noise", "number"), Column("base, beyond noise", "number"),
        Column("above trivial answer", "change"), Column("note"),
    )  # fmt: skip
    caption = (
        "The range grows with the number of prompts and with chance, so it stands beside the range "
        "expected if prompts made no difference. Beyond noise: standard deviation between prompts "
        "with the sampling part taken off (0 where that would be negative)."
    )
    title = "How much the prompt matters"
    return Table("spread", "prompts", title, caption, columns, rows, facets, "prompt_spread.csv")


def _forgetting(analysis: Analysis) -> Table:
    rows, facets = [], []
    outside: dict[str, list[Forgetting]] = {}
    for f in analysis.forgetting:
        outside.setdefault(f.gain.subject.id, []).append(f)
    for s in analysis.forgetting_summaries:
        mine = outside[s.subject.id]
        rows.append([
            *_who(s.subject, analysis), f"{s.measurable} of {s.measurable + s.unmeasurable}",
            _estimate(s.mean), s.mean.claim, _number(s.mean.smallest),
            ", ".join(f"{metric_words(m)} {signed(e.value)}" for m, e in s.by_metric.items()),
            _number(s.median),
            "; ".join(notes_by_task(analysis.book, [f.gain for f in mine])),
        ])  # fmt: skip
        facets.append(_facets(
            s.subject, [f.gain.task.name for f in mine if f.measurable],
            sorted({p for f in mine for p in f.gain.by_variant}), None,
        ))  # fmt: skip
    columns = (
        *_WHO, Column("measurable tasks"), Column("mean change [95 %]", "gain"),
        Column("interval about"), Column("smallest effect to be found", "number"),
        Column("by metric"), Column("median", "change"), Column("note"),
    )  # fmt: skip
    caption = (
        "Change on tasks the model was not tuned on, as a part of the room above the trivial "
        "answer; only tasks on which the untuned checkpoint is credibly above it. Ratios of change "
        "are in the file."
    )
    title = "What tuning costs elsewhere"
    return Table("forgetting", "transfer", title, caption, columns, rows, facets,
                 "forgetting_means.csv")  # fmt: skip


def _far(analysis: Analysis) -> Table:
    found = analysis.out_of_domain
    rows, facets = [], []
    for g, sure in zip(found, _sure([g.pooled for g in found]), strict=True):
        rows.append([
            *_who(g.subject, analysis), visible(g.task.name),
            _number(g.other.value), _number(g.own.value),
            _estimate(g.pooled, sure), _range(g.pooled), g.pooled.claim,
            _number(g.pooled.smallest), "; ".join(gain_notes(analysis.book, g)),
        ])  # fmt: skip
        facets.append(_facets(g.subject, [g.task.name], g.by_variant, g.way.label))
    columns = (
        *_WHO, Column("task"), Column("base", "number"), Column("tuned", "number"),
        Column("change [95 %]", "gain"), Column("by prompt", "range"), Column("interval about"),
        Column("smallest effect to be found", "number"), Column("note"),
    )  # fmt: skip
    caption = f"The same kind of task on other data, after tuning on its sibling. {SURE}"
    return Table("far", "transfer", "Out of domain", caption, columns, rows, facets,
                 "out_of_domain.csv")  # fmt: skip


def findings_tables(analysis: Analysis) -> list[Table]:
    """The study's findings that are about several models: trends, ranks, slopes, methods."""

    def interval(row: dict[str, Any], name: str, sure: str) -> list[Any] | None:
        value = _number(row[name])
        low, high = (_number(row[f"{name}_{end}95"]) for end in ("low", "high"))
        p = row.get(sure)
        return None if value is None else [value, low, high, int(p is not None and p < 0.01)]

    def every(tasks: Sequence[str]) -> list[list[str] | None]:
        return [None, None, None, [visible(t) for t in tasks], None, None]

    trends = FINDINGS["sensitivity_trends"](analysis)
    ranks = FINDINGS["rank_stability"](analysis)
    slopes = [r for r in FINDINGS["gain_by_base"](analysis) if r["kind"] == "slope"]
    methods = FINDINGS["methods"](analysis)
    own = sorted({g.task.name for g in analysis.own_gains()})
    return [
        Table(
            "trends", "prompts", "Does pre-training make prompts matter less?",
            "Change of the variance between prompts beyond noise for each doubling of the "
            f"pre-training steps, on the documents all checkpoints have; for these prompts. {SURE}",
            (Column("tuned on"), Column("task"), Column("asked"), Column("prompts", "count"),
             Column("sd beyond noise, by step"), Column("slope [95 %]", "gain"), Column("note")),
            [[visible(r["tuning"] or UNTUNED), visible(r["task"]), r["way"], r["prompts"],
              r["sds"], interval(r, "slope", "slope_p_holm"), r["notes"]] for r in trends],
            [[None, [visible(r["tuning"] or UNTUNED)], None, [visible(r["task"])], None, [r["way"]]]
             for r in trends],
            "sensitivity_trends.csv",
        ),
        Table(
            "ranks", "prompts", "Do prompts put the models in the same order?",
            "Kendall's W over all models but controls: 1 where every prompt ranks them alike, 0 "
            "where the order is chance.",
            (Column("task"), Column("asked"), Column("prompts", "count"),
             Column("models", "count"), Column("Kendall's W", "number"), Column("note")),
            [[visible(r["task"]), r["way"], r["prompts"], r["models"], _number(r["kendall_w"]),
              r["notes"]] for r in ranks],
            [every([r["task"]]) for r in ranks],
            "rank_stability.csv",
        ),
        Table(
            "by_base", "gains", "Does tuning give more where the base knows less?",
            "Slope of the gain over the base's score, each taken from another half of the "
            "documents: from the same ones they share the base's noise, and the slope is too "
            "steep. Interval over tasks, from three on.",
            (Column("metric"), Column("tuned by"), Column("gains", "count"),
             Column("tasks", "count"), Column("slope [95 %]", "gain"),
             Column("slope on the same documents", "change"), Column("note")),
            [[r["metric"], r["method"], r["points"], r["tasks"], interval(r, "slope", "slope_p"),
              _number(r["slope_same_documents"]),
              "; ".join(n for n in (r["refused"], r["notes"]) if n)] for r in slopes],
            [every(own) for _ in slopes],
            "gain_by_base.csv",
        ),
        Table(
            "methods", "gains", "LoRA against full tuning",
            "Score of the LoRA minus that of the fully tuned model of the same checkpoint and "
            f"data, paired by document. {SURE}",
            (Column("checkpoint"), Column("tuned on"), Column("method"), Column("minus"),
             Column("task"), Column("difference [95 %]", "gain"), Column("interval about"),
             Column("note")),
            [[visible(r["checkpoint"]), visible(r["tuned_on"]), r["method"], r["minus"],
              visible(r["task"]), interval(r, "difference", "p_holm"), r["difference_error_of"],
              r["notes"]] for r in methods],
            [[[visible(r["checkpoint"])], None, None, [visible(r["task"])], None, [r["way"]]]
             for r in methods],
            "methods.csv",
        ),
    ]  # fmt: skip


def cost_table(book: ScoreBook) -> Table:
    """Tokens of each task under each prompt; without rows where nothing was counted."""
    sums: dict[tuple[str, str], list[int]] = {}
    for cell in book.read:
        f = cell.facts
        key = (str(cell.about["task"]), str(cell.about["variant"]))
        total = sums.setdefault(key, [0] * (1 + len(TOKEN_COLUMNS)))
        for i, count in enumerate((f.n + f.overflow + f.valueless, *f.tokens)):
            total[i] += count
    if not any(any(counts[1:]) for counts in sums.values()):
        sums = {}
    rows, facets = [], []
    for (task, prompt), counts in sorted(sums.items()):
        rows.append([visible(task), visible(prompt), *counts])
        facets.append([None, None, None, [visible(task)], [visible(prompt)], None])
    columns = (
        Column("task"), Column("prompt"), Column("answers", "count"),
        Column("prompt tokens", "count"), Column("computed", "count"),
        Column("taken from cache", "count"), Column("written", "count"),
    )  # fmt: skip
    caption = "Tokens of all models together. What a cache held was not computed again."
    return Table("cost", "cost", "What it cost, in tokens", caption, columns, rows, facets,
                 "cells.csv")  # fmt: skip

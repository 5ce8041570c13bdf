"""Scores over all prompts, estimated from drawn pairs: as text, as a table, and for the page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from evalcore.analysis.prompteval import PromptScoreRow
from evalcore.report.rows import seed_names, tuning_name
from evalcore.report.sections import Column, Table
from evalcore.report.words import fit, mark, note_lines, plain, visible

_SHARES = (0.05, 0.5, 0.95)


def prompt_score_lines(rows: Sequence[PromptScoreRow], *, most: int | None = None) -> list[str]:
    """A line per model, task and way of asking; none for no rows."""
    if not rows:
        return []
    head = ["task", "model", "prompts", "scored", "mean [95 %]", "5 %", "median", "95 %",
            "worst [95 %]", "naive", ""]  # fmt: skip
    several = len({row.way for row in rows}) > 1
    table = [head]
    notes = list(dict.fromkeys(note for row in rows[:most] for note in row.notes))
    for row in rows[:most]:
        s = row.scores
        table.append(
            [
                f"{row.task} ({row.way})" if several else row.task, row.model, str(row.prompts),
                f"{100 * s.scored / s.pairs:.1f} %", _ranged(s.mean, s.mean_interval),
                *(plain(s.quantiles[share][0]) for share in _SHARES),
                _ranged(s.worst, s.worst_interval), plain(s.naive),
                " ".join(mark(notes.index(note)) for note in row.notes),
            ]
        )  # fmt: skip
    limits = {0: 30, 1: 34}
    widths = [min(max(len(line[i]) for line in table), limits.get(i, 30)) for i in range(len(head))]
    right = range(2, len(head) - 1)
    lines = [
        "  ".join(fit(v, w, i in right) for i, (v, w) in enumerate(zip(line, widths, strict=True)))
        for line in table
    ]
    rule = "-" * max(len(line.rstrip()) for line in lines)
    lines = [lines[0], rule, *lines[1:], rule]
    if most is not None and len(rows) > most:
        lines.append(f"{len(rows) - most:,} more lines")
    lines.append(
        "Scores over all prompts, estimated from the (prompt, document) pairs that were scored: "
        "their mean,"
    )
    lines.append(
        "quantiles over prompts and the worst prompt (extended Rasch model); naive: the mean of "
        "those pairs."
    )
    lines += note_lines(notes)
    return [line.rstrip() for line in lines]


def _ranged(value: float, interval: tuple[float, float]) -> str:
    return f"{plain(value)} [{plain(interval[0])}, {plain(interval[1])}]"


def prompt_score_table(rows: Sequence[PromptScoreRow]) -> pa.Table:
    """Every number of the rows, one column each."""
    return pa.Table.from_pylist([_record(row) for row in rows])


def _record(row: PromptScoreRow) -> dict[str, Any]:
    s = row.scores
    record = {
        "model": row.model, "task": row.task, "metric": row.metric, "way": row.way,
        "numerics": row.numerics, "prompts": row.prompts, "documents": row.documents,
        "pairs": s.pairs, "pairs_scored": s.scored, "naive_mean": s.naive,
        "mean": s.mean, "mean_low95": s.mean_interval[0], "mean_high95": s.mean_interval[1],
        "worst": s.worst, "worst_low95": s.worst_interval[0], "worst_high95": s.worst_interval[1],
    }  # fmt: skip
    for share, (value, low, high) in s.quantiles.items():
        name = f"q{round(100 * share):02d}"
        record |= {name: value, f"{name}_low95": low, f"{name}_high95": high}
    record |= {"sd_prompts_logit": s.spread[0], "sd_documents_logit": s.spread[1]}
    return record | {"notes": "; ".join(row.notes)}


def prompt_score_page(rows: Sequence[PromptScoreRow]) -> Table:
    """The rows as a table of the page."""
    shown, facets = [], []
    for row in rows:
        s, subject = row.scores, row.subject
        shown.append([
            visible(row.model), visible(row.task), row.way, row.prompts,
            f"{s.scored:,} of {s.pairs:,}", _ranged(s.mean, s.mean_interval),
            *(_ranged(s.quantiles[share][0], s.quantiles[share][1:]) for share in _SHARES),
            _ranged(s.worst, s.worst_interval), round(s.naive, 4), "; ".join(row.notes),
        ])  # fmt: skip
        who: list[list[str] | None] = [None, None, None]
        if subject is not None:
            who = [[visible(subject.checkpoint)], [tuning_name(subject)], seed_names(subject)]
        facets.append([*who, [visible(row.task)], None, [row.way]])
    columns = (
        Column("model"), Column("task"), Column("asked"), Column("prompts", "count"),
        Column("pairs scored"), Column("mean [95 %]"),
        *(Column(f"{round(100 * share)} % of prompts [95 %]") for share in _SHARES),
        Column("worst prompt [95 %]"), Column("naive mean", "number"), Column("note"),
    )  # fmt: skip
    caption = (
        "Estimated from drawn (prompt, document) pairs (--budget) by the extended Rasch model: the "
        "mean over all prompts on all documents, the score that so many per cent of the prompts do "
        "not pass, and the worst prompt. Naive: the mean of the scored pairs, which stand in no "
        "other table."
    )
    title = "Over all prompts, from a part of the pairs"
    return Table("budget", "prompts", title, caption, columns, shown, facets, "prompt_scores.csv")

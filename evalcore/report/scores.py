"""Scores and gains as text for a terminal, rows for the page and CSV files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evalcore.analysis import Analysis
from evalcore.analysis.scores import By, ScoreRow, adjusted, score_rows, scores_table
from evalcore.metrics import higher_is_better
from evalcore.report.tables import labelled_rows, study_table
from evalcore.report.words import (
    adapter_lines,
    by_prompt,
    fit,
    interval,
    mark,
    note_lines,
    plain,
    signed,
)
from evalcore.store import text_columns

SHOWN_LINES = 40
"""Lines of the table after a run; the rest is one command away."""
_NUMBERS = (3, 4, 6)  # columns set to the right


def scores_text(rows: Sequence[ScoreRow], *, most: int | None = None, rest: str = "") -> list[str]:
    """The table of scores: a line per task, model and way of asking, at most 118 columns wide.

    Args:
        rows: Of ``analysis.score_rows``, by task or by prompt.
        most: Lines at most; where there are more, each task shows its best scores. None: all.
        rest: Where the others are to be seen, for the line that says how many there are.

    Returns:
        Lines; none for no rows.
    """
    if not rows:
        return []
    several = len({r.way for r in rows}) > 1
    shown, hidden = _shortened(rows, most)
    table = [_head(rows, several), *_lines(shown, rows, several)]
    columns = range(len(table[0]))
    limits = {0: 30, 1: 40, 2: 24, 5: 28}
    widths = [min(max(len(line[i]) for line in table), limits.get(i, 30)) for i in columns]
    lines = [
        "  ".join(
            fit(v, w, i in _NUMBERS) for i, (v, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in table
    ]
    rule = "-" * max(len(line.rstrip()) for line in lines)
    lines = [lines[0], rule, *lines[1:], rule]
    if hidden:
        lines.append(f"{hidden:,} more lines (each task shows its best here): {rest}")
    lines += adapter_lines((r.model, r.subject) for r in shown if r.subject.runs)
    lines += foot_lines(shown)
    lines += note_lines(_notes(shown))
    return [line.rstrip() for line in lines]


def report_table(analysis: Analysis) -> str:
    """What a report prints: the study's table, and scores where a tuning is not known."""
    rows = labelled_rows(analysis)
    open_ = {s.id for s in analysis.book.subjects.values() if s.base and s.tuned_on is None}
    if not any(row.tasks for row in rows):
        scores = score_rows(analysis.book)
        return "\n".join(scores_text(scores, most=SHOWN_LINES, rest="see the report"))
    text = study_table(analysis)
    if not open_:
        return text
    bases = {analysis.book.subjects[id_].base for id_ in open_}
    others = [r for r in score_rows(analysis.book) if r.subject.id in open_ | bases]
    if not others:
        return text
    more = scores_text(others, most=SHOWN_LINES, rest="see the report")
    return "\n".join([text, "", "models whose tuning is not known:", *more])


def _head(rows: Sequence[ScoreRow], several: bool) -> list[str]:
    asked = "asked" if several else ""
    single = all(len(r.prompts) == 1 for r in rows)
    over = "prompt" if single else "over prompts"
    gain = "gain over base" if any(r.base for r in rows) else ""
    return ["task", "model", asked, "docs", "score", over, gain, ""]


def _lines(shown: Sequence[ScoreRow], rows: Sequence[ScoreRow], several: bool) -> list[list[str]]:
    single = all(len(r.prompts) == 1 for r in rows)
    marks = {note: mark(i) for i, note in enumerate(_notes(shown))}
    lines, last = [], ""
    for row in shown:
        task = f"{row.task.name} ({row.task.metric})"
        own = " ".join(marks[n] for n in dict.fromkeys(row.notes))
        lines.append(
            ["" if task == last else task, row.model, row.way.label if several else "",
             f"{row.score.n:,}", _with_error(row), row.prompts[0] if single else _range(row),
             gain_text(row), own]
        )  # fmt: skip
        last = task
    return lines


def _with_error(row: ScoreRow) -> str:
    error = row.score.stderr  # 0 where every document is alike, which is no error of 0
    return plain(row.score.value) + (f" ± {plain(error)}" if error > 1e-12 else "")


def _range(row: ScoreRow) -> str:
    score = row.score
    if len(row.prompts) == 1:
        return "1 prompt"
    return f"{plain(score.low_prompt)} to {plain(score.high_prompt)}"


def foot_lines(rows: Sequence[ScoreRow]) -> list[str]:
    """What errors and intervals are about."""
    claims = list(dict.fromkeys(r.score.claim for r in rows if r.score.claim))
    lines = [f"± standard error; it is about {'; '.join(claims)}"] if claims else []
    gains = list(dict.fromkeys(r.gain.claim for r in rows if r.gain.claim))
    if gains:
        lines += [
            f"gain: paired by document, [95 % interval] about {'; '.join(gains)}",
            "errors by document alone: in the table of `evalcore scores RESULTS -o scores.csv`",
        ]
    less = {r.task.metric for r in rows if not higher_is_better(r.task.metric)}
    if less:
        lines.append(f"less is better: {', '.join(sorted(less))}")
    if any(r.score.degenerate for r in rows):
        lines.append("without ±: every document alike; the interval is in scores.csv")
    turned = sum(bool(r.gain.turned) for r in rows)
    if turned:
        lines.append(f"in {turned} rows some prompts have the other sign than the mean gain")
    return lines


def gain_text(row: ScoreRow) -> str:
    """``+0.345 [+0.254, +0.436]``; without an interval where every document changed alike."""
    if row.gain.n and row.gain.degenerate and row.gain.low95 != row.gain.low95:
        return f"{signed(row.gain.value)} (every document)"
    return interval(row.gain) if row.base is not None else ""


def _notes(rows: Sequence[ScoreRow]) -> list[str]:
    return list(dict.fromkeys(note for row in rows for note in row.notes))


def _shortened(rows: Sequence[ScoreRow], most: int | None) -> tuple[list[ScoreRow], int]:
    """As many rows as may be shown: the best of each task, and the bases beside them."""
    if most is None or len(rows) <= most:
        return list(rows), 0
    tasks = list(dict.fromkeys(r.task.name for r in rows))
    share = max(3, most // len(tasks))
    shown: list[ScoreRow] = []
    for task in tasks[: max(1, most // share)]:
        own = [r for r in rows if r.task.name == task]
        sign = -1 if higher_is_better(own[0].task.metric) else 1
        best = sorted((r for r in own if r.score.n), key=lambda r: sign * r.score.value)[:share]
        wanted = {r.subject.base for r in best} - {r.subject.id for r in best}
        bases = [r for r in own if r.subject.id in wanted][: share // 2]
        keep = {id(r) for r in [*bases, *best[: share - len(bases)]]}
        shown += [r for r in own if id(r) in keep]
    return shown, len(rows) - len(shown)


def page_rows(rows: Sequence[ScoreRow], by: By, most: int) -> tuple[list[dict[str, Any]], int]:
    """Rows for the page's template (texts), at most ``most``, and how many are left out."""
    out: list[dict[str, Any]] = []
    _, p_holm, _ = adjusted(rows)
    for row, p in zip(rows[:most], p_holm, strict=False):
        single = by == "prompt" or len(row.prompts) < 2
        out.append(
            {
                "task": row.task.name, "metric": row.task.metric, "model": row.model,
                "way": row.way.label + ("" if row.primary else " *"),
                "prompt": ", ".join(row.prompts), "prompts": len(row.prompts),
                "n": f"{row.score.n:,}", "score": _with_error(row),
                "trivial": plain(row.task.baseline), "range": _range(row), "gain": gain_text(row),
                "sure": p < 0.01, "gain_range": "" if single else by_prompt(row.gain),
                "turned": f"{row.gain.turned} of {row.gain.prompts}" if row.gain.turned else "",
                "claim": row.gain.claim or row.score.claim,
                "smallest": plain(row.gain.smallest), "note": "; ".join(row.notes),
                "first": not out or out[-1]["task"] != row.task.name,
            }
        )  # fmt: skip
    return out, max(0, len(rows) - most)


def write_scores(
    by_task: Sequence[ScoreRow], by_prompt: Sequence[ScoreRow], out: Path
) -> list[Path]:
    """``scores.csv`` and ``scores_by_prompt.csv`` in ``out``."""
    import pyarrow.csv as csv

    paths = [out / "scores.csv", out / "scores_by_prompt.csv"]
    csv.write_csv(text_columns(scores_table(by_task)), paths[0])
    csv.write_csv(text_columns(scores_table(by_prompt, "prompt")), paths[1])
    return paths

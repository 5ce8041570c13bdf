"""Scores and gains as text for a terminal, rows for the page and CSV files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evalcore.analysis import Analysis
from evalcore.analysis.scores import By, ScoreRow, score_rows, scores_table
from evalcore.metrics import higher_is_better
from evalcore.report.tables import fit, interval, labelled_rows, plain, signed, study_table
from evalcore.store import text_columns

SHOWN_LINES = 40
"""Lines of the table after a run; the rest is one command away."""
_NUMBERS = (3, 4, 6)  # columns set to the right
_MOST_NOTES = 6
_SCORES_FOOT = "± standard error over documents (these prompts, this run)"


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
    gains = "; gain: paired by document, [99 % interval]" if any(r.base for r in rows) else ""
    lines.append(_SCORES_FOOT + gains)
    lines += _note_lines(shown)
    return [line.rstrip() for line in lines]


def report_table(analysis: Analysis) -> str:
    """What a report prints: the study's table, and scores where a tuning is not known."""
    rows = labelled_rows(analysis)
    open_ = {s.id for s in analysis.book.subjects.values() if s.base and s.tuned_on is None}
    scores = score_rows(analysis.book)
    if not any(row.tasks for row in rows):
        return "\n".join(scores_text(scores, most=SHOWN_LINES, rest="see the report"))
    text = study_table(analysis)
    bases = {analysis.book.subjects[id_].base for id_ in open_}
    others = [r for r in scores if r.subject.id in open_ | bases]
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
    marks = {note: _mark(i) for i, note in enumerate(_notes(shown))}
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
    error = row.score.stderr
    return plain(row.score.value) + ("" if error != error else f" ± {plain(error)}")


def _range(row: ScoreRow) -> str:
    return "1 prompt" if len(row.prompts) == 1 else f"{plain(row.low)} to {plain(row.high)}"


def gain_text(row: ScoreRow) -> str:
    """``+0.345 [+0.254, +0.436]``; without an interval where every document changed alike."""
    if row.gain.n and row.gain.degenerate:
        return f"{signed(row.gain.value)} (every document)"
    return interval(row.gain) if row.base is not None else ""


def _notes(rows: Sequence[ScoreRow]) -> list[str]:
    return list(dict.fromkeys(note for row in rows for note in row.notes))


def _mark(number: int) -> str:
    return f"({chr(ord('a') + number)})" if number < 26 else f"({number})"


def _note_lines(shown: Sequence[ScoreRow]) -> list[str]:
    notes = _notes(shown)
    lines = [f"{_mark(i)} {note}" for i, note in enumerate(notes[:_MOST_NOTES])]
    return lines + [f"... {len(notes) - _MOST_NOTES} more notes"] * (len(notes) > _MOST_NOTES)


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
    for row in rows[:most]:
        out.append(
            {
                "task": row.task.name, "metric": row.task.metric, "model": row.model,
                "way": row.way.label, "prompt": ", ".join(row.prompts),
                "prompts": len(row.prompts), "n": f"{row.score.n:,}", "score": _with_error(row),
                "trivial": plain(row.task.baseline), "range": _range(row), "gain": gain_text(row),
                "sure": row.gain.low99 > 0 or row.gain.high99 < 0,
                "gain_range": (
                    f"{signed(row.gain_low)} to {signed(row.gain_high)}"
                    if by == "task" and row.gain.n and len(row.prompts) > 1 else ""
                ),
                "note": "; ".join(row.notes),
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

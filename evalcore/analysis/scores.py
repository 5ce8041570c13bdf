"""Scores and gains as two tables: per cell, and per subject, task and way of asking.

Every task has them, whatever is known about how an adapter was tuned. Only wordings of the prompt
are averaged; other numbers of shots, chats, listings or ways of answering stand in rows of their
own. All errors are those of the documents: they hold for these prompts and this run.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from evalcore.analysis.book import CellValues, ScoreBook, SubjectInfo, TaskInfo
from evalcore.analysis.gains import Gain, paired_gain, pooled_score
from evalcore.analysis.stats import EMPTY, Estimate
from evalcore.analysis.ways import Way
from evalcore.metrics import cell_scores
from evalcore.metrics.arrays import column
from evalcore.metrics.cells import MODAL_SHARE_LIMIT
from evalcore.store.schema import FULLY_TUNED, NO_ADAPTER

ERROR_OF = "documents (these prompts, this run)"
"""What every standard error and interval of the tables is over."""

By = Literal["task", "prompt"]


@dataclass(frozen=True)
class ScoreRow:
    """A score and, for a tuned subject, its gain: of one cell, or a mean over prompts.

    Attributes:
        subject: Whose score; ``model`` is its name, unique in the table.
        base: Name of the subject it is compared with; None for an untuned checkpoint.
        prompts: Names of the prompts averaged (one for a cell).
        score: Mean over documents of the mean over these prompts.
        low, high: Lowest and highest score under a single prompt.
        base_score: The base's score on the paired documents.
        gain: Score minus the base's, paired by document.
        gain_low, gain_high: Lowest and highest gain under a single prompt.
        notes: What a reader must know of this row.
    """

    subject: SubjectInfo
    model: str
    base: str | None
    task: TaskInfo
    way: Way
    numerics: str
    prompts: tuple[str, ...]
    score: Estimate
    low: float
    high: float
    base_score: Estimate
    gain: Estimate
    gain_low: float
    gain_high: float
    notes: tuple[str, ...]


def score_rows(book: ScoreBook, by: By = "task") -> list[ScoreRow]:
    """Scores with gains over each subject's base, by task, then subject, then way of asking.

    Args:
        book: What was scored.
        by: ``task``: one row per subject, task and way of asking; ``prompt``: one per cell.
    """
    names = model_names(book.subjects.values())
    rows = []
    for task in sorted(book.tasks.values(), key=lambda t: t.name):
        for subject in book.ordered_subjects():
            cells = book.variants(subject.id, task.name)
            for (way, numerics), prompts in _groups(cells):
                taken = [[p] for p in prompts] if by == "prompt" else [prompts]
                rows += [_row(book, subject, task, way, numerics, p, names) for p in taken]
    return rows


def model_names(subjects: Iterable[SubjectInfo]) -> dict[str, str]:
    """Subject id -> its name; two of one name get the beginning of their fingerprints."""
    subjects = list(subjects)
    count = Counter(s.label for s in subjects)
    own = {s.id: s.id.rsplit("+", 1)[-1][:6] for s in subjects}
    return {s.id: s.label if count[s.label] == 1 else f"{s.label} ({own[s.id]})" for s in subjects}


def _groups(cells: dict[str, CellValues]) -> list[tuple[tuple[Way, str], list[str]]]:
    """Prompts by what may be averaged: one way of asking in one numerics class."""
    groups: dict[tuple[Way, str], list[str]] = defaultdict(list)
    for name, cell in cells.items():
        groups[(cell.way, cell.numerics)].append(name)
    return sorted(groups.items())


def _row(
    book: ScoreBook,
    subject: SubjectInfo,
    task: TaskInfo,
    way: Way,
    numerics: str,
    prompts: Sequence[str],
    names: dict[str, str],
) -> ScoreRow:
    cells = {name: book.variants(subject.id, task.name)[name] for name in prompts}
    singles = [s.value for s in (pooled_score({n: c}) for n, c in cells.items()) if s.n]
    gain, notes = _gain(book, subject, task, numerics, prompts)
    single_gains = [e.value for e in gain.by_variant.values() if e.n] if gain else []
    return ScoreRow(
        subject=subject,
        model=names[subject.id],
        base=names.get(subject.base, "not scored") if subject.base is not None else None,
        task=task,
        way=way,
        numerics=numerics,
        prompts=tuple(prompts),
        score=pooled_score(cells),
        low=min(singles, default=float("nan")),
        high=max(singles, default=float("nan")),
        base_score=gain.other if gain else EMPTY,
        gain=gain.pooled if gain else EMPTY,
        gain_low=min(single_gains, default=float("nan")),
        gain_high=max(single_gains, default=float("nan")),
        notes=(*_cell_notes(subject, cells), *notes),
    )


def _gain(
    book: ScoreBook, subject: SubjectInfo, task: TaskInfo, numerics: str, prompts: Sequence[str]
) -> tuple[Gain | None, list[str]]:
    """The gain over the base under these prompts, and why it is missing or partial."""
    if subject.base is None:
        return None, []
    theirs = book.variants(subject.base, task.name)
    shared = [n for n in prompts if n in theirs and theirs[n].numerics == numerics]
    if not shared:
        other = any(n in theirs for n in prompts)
        return None, ["base scored with other numerics" if other else "base not scored"]
    gain = paired_gain(book, subject.id, subject.base, task.name, variants=shared)
    if gain is None:
        return None, ["no document in common with the base"]
    notes = []
    compared = len(gain.by_variant)
    if compared < len(prompts):
        notes.append(f"gain over {compared} of {len(prompts)} prompts")
    if gain.missing_rows:
        notes.append(f"{gain.missing_rows} answers on one side only")
    return gain, notes


def _cell_notes(subject: SubjectInfo, cells: dict[str, CellValues]) -> list[str]:
    notes = ["adapter changes nothing"] if subject.untrained else []
    unscored = sum(c.unscored for c in cells.values())
    if unscored:
        notes.append(f"{unscored} not scored")
    sizes = {len(c.docs) for c in cells.values()}
    if len(sizes) > 1:
        notes.append("prompts have other numbers of documents")
    flat = [c for c in cells.values() if c.modal_share >= MODAL_SHARE_LIMIT and len(c.docs) > 1]
    if flat:
        of = "" if len(cells) == 1 else f" under {len(flat)} of {len(cells)} prompts"
        notes.append(f"one answer for nearly all documents{of}")
    return notes


SUBJECT_FIELDS = [
    ("model", pa.string()), ("checkpoint", pa.string()), ("step", pa.int64()),
    ("adapter", pa.string()), ("tuning", pa.string()), ("tuned_on", pa.string()),
    ("method", pa.string()), ("control", pa.string()), ("seed", pa.int64()),
    ("tuning_step", pa.int64()),
]  # fmt: skip
_ASKED_FIELDS = [
    ("task", pa.string()), ("metric", pa.string()), ("trivial", pa.float64()),
    ("way", pa.string()), ("shots", pa.int32()),
]  # fmt: skip
_GAIN_FIELDS = [
    ("base", pa.string()), ("base_score", pa.float64()), ("gain", pa.float64()),
    ("gain_stderr", pa.float64()), ("gain_low95", pa.float64()), ("gain_high95", pa.float64()),
    ("gain_low99", pa.float64()), ("gain_high99", pa.float64()), ("gain_n", pa.int64()),
]  # fmt: skip
_LAST_FIELDS = [
    ("numerics", pa.string()), ("error_of", pa.string()), ("note", pa.string()),
    ("subject", pa.string()),
]  # fmt: skip
_SCORE_FIELDS = [
    ("n", pa.int64()), ("score", pa.float64()), ("stderr", pa.float64()),
    ("low95", pa.float64()), ("high95", pa.float64()),
]  # fmt: skip
_RANGE = [("prompt_low", pa.float64()), ("prompt_high", pa.float64())]
_GAIN_RANGE = [("gain_prompt_low", pa.float64()), ("gain_prompt_high", pa.float64())]

SCORE_SCHEMA = pa.schema(
    [*SUBJECT_FIELDS, *_ASKED_FIELDS, ("prompts", pa.int64()), *_SCORE_FIELDS, *_RANGE,
     *_GAIN_FIELDS, *_GAIN_RANGE, *_LAST_FIELDS]
)  # fmt: skip
"""Columns of :func:`scores_table` by task."""
PROMPT_SCORE_SCHEMA = pa.schema(
    [*SUBJECT_FIELDS, *_ASKED_FIELDS, ("prompt", pa.string()), *_SCORE_FIELDS, *_GAIN_FIELDS,
     *_LAST_FIELDS]
)  # fmt: skip
"""Columns of :func:`scores_table` by prompt."""


def scores_table(rows: Sequence[ScoreRow], by: By = "task") -> pa.Table:
    """Rows of :func:`score_rows` as Arrow (``SCORE_SCHEMA``, or ``PROMPT_SCORE_SCHEMA``).

    ``adapter`` is text in every row (as in the store, ``(base)`` or ``(full)`` without one), so
    that grouping by it keeps all rows; numbers that do not exist are null.
    """
    schema = SCORE_SCHEMA if by == "task" else PROMPT_SCORE_SCHEMA
    found = [_record(row) for row in rows]
    columns = [pa.array([_known(r[f.name]) for r in found], type=f.type) for f in schema]
    return pa.Table.from_arrays(columns, schema=schema)


def adapter_name(subject: SubjectInfo) -> str:
    """What the store calls a subject's adapter; one without has a name there too."""
    return subject.adapter or (NO_ADAPTER if subject.base is None else FULLY_TUNED)


def _known(value: Any) -> Any:
    return None if value is None or value != value else value


def _record(row: ScoreRow) -> dict[str, Any]:
    s, score, gain = row.subject, row.score, row.gain
    return {
        "model": row.model, "checkpoint": s.checkpoint, "step": s.step, "adapter": adapter_name(s),
        "tuning": s.tuning, "tuned_on": s.tuned_on, "method": s.method, "control": s.control,
        "seed": s.seed, "tuning_step": s.tuning_step, "task": row.task.name,
        "metric": row.task.metric,
        "trivial": row.task.baseline, "way": row.way.label, "shots": row.way.shots,
        "prompts": len(row.prompts), "prompt": ", ".join(row.prompts), "n": score.n,
        "score": score.value, "stderr": score.stderr, "low95": score.low95,
        "high95": score.high95, "prompt_low": row.low, "prompt_high": row.high, "base": row.base,
        "base_score": row.base_score.value, "gain": gain.value, "gain_stderr": gain.stderr,
        "gain_low95": gain.low95, "gain_high95": gain.high95, "gain_low99": gain.low99,
        "gain_high99": gain.high99, "gain_n": gain.n if row.base is not None else None,
        "gain_prompt_low": row.gain_low, "gain_prompt_high": row.gain_high,
        "numerics": row.numerics, "error_of": ERROR_OF, "note": "; ".join(row.notes),
        "subject": s.id,
    }  # fmt: skip


def metric_table(table: pa.Table) -> pa.Table:
    """Every metric of every cell (``metrics.cell_scores``) with what says which cell it is.

    Args:
        table: What ``ResultStore.read()`` gives.
    """
    names = ["checkpoint", "step", "adapter", "tuning", "control", "task", "variant", "numerics"]
    cells = column(table, "cell")
    first = pc.index_in(cells.unique(), value_set=cells)
    about = table.select(names).take(first)
    scores = cell_scores(table)
    place = pc.index_in(scores.column("cell"), value_set=cells.unique())
    for name in names:
        scores = scores.append_column(name, column(about, name).take(place.combine_chunks()))
    keys = ("step", "task", "adapter", "variant", "metric")
    return scores.sort_by([(key, "ascending") for key in keys])

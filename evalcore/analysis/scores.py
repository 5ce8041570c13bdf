"""Scores and gains as two tables: per prompt and run, and per model, task and way of asking.

Every task has them, whatever is known about how an adapter was tuned. Only wordings of the prompt
and training seeds are averaged; other numbers of shots, chats, listings or ways of answering stand
in rows of their own. Each row says what its intervals are about (``error_of``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from evalcore.analysis.book import ScoreBook
from evalcore.analysis.cells import Cells, CellValues, Stratum
from evalcore.analysis.estimates import p_value
from evalcore.analysis.families import benjamini_hochberg, holm
from evalcore.analysis.gains import Gain, paired_gain
from evalcore.analysis.making import unlike
from evalcore.analysis.pooling import pooled_score
from evalcore.analysis.stats import EMPTY, Estimate
from evalcore.analysis.subjects import SubjectInfo, TaskInfo
from evalcore.analysis.ways import Way
from evalcore.metrics import CELL_SCORE_SCHEMA, higher_is_better
from evalcore.metrics.cells import MODAL_SHARE_LIMIT
from evalcore.store.schema import CELL_SCHEMA, FULLY_TUNED, NO_ADAPTER

NO_INTERVAL = "none"
"""``error_of`` where there is no interval at all (one document, or all values alike)."""
SHOWN_EMPTY = 0.05
"""Share of empty texts from which a row says so."""

By = Literal["task", "prompt"]


@dataclass(frozen=True)
class ScoreRow:
    """A score and, for a tuned model, its gain: of one cell, or a mean over prompts and seeds.

    Attributes:
        subject: Whose score; ``model`` is its name, unique in the table.
        base: Name of the subject it is compared with; None for an untuned checkpoint.
        primary: Whether it is of the way of asking that headlines are about.
        prompts: Names of the prompts averaged (one for a cell).
        score: Mean over these prompts (and seeds) of the means over documents.
        base_score: The base's score on the paired documents.
        gain: Score minus the base's, paired by document.
        raw: The same mean over the whole generated texts, whatever stop strings are in them; NaN
            where there is no such metric.
        notes: What a reader must know of this row.
    """

    subject: SubjectInfo
    model: str
    base: str | None
    task: TaskInfo
    way: Way
    numerics: str
    primary: bool
    prompts: tuple[str, ...]
    score: Estimate
    base_score: Estimate
    gain: Estimate
    raw: float
    notes: tuple[str, ...]


def score_rows(book: ScoreBook, by: By = "task") -> list[ScoreRow]:
    """Scores with gains over each subject's base, by task, then subject, then way of asking.

    Args:
        book: What was scored.
        by: ``task``: one row per model (seeds taken together), task and way of asking;
            ``prompt``: one per cell.
    """
    subjects = book.models if by == "task" else book.ordered_subjects()
    names = model_names([*book.subjects.values(), *(s for s in book.models if s.runs)])
    rows = []
    for task in sorted(book.tasks.values(), key=lambda t: t.name):
        for subject in subjects:
            for stratum, cells in book.strata(subject, task.name).items():
                taken = [[p] for p in cells] if by == "prompt" else [list(cells)]
                rows += [_row(book, subject, task, stratum, p, names) for p in taken]
    return rows


def model_names(subjects: Iterable[SubjectInfo]) -> dict[str, str]:
    """Subject id -> its name; two of one name get the beginning of their fingerprints."""
    subjects = list(subjects)
    count = Counter(s.label for s in subjects)
    own = {s.id: s.run_ids[0].rsplit("+", 1)[-1][:6] for s in subjects}
    return {s.id: s.label if count[s.label] == 1 else f"{s.label} ({own[s.id]})" for s in subjects}


def _row(
    book: ScoreBook, subject: SubjectInfo, task: TaskInfo, stratum: Stratum,
    prompts: Sequence[str], names: dict[str, str],
) -> ScoreRow:  # fmt: skip
    every = book.strata(subject, task.name)[stratum]
    cells = {name: every[name] for name in prompts}
    gain, notes = _gain(book, subject, task, stratum, prompts)
    score = pooled_score(book, cells, task)
    return ScoreRow(
        subject=subject,
        model=names[subject.id],
        base=names.get(subject.base, "not scored") if subject.base is not None else None,
        task=task,
        way=stratum[0],
        numerics=stratum[1],
        primary=stratum == book.primary_stratum(subject, task.name),
        prompts=tuple(prompts),
        score=score,
        base_score=gain.other if gain else EMPTY,
        gain=gain.pooled if gain else EMPTY,
        raw=_raw(task, cells),
        notes=(
            *notes_of(book, subject, task, stratum, prompts),
            *_cluster_note(cells, score),
            *notes,
        ),
    )


def _raw(task: TaskInfo, cells: Cells) -> float:
    """Mean over prompts of the score of raw text (beside it stands that of text up to a stop)."""
    by_prompt = []
    for runs in cells.values():
        values = [
            float(score["value"])
            for cell in runs.values()
            for score in cell.facts.scores
            if score["metric"] == f"{task.metric}_raw" and score["value"] is not None
        ]
        by_prompt.append(sum(values) / len(values) if values else float("nan"))
    return sum(by_prompt) / len(by_prompt) if by_prompt else float("nan")


def _gain(
    book: ScoreBook, subject: SubjectInfo, task: TaskInfo, stratum: Stratum, prompts: Sequence[str]
) -> tuple[Gain | None, list[str]]:
    """The gain over the base under these prompts, and why it is missing or partial."""
    base = book.base_of(subject)
    if subject.base is None:
        return None, []
    theirs = book.variants(subject.base, task.name)
    shared = [n for n in prompts if n in theirs and theirs[n].numerics == stratum[1]]
    if base is None or not shared:
        other = any(n in theirs for n in prompts)
        return None, ["base scored with other numerics" if other else "base not scored"]
    gain = paired_gain(book, subject, base, task.name, stratum, variants=shared)
    if gain is None:
        return None, ["no document in common with the base"]
    notes = list(gain.notes)
    compared = len(gain.by_variant)
    if compared < len(prompts):
        notes.append(f"gain over {compared} of {len(prompts)} prompts")
    if gain.missing_rows:
        notes.append(f"{gain.missing_rows} answers on one side only")
    if subject.control is not None and gain.worse:
        notes.append(f"control {'below' if gain.upward else 'worse than'} its own base")
    return gain, notes


def notes_of(
    book: ScoreBook, subject: SubjectInfo, task: TaskInfo, stratum: Stratum,
    prompts: Collection[str],
) -> list[str]:  # fmt: skip
    """:func:`cell_notes` of a model's cells under some prompts; worked out once."""
    every = book.strata(subject, task.name).get(stratum, {})
    names = tuple(name for name in every if name in prompts)
    key = (subject.id, task.name, stratum, names)
    if key not in book.noted:
        book.noted[key] = cell_notes(subject, task, {name: every[name] for name in names})
    return book.noted[key]


def cell_notes(subject: SubjectInfo, task: TaskInfo, cells: Cells) -> list[str]:
    """What a reader must know of a score made of these cells."""
    every = [cell for runs in cells.values() for cell in runs.values()]
    notes = ["adapter changes nothing"] if subject.untrained else []
    unscored = sum(c.unscored for c in every)
    if unscored:
        notes.append(f"{unscored} not scored")
    if len({c.n for c in every}) > 1:
        notes.append("prompts have other numbers of documents")
    if any(len(runs) < len(subject.run_ids) for runs in cells.values()):
        notes.append("not every seed was scored under every prompt")

    def under(odd: Sequence[str]) -> str:
        return "" if len(cells) == 1 else f" under {len(odd)} of {len(cells)} prompts"

    flat = [n for n, runs in cells.items() if any(map(_flat, runs.values()))]
    if flat:
        notes.append(f"one answer for nearly all documents{under(flat)}")
    if any(c.facts.one_class for c in every):
        notes.append("every right answer is the same choice")
    low = [n for n, runs in cells.items() if any(_below(task, c) for c in runs.values())]
    if low:
        notes.append(f"far below the trivial answer{under(low)}")
    empty, texts = sum(c.facts.empty for c in every), sum(c.facts.generated for c in every)
    if texts and empty / texts >= SHOWN_EMPTY:
        notes.append(f"{empty / texts:.0%} of the texts are empty")
    lost = [n for n, runs in cells.items() if any(c.facts.dropped for c in runs.values())]
    if lost:
        least = min((c.facts for n in lost for c in cells[n].values()), key=lambda f: f.held_shots)
        notes.append(f"{least.held_shots:.1f} of {least.shots} shots in a prompt{under(lost)}")
    unproven = sum(c.facts.unproven for c in every)
    if unproven:
        notes.append(f"model not proven in all its weights for {unproven} answers")
    if how := unlike(making for c in every for making in c.made):
        notes.append(f"made by {how}")
    return notes


def _cluster_note(cells: Cells, score: Estimate) -> list[str]:
    """``n`` counts what documents hang together in."""
    most = max((c.n for runs in cells.values() for c in runs.values()), default=0)
    return [f"{most} documents hang together in {score.n}"] if 0 < score.n < most else []


def _flat(cell: CellValues) -> bool:
    return cell.facts.modal_share >= MODAL_SHARE_LIMIT and cell.n > 1


def _below(task: TaskInfo, cell: CellValues) -> bool:
    """Whether a choice score lies below the trivial one by more than chance explains (99.9 %)."""
    n, floor = cell.n, task.baseline
    if task.output_type != "multiple_choice" or not higher_is_better(task.metric) or n < 2:
        return False
    error = float(np.sqrt(max(floor * (1 - floor), 0.0) / n)) if 0 < floor < 1 else float("nan")
    return bool(cell.facts.mean < floor - 3.3 * error)


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
    ("gain_error_of", pa.string()), ("gain_stderr_documents", pa.float64()),
    ("gain_low99_documents", pa.float64()), ("gain_high99_documents", pa.float64()),
    ("smallest_effect", pa.float64()), ("p", pa.float64()), ("p_holm", pa.float64()),
    ("p_bh", pa.float64()),
]  # fmt: skip
_LAST_FIELDS = [
    ("numerics", pa.string()), ("error_of", pa.string()), ("note", pa.string()),
    ("subject", pa.string()),
]  # fmt: skip
_SCORE_FIELDS = [
    ("n", pa.int64()), ("score", pa.float64()), ("stderr", pa.float64()),
    ("low95", pa.float64()), ("high95", pa.float64()), ("stderr_documents", pa.float64()),
    ("raw_score", pa.float64()),
]  # fmt: skip
_RANGE = [("prompt_low", pa.float64()), ("prompt_high", pa.float64())]
_GAIN_RANGE = [
    ("gain_prompt_low", pa.float64()), ("gain_prompt_high", pa.float64()),
    ("prompts_turned", pa.int64()), ("seed_sd", pa.float64()), ("gain_seed_sd", pa.float64()),
    ("gain_next_run_low95", pa.float64()), ("gain_next_run_high95", pa.float64()),
]  # fmt: skip

SCORE_SCHEMA = pa.schema(
    [*SUBJECT_FIELDS, ("seeds", pa.int64()), ("adapters", pa.string()), *_ASKED_FIELDS,
     ("primary", pa.bool_()),
     ("prompts", pa.int64()), *_SCORE_FIELDS, *_RANGE,
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
    for record, p, p_holm, p_bh in zip(found, *adjusted(rows), strict=True):
        record |= {"p": p, "p_holm": p_holm, "p_bh": p_bh}
    columns = [pa.array([known(r[f.name]) for r in found], type=f.type) for f in schema]
    return pa.Table.from_arrays(columns, schema=schema)


def adapter_name(subject: SubjectInfo) -> str:
    """What the store calls a subject's adapter; one without has a name there too.

    Of several seeds taken together it is the tuning's.
    """
    if subject.runs:
        return subject.label.removeprefix(f"{subject.checkpoint} + ")
    return subject.adapter or (NO_ADAPTER if subject.base is None else FULLY_TUNED)


def known(value: Any) -> Any:
    """The value; None for what is no number."""
    return None if value is None or value != value else value


def adjusted(rows: Sequence[ScoreRow]) -> tuple[list[float], list[float], list[float]]:
    """(p, p by Holm, p by Benjamini and Hochberg) of the gains, all rows being one family."""
    p = np.array([p_value(row.gain) for row in rows], dtype=np.float64)
    return p.tolist(), holm(p).tolist(), benjamini_hochberg(p).tolist()


def _record(row: ScoreRow) -> dict[str, Any]:
    s, score, gain = row.subject, row.score, row.gain
    within = gain.over_documents
    next_low, next_high = gain.next_run()
    return {
        "model": row.model, "checkpoint": s.checkpoint, "step": s.step, "adapter": adapter_name(s),
        "tuning": s.tuning, "tuned_on": s.tuned_on, "method": s.method, "control": s.control,
        "seed": s.seed, "seeds": len(s.run_ids), "adapters": ", ".join(s.run_adapters) or None,
        "tuning_step": s.tuning_step,
        "task": row.task.name, "metric": row.task.metric, "trivial": row.task.baseline,
        "way": row.way.label, "shots": row.way.shots, "primary": row.primary,
        "prompts": len(row.prompts), "prompt": ", ".join(row.prompts), "n": score.n,
        "score": score.value, "stderr": score.stderr, "low95": score.low95,
        "high95": score.high95, "stderr_documents": score.over_documents.stderr,
        "raw_score": row.raw,
        "prompt_low": score.low_prompt, "prompt_high": score.high_prompt, "base": row.base,
        "base_score": row.base_score.value, "gain": gain.value, "gain_stderr": gain.stderr,
        "gain_low95": gain.low95, "gain_high95": gain.high95, "gain_low99": gain.low99,
        "gain_high99": gain.high99, "gain_n": gain.n if row.base is not None else None,
        "gain_error_of": (gain.claim or NO_INTERVAL) if gain.n else None,
        "gain_stderr_documents": within.stderr, "gain_low99_documents": within.low99,
        "gain_high99_documents": within.high99, "smallest_effect": gain.smallest,
        "gain_prompt_low": gain.low_prompt, "gain_prompt_high": gain.high_prompt,
        "prompts_turned": gain.turned if gain.n else None, "seed_sd": score.seed_sd,
        "gain_seed_sd": gain.seed_sd, "gain_next_run_low95": next_low,
        "gain_next_run_high95": next_high, "numerics": row.numerics,
        "error_of": score.claim or NO_INTERVAL, "note": "; ".join(row.notes), "subject": s.id,
    }  # fmt: skip


def metric_table(book: ScoreBook) -> pa.Table:
    """Every metric of every cell (``metrics.CELL_SCORE_SCHEMA``) with what says which cell it is.

    Args:
        book: One with scores (``ScoreBook.from_table(..., scores=True)``, or of kept reductions).
    """
    names = ["checkpoint", "step", "adapter", "tuning", "control", "task", "variant", "numerics"]
    rows = [
        {**row, **{name: cell.about[name] for name in names}}
        for cell in book.read for row in cell.facts.scores
    ]  # fmt: skip
    about = [CELL_SCHEMA.field(name) for name in names]
    table = pa.Table.from_pylist(rows, pa.schema([*CELL_SCORE_SCHEMA, *about]))
    keys = ("step", "task", "adapter", "variant", "metric")
    return table.sort_by([(key, "ascending") for key in keys])

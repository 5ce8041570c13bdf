"""``compare()``: models against one, wherever they were scored, paired by document."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evalcore.app.reduction import DocumentCodes, read_cells
from evalcore.app.report import open_results
from evalcore.errors import InputError, UnknownNameError
from evalcore.reading import MAX_TABLE_BYTES, is_there, parse_json, read_bytes
from evalcore.shown import listed

if TYPE_CHECKING:
    from evalcore.analysis.book import ReducedCell
    from evalcore.analysis.gains import Gain
    from evalcore.analysis.stats import Estimate

_RIGHT = ("acc_norm", "acc", "exact_match", "em", "f1", "rougeL", "rouge_l")
"""Metrics of lm-eval's samples, the first that is there being compared."""


@dataclass(frozen=True)
class Side:
    """One of the models.

    Attributes:
        name: As it was given.
        id: Its subject in the book of all.
        cells: Its reduced cells.
        filters: Task -> lm-eval's ways of reading its answers, the one that counts first.
    """

    name: str
    id: str
    cells: Sequence[ReducedCell]
    filters: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Compared:
    """One model against the first.

    Attributes:
        name, reference: The two.
        gains: Per task and way of asking, ``name`` minus ``reference``.
        mean: Mean over tasks of those of the primary ways; by metric where there are several.
        missing: Tasks without a document, prompt or metric in common, with the reason.
        notes: What is odd about the cells of each of ``gains``.
    """

    name: str
    reference: str
    gains: Sequence[Gain]
    mean: Mapping[str, Estimate]
    missing: Mapping[str, str]
    notes: Sequence[Sequence[str]] = ()


def compare(
    sides: Sequence[str],
    *,
    results: Path | None = None,
    tasks: Sequence[str] = (),
    allow_mixed: bool = False,
) -> list[Compared]:
    """Differences of the second, third ... side from the first.

    Args:
        sides: Results folders that hold one model, ``FOLDER::MODEL``, models of ``results``, or
            lm-eval's ``samples_*.jsonl`` (files or folders of them).
        results: A folder whose models may be named alone; its names go before paths.
        tasks: Only these.
        allow_mixed: Allow other numerics classes on the two sides.

    Raises:
        InputError: Fewer than two sides, a side that is nothing or several models, or nothing in
            common.
        UnknownNameError: A model or task that is not there.
        IncompatibleError: The numerics differ.
    """
    from evalcore.analysis import ScoreBook

    if len(sides) < 2:
        raise InputError("compare needs two models or more: evalcore compare A B")
    codes = DocumentCodes()
    found = [_side(text, str(i), results, codes) for i, text in enumerate(sides)]
    known = {cell.about["task"] for side in found for cell in side.cells}
    for task in tasks:
        if task not in known:
            raise UnknownNameError("task", task, known)
    cells = [c for side in found for c in side.cells if not tasks or c.about["task"] in tasks]
    grouped = codes.clusters if codes.has_clusters else None
    book = ScoreBook.of(cells, codes.names, clusters=grouped)
    compared = [_against(book, side, found[0], allow_mixed) for side in found[1:]]
    if not any(c.gains for c in compared):
        reasons = "; ".join(f"{t}: {why}" for c in compared for t, why in c.missing.items())
        raise InputError(f"nothing can be compared ({reasons or 'no task in common'})")
    return compared


def _against(book: Any, side: Side, reference: Side, allow_mixed: bool) -> Compared:
    from evalcore.analysis.estimates import mean_of_estimates
    from evalcore.analysis.gains import paired_gains
    from evalcore.analysis.notes import gain_notes

    mine, theirs = book.subjects.get(side.id), book.subjects.get(reference.id)
    gains: list[Gain] = []
    missing: dict[str, str] = {}
    by_metric: dict[str, list[Estimate]] = {}
    for task in sorted(book.tasks):
        own = book.cells.get((side.id, task))
        other = book.cells.get((reference.id, task))
        if not own or not other:
            missing[task] = _lacking(side if not own else reference, task, book)
            continue
        found = paired_gains(book, mine, theirs, task, allow_mixed=allow_mixed)
        if not found:
            missing[task] = "no prompt with a document in common"
            continue
        gains += found
        primary = book.primary_stratum(mine, task)
        head = next((g for g in found if (g.way, g.numerics) == primary), found[0])
        by_metric.setdefault(head.task.metric, []).append(head.pooled)
    means = {metric: mean_of_estimates(several) for metric, several in by_metric.items()}
    notes = [
        [*_read(side, gain.task.name), *_read(reference, gain.task.name), *gain_notes(book, gain)]
        for gain in gains
    ]
    return Compared(side.name, reference.name, gains, means, missing, notes)


def _lacking(side: Side, task: str, book: Any) -> str:
    """Why a side has no values of a task."""
    metrics = sorted({c.facts.metric for c in side.cells if c.about["task"] == task})
    if metrics:
        wanted = book.tasks[task].metric
        return f"{side.name} was scored by {', '.join(metrics)}, the other side by {wanted}"
    return f"{side.name} was not scored on it"


def _read(side: Side, task: str) -> list[str]:
    """What is odd about how a side's rows were read."""
    doubled = sum(c.facts.doubled for c in side.cells if c.about["task"] == task)
    odd = [f"{side.name}: {doubled} rows repeat a document; the first counts"] * bool(doubled)
    filters = side.filters.get(task, ())
    if len(filters) > 1:
        odd.append(f"{side.name}: answers by filter {filters[0]}, not {', '.join(filters[1:])}")
    return odd


def _side(text: str, number: str, results: Path | None, codes: DocumentCodes) -> Side:
    place, sign, model = text.partition("::")
    path = Path(place)
    if not sign and results is not None and (text in _models(results) or not path.exists()):
        return _of_results(text, number, results, text, codes)
    if sign or is_there(path / "store.json"):
        return _of_results(text, number, path, model, codes)
    files = sorted(path.rglob("samples_*.jsonl")) if path.is_dir() else [path]
    if path.suffix == ".jsonl" or (path.is_dir() and files):
        return _of_samples(text, number, files, codes)
    if not path.exists() and results is None:
        raise InputError(f"{text}: not there; give a results folder, or --results with a model")
    raise InputError(
        f"{text}: no results folder (no store.json) and no samples_*.jsonl; a table of scores has "
        "no documents to pair: `evalcore import` takes it"
    )


def _models(folder: Path) -> dict[str, str]:
    """Name -> subject of the models of a results folder."""
    from evalcore.analysis.scores import model_names
    from evalcore.analysis.subjects import subject_infos, subject_order

    infos = sorted(subject_infos(open_results(folder).cells()).values(), key=subject_order)
    return {name: id_ for id_, name in model_names(infos).items()}


def _of_results(text: str, number: str, folder: Path, model: str, codes: DocumentCodes) -> Side:
    store, ids = open_results(folder), _models(folder)
    if not model and len(ids) == 1:
        model = next(iter(ids))
    if not model:
        raise InputError(
            f"{text}: {len(ids)} models ({listed(list(ids), 8)}); say which: {folder}::MODEL, or "
            f"`evalcore compare -r {folder} MODEL MODEL`"
        )
    if model not in ids:
        raise UnknownNameError("model", model, ids, str(folder))
    rows = store.cells().to_pylist()
    own = {row["cell"] for row in rows if row["subject"] == ids[model]}
    cells = [_own(cell, number, text) for cell in read_cells(store, codes, cells=own)[0]]
    if not cells:
        raise InputError(f"{text}: no scores of {model}")
    return Side(text, number, cells)


def _own(cell: ReducedCell, number: str, name: str) -> ReducedCell:
    """A cell of a side: subjects of several folders may have one id; what is not the question's own
    (the longest prompt, end tokens) need not be alike on both sides."""
    about = {
        **cell.about, "subject": number, "base": None, "checkpoint": name, "adapter": None,
        "tuning": None, "control": None, "seed": None, "max_length": None, "chat_template": None,
        "end_tokens": None,
    }  # fmt: skip
    return replace(cell, key=f"{number}:{cell.key}", about=about)


# lm-eval's samples --------------------------------------------------------------------------------


def _of_samples(text: str, number: str, files: Sequence[Path], codes: DocumentCodes) -> Side:
    found = [_sample_cell(path, number, text, codes) for path in files]
    cells = [cell for cell, _ in found]
    tasks = [c.about["task"] for c in cells]
    doubled = sorted({t for t in tasks if tasks.count(t) > 1})
    if doubled:
        raise InputError(f"{text}: several samples files of {', '.join(doubled)}; give one of each")
    return Side(text, number, cells, {cell.about["task"]: own for cell, own in found})


def _sample_cell(
    path: Path, number: str, name: str, codes: DocumentCodes
) -> tuple[ReducedCell, list[str]]:
    """(its cell, the filters its answers were read by, the first of which counts)."""
    from evalcore.analysis.book import ReducedCell
    from evalcore.analysis.reduction import CellArrays, CellFacts

    values: dict[str, float] = {}
    metric, doubled = "", 0
    filters: list[str] = []
    for where, record in _records(path):
        read_by = str(record.get("filter", "none"))
        if read_by not in filters:
            filters.append(read_by)
        if read_by != filters[0]:
            continue
        metric = metric or _metric_of(record, where)
        value = record.get(metric)
        if isinstance(value, bool):
            value = float(value)
        if not isinstance(value, int | float):
            raise InputError(f"{where}: {metric} is {value!r}; expected a number")
        document = _document_of(record, where)
        doubled += document in values
        values.setdefault(document, float(value))
    if not values:
        raise InputError(f"{path}: no samples")
    task = path.stem.removeprefix("samples_")
    # lm-eval ends its file names with the time.
    task = task.rsplit("_20", 1)[0] if "_20" in task and "T" in task.rsplit("_20", 1)[1] else task
    docs = codes.of(list(values))
    order = np.argsort(docs)
    scores = np.array(list(values.values()))[order]
    n = len(scores)
    none = np.full(n, -1, dtype=np.int64)
    unknown = np.full(n, np.nan)
    arrays = CellArrays(docs[order], scores, unknown, none, none, unknown)
    facts = CellFacts(
        cell=f"{number}:{task}", metric=_KNOWN.get(metric, metric), n=n, mean=float(scores.mean()),
        shots=0, held_shots=0.0, doubled=doubled, overflow=0, valueless=0, dropped=0, truncated=0,
        modal_share=float("nan"), one_class=False, empty=0, generated=0, unproven=0, unmade=0,
        makers=(), tokens=(), scores=(),
    )  # fmt: skip
    about = {
        "cell": facts.cell, "subject": number, "checkpoint": name, "task": task, "group": task,
        "task_fingerprint": task, "output_type": _TYPES[facts.metric],
        "primary_metric": facts.metric, "variant": "lm-eval", "numerics": "lm-eval",
        "variant_fingerprint": f"lm-eval {task}",
    }  # fmt: skip
    return ReducedCell(facts.cell, about, facts, lambda: arrays), filters


_KNOWN = {"rougeL": "rouge_l", "em": "exact_match", "f1": "token_f1"}
_TYPES = {
    "acc": "multiple_choice", "acc_norm": "multiple_choice", "exact_match": "generate_until",
    "token_f1": "generate_until", "rouge_l": "generate_until",
}  # fmt: skip


def _records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    data = read_bytes(path, "lm-eval samples", 16 * MAX_TABLE_BYTES)
    for i, line in enumerate(data.split(b"\n"), 1):
        if line.strip():
            where = f"{path.name}, line {i}"
            record = parse_json(line, where)
            if not isinstance(record, dict):
                raise InputError(f"{where}: expected a JSON object")
            yield where, record


def _metric_of(record: Mapping[str, Any], where: str) -> str:
    known = [m for m in _RIGHT if m in record]
    if not known:
        raise InputError(f"{where}: none of the keys {', '.join(_RIGHT)}; nothing to compare")
    return known[0]


def _document_of(record: Mapping[str, Any], where: str) -> str:
    """A document by its content, where lm-eval says (``doc_hash``), else by its number."""
    for key in ("doc_hash", "doc_id"):
        value = record.get(key)
        if isinstance(value, str | int) and not isinstance(value, bool):
            return f"lm-eval {key} {value}"
    doc = record.get("doc")
    if doc is not None:
        text = json.dumps(doc, sort_keys=True)
        return "lm-eval doc " + hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    raise InputError(f"{where}: no doc_hash, doc_id or doc; documents cannot be paired")

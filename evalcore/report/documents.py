"""A sample of documents for the page: prompts as sent, choices, and what every model answered.

The sample is of a stated size in bytes. Half of it are the documents that tuning changed most, in
turn from right to wrong, from wrong to right and without a change of that kind; the others are
drawn by their ids, which are digests and so in no order that means anything.
"""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from evalcore.analysis import Analysis, CellValues
from evalcore.analysis.reduction import DECIDE_COLUMNS, EXAMPLE_COLUMNS
from evalcore.metrics import document_metric, example_values
from evalcore.metrics.arrays import column, strings
from evalcore.metrics.choices import predictions
from evalcore.report.sources import Source
from evalcore.report.words import visible

if TYPE_CHECKING:
    from evalcore.prompting.sent import SentPrompts

log = logging.getLogger("evalcore")

BYTES = 1_500_000
"""What texts and answers of the sample may take in the page."""
MOST_DOCUMENTS = 24
MOST_CELLS = 4000
MOST_CHARACTERS = 4000
MOST_CONTEXTS = 8
OR = "\n⟨or⟩\n"
"""Stands between the contexts of a document whose choices differ in them."""
SAMPLE_VERSION = 1
"""Raised whenever the sample of the same rows can change."""
_RIGHT = ("acc", "acc_norm", "acc_bytes", "exact_match")
_COLUMNS = (*EXAMPLE_COLUMNS, *DECIDE_COLUMNS, "doc_index", "subject", "task", "variant",
            "checkpoint_source", "template", "tokenizer")  # fmt: skip


def sample(analysis: Analysis, source: Source | None, most_bytes: int = BYTES) -> dict[str, Any]:
    """The page's documents by task.

    Args:
        analysis: Of the same results.
        source: Where rows, questions and prompts are; None: there are no documents.
        most_bytes: Documents are added, one of each task after the other, until they take this.

    Returns:
        Per task: ``total`` documents scored, ``right`` (whether values are right and wrong), and
        ``documents`` with their ``prompts`` by prompt and ``answers`` of each (subject, prompt).
    """
    if source is None:
        return {}
    from evalcore.prompting.sent import SentPrompts  # and with it jinja2: only pages need it

    kept = {c.cell: c.key for c in _shown_cells(analysis)}
    order = {task: _ranked(analysis, task) for task in analysis.book.tasks}
    decides = [sorted(kept.values()), order, most_bytes, _at_hand(analysis)]

    sent, what = SentPrompts(source), ("documents", SAMPLE_VERSION, *decides)

    def read() -> dict[str, Any]:
        return _sampled(analysis, source, order, set(kept), most_bytes, sent)

    found: dict[str, Any] = analysis.book.memo.get(what, read)
    if sent.damaged:
        analysis.book.memo.forget(what)
    for reason in sorted(sent.damaged):
        log.warning("documents without the prompt as sent: %s", reason)
    return found


def _sampled(
    analysis: Analysis, source: Source, ranked: dict[str, tuple[list[str], int]], kept: set[str],
    most_bytes: int, sent: SentPrompts,
) -> dict[str, Any]:  # fmt: skip
    """What :func:`sample` gives, read from the source."""
    out: dict[str, Any] = {}
    queues: dict[str, list[str]] = {}
    for task in analysis.book.tasks:
        order, total = ranked[task]
        if order:
            cells = [c.cell for (_, name), by in analysis.book.cells.items() if name == task
                     for c in by.values()]  # fmt: skip
            out[visible(task)] = {
                "total": total, "documents": [], "of": len(cells),
                "cells": sum(cell in kept for cell in cells),
            }  # fmt: skip
            queues[task] = order[:MOST_DOCUMENTS]
    wanted = {doc for order in queues.values() for doc in order}
    rows = source.of_documents(list(dict.fromkeys(_COLUMNS)), kept, wanted)
    ready = {
        task: _task(rows.filter(pc.field("task") == task), order, source, sent, task,
                    out[visible(task)])
        for task, order in queues.items()
    }  # fmt: skip
    spent = 0
    for turn in range(MOST_DOCUMENTS):
        for task, entries in ready.items():
            if turn < len(entries):
                size = len(json.dumps(entries[turn], ensure_ascii=False).encode())
                if spent + size <= most_bytes:
                    spent += size
                    out[visible(task)]["documents"].append(entries[turn])
    return out


def _shown_cells(analysis: Analysis) -> list[CellValues]:
    """Cells whose answers are shown: all, or those of checkpoints at even distances."""
    cells = analysis.book.cells
    total = sum(map(len, cells.values()))
    bases = [s.id for s in analysis.book.ordered_subjects() if s.base is None]
    keep = set(bases)
    if total > MOST_CELLS and len(bases) > 2:
        count = max(2, len(bases) * MOST_CELLS // total)
        keep = {bases[i] for i in np.linspace(0, len(bases) - 1, count).round().astype(int)}
    own = {s.id for s in analysis.book.subjects.values()
           if total <= MOST_CELLS or (s.base or s.id) in keep}  # fmt: skip
    return [c for (s, _), by in cells.items() if s in own for c in by.values()]


def _ranked(analysis: Analysis, task: str) -> tuple[list[str], int]:
    """Ids of a task's documents, those to be shown first first, and how many there are."""
    book = analysis.book
    change: dict[int, float] = {}
    group: dict[int, int] = {}
    every = _documents_of(analysis, task)
    bases = [s for s in book.ordered_subjects() if s.base is None]
    last = bases[-1].id if bases else None
    own = [g for g in analysis.own_gains() if g.task.name == task]
    pairs = own or [g for g in analysis.primary_gains() if g.task.name == task]
    for gain in [g for g in pairs if g.subject.base == last] or pairs[-3:]:
        for run in gain.subject.run_ids:
            for name in gain.by_variant:
                mine, theirs = (book.variants(i, task).get(name) for i in (run, gain.reference.id))
                if mine is None or theirs is None:
                    continue
                docs, here, there = np.intersect1d(
                    mine.docs, theirs.docs, True, return_indices=True
                )
                value = mine.values[here] - theirs.values[there]
                prob = np.abs(mine.continuous[here] - theirs.continuous[there])
                size = np.where(np.isnan(prob), np.abs(value), prob)
                for doc, v, p in zip(docs.tolist(), value.tolist(), size.tolist(), strict=True):
                    if p > change.get(doc, -1.0):
                        change[doc], group[doc] = p, int(np.sign(v))
    by_group: dict[int, list[int]] = defaultdict(list)
    for doc in sorted(change, key=lambda d: (-change[d], book.documents[d])):
        by_group[group[doc]].append(doc)
    chosen: list[int] = []
    while len(chosen) < MOST_DOCUMENTS // 2 and any(by_group.values()):
        for sign in (-1, 1, 0):
            if by_group[sign]:
                chosen.append(by_group[sign].pop(0))
    drawn = sorted(every - set(chosen), key=lambda d: book.documents[d])
    half = MOST_DOCUMENTS - len(chosen)
    mixed: list[int] = []
    for number in range(max(len(chosen), min(half, len(drawn)))):
        mixed += chosen[number : number + 1] + drawn[:half][number : number + 1]
    return [book.documents[d] for d in mixed], len(every)


def _documents_of(analysis: Analysis, task: str) -> set[int]:
    """Codes of the documents of a task: those of the last model that was asked it."""
    book = analysis.book
    for subject in reversed(book.ordered_subjects()):
        cells = book.variants(subject.id, task)
        if cells:
            return {doc for cell in cells.values() for doc in cell.docs.tolist()}
    return set()


def _at_hand(analysis: Analysis) -> list[list[Any]]:
    """Files that decide which prompts can be shown: path, size and time of each tokenizer."""
    folders = {str(c.about.get("checkpoint_source") or "") for c in analysis.book.read}
    found: list[list[Any]] = []
    for folder in sorted(folders - {""}):
        try:
            about = (Path(folder) / "tokenizer.json").stat()
        except OSError:
            continue
        found.append([folder, about.st_size, about.st_mtime_ns])
    return found


def _task(
    own: pa.Table, order: list[str], source: Source, sent: SentPrompts, task: str,
    out: dict[str, Any],
) -> list[dict[str, Any]]:  # fmt: skip
    """One entry per document of ``order``."""
    about_docs = {row["doc_id"]: row for row in source.documents(task).to_pylist()}
    entries = {doc: _document(doc, about_docs.get(doc)) for doc in order}
    for rows in _parts(own):
        _add_answers(rows, entries, out)
    asked: dict[str, dict[str, Any]] = {}
    for row in _first_of_each(own, "variant"):
        asked.setdefault(row["variant"], row)
    for name, row in asked.items():
        for doc, contexts in sent.contexts(row, order).items():
            text = OR.join(contexts[:MOST_CONTEXTS])
            entries[doc]["prompts"][visible(name)] = visible(text, MOST_CHARACTERS)
    out["templates"] = {
        visible(name): visible(row.get("template") or "", MOST_CHARACTERS)
        for name, row in asked.items()
    }
    return [entries[doc] for doc in order]


def _document(doc: str, about: dict[str, Any] | None) -> dict[str, Any]:
    entry: dict[str, Any] = {"id": doc[:12], "index": None, "prompts": {}, "answers": []}
    if about is not None:
        entry["fields"] = {
            visible(str(key)): visible(value if isinstance(value, str) else json.dumps(value), 1500)
            for key, value in json.loads(about["fields"] or "{}").items()
        }
        entry["choices"] = [visible(c, 500) for c in about["choices"] or []]
    return entry


def _parts(own: pa.Table) -> list[pa.Table]:
    """Rows by how they were answered, which decides what their values are."""
    if own.num_rows == 0:
        return []
    answers = column(own, "answer").cast(pa.string()).fill_null("choices")
    return [own.filter(pc.equal(answers, how)) for how in answers.unique().to_pylist()]


def _first_of_each(own: pa.Table, name: str) -> list[dict[str, Any]]:
    values = column(own, name).cast(pa.string())
    first = pc.index_in(values.unique(), value_set=values)
    rows: list[dict[str, Any]] = own.take(first).to_pylist()
    return rows


def _add_answers(rows: pa.Table, entries: dict[str, dict[str, Any]], out: dict[str, Any]) -> None:
    first = rows.slice(0, 1).to_pylist()[0]
    output_type, how = first["output_type"], first["answer"] or "choices"
    metric = document_metric(first["primary_metric"], output_type, how)
    choice = output_type == "multiple_choice"
    values = example_values(rows, metric)
    probs = example_values(rows, "gold_prob") if choice else np.full(len(values), np.nan)
    chosen = predictions(rows) if choice else np.full(len(values), -1)
    out["metric"], out["right"] = metric, metric in _RIGHT
    texts = strings(rows, "text")
    wanted = ("subject", "variant", "doc_id", "doc_index", "choice_logprobs", "gold", "golds",
              "references")  # fmt: skip
    small = rows.select(wanted).to_pylist()
    for i, row in enumerate(small):
        entry = entries.get(row["doc_id"])
        if entry is None:
            continue
        entry["index"], entry["gold"] = row["doc_index"], row["gold"]
        if row["golds"]:
            entry["golds"] = row["golds"]
        if row["references"]:
            entry["references"] = [visible(r, 500) for r in row["references"][:4]]
        text = texts[i]
        entry["answers"].append([
            row["subject"], visible(row["variant"]), _round(values[i]), _round(probs[i]),
            int(chosen[i]), [_round(v, 3) for v in row["choice_logprobs"] or ()],
            None if text is None else visible(text, 1000),
        ])  # fmt: skip


def _round(value: float | None, digits: int = 4) -> float | None:
    return None if value is None or not isfinite(value) else round(float(value), digits)

"""What several exporters need: models with their cells, and documents."""

from __future__ import annotations

import hashlib
import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from evalcore.analysis.scores import model_names
from evalcore.analysis.subjects import subject_of
from evalcore.analysis.ways import Way
from evalcore.errors import InputError
from evalcore.metrics.cells import cell_scores
from evalcore.store import ResultStore

log = logging.getLogger("evalcore")

MOST_BYTES = 150
"""Of a file's name that something is called after; file systems allow 255."""


@dataclass(frozen=True)
class Model:
    """A model and its current cells, tasks in order and prompts within.

    Attributes:
        name: ``checkpoint`` or ``checkpoint + adapter``, different for every model.
        cells: Rows of the cells table.
        folder_name: Different for every model too, whatever a file system makes of capitals.
    """

    name: str
    cells: list[dict[str, Any]]
    folder_name: str

    @property
    def about(self) -> dict[str, Any]:
        return self.cells[0]

    def folder(self, parent: Path) -> Path:
        """A folder of its own below ``parent``."""
        return parent / self.folder_name


def folder_names(models: Mapping[str, str]) -> dict[str, str]:
    """Subject id -> a folder's name for a model: as lm-evaluation-harness cleans it."""
    return apart({
        subject: re.sub(r"[\"<>:/|\\?*\[\]\x00-\x1f]+", "__", name).strip(". ")
        for subject, name in models.items()
    })  # fmt: skip


def apart(names: Mapping[str, str]) -> dict[str, str]:
    """Names of files: the too long, the empty and those alike end in a digest of their key."""
    count = Counter(name.casefold() for name in names.values())
    return {
        key: name
        if name and len(name.encode()) <= MOST_BYTES and count[name.casefold()] == 1
        else f"{cut(name, MOST_BYTES)}_{hashlib.blake2b(key.encode(), digest_size=4).hexdigest()}"
        for key, name in names.items()
    }


def cut(text: str, most_bytes: int) -> str:
    """The beginning of a text, of whole characters."""
    return text.encode()[:most_bytes].decode("utf-8", "ignore")


def models(store: ResultStore) -> Iterator[Model]:
    """Every model that has cells, by name; names that two models share get their fingerprints."""
    rows = store.cells().to_pylist()
    if not rows:
        raise InputError(f"{store.path}: no cells; score something first")
    by_model: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_model.setdefault(row["subject"], []).append(row)
    names = model_names(subject_of(own[0]) for own in by_model.values())
    folders = folder_names(names)
    for subject in sorted(by_model, key=lambda s: (names[s], s)):
        cells = sorted(by_model[subject], key=lambda r: (r["task"], r["variant"], r["numerics"]))
        yield Model(names[subject], cells, folders[subject])


def rows_of(store: ResultStore, model: Model) -> pa.Table:
    """All rows of a model, joined with their cells."""
    return store.read(cells=[row["cell"] for row in model.cells])


def metrics_of(table: pa.Table) -> dict[str, dict[str, tuple[float, Any, int]]]:
    """Cell -> metric -> (value, standard error or None, documents), of :func:`rows_of`."""
    found: dict[str, dict[str, tuple[float, Any, int]]] = {}
    for row in cell_scores(table).to_pylist() if table.num_rows else []:
        found.setdefault(row["cell"], {})[row["metric"]] = (row["value"], row["stderr"], row["n"])
    return found


def task_labels(model: Model) -> dict[str, str]:
    """Cell -> what to call it: the task, with its prompt where the model has several of them."""
    labels: dict[str, str] = {}
    for row in model.cells:
        own = [r for r in model.cells if r["task"] == row["task"]]
        parts = [row["task"], row["variant"]] if len(own) > 1 else [row["task"]]
        if sum(r["variant"] == row["variant"] for r in own) > 1:
            parts.append(row["numerics"])
        labels[row["cell"]] = "@".join(parts)
    return labels


def prompt_groups(cells: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Cells that may be averaged: of one task and one way of asking; by the task's name.

    Where a task was asked in several ways (shots, chat, listing ...), each way has a group.
    """
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for cell in cells:
        way = Way.of(cell, cell["shots"] or 0).label
        several = len({c["numerics"] for c in cells if c["task"] == cell["task"]}) > 1
        label = f"{way}, {cell['numerics']}" if several else way
        found.setdefault((cell["task"], label), []).append(cell)
    ways = Counter(task for task, _ in found)
    return {
        task if ways[task] == 1 else f"{task} ({label})": own
        for (task, label), own in found.items()
    }


class Documents:
    """Documents of tasks by id, read once per task."""

    def __init__(self, store: ResultStore) -> None:
        self._store = store
        self._known: dict[str, dict[str, dict[str, Any]]] = {}

    def of(self, task: str) -> dict[str, dict[str, Any]]:
        """Id -> row of the documents table; empty where none were kept."""
        if task not in self._known:
            rows = self._store.documents(task).to_pylist()
            self._known[task] = {row["doc_id"]: row for row in rows}
        return self._known[task]

"""From rows to documents: fields, choices, gold, references, content ids."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from evalcore.errors import DataError, DefinitionError
from evalcore.identity import document_id
from evalcore.tasks.sources import Row, load_rows
from evalcore.types import Document, Task

logger = logging.getLogger("evalcore")

Role = Literal["score", "shots", "train"]
_MISSING = object()
_SPACES = re.compile(r"\s+")


@dataclass(frozen=True, slots=True)
class LoadCounts:
    """What became of the rows of a split.

    Attributes:
        rows: Rows read.
        unusable: Rows left out because a field, the gold or all references are missing.
        leaked: Rows of shots or training left out because the scored split holds their text.
    """

    rows: int
    unusable: int
    leaked: int


def load_documents(
    task: Task, role: Role = "score", *, limit: int | None = None, data_root: Path | None = None
) -> list[Document]:
    """Documents of a task in file order; a larger limit adds documents at the end.

    Rows with missing values are left out. Rows for shots and training whose text stands in the
    scored split are left out too, whatever the limit, so that they never depend on it.

    Args:
        task: The task.
        role: Which split: the scored one, the one for shots, or the one for tuning.
        limit: The first so many usable documents.
        data_root: Folder of local data.

    Raises:
        DataError: If data or a column is missing, or no row is usable.
        DefinitionError: If the task has no split for the role.
    """
    documents, counts = load_documents_counted(task, role, data_root=data_root)
    if counts.unusable or counts.leaked:
        logger.info(
            "task %s, %s: %d of %d rows unusable, %d left out because they are scored",
            task.name, role, counts.unusable, counts.rows, counts.leaked,
        )  # fmt: skip
    return documents if limit is None else documents[: max(0, limit)]


def load_documents_counted(
    task: Task, role: Role, *, data_root: Path | None = None
) -> tuple[list[Document], LoadCounts]:
    """Like :func:`load_documents` without a limit, with counts."""
    split = task.spec["splits"].get(role)
    if split is None:
        raise DefinitionError(f"task {task.name}: key splits.{role} is missing, {role} needs it")
    rows = load_rows(task.spec["source"], split, data_root)
    documents = documents_from_rows(task, rows, where=f"task {task.name}, split {split}")
    usable = len(documents)
    if role != "score":
        scored, _ = load_documents_counted(task, "score", data_root=data_root)
        texts = {content_key(document) for document in scored}
        documents = [d for d in documents if content_key(d) not in texts]
    if not documents:
        raise DataError(
            f"task {task.name}, split {split}: none of {len(rows)} rows is usable"
            + (" (all stand in the scored split)" if usable else " (missing values)")
        )
    return documents, LoadCounts(len(rows), len(rows) - usable, usable - len(documents))


def content_key(document: Document) -> str:
    """What a document asks, in lower case and single spaces: equal keys are the same question."""
    parts = [str(value) for _, value in sorted(document.fields.items())]
    parts += sorted(document.choices)
    return "\x1f".join(_SPACES.sub(" ", part).strip().lower() for part in parts)


def documents_from_rows(task: Task, rows: Sequence[Row], where: str) -> list[Document]:
    """Turns rows into documents; rows with missing values are skipped.

    Raises:
        DataError: If a column named by the task is in no row, or a value has the wrong kind.
    """
    spec = task.spec
    _check_columns(spec, rows, where)
    copies: Counter[str] = Counter()
    documents = []
    for index, row in enumerate(rows):
        fields = {name: _get(row, column) for name, column in spec["fields"].items()}
        if any(value is None or value is _MISSING for value in fields.values()):
            continue
        choices = _choices(spec.get("choices"), row)
        gold = _gold(spec.get("gold"), row, choices or (), f"{where}, row {index}")
        references = _references(spec.get("references"), row)
        if choices is None or gold is None or references is None:
            continue
        first = document_id(fields, choices, gold, references, 0)
        ordinal = copies[first]
        copies[first] += 1
        own = first if ordinal == 0 else document_id(fields, choices, gold, references, ordinal)
        documents.append(Document(own, index, fields, choices, gold, references))
    return documents


def _check_columns(spec: Mapping[str, Any], rows: Sequence[Row], where: str) -> None:
    wanted = dict(spec["fields"])
    for key in ("gold", "references", "choices"):
        part = spec.get(key) or {}
        if part.get("column"):
            wanted[key] = part["column"]
        for number, column in enumerate(part.get("columns") or ()):
            wanted[f"{key}.columns[{number}]"] = column
    for key, column in wanted.items():
        if rows and all(_get(row, column) is _MISSING for row in rows[:1000]):
            there = ", ".join(sorted({str(name) for row in rows[:100] for name in row}))
            raise DataError(f"{where}: key {key}: no column {column!r}; columns are {there}")


def _get(row: Row, column: str) -> Any:
    """Value of a column; ``a.b`` looks into a nested column; _MISSING if there is none."""
    if column in row:
        return row[column]
    value: Any = row
    for part in column.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return _MISSING
        value = value[part]
    return value


def _choices(spec: Mapping[str, Any] | None, row: Row) -> tuple[str, ...] | None:
    if spec is None:
        return ()
    if spec.get("labels"):
        return tuple(spec["labels"])
    if spec.get("column"):
        values = _get(row, spec["column"])
        if not isinstance(values, (list, tuple)):
            return None
    else:
        values = [_get(row, column) for column in spec["columns"]]
    if len(values) < 2 or any(value is None or value is _MISSING for value in values):
        return None
    return tuple(str(value) for value in values)


def _gold(
    spec: Mapping[str, Any] | None, row: Row, choices: Sequence[str], where: str
) -> int | None:
    """Index of the right choice; -1 if the value is outside the set; None if it is missing."""
    if spec is None:
        return -1
    value = _get(row, spec["column"])
    if value is None or value is _MISSING:
        return None
    if spec.get("map"):
        index = spec["map"].get(str(value), -1)
    elif isinstance(value, bool):
        index = int(value)
    elif isinstance(value, int):
        index = value
    elif isinstance(value, float) and value.is_integer():
        index = int(value)
    elif isinstance(value, str):
        text = value.strip()
        if text in choices:
            index = list(choices).index(text)
        else:
            index = int(text) if text.isdecimal() else -1
    else:
        raise DataError(f"{where}: gold should be an index or a label, not {value!r}")
    return index if 0 <= index < len(choices) else -1


def _references(spec: Mapping[str, Any] | None, row: Row) -> tuple[str, ...] | None:
    if spec is None:
        return ()
    value = _get(row, spec["column"])
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    texts = tuple(str(v) for v in values if v is not None and v is not _MISSING and str(v).strip())
    return texts or None

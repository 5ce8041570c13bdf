"""From rows to documents: loading the splits of a task, with content ids."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from evalcore.identity import document_id, text_fingerprint
from evalcore.tasks.columns import (
    MISSING,
    Row,
    choice_texts,
    columns_named,
    field_value,
    gold_index,
    reference_texts,
    value_at,
)
from evalcore.tasks.faults import DataFault, TaskDataError, TaskError, TaskFault
from evalcore.tasks.rows import Rows
from evalcore.tasks.sources import load_rows, open_rows
from evalcore.types import Document, Task

logger = logging.getLogger("evalcore")

Role = Literal["score", "shots", "train"]
ROWS_SHOWN = 5


@dataclass(frozen=True, slots=True)
class LoadCounts:
    """What became of the rows of a split.

    Attributes:
        rows: Rows read.
        unusable: Rows left out because a field, the gold or all references are missing.
        leaked: Rows of shots or training left out because the scored split holds their text.
        leaked_rows: Numbers of the first of those, in their own split.
        unusable_rows: Numbers of the first rows without a value.
    """

    rows: int
    unusable: int
    leaked: int
    leaked_rows: tuple[int, ...] = ()
    unusable_rows: tuple[int, ...] = ()


def load_documents(
    task: Task, role: Role = "score", *, limit: int | None = None, data_root: Path | None = None
) -> list[Document]:
    """Documents of a task in file order; a larger limit adds documents at the end.

    Rows with missing values are left out; a gold outside the label set is no missing value: such
    rows stay (gold -1), so that the check finds them. Rows for shots and training whose text
    stands in the scored split are left out too, whatever the limit.

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
    task: Task,
    role: Role,
    *,
    data_root: Path | None = None,
    scored: Sequence[Document] | None = None,
) -> tuple[list[Document], LoadCounts]:
    """Like :func:`load_documents` without a limit, with counts (see ``check_counts``).

    Args:
        task: The task.
        role: Which split.
        data_root: Folder of local data.
        scored: The scored documents, if they are at hand: saves reading them again.
    """
    split = _split_of(task, role)
    try:
        rows = load_rows(task.spec["source"], split, data_root)
    except TaskDataError as error:
        raise TaskDataError(error.fault, f"task {task.name}: {error}") from None
    documents = documents_from_rows(task, rows, where=f"task {task.name}, split {split}")
    kept = {document.index for document in documents}
    unusable = [index for index in range(len(rows)) if index not in kept]
    leaked: list[int] = []
    if role != "score" and task.spec["splits"].get("score") is not None:
        if scored is None:
            scored, _ = load_documents_counted(task, "score", data_root=data_root)
        texts = {content_key(document) for document in scored}
        leaked = [d.index for d in documents if content_key(d) in texts]
        gone = set(leaked)
        documents = [d for d in documents if d.index not in gone]
    if not documents:
        raise TaskDataError(
            DataFault.NO_USABLE_ROW,
            f"task {task.name}, split {split}: none of {len(rows)} rows is usable "
            + ("(all stand in the scored split)" if leaked else "(missing values)")
            + "; check splits and columns of the task",
        )
    shown = tuple(leaked[:ROWS_SHOWN]), tuple(unusable[:ROWS_SHOWN])
    return documents, LoadCounts(len(rows), len(unusable), len(leaked), *shown)


def _split_of(task: Task, role: Role) -> str:
    splits = task.spec["splits"]
    if splits.get(role) is not None:
        return str(splits[role])
    if role == "score":
        raise TaskError(
            TaskFault.TUNING_ONLY,
            f"task {task.name} is for tuning only (its splits.score is null): take it out of the "
            f"tasks to score, and tune on it with a study file",
        )
    raise TaskError(
        TaskFault.NO_SUCH_ROLE,
        f"task {task.name}: key splits.{role} is missing, {role} needs it; name a split there",
    )


def is_scorable(task: Task) -> bool:
    """Whether a task can be scored; False for data that is only there to tune on."""
    splits = task.spec.get("splits")
    return splits is None or splits.get("score") is not None


def content_key(document: Document) -> str:
    """What a document asks, in lower case and single spaces: equal keys are the same question."""
    parts = [str(value) for _, value in sorted(document.fields.items())]
    parts += sorted(document.choices)
    return "\x1f".join(" ".join(part.split()).lower() for part in parts)


@dataclass(frozen=True, slots=True)
class DocumentRows:
    """Documents of a split by row number, made when asked for.

    Attributes:
        task: The task.
        split: The split, with its cut.
        rows: Its rows.
    """

    task: Task
    split: str
    rows: Rows

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, numbers: Sequence[int]) -> list[Document]:
        """Documents of these rows, in this order; rows with missing values are skipped."""
        where = f"task {self.task.name}, split {self.split}"
        return documents_from_rows(self.task, self.rows.take(numbers), where, numbers)


def open_documents(task: Task, role: Role, *, data_root: Path | None = None) -> DocumentRows:
    """Documents of a role's split, to be taken by number; errors as of :func:`load_documents`."""
    split = _split_of(task, role)
    try:
        return DocumentRows(task, split, open_rows(task.spec["source"], split, data_root))
    except TaskDataError as error:
        raise TaskDataError(error.fault, f"task {task.name}: {error}") from None


def documents_from_rows(
    task: Task, rows: Sequence[Row], where: str, numbers: Sequence[int] | None = None
) -> list[Document]:
    """Turns rows into documents; rows with missing values are skipped.

    Args:
        task: The task.
        rows: The rows.
        where: What they are, for errors.
        numbers: Their numbers in the split (default: from 0).

    Raises:
        DataError: If a column named by the task is in no row, or a value has the wrong kind.
    """
    spec = task.spec
    _check_columns(spec, rows, where)
    copies: Counter[str] = Counter()
    documents = []
    for index, row in zip(numbers or range(len(rows)), rows, strict=True):
        here = f"{where}, row {index}"
        fields = {name: field_value(part, row, here) for name, part in spec["fields"].items()}
        if any(value is None or value is MISSING for value in fields.values()):
            continue
        choices = choice_texts(spec.get("choices"), row, _order_key(spec, fields))
        gold = gold_index(spec.get("gold"), row, choices or (), here)
        references = reference_texts(spec.get("references"), row)
        if choices is None or gold is None or references is None:
            continue
        first = document_id(fields, choices, gold, references, 0)
        ordinal = copies[first]
        copies[first] += 1
        own = first if ordinal == 0 else document_id(fields, choices, gold, references, ordinal)
        documents.append(Document(own, index, fields, choices, gold, references))
    return documents


def _order_key(spec: Mapping[str, Any], fields: Mapping[str, Any]) -> str:
    shuffled = (spec.get("choices") or {}).get("order") == "shuffled"
    return text_fingerprint(fields) if shuffled else ""


def _check_columns(spec: Mapping[str, Any], rows: Sequence[Row], where: str) -> None:
    for key, column in columns_named(spec).items():
        if rows and all(value_at(row, column) is MISSING for row in rows[:1000]):
            there = ", ".join(sorted({str(name) for row in rows[:100] for name in row}))
            raise TaskDataError(
                DataFault.MISSING_COLUMN,
                f"{where}: key {key}: no column {column!r}; columns are {there}",
            )

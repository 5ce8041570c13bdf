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
from evalcore.tasks.finding import ROWS_SHOWN
from evalcore.tasks.rows import Rows
from evalcore.tasks.sources import label_names, load_rows, open_rows
from evalcore.tasks.wording import stripped
from evalcore.types import Document, Task

logger = logging.getLogger("evalcore")

Role = Literal["score", "shots", "train"]


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
        _check_label_names(task, split, data_root)
    except TaskDataError as error:
        raise TaskDataError(error.fault, f"task {task.name}: {error}") from None
    documents = documents_from_rows(task, rows, where=f"task {task.name}, split {split}")
    kept = {document.index for document in documents}
    unusable = [index for index in range(len(rows)) if index not in kept]
    leaked: list[int] = []
    if role != "score" and task.spec["splits"].get("score") is not None:
        if scored is None:
            scored, _ = load_documents_counted(task, "score", data_root=data_root)
        texts = {asked_key(document) for document in scored}
        leaked = [d.index for d in documents if asked_key(d) in texts]
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


def asked_key(document: Document) -> str:
    """Like :func:`content_key`, whatever the order of the fields, punctuation at the ends apart.

    A pair shown the other way round, or without its full stop, gives its answer away as well.
    Punctuation is that of every script; the sign of a number stays (see ``stripped``).
    """
    texts = [str(value) for value in document.fields.values()] + list(document.choices)
    return "\x1f".join(sorted(map(stripped, texts)))


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
        rows = open_rows(task.spec["source"], split, data_root)
        _check_label_names(task, split, data_root)
        return DocumentRows(task, split, rows)
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
        parts = _parts(spec, row, f"{where}, row {index}")
        if parts is None:
            continue
        fields, choices, gold, references = parts
        first = document_id(fields, choices, gold, references, 0)
        ordinal = copies[first]
        copies[first] += 1
        own = first if ordinal == 0 else document_id(fields, choices, gold, references, ordinal)
        documents.append(Document(own, index, fields, choices, gold, references))
    return documents


def _parts(
    spec: Mapping[str, Any], row: Row, here: str
) -> tuple[dict[str, Any], tuple[str, ...], int, tuple[str, ...]] | None:
    """(fields, choices, gold, references) of a row; None if it lacks one."""
    try:
        fields = {name: field_value(part, row, here) for name, part in spec["fields"].items()}
        if any(value is None or value is MISSING for value in fields.values()):
            return None
        choices = choice_texts(spec.get("choices"), row, _order_key(spec, fields))
        gold = None
        if choices is not None:
            about = spec.get("choices") or {}
            shuffled, fixed = about.get("order") == "shuffled", bool(about.get("labels"))
            gold = gold_index(spec.get("gold"), row, choices, here, shuffled=shuffled, fixed=fixed)
        references = reference_texts(spec.get("references"), row)
    except TaskDataError as error:
        if error.fault is not DataFault.NOT_TEXT:
            raise
        raise TaskDataError(error.fault, f"{here}: {error}") from None
    if choices is None or gold is None or references is None:
        return None
    return fields, choices, gold, references


def _order_key(spec: Mapping[str, Any], fields: Mapping[str, Any]) -> str:
    shuffled = (spec.get("choices") or {}).get("order") == "shuffled"
    return text_fingerprint(fields) if shuffled else ""


def _check_label_names(task: Task, split: str, data_root: Path | None) -> None:
    """Whether the files' own names of their label ids agree, and stand where the task's labels do.

    Raises:
        TaskDataError: If two files of the split differ, or a name that is a label of the task has
            another number.
    """
    gold = task.spec.get("gold") or {}
    if gold.get("column") is None:
        return
    names = label_names(task.spec["source"], split, str(gold["column"]), data_root)
    labels = (task.spec.get("choices") or {}).get("labels") or ()
    if not labels or any(gold.get(key) is not None for key in ("map", "among", "above")):
        return
    plain = [_plain_name(label) for label in labels]
    wrong = [i for i, name in enumerate(names)
             if _plain_name(name) in plain and plain.index(_plain_name(name)) != i]  # fmt: skip
    if wrong:
        there = ", ".join(f"{i} {name}" for i, name in enumerate(names))
        given = ", ".join(f'"{i}": {plain.index(_plain_name(n))}' for i, n in enumerate(names)
                          if _plain_name(n) in plain)  # fmt: skip
        raise TaskDataError(
            DataFault.GOLD_NAMES,
            f"split {split}, column {gold['column']}: the file calls its labels {there}, the task "
            f"reads {wrong[0]} as {labels[wrong[0]] if wrong[0] < len(labels) else 'none'}; give "
            f"gold.map ({{{given}}})",
        )


def _plain_name(label: str) -> str:
    return label.strip().casefold().replace("-", "_").replace(" ", "_")


def _check_columns(spec: Mapping[str, Any], rows: Sequence[Row], where: str) -> None:
    for key, column in columns_named(spec).items():
        if rows and all(value_at(row, column) is MISSING for row in rows[:1000]):
            there = ", ".join(sorted({str(name) for row in rows[:100] for name in row}))
            raise TaskDataError(
                DataFault.MISSING_COLUMN,
                f"{where}: key {key}: no column {column!r}; columns are {there}",
            )

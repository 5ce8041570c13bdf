"""Rows a tuned model was trained on, among those it is scored on or shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from pathlib import Path

from evalcore.identity import PROVENANCE_FILE, read_provenance
from evalcore.reading import is_there
from evalcore.tasks import KEY_VERSION, ROWS_SHOWN, Finding, texts_key
from evalcore.types import Document, Subject, Task

_CONSEQUENCE = {
    "trained_rows_scored": "the score is partly of what was memorised; leave these rows out of "
    "the tuning, or score another split",
    "trained_rows_shown": "prompts may show rows this model has memorised and its base has not; "
    "draw shots from rows that are not tuned on",
}


class LearnedRows:
    """Compares the documents of a task with what each tuned model learned, by its record.

    Rows are the same where their ids are (same task) or all their texts are, in any order of
    fields, punctuation apart (any task; keys of older versions are said to be unknown). Models
    without a record of ours cannot be compared.

    Args:
        task: The task.
        documents: Those that are scored.
        pool: Those worked examples are drawn from.
    """

    def __init__(self, task: Task, documents: Sequence[Document], pool: Sequence[Document]) -> None:
        self._task, self._documents, self._pool = task, documents, pool
        self._found: dict[str, list[Finding]] = {}

    def findings(self, subject: Subject) -> list[Finding]:
        """What of this task's rows a subject was trained on."""
        tuned = subject.adapter or subject.checkpoint
        if tuned.path not in self._found:
            ids, keys = learned_rows(tuned.path)
            found: list[Finding] = []
            if any(not key.startswith(f"{KEY_VERSION}:") for key in keys):
                found.append(self._unknown(subject, len(keys)))
            if ids or keys:
                for code, what, rows in (
                    ("trained_rows_scored", "scored", self._scored_keys),
                    ("trained_rows_shown", "shots", self._pool_keys),
                ):
                    known = [doc.index for doc, key in rows if doc.id in ids or key in keys]
                    found += self._finding(code, what, subject, known, len(rows))
            self._found[tuned.path] = found
        return self._found[tuned.path]

    def all(self) -> list[Finding]:
        """The findings of every subject asked about; one for all that learned the same rows."""
        alike: dict[tuple[str, int, tuple[int, ...]], list[Finding]] = {}
        for found in self._found.values():
            for finding in found:
                alike.setdefault((finding.code, finding.count, finding.rows), []).append(finding)
        return [
            first if not others else
            replace(first, message=f"{first.message} (and {len(others)} more models)")
            for first, *others in alike.values()
        ]  # fmt: skip

    @cached_property
    def _scored_keys(self) -> list[tuple[Document, str]]:
        return [(document, texts_key(self._task, document)) for document in self._documents]

    @cached_property
    def _pool_keys(self) -> list[tuple[Document, str]]:
        return [(document, texts_key(self._task, document)) for document in self._pool]

    def _unknown(self, subject: Subject, rows: int) -> Finding:
        consequence = (
            "rows of the same task are found, the same texts in rows of another are not; tune "
            "again to have them looked for"
        )
        message = (
            f"task {self._task.name}: the record of {subject.label} keeps {rows} texts "
            f"as an older version wrote them: {consequence}"
        )
        return Finding(
            "warning", "trained_rows_unknown", message, rows, self._task.name, (), consequence
        )

    def _finding(
        self, code: str, what: str, subject: Subject, known: Sequence[int], of: int
    ) -> list[Finding]:
        if not known:
            return []
        first = tuple(known[:ROWS_SHOWN])
        dots = ", ..." if len(known) > len(first) else ""
        consequence = _CONSEQUENCE[code]
        message = (
            f"task {self._task.name}: {subject.label} was trained on {len(known)} of the {of} "
            f"{what} rows ({', '.join(map(str, first))}{dots}): {consequence}"
        )
        return [Finding("warning", code, message, len(known), self._task.name, first, consequence)]


@lru_cache(maxsize=4096)
def learned_rows(directory: str) -> tuple[frozenset[str], frozenset[str]]:
    """(ids, text keys) of the rows a model was trained on; empty without a record that says so."""
    folder = Path(directory)
    if not is_there(folder / PROVENANCE_FILE):
        return frozenset(), frozenset()
    record = read_provenance(folder)
    data = record.data if record is not None else {}
    ids, keys = data.get("row_ids"), data.get("row_keys")
    return (
        frozenset(ids) if isinstance(ids, list) else frozenset(),
        frozenset(keys) if isinstance(keys, list) else frozenset(),
    )

"""What was asked, kept beside what was answered: documents, and prompts as token ids."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from evalcore.identity.away import Named, unread_fingerprint
from evalcore.identity.weights_state import weights_state
from evalcore.prompting import read_requests
from evalcore.store import ResultStore
from evalcore.types import Adapter, Document, Subject

if TYPE_CHECKING:
    from evalcore.app.cells import Grid


def keep_inputs(store: ResultStore, grid: Grid) -> None:
    """Writes the grid's documents once per (task, data) and its prompts once per request file.

    Raises:
        ResultsError: The folder cannot be written.
    """
    for (task, data), documents in grid.documents.items():
        store.write_documents(task, data, _rows(documents))
    for path in sorted({question.file.path for question in grid.cells.questions()}):
        if not store.has_requests(path.name):
            store.write_requests(path.name, read_requests(path))


def keep_clusters(store: ResultStore, grid: Grid) -> None:
    """Writes which documents hang together, of the tasks that name a field for it.

    Raises:
        ResultsError: The folder cannot be written.
    """
    named = {q.task.name: q.task.spec.get("cluster") for q in grid.asked.questions}
    for (task, _), documents in grid.documents.items():
        if field := named.get(task):
            store.write_clusters(task, clusters_of(field, documents))


def keep_weights(store: ResultStore, subjects: Sequence[Subject]) -> None:
    """Writes under which fingerprint each subject's weights are scored, by their files' hashes.

    So the same files are known wherever they come from: a disk, or the hub, without a byte read.

    Raises:
        ResultsError: The folder cannot be written.
    """
    rows: dict[str, Named] = {}
    for subject in subjects:
        for made in subject.parts:
            state = None if made.path in rows else weights_state(made)
            if state is not None:
                unread = made.fingerprint == unread_fingerprint(state)
                content = made.content or ("" if unread else made.fingerprint)
                zero = isinstance(made, Adapter) and made.untrained
                rows[made.path] = Named(state, made.fingerprint, content, zero)
    store.write_weights(rows.values())


def clusters_of(field: str, documents: Sequence[Document]) -> dict[str, str]:
    """Document id -> digest of the text of a field, spaces and case aside."""
    found = {}
    for document in documents:
        text = " ".join(str(document.fields[field]).split()).casefold()
        found[document.id] = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
    return found


def _rows(documents: Sequence[Document]) -> Iterator[Mapping[str, Any]]:
    for document in documents:
        yield {
            "doc_id": document.id,
            "doc_index": document.index,
            "fields": json.dumps(dict(document.fields), ensure_ascii=True, default=str),
            "choices": list(document.choices),
            "gold": document.gold,
            "golds": list(document.golds),
            "references": list(document.references),
        }

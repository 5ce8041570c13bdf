"""Drawing worked examples: seeded, the same for every document, never from scored rows."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence

from evalcore.errors import DataError
from evalcore.tasks import content_key
from evalcore.types import Document, Task, Variant


def draw_shots(
    task: Task,
    variant: Variant,
    pool: Sequence[Document],
    exclude_ids: Collection[str] = (),
    *,
    scored: Sequence[Document] = (),
) -> list[Document]:
    """The variant's shots, in the order they are shown.

    The pool is ordered by a hash of seed and document id: more shots keep the first ones, and
    the order of rows in the pool does not matter.

    Args:
        task: The task.
        variant: Says how many (``shots``) and the seed (``shots_seed``).
        pool: Documents of the shots split.
        exclude_ids: Ids never used.
        scored: Documents whose text (in lower case, single spaces) is never used.

    Raises:
        DataError: If the pool is too small.
    """
    if variant.shots == 0:
        return []
    excluded = set(exclude_ids)
    used = {content_key(document) for document in scored}
    ordered = sorted(pool, key=lambda doc: _rank(variant.shots_seed, doc.id))
    shots: list[Document] = []
    for document in ordered:
        key = content_key(document)
        answerable = task.output_type != "multiple_choice" or document.gold >= 0
        if document.id in excluded or key in used or not answerable:
            continue
        used.add(key)
        shots.append(document)
        if len(shots) == variant.shots:
            return shots
    raise DataError(
        f"task {task.name}: prompt {variant.name} wants {variant.shots} shots, the shots split "
        f"has {len(shots)} usable of {len(pool)} (not scored, different, with an answer)"
    )


def _rank(seed: int, doc_id: str) -> bytes:
    return hashlib.blake2b(f"{seed}\0{doc_id}".encode(), digest_size=16).digest()

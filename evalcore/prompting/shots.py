"""Drawing worked examples: seeded, the same for every document, never from scored rows."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterator, Sequence

from evalcore.errors import DataError, InputError
from evalcore.identity import text_fingerprint
from evalcore.tasks import asked_key
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
    the order of rows in the pool does not matter. With ``shots_balance`` labels take turns, in
    the order in which they first come up; ``shots_order`` then permutes what was drawn.

    Args:
        task: The task.
        variant: Says how many (``shots``), the seed, whether labels take turns, and the order.
        pool: Documents of the shots split.
        exclude_ids: Ids never used.
        scored: Documents whose text (in lower case, single spaces) is never used.

    Raises:
        DataError: If the pool is too small.
        InputError: If labels should take turns and the task has none, or there is no such order.
    """
    if variant.shots == 0:
        return []
    if variant.shots_balance and not task.choices:
        raise InputError(
            f"task {task.name}: prompt {variant.name}: balance=1 lets labels take turns, this "
            "task has no labels of its own"
        )
    usable = list(_usable(task, variant, pool, set(exclude_ids), scored))
    drawn = _take_turns(usable, variant.shots) if variant.shots_balance else usable
    if len(drawn) < variant.shots:
        each = ", labels taking turns" if variant.shots_balance else ""
        raise DataError(
            f"task {task.name}: prompt {variant.name} wants {variant.shots} shots, the shots split "
            f"has {len(drawn)} usable of {len(pool)} (not scored, different, with an answer){each}"
        )
    return reorder(drawn[: variant.shots], variant.shots_order)


def shots_fingerprint(shots: Sequence[Document]) -> str:
    """32 hex digits over what was drawn, in order: part of what decides a score.

    The variant's own fingerprint says how shots are drawn; this one says which they are, which
    also depends on the rows of the shots split. The same for all cells without shots.
    """
    return text_fingerprint(["shots", [shot.id for shot in shots]])


def count_orders(shots: int) -> int:
    """How many orders so many shots have."""
    return math.factorial(shots)


def reorder(shots: Sequence[Document], order: int) -> list[Document]:
    """Permutes shots: 0 leaves them as drawn, 1 to n! - 1 are all other orders, each once.

    Neighbouring numbers are orders far apart (a fixed stride through the permutations).

    Raises:
        InputError: If there is no such order.
    """
    orders = count_orders(len(shots))
    if not 0 <= order < max(orders, 1):
        raise InputError(f"{len(shots)} shots have {orders} orders: order is 0 to {orders - 1}")
    if order == 0:
        return list(shots)
    others = orders - 1
    stride = max(1, others * 618 // 1000)
    while math.gcd(stride, others) != 1:
        stride += 1
    rank = 1 + order * stride % others
    rest = list(shots)
    result = []
    for left in range(len(rest), 0, -1):
        position, rank = divmod(rank, math.factorial(left - 1))
        result.append(rest.pop(position))
    return result


def _usable(
    task: Task,
    variant: Variant,
    pool: Sequence[Document],
    excluded: set[str],
    scored: Sequence[Document],
) -> Iterator[Document]:
    used = {asked_key(document) for document in scored}
    for document in sorted(pool, key=lambda doc: _rank(variant.shots_seed, doc.id)):
        key = asked_key(document)
        answerable = task.output_type != "multiple_choice" or document.gold >= 0
        if document.id in excluded or key in used or not answerable:
            continue
        used.add(key)
        yield document


def _take_turns(usable: Sequence[Document], count: int) -> list[Document]:
    """Labels one after the other; ends where the next label has no document left."""
    queues: dict[int, list[Document]] = {}
    for document in usable:
        queues.setdefault(document.gold, []).append(document)
    labels = list(queues)
    drawn: list[Document] = []
    while labels and len(drawn) < count:
        turn, label = divmod(len(drawn), len(labels))
        own = queues[labels[label]]
        if turn >= len(own):
            break
        drawn.append(own[turn])
    return drawn


def _rank(seed: int, doc_id: str) -> bytes:
    return hashlib.blake2b(f"{seed}\0{doc_id}".encode(), digest_size=16).digest()

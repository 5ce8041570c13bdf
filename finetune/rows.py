"""Which rows a tuning learns: drawn first and read by number, never what is scored or shown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from evalcore.errors import DataError
from evalcore.tasks import (
    Compared,
    ScoredRows,
    is_scorable,
    load_documents,
    open_documents,
    texts_key,
)
from evalcore.tasks.model import split_range
from evalcore.types import Document, Task
from finetune.jobs import MixPart, known_task
from finetune.search import PACKAGED, Search

CHUNK = 4096
"""Rows looked at together, where all are asked for."""


class TooFewRowsError(DataError):
    """A split has fewer rows that may be learned than are asked for.

    Attributes:
        usable: How many there are.
    """

    def __init__(self, usable: int, message: str) -> None:
        self.usable = usable
        super().__init__(message)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.usable, str(self))


@dataclass(frozen=True)
class Chosen:
    """Rows of one task that are learned.

    Attributes:
        documents: The rows, in the order they were drawn.
        rows: Rows of the split.
        counts: What was left out of the rows looked at and why: ``looked_at``, ``unusable``,
            ``in_scored_split`` (of the task itself), ``in_evaluation`` (of other tasks),
            ``in_shots``.
        found: Rows left out for each scored task they hold a document of.
        compared: How each scored task was compared.
        shots_learned: Worked examples are drawn from all rows of the split, so that a tuned model
            has learned some of those it is shown.
    """

    documents: tuple[Document, ...]
    rows: int
    counts: Counter[str] = field(default_factory=Counter)
    found: Counter[str] = field(default_factory=Counter)
    compared: tuple[Compared, ...] = ()
    shots_learned: bool = False


@lru_cache(maxsize=8)
def choose_rows(
    part: MixPart,
    data_seed: int,
    held_out: tuple[str, ...],
    data_root: Path | None,
    search: Search = PACKAGED,
) -> Chosen:
    """A seeded sample without replacement; asking for all keeps the order of the file.

    Row numbers are drawn first, and rows read in that order until there are enough of them that may
    be learned: usable, not scored (by the task itself or any of ``held_out``), not shown as worked
    examples. A larger sample of the same seed contains the smaller one.

    Raises:
        DataError: If there are fewer rows than asked for, or data is missing.
    """
    task = known_task(part.task, search)
    source = open_documents(task, "train", data_root=data_root)
    wanted = part.rows_of(len(source))
    own = (task.name,) if is_scorable(task) else ()
    scored = scored_rows(tuple(sorted({*held_out, *own})), data_root, search)
    all_shown = bool(task.spec["splits"].get("shots")) and _shots_are_all(task, len(source))
    shown = frozenset() if all_shown else _shown(task, data_root)
    counts: Counter[str] = Counter()
    found: Counter[str] = Counter()
    chosen: list[Document] = []
    for numbers in _in_order(len(source), wanted, data_seed, chosen):
        documents = source.take(numbers)
        counts["looked_at"] += len(numbers)
        counts["unusable"] += len(numbers) - len(documents)
        for document in documents:
            if wanted is not None and len(chosen) == wanted:
                break
            inside = scored.found_in(task, document)
            if inside:
                counts["in_scored_split" if task.name in inside else "in_evaluation"] += 1
                found.update(inside)
            elif texts_key(task, document) in shown:
                counts["in_shots"] += 1
            else:
                chosen.append(document)
    if len(chosen) < (wanted or 1):
        left = ", ".join(f"{n} {k.replace('_', ' ')}" for k, n in counts.items() if n)
        raise TooFewRowsError(
            len(chosen),
            f"task {task.name}: examples: {wanted or 'all'} asked for, {len(chosen)} usable "
            f"rows in the train split ({left}); ask for fewer (or null for all)"
            + ("; or cut splits.shots of the task shorter" if counts["in_shots"] else ""),
        )
    return Chosen(tuple(chosen), len(source), counts, found, tuple(scored.compared), all_shown)


def _in_order(
    rows: int, examples: int | None, seed: int, chosen: Sequence[Document]
) -> Iterator[Sequence[int]]:
    """Row numbers in the order they are looked at, as many at once as are still wanted."""
    if examples is None:
        yield from (range(at, min(at + CHUNK, rows)) for at in range(0, rows, CHUNK))
        return
    order = np.random.default_rng([seed, 1]).permutation(rows)
    at = 0
    while at < rows and len(chosen) < examples:
        wanted = examples - len(chosen)
        # rows are read group by group: a few more now spare another pass over the file
        stop = at + wanted + max(16, wanted // 20)
        yield [int(number) for number in order[at:stop]]
        at = stop


def _shots_are_all(task: Task, rows: int) -> bool:
    """Whether worked examples are drawn from all the rows there are to tune on."""
    splits = task.spec["splits"]
    name, start, stop = split_range(str(splits["shots"]))
    trained, first, _ = split_range(str(splits["train"]))
    return name == trained and start <= first and (stop is None or stop >= first + rows)


def _shown(task: Task, data_root: Path | None) -> frozenset[str]:
    """Rows that worked examples are drawn from."""
    if task.spec["splits"].get("shots") is None:
        return frozenset()
    try:
        shots = load_documents(task, "shots", data_root=data_root)
    except DataError:
        return frozenset()  # what is not at hand is not shown either
    return frozenset(texts_key(task, document) for document in shots)


@lru_cache(maxsize=4)
def scored_rows(
    tasks: tuple[str, ...], data_root: Path | None, search: Search = PACKAGED
) -> ScoredRows:
    """The scored documents of the named tasks, indexed."""
    index = ScoredRows()
    for name in tasks:
        task = known_task(name, search)
        index.add(task, load_documents(task, "score", data_root=data_root))
    return index

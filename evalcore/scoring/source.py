"""Units as jobs of the pool, and a unit that failed as smaller ones."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from evalcore.cluster import Job
from evalcore.planning import Unit, UnitSlice, WorkQueue
from evalcore.planning.joined import Joined
from evalcore.planning.unit import make_unit
from evalcore.scoring.shares import CellWork, UnitJob
from evalcore.types import Subject

PATIENCE_S = 5.0
"""So long a worker waits for more of a plan that grows, rather than load what another one has."""


class UnitSource:
    """Feeds the pool from the work queue.

    Attributes:
        growing: Whether there may be more units to come.
    """

    def __init__(self, *, growing: bool = False) -> None:
        self.growing = growing
        self._queue = WorkQueue()
        self._lock = threading.Lock()  # plans may come from another thread
        self._cells: Joined[CellWork] = Joined()
        self._sample: dict[str, np.ndarray] = {}
        self._asked: dict[int, float] = {}  # worker that got nothing -> since when

    def add(
        self, units: Sequence[Unit], cells: Mapping[str, CellWork], sample: Mapping[str, np.ndarray]
    ) -> None:
        """Takes in units.

        Args:
            units: In order.
            cells: What each of their cells asks for, by key.
            sample: Rows that are scored a second time, by cell key.
        """
        with self._lock:
            self._cells.add(cells)
            self._sample.update(sample)
            self._queue.extend(units)

    def next(self, worker_index: int) -> Job | None:
        """The unit a worker should do now."""
        now = time.monotonic()
        with self._lock:
            waited_s = now - self._asked.setdefault(worker_index, now)
            patient = self.growing and waited_s < PATIENCE_S
            unit = self._queue.next(worker_index, patient=patient)
            if unit is None:
                return None
            del self._asked[worker_index]
            passes = any(part.origin for subject in unit.subjects for part in subject.parts)
            later = self._queue.keep(worker_index) if passes else None
        return self._job(unit, None if later is None else later.subject)

    def ahead(self, worker_index: int) -> UnitJob | None:
        """What a worker would be given now."""
        with self._lock:
            unit = self._queue.peek(worker_index)
        return None if unit is None else self._job(unit).payload

    def narrow(self, job: Job, *, by_size: bool = False) -> list[Job]:
        """A unit by its subjects, then in halves of its cells, then of a cell's rows.

        ``by_size``: halves of its rows at once.
        """
        unit: Unit = job.payload.unit
        if len(unit.members) > 1:
            return [self._job(part) for part in unit.apart()]
        return [self._job(part) for part in halves(unit, by_size=by_size)]

    def _job(self, unit: Unit, later: Subject | None = None) -> Job:
        keys = {part.cell_key for part in unit.slices}
        needed = {key: self._cells[key] for key in keys}
        sample = {key: self._sample[key] for key in keys if key in self._sample}
        here = [unit.subjects[i] for i in unit.members]
        group = "+".join(subject.id for subject in unit.subjects)
        adapter, checkpoint = here[0].adapter, here[0].checkpoint
        kin = Path(checkpoint.path if adapter is None else adapter.path).parent
        return Job(
            unit.id,
            UnitJob(unit, needed, sample, later),
            group=here[0].id if len(here) == 1 else group,
            kin=str(kin),
            composite=len(here) > 1,
            cost=unit.prompt_tokens,
        )


def halves(unit: Unit, *, by_size: bool = False) -> list[Unit]:
    """Two units of about half the cells each; of one cell, of half its rows. A row is whole.

    ``by_size``: the rows of all cells are halved, whichever they are of.
    """
    slices = unit.slices
    if unit.num_examples < 2:
        return []
    if by_size or len(slices) == 1:
        first, second = _split_rows(slices, unit.num_examples // 2)
    else:
        middle = len(slices) // 2
        first, second = list(slices[:middle]), list(slices[middle:])
    return [_part(unit, first), _part(unit, second)]


def _split_rows(slices: Sequence[UnitSlice], count: int) -> tuple[list[UnitSlice], list[UnitSlice]]:
    first: list[UnitSlice] = []
    second: list[UnitSlice] = []
    for part in slices:
        here = min(max(count, 0), len(part.rows))
        count -= len(part.rows)
        first += [replace(part, rows=part.rows[:here])] if here else []
        second += [replace(part, rows=part.rows[here:])] if here < len(part.rows) else []
    return first, second


def _part(unit: Unit, slices: Sequence[UnitSlice]) -> Unit:
    examples = sum(len(part.rows) for part in slices)
    tokens = max(unit.prompt_tokens * examples // unit.num_examples, 1)
    return make_unit(unit.subjects, tuple(slices), examples, tokens)

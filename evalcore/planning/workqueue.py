"""Hands the units of a plan to workers so that weights move as little as possible."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from typing import Any, TypeVar

from evalcore.planning.sharding import unit_cost
from evalcore.planning.unit import Unit
from evalcore.planning.units import Plan

_SLACK = 1024
_Entry = TypeVar("_Entry", bound=Any)


@dataclass(eq=False)
class _Checkpoint:
    """What waits at a checkpoint.

    Attributes:
        free: Heap of numbers of its subjects that may wait with nobody on them.
        cost: Of its waiting units.
        crowd: Workers that have one of its subjects.
        changes: Counts what changes its share.
    """

    number: int
    free: list[int] = field(default_factory=list)
    cost: int = 0
    crowd: int = 0
    changes: int = 0


@dataclass(eq=False)
class _SubjectQueue:
    """Waiting units of a subject, and how many workers have it."""

    number: int
    home: _Checkpoint
    units: deque[Unit] = field(default_factory=deque)
    cost: int = 0
    workers: int = 0
    changes: int = 0

    @property
    def free(self) -> bool:
        """Whether something waits and nobody is on it."""
        return bool(self.units) and not self.workers


class WorkQueue:
    """A queue per subject (siblings that share units: per group), grouped by checkpoint.

    A worker gets, in this order: the next unit of the subject it has loaded; a subject nobody works
    on of its checkpoint; one of a checkpoint nobody works on; a subject nobody works on where most
    is left per worker; a unit from the end of the subject where most is left per worker. The same
    calls give the same answers. Not for several threads.

    What comes next of each kind stands on top of a heap; entries that no longer hold are dropped
    when they come up, so that a call costs the logarithm of the number of subjects.
    """

    def __init__(self, plan: Plan | None = None) -> None:
        self._subjects: list[_SubjectQueue] = []
        self._numbers: dict[str, int] = {}
        self._checkpoints: dict[str, _Checkpoint] = {}
        self._homes: list[_Checkpoint] = []
        self._workers: dict[int, int] = {}  # worker -> number of the subject it has loaded
        self._kept: dict[int, _Checkpoint] = {}  # worker -> where it goes next
        self._joined: set[int] = set()  # workers that help on a subject another one began
        self._waiting = 0
        # (first free subject, checkpoint) of checkpoints nobody is at;
        self._alone: list[tuple[int, int]] = []
        # (-cost left per worker, first free subject, checkpoint, its changes) of the others;
        self._shares: list[tuple[float, int, int, int]] = []
        # (-cost left per worker, subject, its changes) of subjects somebody is on.
        self._begun: list[tuple[float, int, int]] = []
        if plan is not None:
            self.extend(plan.units)

    def __len__(self) -> int:
        """Units waiting."""
        return self._waiting

    def extend(self, units: Sequence[Unit]) -> None:
        """Takes in more of a plan, after what is there."""
        grown: dict[int, _SubjectQueue] = {}
        for unit in units:
            queue = self._queue(unit)
            queue.units.append(unit)
            queue.cost += unit_cost(unit)
            queue.home.cost += unit_cost(unit)
            self._waiting += 1
            grown[queue.number] = queue
        for queue in grown.values():
            self._freed(queue)
            self._add(queue, 0, 0)

    def next(self, worker_index: int, *, patient: bool = False) -> Unit | None:
        """The unit this worker should do now; None when nothing waits.

        None is not the end while other workers are busy: a unit may still come back.

        Args:
            worker_index: The worker.
            patient: It rather waits for more of the plan than it goes where others are; what it
                has loaded is kept in mind.
        """
        number = self._choose(worker_index, patient=patient)
        if number is None:
            if not patient:
                self.release(worker_index)
                self._leave(worker_index)
            return None
        queue = self._subjects[number]
        if self._workers.get(worker_index) != number:
            self.release(worker_index)
            if queue.workers:
                self._joined.add(worker_index)
            self._workers[worker_index] = number
            queue.workers += 1
            queue.home.crowd += 1
            if self._kept.get(worker_index) is queue.home:
                self._leave(worker_index)
        # A helper takes from the end: what is next for the one who began stays together.
        unit = queue.units.pop() if worker_index in self._joined else queue.units.popleft()
        self._add(queue, -unit_cost(unit), -1)
        return unit

    def peek(self, worker_index: int) -> Unit | None:
        """The unit this worker would be given now, which stays where it is."""
        number = self._choose(worker_index)
        if number is None:
            return None
        queue = self._subjects[number]
        own = self._workers.get(worker_index) == number
        helps = worker_index in self._joined if own else bool(queue.workers)
        return queue.units[-1 if helps else 0]

    def keep(self, worker_index: int) -> Unit | None:
        """What this worker will do after the subject it has; None where that is not certain.

        A checkpoint nobody is at is kept for it: others go elsewhere while there is something else.
        """
        number = self._workers.get(worker_index)
        if number is None:
            return None
        first = self._first_free(self._subjects[number].home)
        if first is None:
            home = self._kept.get(worker_index)
            first = None if home is None else self._first_free(home)
        if first is None and (alone := _top(self._alone, self._is_alone)) is not None:
            self._leave(worker_index)
            first = alone[0]
            home = self._kept[worker_index] = self._subjects[first].home
            home.crowd += 1
            self._changed(home)
        return None if first is None else self._subjects[first].units[0]

    def _leave(self, worker_index: int) -> None:
        home = self._kept.pop(worker_index, None)
        if home is not None:
            home.crowd -= 1
            self._changed(home)

    def requeue(self, unit: Unit) -> None:
        """Puts back a unit that was not finished; it is the next one of its subject."""
        queue = self._queue(unit)
        queue.units.appendleft(unit)
        self._freed(queue)
        self._add(queue, unit_cost(unit), 1)

    def release(self, worker_index: int) -> None:
        """Forgets what a worker has loaded (it died, or was started anew)."""
        number = self._workers.pop(worker_index, None)
        self._joined.discard(worker_index)
        if number is not None:
            queue = self._subjects[number]
            queue.workers -= 1
            queue.home.crowd -= 1
            self._freed(queue)
            self._add(queue, 0, 0)

    def _queue(self, unit: Unit) -> _SubjectQueue:
        number = self._numbers.setdefault(unit.subject.id, len(self._subjects))
        if number == len(self._subjects):
            home = self._checkpoints.setdefault(
                unit.subject.checkpoint.fingerprint, _Checkpoint(len(self._homes))
            )
            if home.number == len(self._homes):
                self._homes.append(home)
            self._subjects.append(_SubjectQueue(number, home))
        return self._subjects[number]

    def _add(self, queue: _SubjectQueue, cost: int, units: int) -> None:
        """Notes what changed of a subject, and of its checkpoint with it."""
        queue.cost += cost
        queue.home.cost += cost
        self._waiting += units
        queue.changes += 1
        if queue.units and queue.workers:
            share = queue.cost / (queue.workers + 1)
            _push(self._begun, (-share, queue.number, queue.changes), self._is_begun)
        self._changed(queue.home)

    def _freed(self, queue: _SubjectQueue) -> None:
        if queue.free:
            heappush(queue.home.free, queue.number)

    def _changed(self, checkpoint: _Checkpoint) -> None:
        checkpoint.changes += 1
        first = self._first_free(checkpoint)
        if first is None:
            return
        if checkpoint.crowd:
            share = checkpoint.cost / (checkpoint.crowd + 1)
            entry = (-share, first, checkpoint.number, checkpoint.changes)
            _push(self._shares, entry, self._is_share)
        else:
            _push(self._alone, (first, checkpoint.number), self._is_alone)

    def _first_free(self, checkpoint: _Checkpoint) -> int | None:
        return _top(checkpoint.free, lambda number: self._subjects[number].free)

    def _is_alone(self, entry: tuple[int, int]) -> bool:
        home = self._homes[entry[1]]
        return not home.crowd and self._first_free(home) == entry[0]

    def _is_share(self, entry: tuple[float, int, int, int]) -> bool:
        home = self._homes[entry[2]]
        return home.changes == entry[3] and self._first_free(home) is not None

    def _is_begun(self, entry: tuple[float, int, int]) -> bool:
        return self._subjects[entry[1]].changes == entry[2]

    def _choose(self, worker: int, *, patient: bool = False) -> int | None:
        own = self._workers.get(worker)
        if own is not None:
            if self._subjects[own].units:
                return own
            # Nothing waits at its own subject: it counts nowhere below.
            near = self._first_free(self._subjects[own].home)
            if near is not None:
                return near
        kept = self._kept.get(worker)
        if kept is not None and (first := self._first_free(kept)) is not None:
            return first
        if (alone := _top(self._alone, self._is_alone)) is not None:
            return alone[0]
        if patient:
            return None
        if (share := _top(self._shares, self._is_share)) is not None:
            return share[1]
        begun = _top(self._begun, self._is_begun)
        return None if begun is None else begun[1]


def _top(heap: list[_Entry], holds: Callable[[_Entry], bool]) -> _Entry | None:
    """The least entry that holds; those before it are dropped."""
    while heap and not holds(heap[0]):
        heappop(heap)
    return heap[0] if heap else None


def _push(heap: list[_Entry], entry: _Entry, holds: Callable[[_Entry], bool]) -> None:
    """Adds an entry; one that grew by what no longer holds is swept now and then."""
    heappush(heap, entry)
    if len(heap) > _SLACK and len(heap) & (len(heap) - 1) == 0:  # at powers of two
        heap[:] = [each for each in heap if holds(each)]
        heapify(heap)

"""Hands the units of a plan to workers so that weights move as little as possible."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from evalcore.planning.sharding import unit_cost
from evalcore.planning.unit import Unit
from evalcore.planning.units import Plan


@dataclass(eq=False)
class _SubjectQueue:
    checkpoint: str
    units: deque[Unit] = field(default_factory=deque)
    cost: int = 0


class WorkQueue:
    """A queue per subject (siblings that share units: per group), grouped by checkpoint.

    A worker gets, in this order: the next unit of the subject it has loaded; a subject nobody works
    on of its checkpoint; one of a checkpoint nobody works on; a subject nobody works on where most
    is left per worker; a unit from the end of the subject where most is left per worker. The same
    calls give the same answers. Not for several threads.
    """

    def __init__(self, plan: Plan) -> None:
        self._subjects: dict[str, _SubjectQueue] = {}
        self._workers: dict[int, str] = {}  # worker -> id of the subject it has loaded
        self._joined: set[int] = set()  # workers that help on a subject another one began
        for unit in plan.units:
            queue = self._queue(unit)
            queue.units.append(unit)
            queue.cost += unit_cost(unit)

    def __len__(self) -> int:
        """Units waiting."""
        return sum(len(queue.units) for queue in self._subjects.values())

    def next(self, worker_index: int) -> Unit | None:
        """The unit this worker should do now; None when nothing waits.

        None is not the end while other workers are busy: a unit may still come back.
        """
        subject = self._choose(worker_index)
        if subject is None:
            self.release(worker_index)
            return None
        if self._workers.get(worker_index) != subject:
            self.release(worker_index)
            if subject in self._workers.values():
                self._joined.add(worker_index)
            self._workers[worker_index] = subject
        queue = self._subjects[subject]
        # A helper takes from the end: what is next for the one who began stays together.
        unit = queue.units.pop() if worker_index in self._joined else queue.units.popleft()
        queue.cost -= unit_cost(unit)
        return unit

    def requeue(self, unit: Unit) -> None:
        """Puts back a unit that was not finished; it is the next one of its subject."""
        queue = self._queue(unit)
        queue.units.appendleft(unit)
        queue.cost += unit_cost(unit)

    def release(self, worker_index: int) -> None:
        """Forgets what a worker has loaded (it died, or was started anew)."""
        self._workers.pop(worker_index, None)
        self._joined.discard(worker_index)

    def _queue(self, unit: Unit) -> _SubjectQueue:
        checkpoint = unit.subject.checkpoint.fingerprint
        return self._subjects.setdefault(unit.subject.id, _SubjectQueue(checkpoint))

    def _choose(self, worker: int) -> str | None:
        own = self._workers.get(worker)
        if own is not None and self._subjects[own].units:
            return own
        waiting = {s: queue for s, queue in self._subjects.items() if queue.units}
        others = [subject for w, subject in self._workers.items() if w != worker]
        free = [subject for subject in waiting if subject not in others]
        if own is not None:
            home = self._subjects[own].checkpoint
            near = [subject for subject in free if waiting[subject].checkpoint == home]
            if near:
                return near[0]
        crowd: dict[str, int] = {}
        for subject in others:
            checkpoint = self._subjects[subject].checkpoint
            crowd[checkpoint] = crowd.get(checkpoint, 0) + 1
        alone = [s for s in free if waiting[s].checkpoint not in crowd]
        if alone:
            return alone[0]
        if free:
            left: dict[str, int] = {}
            for queue in waiting.values():
                left[queue.checkpoint] = left.get(queue.checkpoint, 0) + queue.cost
            # max keeps the first of equals: plan order breaks ties.
            return max(free, key=lambda s: _share(waiting[s].checkpoint, left, crowd))
        if not waiting:
            return None
        return max(waiting, key=lambda s: waiting[s].cost / (others.count(s) + 1))


def _share(checkpoint: str, left: dict[str, int], crowd: dict[str, int]) -> float:
    """What one more worker would find to do at a checkpoint."""
    return left[checkpoint] / (crowd[checkpoint] + 1)

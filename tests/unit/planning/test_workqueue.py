"""The work queue beside a version that looks at everything each time."""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest

from evalcore.planning import Plan, PlanCounts, Unit, WorkQueue
from evalcore.planning.sharding import unit_cost
from evalcore.types import Adapter, Checkpoint, Subject


def made_up_plan(rng: random.Random, checkpoints: int, adapters: int, units: int) -> Plan:
    """Units of random cost, up to so many for each subject."""
    made = []
    for c in range(checkpoints):
        checkpoint = Checkpoint(f"c{c}", f"/c{c}", f"{c:032x}", "t")
        for a in range(rng.randint(0, adapters) + 1):
            adapter = Adapter(f"a{a}", f"/a{a}", f"{c}-{a}", 4) if a else None
            subject = Subject(checkpoint, adapter)
            for u in range(rng.randint(1, units)):
                cost = rng.choice([10, 10, 20, rng.randint(1, 40)])
                made.append(Unit(f"{c}-{a}-{u}", subject, (), 1, cost))
    return Plan(tuple(made), PlanCounts(*[0] * 9), {})


@dataclass(eq=False)
class _SubjectQueue:
    checkpoint: str
    units: deque[Unit] = field(default_factory=deque)
    cost: int = 0


class NaiveQueue:
    """Looks at every subject for every unit."""

    def __init__(self, plan: Plan) -> None:
        self._subjects: dict[str, _SubjectQueue] = {}
        self._workers: dict[int, str] = {}  # worker -> id of the subject it has loaded
        self._joined: set[int] = set()  # workers that help on a subject another one began
        self.extend(plan.units)

    def extend(self, units: Sequence[Unit]) -> None:
        for unit in units:
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


@pytest.mark.parametrize("seed", range(60))
def test_it_hands_out_what_the_naive_one_does(seed: int) -> None:
    """Units that come back or are planned later, workers that die and come, fewer or more of them
    than subjects."""
    rng = random.Random(seed)
    plan = made_up_plan(rng, rng.randint(1, 5), rng.randint(0, 5), rng.randint(1, 6))
    first = rng.randint(0, len(plan.units))
    begun, later = replace(plan, units=plan.units[:first]), list(plan.units[first:])
    fast, slow = WorkQueue(begun), NaiveQueue(begun)
    workers, busy = rng.randint(1, 9), {}
    for _ in range(6 * len(plan.units)):
        worker = rng.randrange(workers)
        unit = busy.pop(worker, None)
        if unit is not None and rng.random() < 0.2:
            for queue in (fast, slow):
                queue.requeue(unit)
        if rng.random() < 0.15:
            for queue in (fast, slow):
                queue.release(worker)
            continue
        if later and rng.random() < 0.3:
            more = [later.pop(0) for _ in range(rng.randint(1, len(later)))]
            for queue in (fast, slow):
                queue.extend(more)
        ahead = fast.peek(worker)
        got, expected = fast.next(worker), slow.next(worker)
        assert got is ahead is expected
        assert len(fast) == len(slow)
        if got is not None:
            busy[worker] = got


def test_a_unit_is_handed_out_within_a_millisecond_at_ten_thousand_subjects() -> None:
    rng = random.Random(0)
    plan = made_up_plan(rng, 100, 0, 1)
    units = []
    for c in range(100):
        checkpoint = plan.units[c].subject.checkpoint
        for a in range(100):
            subject = Subject(checkpoint, Adapter(f"a{a}", f"/a{a}", f"{c}-{a}", 4))
            units += [Unit(f"{c}-{a}-{u}", subject, (), 1, 10 + u) for u in range(2)]
    queue = WorkQueue(Plan(tuple(units), plan.counts, {}))
    spent = []
    while len(queue):
        worker = rng.randrange(1000)
        begin = time.process_time()
        assert queue.next(worker) is not None
        spent.append(time.process_time() - begin)
    assert len(spent) == 20_000
    assert sum(spent) / len(spent) < 1e-3


def test_what_a_worker_does_next_is_kept_for_it() -> None:
    """Told ahead, each goes to another checkpoint, and everything is handed out once."""
    plan = made_up_plan(random.Random(5), checkpoints=7, adapters=1, units=2)
    queue, given = WorkQueue(plan), list[str]()
    told: dict[int, Unit | None] = {}
    at: dict[int, str] = {}
    waiting = [0, 1, 2]
    while waiting:
        worker = waiting.pop(0)
        unit = queue.next(worker)
        if unit is None:
            continue
        home = unit.subject.checkpoint.fingerprint
        if (before := told.get(worker)) is not None and unit.subject.id != at[worker]:
            assert unit.subject == before.subject
        at[worker] = unit.subject.id
        given.append(unit.id)
        told[worker] = queue.keep(worker)
        assert queue.keep(worker) is told[worker], "asking again changes nothing"
        later = [u.subject.checkpoint.fingerprint for u in told.values() if u is not None]
        elsewhere = [h for h in later if h != home]
        assert len(elsewhere) == len(set(elsewhere))
        waiting.append(worker)
    assert sorted(given) == sorted(unit.id for unit in plan.units)
    assert queue.keep(0) is None


def test_a_patient_worker_goes_where_nobody_is() -> None:
    plan = made_up_plan(random.Random(3), 2, 2, 3)
    queue = WorkQueue(plan)
    homes = [queue.next(worker, patient=True) for worker in range(2)]
    assert len({unit.subject.checkpoint.fingerprint for unit in homes if unit}) == 2
    assert queue.next(2, patient=True) is None
    assert queue.next(2) is not None
    while queue.next(0, patient=True) is not None:
        pass
    own = homes[0]
    assert own is not None
    again = replace(own, id="again")
    queue.extend([again])
    assert queue.next(1, patient=True) is not again
    assert queue.next(0, patient=True) is again, "its checkpoint is still in place"

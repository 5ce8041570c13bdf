"""What becomes of jobs that failed: tried elsewhere, narrowed, dropped with their group, failed."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from evalcore.cluster.protocol import Job, JobSource, Scope
from evalcore.cluster.slots import CONTRADICTED, ON_HOLD, Slot
from evalcore.cluster.suspects import Case, CaseKey, Suspects, Witness
from evalcore.errors import EvalcoreError

logger = logging.getLogger("evalcore")

NARROWINGS = 64  # of one job; one that costs its worker counts as several
LOST_WORKER_COUNTS = 4
PLACE_S = 300.0  # that a worker whose machine was lost may take to find another one
GROUP_FAILURES = 3  # jobs of a group that failed, and none was done: it is the group


@dataclass(frozen=True)
class Again:
    """A job to be done again, preferably by ``owner``."""

    job: Job
    owner: int | None = None


@dataclass(frozen=True)
class Failure:
    """A job's failure.

    Attributes:
        error: For people.
        scope: Whose it seems to be.
        of_group: Whether it is about all of the job's group.
        alive: Whether the worker's process said so itself.
        writing: Whether it was the commit that failed.
    """

    error: EvalcoreError
    scope: Scope = "engine"
    of_group: bool = False
    alive: bool = False
    writing: bool = False


class Judge:
    """Decides over failures of a run.

    Args:
        slots: All workers.
        source: Where jobs come from, and what narrows them.
        on_failure: Told once of every job that is failed for good.
    """

    def __init__(
        self,
        slots: list[Slot],
        source: JobSource,
        on_failure: Callable[[Job, EvalcoreError], None],
    ) -> None:
        self.slots, self.source, self.on_failure = slots, source, on_failure
        self.again: list[Again] = []
        self.suspects = Suspects(self._place)
        self.to_park: dict[int, str] = {}
        self._nodes: set[str] = set()  # all there ever were
        self._done_groups: set[str] = set()
        self._failed_groups: dict[str, EvalcoreError] = {}
        self._apart: set[str] = set()
        self._roots: dict[str, str] = {}
        self._budget: dict[str, int] = {}
        self._convicted: Counter[str] = Counter()

    # What there is to do

    @property
    def waiting(self) -> bool:
        """Whether anything but new jobs is left to be tried."""
        return bool(self.again or any(case.jobs for case in self.suspects.cases.values()))

    def next_new(self, index: int) -> Job | None:
        """The source's next job, those left out that a verdict or an open case concerns."""
        while (job := self.source.next(index)) is not None:
            if (admitted := self._admitted(job)) is not None:
                return admitted
        return None

    def next_again(self, wanted: Callable[[Again], bool]) -> Job | None:
        """A job that is to be done again."""
        i = 0
        while i < len(self.again):
            if not wanted(self.again[i]):
                i += 1
                continue
            admitted = self._admitted(self.again.pop(i).job)
            if admitted is not None:
                return admitted
        return None

    def next_case(self, slot: Slot, *, eager: bool) -> Case | None:
        """A case this worker should try; see :meth:`Suspects.for_worker`."""
        return self.suspects.for_worker(slot.witness, self._active(), eager=eager)

    def on_hold(self, slot: Slot) -> bool:
        """Whether it fails with everything, and others can tell whose fault that is."""
        others = (s for s in self.slots if s is not slot and s.active)
        return len(slot.unjudged) >= ON_HOLD and any(len(s.unjudged) < ON_HOLD for s in others)

    def _admitted(self, job: Job) -> Job | None:
        if job.group in self._failed_groups:
            self.on_failure(job, self._failed_groups[job.group])
            return None
        if job.composite and job.group in self._apart:
            self._put(self.source.narrow(job))
            return None
        case = self.suspects.cases.get(("group", job.group))
        if case is not None:
            case.jobs.append(job)
            return None
        return job

    def _put(self, jobs: list[Job]) -> None:
        self.again.extend(Again(job) for job in jobs)

    # What happened

    def succeeded(self, slot: Slot, job: Job) -> None:
        """A job was done."""
        if job.group:
            self._done_groups.add(job.group)
        key = self.suspects.key_of(job)
        if key is not None and not self.suspects.cases[key].until_committed:
            self._clear(key, by=slot)
        was_known = slot.works
        slot.did_well()
        if not was_known:
            self.review()

    def committed(self, job: Job) -> None:
        """It is on disk as well."""
        self._roots.pop(job.id, None)
        case = self.suspects.cases.get(("job", job.id))
        if case is not None:
            self._clear(case.key, by=None)

    def failed(self, slot: Slot, job: Job, failure: Failure) -> None:
        """A job was not done."""
        case = self.suspects.tried(job)
        if case is not None and not self._stays(case, failure):
            self._clear(case.key, by=None)
        if failure.alive and job.composite and (parts := self.source.narrow(job)):
            self._close(job)
            if failure.of_group:
                self._apart.add(job.group)
            logger.warning("%s; each part of the job goes on alone", failure.error)
            self._put(parts)
        elif failure.scope == "subject" and job.group:
            self._condemn(job.group, failure.error, [job])
        elif failure.scope == "memory" and self._narrow(job, failure, by_size=True):
            logger.warning("%s; the job is tried in two halves", failure.error)
        elif job.id in self._roots:
            slot.restarts = max(0, slot.restarts - (not failure.alive))
            self._narrow_or_fail(job, failure)
        else:
            self._accuse(slot, job, failure)

    def returned(self, job: Job) -> None:
        """A worker had it and never came to it."""
        case = self.suspects.tried(job)
        if case is None:
            self.again.append(Again(job))
        else:
            case.trying = None
            case.jobs.insert(0, job)

    @staticmethod
    def _stays(case: Case, failure: Failure) -> bool:
        """Whether a further failure is about the same: not if what failed before went well now.

        Where memory was short before, and is again with what cannot be divided, it is.
        """
        if failure.scope == "subject" or (failure.scope == "memory" and case.scope != "memory"):
            return False
        return not (case.of_group and failure.alive and not failure.of_group)

    def review(self) -> None:
        """Looks at every case again: who is there, or who is known to work, has changed."""
        for case in list(self.suspects.cases.values()):
            if self.suspects.cases.get(case.key) is case and case.trying is None:
                self._judge(case, Failure(case.error, of_group=case.of_group))

    def _accuse(self, slot: Slot, job: Job, failure: Failure) -> None:
        unseen = failure.scope == "engine" and job.group not in self._done_groups
        as_group = bool(job.group) and not job.composite and not failure.writing
        as_group = as_group and (failure.of_group or unseen)
        key: CaseKey = ("group", job.group) if as_group else ("job", job.id)
        known = self.suspects.tried(job)
        if known is not None:
            key = known.key
        case = self.suspects.accuse(key, job, slot.witness, failure.error)
        case.until_committed, case.scope = failure.writing, failure.scope
        case.of_group = failure.of_group
        slot.unjudged.add(key)
        self._judge(case, failure)

    def _judge(self, case: Case, failure: Failure) -> None:
        active = self._active()
        if not case.jobs or not self.suspects.guilty(case, active):
            return
        for index in case.workers:
            slot = self.slots[index]
            slot.unjudged.discard(case.key)
            slot.restarts = max(0, slot.restarts - sum(o.index == index for o in case.opinions))
        jobs, (kind, name) = self.suspects.convict(case), case.key
        if kind == "group":
            self._condemn(name, case.error, jobs)
            return
        (job,) = jobs
        self._convicted[job.group] += 1
        lost = job.group and job.group not in self._done_groups
        if lost and self._convicted[job.group] >= GROUP_FAILURES:
            self._condemn(job.group, case.error, jobs)
        else:
            self._narrow_or_fail(job, failure)

    def _condemn(self, group: str, error: EvalcoreError, jobs: list[Job]) -> None:
        """Fails a group: these jobs, those of open cases, and all that are still to come."""
        self._failed_groups.setdefault(group, error)
        for case in list(self.suspects.cases.values()):
            if case.key == ("group", group) or (case.jobs and case.jobs[0].group == group):
                for index in case.workers:
                    self.slots[index].unjudged.discard(case.key)
                jobs = [*jobs, *self.suspects.clear(case.key).jobs]
        for job in jobs:
            self.on_failure(job, error)

    def _narrow_or_fail(self, job: Job, failure: Failure) -> None:
        if failure.of_group or not self._narrow(job, failure):
            self.on_failure(job, failure.error)

    def _close(self, job: Job) -> None:
        """Its parts are tried now instead of it."""
        case = self.suspects.tried(job)
        if case is not None:
            self._clear(case.key, by=None)

    def _narrow(self, job: Job, failure: Failure, by_size: bool = False) -> bool:
        """Has the parts of a job tried; whether it has any, and may still be divided."""
        root = self._roots.get(job.id, job.id)
        left = self._budget.get(root, NARROWINGS)
        parts = self.source.narrow(job, by_size=by_size) if left > 0 else []
        if not parts:
            return False
        self._close(job)
        self._budget[root] = left - (1 if failure.alive else LOST_WORKER_COUNTS)
        self._roots.pop(job.id, None)
        if not by_size:  # halves of what was too large are not suspect yet
            self._roots.update((part.id, root) for part in parts)
        self._put(parts)
        return True

    def _clear(self, key: CaseKey, by: Slot | None) -> None:
        case = self.suspects.clear(key)
        self._put(case.jobs)
        for index in case.workers:
            slot = self.slots[index]
            slot.unjudged.discard(key)
            if by is None or index == by.index:
                continue
            slot.contradicted += 1
            others = [s for s in self.slots if s is not slot and s.active]
            if slot.contradicted >= CONTRADICTED and others:
                self.to_park[index] = f"fails with what others can do; the last: {case.error}"

    def _active(self) -> list[Witness]:
        """Workers not given up; not those whose machine is gone and that find no other one."""
        return [slot.witness for slot in self.slots if slot.active and not slot.displaced(PLACE_S)]

    def _place(self, index: int) -> str:
        """A failure of the machine is tried on another one, where there is one."""
        self._nodes.update(slot.node for slot in self.slots if slot.node)
        node = self.slots[index].node
        return node if len(self._nodes) > 1 and node else f"worker {index}"

"""Whose fault a failure is: the input's or the worker's, by trying elsewhere what failed.

A failed job (or group of jobs) is a *case*. Each worker that failed with it has an *opinion*. The
input is guilty once workers at two places that work otherwise say so, or once everybody there is
has tried it, at least twice. Success at one place clears the input and counts against those who
failed. Plain bookkeeping: no processes, no clock.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from evalcore.cluster.protocol import Job, Scope
from evalcore.errors import EvalcoreError, NodeError

OPINIONS = 2

CaseKey = tuple[str, str]  # ("job", id) or ("group", group)


@dataclass(frozen=True)
class Witness:
    """A worker as a case sees it.

    Attributes:
        index: Number of the worker.
        works: Whether it has done any job.
        process: Counts the processes it has had.
    """

    index: int
    works: bool
    process: int


@dataclass(frozen=True)
class Opinion:
    """A failure, as a case keeps it.

    Attributes:
        index: Number of the worker.
        process: Which of its processes.
        place: Where that was, then.
        of_place: Whether the error is about the machine: it says nothing against the input.
    """

    index: int
    process: int
    place: str
    of_place: bool = False


@dataclass
class Case:
    """Something that failed and may be somebody else's fault.

    Attributes:
        key: What it is about.
        error: The latest failure.
        opinions: One of each failure.
        jobs: Jobs that wait for the verdict; the first is tried next.
        trying: Id of the job that a worker has for a further opinion.
        of_group: Whether it was the group itself that failed, not one of its jobs.
        until_committed: Whether only a commit clears it (writing failed, not scoring).
        scope: Whose the latest failure seemed to be.
    """

    key: CaseKey
    error: EvalcoreError
    opinions: list[Opinion] = field(default_factory=list)
    jobs: list[Job] = field(default_factory=list)
    trying: str | None = None
    of_group: bool = False
    until_committed: bool = False
    scope: Scope = "engine"

    @property
    def workers(self) -> set[int]:
        """Who failed with it."""
        return {opinion.index for opinion in self.opinions}


def signature(kin: str, error: EvalcoreError) -> tuple[str, str, str]:
    """Failures of one folder that are the same but for names and numbers."""
    said = re.sub(r"\S*/\S*|'[^']*'|\"[^\"]*\"|[0-9]+", "", str(error))
    return kin, type(error).__name__, " ".join(said.split())


class Suspects:
    """All open cases of a run.

    Args:
        place: Where a worker is: its node, or on a single node the worker itself.
    """

    def __init__(self, place: Callable[[int], str]) -> None:
        self._place = place
        self.cases: dict[CaseKey, Case] = {}
        self._alike: set[tuple[str, str, str]] = set()

    def key_of(self, job: Job) -> CaseKey | None:
        """The case a job belongs to, if there is one."""
        keys: tuple[CaseKey, CaseKey] = (("job", job.id), ("group", job.group))
        return next((key for key in keys if key in self.cases), None)

    def accuse(self, key: CaseKey, job: Job, witness: Witness, error: EvalcoreError) -> Case:
        """Notes a failure; the job waits with its case."""
        case = self.cases.setdefault(key, Case(key, error))
        case.error, case.trying = error, None
        place, of_place = self._place(witness.index), isinstance(error, NodeError)
        case.opinions.append(Opinion(witness.index, witness.process, place, of_place))
        case.jobs.insert(0, job)
        return case

    def guilty(self, case: Case, active: Collection[Witness]) -> bool:
        """Whether it is the input's fault, with these workers not given up."""
        said = case.opinions
        elsewhere = [w for w in active if not self._has_been_at(case, w)]
        if len(said) >= OPINIONS and not elsewhere:
            return True
        if said and said[-1].of_place:
            return False
        if self.taken_at_word(case, active):
            return True
        working = {w.index for w in active if w.works}
        trusted = {o.place for o in said if o.index in working and not o.of_place}
        return len(trusted) >= OPINIONS

    def taken_at_word(self, case: Case, active: Collection[Witness]) -> bool:
        """Whether groups of the same folder failed alike and were guilty."""
        job = case.jobs[0] if case.jobs else None
        if job is None or not job.kin or signature(job.kin, case.error) not in self._alike:
            return False
        return any(w.works and w.index in case.workers for w in active)

    def convict(self, case: Case) -> list[Job]:
        """Closes a case of the input; gives the jobs that waited."""
        for job in case.jobs[:1]:
            if job.kin:
                self._alike.add(signature(job.kin, case.error))
        del self.cases[case.key]
        return case.jobs

    def tried(self, job: Job) -> Case | None:
        """The case in which this very job is being tried, if any."""
        return next((c for c in self.cases.values() if c.trying == job.id), None)

    def clear(self, key: CaseKey) -> Case:
        """Closes a case: the input is good."""
        return self.cases.pop(key)

    def for_worker(
        self, witness: Witness, active: Collection[Witness], *, eager: bool
    ) -> Case | None:
        """A case this worker should give its opinion on.

        Args:
            witness: The worker.
            active: All workers not given up, this one included.
            eager: Whether there is nothing else for it to do: then also as one who is not known to
                work, and once more itself if there is nobody else (in a new process).
        """
        for case in self.cases.values():
            if case.trying is not None or not case.jobs:
                continue
            if not self._has_been_at(case, witness):
                if eager or len(case.opinions) < OPINIONS or witness.works:
                    return case
            elif eager and all(self._has_been_at(case, w) for w in active):
                return case
        return None

    @staticmethod
    def needs_new_process(case: Case, witness: Witness) -> bool:
        """Whether this very process has had its say."""
        return any((o.index, o.process) == (witness.index, witness.process) for o in case.opinions)

    def _has_been_at(self, case: Case, witness: Witness) -> bool:
        """Whether it failed where this worker is."""
        return self._place(witness.index) in {opinion.place for opinion in case.opinions}

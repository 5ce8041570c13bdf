"""What the driver knows of one numbered worker."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from enum import Enum, auto

from evalcore.cluster.protocol import Job
from evalcore.cluster.pulse import Stage
from evalcore.cluster.suspects import CaseKey, Witness

ON_HOLD = 3  # failures in a row after which a worker gets no new jobs until one is judged
CONTRADICTED = 2  # of its failures, so many done elsewhere since it last did anything: it is parked


class State(Enum):
    """Of a worker's process."""

    DOWN = auto()  # no process; one is started when there is a job
    STARTING = auto()
    PREPARING = auto()
    IDLE = auto()
    RUNNING = auto()
    FLUSHING = auto()
    CLOSING = auto()
    GIVEN_UP = auto()


@dataclass
class Slot:
    """One numbered worker: its process comes and goes, the slot stays.

    Attributes:
        job: Held for a worker that starts, prepares or flushes, or running.
        pending: Run, but not committed.
        dirty: Whether something ran since the last flush.
        doomed: Why the process ends after the flush under way; None: it goes on.
        restarts: Processes lost since the last finished job.
        process: Counts its processes.
        node: The machine, once known.
        prepares: Whether a new process wants to prepare.
        warm: Whether a process is there already that has yet to be told what it is for.
        works: Whether it has ever finished a job.
        unjudged: Cases it is the accuser in, since it last finished a job.
        contradicted: Of these, done elsewhere.
        since: When the command under way was sent; None: no deadline (yet).
        moved: When it last showed progress.
        ticks, stage: Its pulse.
        why: Why it was given up.
        left: When its machine was lost, until it has another one.
    """

    index: int
    state: State = State.DOWN
    job: Job | None = None
    pending: dict[str, Job] = field(default_factory=dict)
    dirty: bool = False
    doomed: str | None = None
    restarts: int = 0
    process: int = 0
    node: str = ""
    prepares: bool = False
    warm: bool = False
    works: bool = False
    unjudged: set[CaseKey] = field(default_factory=set)
    contradicted: int = 0
    since: float | None = None
    moved: float = 0.0
    ticks: int = -1
    stage: Stage = "load"
    why: str = ""
    left: float | None = None

    @property
    def at_rest(self) -> bool:
        return self.state in (State.DOWN, State.GIVEN_UP)

    @property
    def active(self) -> bool:
        return self.state is not State.GIVEN_UP

    def displaced(self, seconds: float) -> bool:
        """Whether its machine was lost that long ago, and it has no other one."""
        return self.left is not None and time.monotonic() - self.left > seconds

    @property
    def nothing_to_do(self) -> bool:
        idle = self.state is State.IDLE and not self.dirty
        return self.at_rest or idle or (self.state is State.STARTING and self.job is None)

    @property
    def witness(self) -> Witness:
        return Witness(self.index, self.works, self.process)

    def forget_process(self) -> None:
        """Nothing of the process is left."""
        self.job, self.since, self.dirty, self.doomed = None, None, False, None
        self.warm = False
        self.pending.clear()

    def lost_process(self, *, machine: bool) -> None:
        """It is to be started again; elsewhere, if its machine is gone."""
        self.state, self.restarts = State.DOWN, self.restarts + 1
        if machine:
            self.node, self.left = "", time.monotonic()

    def did_well(self) -> None:
        """A job is finished: what went wrong before was not this worker."""
        self.works, self.restarts, self.contradicted = True, 0, 0
        self.unjudged.clear()

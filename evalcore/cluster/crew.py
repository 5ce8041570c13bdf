"""The workers of a run as the driver deals with them: orders out, who is there, who is silent.

Knows the commands and their deadlines, and nothing of what becomes of jobs: that is the loop's.
"""

from __future__ import annotations

import dataclasses
import logging
import pickle
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from evalcore.cluster.patience import Pace, Patience
from evalcore.cluster.protocol import Command, Job, Lost, Transport, WorkerState
from evalcore.cluster.slots import Slot, State
from evalcore.errors import EvalcoreError, InputError, WorkerLostError

logger = logging.getLogger("evalcore")


@dataclass(frozen=True, slots=True)
class PoolEvents:
    """Callbacks of a run, all called in the driver's thread; an exception in one ends the run.

    A job may have more than one ``on_result`` (it is done again when its worker dies before a
    flush), but exactly one ``on_committed`` or ``on_failure``, or none if it was narrowed, after
    which its parts have: count by these.
    """

    on_result: Callable[[Job, Any], None] = lambda job, result: None
    on_failure: Callable[[Job, EvalcoreError], None] = lambda job, error: None
    on_committed: Callable[[Job], None] = lambda job: None
    on_worker: Callable[[int, WorkerState], None] = lambda index, state: None
    on_flush: Callable[[int, Any], None] = lambda index, result: None
    on_given_up: Callable[[int, str, str], None] = lambda index, node, why: None
    on_trouble: Callable[[int, str, str], None] = lambda index, node, what: None
    on_begun: Callable[[int, str, Job], None] = lambda index, node, job: None


@dataclass(frozen=True, slots=True)
class RunLimits:
    """See the arguments of the same names of :class:`~evalcore.cluster.pool.JobPool`."""

    max_restarts: int
    deadline_s: float | None
    startup_deadline_s: float
    close_deadline_s: float
    max_given_up: int
    patience: Patience | None


class Crew:
    """All numbered workers, and the way to them."""

    def __init__(
        self,
        workers: int,
        start_blob: Callable[[int], bytes],
        transport: Transport,
        events: PoolEvents,
        limits: RunLimits,
    ) -> None:
        self.start_blob = start_blob
        self.transport = transport
        self.events = events
        self.limits = limits
        self.slots = [Slot(i) for i in range(workers)]
        self.pace = Pace()

    # Towards the workers

    def start(self, slot: Slot) -> None:
        """Starts its process; the job it is meant for waits in the slot."""
        self.report(slot, "restarted" if slot.process else "starting")
        slot.process += 1
        slot.state, slot.ticks, slot.stage = State.STARTING, -1, "load"
        slot.moved = time.monotonic()
        # An actor may wait for a place for hours; what counts begins with its first sign of life.
        slot.since = None if self.transport.waits_for_room else slot.moved
        tell = self.transport.send if slot.warm else self.transport.start
        slot.warm = False
        tell(slot.index, self.start_blob(slot.index))

    def send_job(self, slot: Slot, ahead: Any = None) -> None:
        """Sends the slot's job, after an order to prepare where a new process wants one.

        Args:
            ahead: What the worker will probably be given next.
        """
        assert slot.job is not None
        self.events.on_begun(slot.index, slot.node, slot.job)
        if slot.prepares:
            self.send(slot, Command("prepare", slot.job.id, slot.job.payload), State.PREPARING)
        else:
            command = Command("run", slot.job.id, slot.job.payload, ahead)
            self.send(slot, command, State.RUNNING)

    def flush(self, slot: Slot, doomed: str | None = None) -> None:
        """Has it commit; ``doomed`` says why its process ends afterwards."""
        slot.doomed = doomed
        self.send(slot, Command("flush"), State.FLUSHING)

    def send(self, slot: Slot, command: Command, state: State) -> None:
        """Sends a command; a payload that cannot be pickled fails its job."""
        try:
            blob = pickle.dumps(command, protocol=pickle.HIGHEST_PROTOCOL)
        except Exception as error:
            assert slot.job is not None  # only payloads come from outside
            job, slot.job, slot.state = slot.job, None, State.IDLE
            wrong = InputError(f"job {job.id}: its payload cannot be pickled: {error}")
            self.events.on_failure(job, wrong)
            return
        slot.state = state
        slot.since = slot.moved = time.monotonic()
        self.transport.send(slot.index, blob)

    def rest(self, slot: Slot, state: State = State.DOWN) -> None:
        """Kills the process, if any, and forgets it."""
        running = not slot.at_rest
        self.transport.kill(slot.index)
        slot.state = state
        slot.forget_process()
        if running:
            self.report(slot, "stopped")

    def report(self, slot: Slot, state: WorkerState) -> None:
        """Tells of it."""
        logger.debug("worker %d: %s", slot.index, state)
        self.events.on_worker(slot.index, state)

    def idle(self, slot: Slot) -> None:
        """It has answered: nothing is under way."""
        slot.state, slot.since = State.IDLE, None

    # Silence

    def lost_error(self, slot: Slot, lost: Lost) -> WorkerLostError:
        """What it did when it was lost, and its last words."""
        doing = {
            State.STARTING: "while it started",
            State.PREPARING: f"while it prepared job {slot.job.id if slot.job else ''}",
            State.RUNNING: f"in job {slot.job.id}" if slot.job else "in a job",
            State.FLUSHING: "while it wrote its results",
        }.get(slot.state, "while it waited")
        last_line = lost.log_tail.splitlines()[-1].strip() if lost.log_tail else ""
        said = f"; its last output: {last_line[-300:]}" if last_line else ""
        see = f"; see {lost.log_path}" if lost.log_path else ""
        error = WorkerLostError(f"worker {slot.index} {lost.reason} {doing}{said}{see}")
        error.log_tail = lost.log_tail  # type: ignore[attr-defined]
        return error

    def excuse(self, seconds: float) -> None:
        """The driver itself stood still: no worker could be heard meanwhile."""
        level = logging.WARNING if seconds >= 30.0 else logging.INFO  # Ray's start takes seconds
        logger.log(level, "this process stood still for %.0f s; deadlines are moved", seconds)
        for slot in self.slots:
            slot.moved += seconds
            if slot.since is not None:
                slot.since += seconds

    def silent(self) -> Iterator[tuple[Slot, EvalcoreError]]:
        """Workers past their limit that must go; one that only closes is ended here."""
        now = time.monotonic()
        for slot in self.slots:
            if slot.at_rest or slot.since is None:
                continue
            limit_s, since, what = self._limit(slot)
            if limit_s is None or now - since < limit_s:
                continue
            if slot.state is State.CLOSING:
                logger.warning("worker %d took too long to close and was killed", slot.index)
                self.rest(slot)
                continue
            lost = dataclasses.replace(
                self.transport.explain(slot.index), reason=f"{what} {limit_s:g} s"
            )
            yield slot, self.lost_error(slot, lost)

    def _limit(self, slot: Slot) -> tuple[float | None, float, str]:
        """(seconds, from when, as words) after which a worker is killed."""
        limits, patience = self.limits, self.limits.patience
        assert slot.since is not None
        missed = "missed its deadline of"
        if slot.state is State.CLOSING:
            return limits.close_deadline_s, slot.since, missed
        if slot.state is State.STARTING:
            return limits.startup_deadline_s, slot.since, missed
        whole = slot.state in (State.RUNNING, State.FLUSHING)
        if whole and limits.deadline_s is not None:
            return limits.deadline_s, slot.since, missed
        if patience is None or slot.state is State.IDLE:
            return None, slot.since, missed
        silent = "made no progress for"
        if slot.state is State.FLUSHING:
            return patience.flush_s, slot.moved, silent
        if slot.state is State.PREPARING or slot.stage == "load":
            return patience.start_s, slot.moved, silent
        cost = slot.job.cost if slot.job is not None else 0
        return self.pace.silence_s(cost, patience), slot.moved, silent

"""The driver's loop over numbered workers, whichever backend carries the messages.

What it promises: a job ends committed, or failed once with a typed error, or untouched by a stop;
a job whose worker died before committing it is done again; nothing is retried for ever.
"""

from __future__ import annotations

import dataclasses
import logging
import pickle
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

from evalcore.cluster.protocol import (
    Answer,
    Command,
    ErrorInfo,
    Job,
    JobSource,
    Lost,
    Outcome,
    Stop,
    Transport,
    WorkerState,
)
from evalcore.errors import EvalcoreError, InputError, WorkerLostError

logger = logging.getLogger("evalcore")

POLL_S = 0.1
FATAL_ATTEMPTS = 2  # a job that takes its worker down this often is given up


@dataclass(frozen=True, slots=True)
class PoolEvents:
    """Callbacks of a run, all called in the driver's thread; an exception in one ends the run.

    A job may have more than one ``on_result`` (it is done again when its worker dies before a
    flush), but exactly one ``on_committed`` or ``on_failure``: count by these.
    """

    on_result: Callable[[Job, Any], None] = lambda job, result: None
    on_failure: Callable[[Job, EvalcoreError], None] = lambda job, error: None
    on_committed: Callable[[Job], None] = lambda job: None
    on_worker: Callable[[int, WorkerState], None] = lambda index, state: None
    on_flush: Callable[[int, Any], None] = lambda index, result: None


@dataclass(frozen=True, slots=True)
class RunLimits:
    """See the arguments of the same names of :class:`~evalcore.cluster.pool.JobPool`."""

    max_restarts: int
    deadline_s: float | None
    startup_deadline_s: float
    close_deadline_s: float
    max_given_up: int


class _State(Enum):
    DOWN = auto()  # no process; one is started when there is a job
    STARTING = auto()
    IDLE = auto()
    RUNNING = auto()
    FLUSHING = auto()
    CLOSING = auto()
    GIVEN_UP = auto()


@dataclass
class _Slot:
    """One numbered worker: its process comes and goes, the slot stays."""

    index: int
    state: _State = _State.DOWN
    job: Job | None = None  # held for a starting worker, or running
    pending: dict[str, Job] = field(default_factory=dict)  # run, but not committed
    dirty: bool = False  # something ran since the last flush
    restarts: int = 0  # since the last finished job
    ever_started: bool = False
    deadline: float | None = None

    @property
    def at_rest(self) -> bool:
        return self.state in (_State.DOWN, _State.GIVEN_UP)

    @property
    def nothing_to_do(self) -> bool:
        idle = self.state is _State.IDLE and not self.dirty
        return self.at_rest or idle or (self.state is _State.STARTING and self.job is None)


@dataclass(frozen=True)
class _Again:
    """A job to be done again, preferably by ``owner``."""

    job: Job
    owner: int | None = None


class PoolRun:
    """State of one call of :meth:`~evalcore.cluster.pool.JobPool.run`."""

    def __init__(
        self,
        workers: int,
        start_blob: Callable[[int], bytes],
        transport: Transport,
        source: JobSource,
        events: PoolEvents,
        limits: RunLimits,
    ) -> None:
        self.start_blob = start_blob
        self.transport = transport
        self.source = source
        self.events = events
        self.limits = limits
        self.slots = [_Slot(i) for i in range(workers)]
        self.again: list[_Again] = []
        self.fatal: dict[str, list[int]] = {}  # job id -> workers that went down with it
        self.given_up_in_a_row = 0
        self.ending: Outcome | None = None
        self.last_error: EvalcoreError | None = None

    # The loop

    def loop(self, should_stop: Callable[[], Stop | bool]) -> Outcome:
        while True:
            level = int(should_stop())
            if level >= Stop.NOW:
                for slot in self.slots:
                    if not slot.at_rest:
                        self._rest(slot)
                return self.ending or "stopped"
            if level and self.ending is None:
                self.ending = "stopped"
            if self.ending is None:
                gave_out = self._assign()
                quiet = all(slot.nothing_to_do for slot in self.slots)
                if quiet and not gave_out:
                    self.ending = self._ending_when_quiet()
            if self.ending is not None:
                self._wind_down()
                if all(slot.at_rest for slot in self.slots):
                    return self.ending
            for index, news in self.transport.poll(POLL_S):
                self._on_news(self.slots[index], news)
            self._check_deadlines()

    def _assign(self) -> bool:
        """Gives a job to every worker that could take one; an idle one without a job flushes.

        Returns:
            Whether there was any job to give.
        """
        gave_out = False
        for slot in self.slots:
            if slot.state not in (_State.IDLE, _State.DOWN):
                continue
            slot.job = self._pick(slot)
            gave_out = gave_out or slot.job is not None
            if slot.job is not None and slot.state is _State.DOWN:
                self._start(slot)
            elif slot.job is not None:
                self._send_job(slot)
            elif slot.state is _State.IDLE and slot.dirty:
                self._send(slot, Command("flush"), _State.FLUSHING, self.limits.deadline_s)
        return gave_out

    def _pick(self, slot: _Slot) -> Job | None:
        """Own lost jobs and other workers' suspects first, then new ones, then others' lost jobs.

        Others' lost jobs come late because their own worker, restarted, has to prepare for them
        only once. Last of all an idle worker takes what a starting one would have got.
        """

        def take(wanted: Callable[[_Again], bool]) -> Job | None:
            for i, item in enumerate(self.again):
                if wanted(item) and self._may_take(slot, item.job):
                    return self.again.pop(i).job
            return None

        job = take(lambda item: item.owner in (None, slot.index))
        if job is None:
            job = self.source.next(slot.index)
        if job is None:
            job = take(lambda item: True)
        if job is None and slot.state is _State.IDLE:
            for other in self.slots:
                held = other.job if other.state is _State.STARTING else None
                if held is not None and self._may_take(slot, held):
                    job, other.job = held, None
                    break
        return job

    def _may_take(self, slot: _Slot, job: Job) -> bool:
        """A job that took a worker down goes to another one, if there is another."""
        alone = sum(s.state is not _State.GIVEN_UP for s in self.slots) == 1
        return alone or slot.index not in self.fatal.get(job.id, ())

    def _ending_when_quiet(self) -> Outcome | None:
        """Nothing is under way: everything is done, or there is nobody left to do the rest."""
        if any(slot.state is not _State.GIVEN_UP for slot in self.slots):
            return None if self.again else "done"
        left = self.again[0].job if self.again else self.source.next(0)
        if left is None:
            return "done"
        raise self.last_error or WorkerLostError("all workers are lost")

    def _wind_down(self) -> None:
        for slot in self.slots:
            if slot.state is _State.STARTING:
                self._rest(slot)  # it has nothing yet
            elif slot.state is _State.IDLE and slot.dirty:
                self._send(slot, Command("flush"), _State.FLUSHING, self.limits.deadline_s)
            elif slot.state is _State.IDLE:
                self._send(slot, Command("close"), _State.CLOSING, self.limits.close_deadline_s)

    # Towards the workers

    def _start(self, slot: _Slot) -> None:
        self._report(slot, "restarted" if slot.ever_started else "starting")
        slot.ever_started = True
        slot.state = _State.STARTING
        slot.deadline = time.monotonic() + self.limits.startup_deadline_s
        self.transport.start(slot.index, self.start_blob(slot.index))

    def _send_job(self, slot: _Slot) -> None:
        assert slot.job is not None
        command = Command("run", slot.job.id, slot.job.payload)
        self._send(slot, command, _State.RUNNING, self.limits.deadline_s)

    def _send(self, slot: _Slot, command: Command, state: _State, limit_s: float | None) -> None:
        try:
            blob = pickle.dumps(command, protocol=pickle.HIGHEST_PROTOCOL)
        except Exception as error:
            assert slot.job is not None  # only payloads come from outside
            job, slot.job, slot.state = slot.job, None, _State.IDLE
            wrong = InputError(f"job {job.id}: its payload cannot be pickled: {error}")
            self.events.on_failure(job, wrong)
            return
        slot.state = state
        slot.deadline = None if limit_s is None else time.monotonic() + limit_s
        self.transport.send(slot.index, blob)

    def _rest(self, slot: _Slot, state: _State = _State.DOWN) -> None:
        """Kills the process, if any, and forgets it."""
        self.transport.kill(slot.index)
        slot.state, slot.job, slot.deadline, slot.dirty = state, None, None, False
        slot.pending.clear()
        self._report(slot, "stopped")

    def _report(self, slot: _Slot, state: WorkerState) -> None:
        logger.debug("worker %d: %s", slot.index, state)
        self.events.on_worker(slot.index, state)

    # From the workers

    def _on_news(self, slot: _Slot, news: bytes | Lost) -> None:
        if slot.at_rest:  # it was killed after this was read
            return
        if isinstance(news, bytes):
            try:
                answer = pickle.loads(news)
                if not isinstance(answer, Answer):
                    raise TypeError(f"got {type(answer).__name__}")
            except Exception as error:
                news = Lost(f"gave an answer that cannot be read: {type(error).__name__}: {error}")
            else:
                self._on_answer(slot, answer)
                return
        if slot.state is _State.CLOSING:  # everything of it is committed
            logger.warning("worker %d %s while closing", slot.index, news.reason)
            self._rest(slot)
            return
        self._on_fatal(slot, self._lost_error(slot, news))

    def _on_answer(self, slot: _Slot, answer: Answer) -> None:
        if answer.kind == "raised":
            assert answer.error is not None
            self._on_raised(slot, answer.error)
        elif answer.kind == "ready":
            self._report(slot, "ready")
            if slot.job is not None:
                self._send_job(slot)
            else:  # another worker has taken it
                self._idle(slot)
        elif answer.kind == "ran":
            job, slot.job = slot.job, None
            assert job is not None
            self._idle(slot)
            slot.dirty, slot.restarts, self.given_up_in_a_row = True, 0, 0
            slot.pending[job.id] = job
            self.events.on_result(job, answer.result)
            self._commit(slot, answer.committed)
        elif answer.kind == "flushed":
            self._idle(slot)
            slot.dirty = False
            self.events.on_flush(slot.index, answer.result)
            self._commit(slot, tuple(slot.pending))
        else:
            self._rest(slot)

    def _on_raised(self, slot: _Slot, info: ErrorInfo) -> None:
        where = f"worker {slot.index}" + (f", job {slot.job.id}" if slot.job else "")
        error = info.to_error(where)
        if slot.state is _State.CLOSING:
            logger.warning("worker %d did not close cleanly: %s", slot.index, info.message)
            self._rest(slot)
        elif slot.state is _State.RUNNING and info.worker_usable:
            job, slot.job = slot.job, None
            assert job is not None
            self._idle(slot)
            slot.dirty, slot.restarts = True, 0
            self.events.on_failure(job, error)
        elif slot.state is _State.STARTING and info.worker_usable:
            slot.restarts = self.limits.max_restarts  # bad input stays bad: no use in trying again
            self._on_fatal(slot, error)
        else:
            logger.warning("%s: %s; the worker is restarted", where, info.message)
            self._on_fatal(slot, error)

    def _idle(self, slot: _Slot) -> None:
        slot.state, slot.deadline = _State.IDLE, None

    def _commit(self, slot: _Slot, job_ids: tuple[str, ...]) -> None:
        for job_id in job_ids:
            job = slot.pending.pop(job_id, None)
            if job is not None:
                self.fatal.pop(job_id, None)
                self.events.on_committed(job)

    # When a worker must go

    def _on_fatal(self, slot: _Slot, error: EvalcoreError) -> None:
        """The worker is gone or not to be trusted: kills it, and sees to its jobs."""
        self.last_error = error
        self.transport.kill(slot.index)
        self._report(slot, "lost")
        state, job, pending = slot.state, slot.job, list(slot.pending.values())
        slot.job, slot.deadline, slot.dirty = None, None, False
        slot.pending.clear()
        slot.state = _State.DOWN
        slot.restarts += 1
        if self.ending is not None:  # not restarted; what was not committed is for the next run
            self._report(slot, "stopped")
            return
        if job is not None and state is not _State.RUNNING:
            self.again.append(_Again(job))
        suspects = [job] if job is not None and state is _State.RUNNING else []
        if state is _State.FLUSHING:  # any of those in the buffer may be the cause
            suspects, pending = pending, []
        for suspect in suspects:
            self._blame(slot, suspect, error)
        if slot.restarts > self.limits.max_restarts:
            slot.state = _State.GIVEN_UP
            logger.warning("worker %d is given up: %s", slot.index, error)
            self._report(slot, "stopped")
        owner = None if slot.state is _State.GIVEN_UP else slot.index
        self.again.extend(_Again(earlier, owner=owner) for earlier in pending)

    def _blame(self, slot: _Slot, job: Job, error: EvalcoreError) -> None:
        """Has a job tried once more, elsewhere if possible; gives it up the second time."""
        workers = self.fatal.setdefault(job.id, [])
        workers.append(slot.index)
        if len(workers) < FATAL_ATTEMPTS:
            self.again.append(_Again(job))
            return
        del self.fatal[job.id]
        slot.restarts = 0  # it was the job, not the worker
        self.given_up_in_a_row += 1
        self.events.on_failure(job, error)
        if self.given_up_in_a_row > self.limits.max_given_up:
            raise WorkerLostError(
                f"{self.given_up_in_a_row} jobs in a row took their workers down, none was "
                f"finished; the last: {error}"
            )

    def _lost_error(self, slot: _Slot, lost: Lost) -> WorkerLostError:
        doing = {
            _State.STARTING: "while it started",
            _State.RUNNING: f"in job {slot.job.id}" if slot.job else "in a job",
            _State.FLUSHING: "while it wrote its results",
        }.get(slot.state, "while it waited")
        last_line = lost.log_tail.splitlines()[-1].strip() if lost.log_tail else ""
        said = f"; its last output: {last_line[-300:]}" if last_line else ""
        see = f"; see {lost.log_path}" if lost.log_path else ""
        error = WorkerLostError(f"worker {slot.index} {lost.reason} {doing}{said}{see}")
        error.log_tail = lost.log_tail  # type: ignore[attr-defined]
        return error

    def _check_deadlines(self) -> None:
        now = time.monotonic()
        for slot in self.slots:
            if slot.deadline is None or now < slot.deadline:
                continue
            if slot.state is _State.CLOSING:
                logger.warning("worker %d took too long to close and was killed", slot.index)
                self._rest(slot)
                continue
            starting = slot.state is _State.STARTING
            limit_s = self.limits.startup_deadline_s if starting else self.limits.deadline_s
            lost = dataclasses.replace(
                self.transport.explain(slot.index), reason=f"missed its deadline of {limit_s:g} s"
            )
            self._on_fatal(slot, self._lost_error(slot, lost))

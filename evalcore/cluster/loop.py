"""The driver's loop over numbered workers, whichever backend carries the messages.

What it promises: a job ends committed, or failed once with a typed error, or untouched by a stop;
a job whose worker died before committing it is done again; nothing is retried for ever; nothing is
waited for without a limit, unless the pool was asked for none. Whose fault a failure is, see
:mod:`evalcore.cluster.suspects`.
"""

from __future__ import annotations

import dataclasses
import logging
import pickle
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from evalcore.cluster.judge import Again, Failure, Judge
from evalcore.cluster.patience import Pace, Patience
from evalcore.cluster.protocol import (
    Answer,
    Command,
    ErrorInfo,
    Hello,
    Job,
    JobSource,
    Lost,
    Outcome,
    Stop,
    Transport,
    WorkerState,
)
from evalcore.cluster.slots import Slot, State
from evalcore.errors import EvalcoreError, InputError, ResultsError, WorkerLostError

logger = logging.getLogger("evalcore")

POLL_S = 0.1
FROZEN_S = 5.0  # a driver that did nothing for so long was stopped itself: that is nobody's silence


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


@dataclass(frozen=True, slots=True)
class RunLimits:
    """See the arguments of the same names of :class:`~evalcore.cluster.pool.JobPool`."""

    max_restarts: int
    deadline_s: float | None
    startup_deadline_s: float
    close_deadline_s: float
    max_given_up: int
    patience: Patience | None


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
        time_left_s: Callable[[], float | None] = lambda: None,
    ) -> None:
        self.start_blob = start_blob
        self.transport = transport
        self.source = source
        self.events = events
        self.limits = limits
        self.time_left_s = time_left_s
        self.slots = [Slot(i) for i in range(workers)]
        self.judge = Judge(self.slots, source, events.on_failure)
        self.pace = Pace()
        self.ending: Outcome | None = None
        self.stop_by: float | None = None
        self.last_error: EvalcoreError | None = None
        self.results_error: ResultsError | None = None

    # The loop

    def loop(self, should_stop: Callable[[], Stop | bool]) -> Outcome:
        turned = time.monotonic()
        while True:
            level = int(should_stop())
            if level and self.ending is None:
                self.ending = "stopped"
            if level >= Stop.NOW or (self.stop_by is not None and time.monotonic() > self.stop_by):
                self._kill_all()
            if self.ending is None:
                self._park_some()
                gave_out = self._assign()
                quiet = all(slot.nothing_to_do for slot in self.slots)
                if quiet and not gave_out and self.ending is None:
                    self.ending = self._ending_when_quiet()
            if self.ending is not None:
                self._wind_down()
                if all(slot.at_rest for slot in self.slots):
                    if self.results_error is not None:
                        raise self.results_error
                    return self.ending
            for index, news in self.transport.poll(POLL_S):
                self._on_news(self.slots[index], news)
            before, turned = turned, time.monotonic()
            if turned - before > FROZEN_S:
                self._excuse(turned - before)
            self._check_silence()

    def _kill_all(self) -> None:
        for slot in self.slots:
            if slot.job is not None and slot.state is State.RUNNING:
                logger.warning("worker %d was killed in job %s", slot.index, slot.job.id)
            if not slot.at_rest:
                self._rest(slot)
        self.ending = self.ending or "stopped"

    def _assign(self) -> bool:
        """Gives a job to every worker that could take one; an idle one without a job flushes.

        Returns:
            Whether there was any job to give.
        """
        gave_out = False
        for slot in self.slots:
            if slot.state not in (State.IDLE, State.DOWN) or self.ending is not None:
                continue
            job = self._pick(slot)
            gave_out = gave_out or job is not None
            if job is not None and slot.state is State.DOWN:
                slot.job = job
                self._start(slot)
            elif job is not None:
                slot.job = job
                self._send_job(slot)
            elif slot.state is State.IDLE and slot.dirty:
                self._flush(slot)
        return gave_out

    def _pick(self, slot: Slot) -> Job | None:
        """Own lost jobs and what failed elsewhere first, then new ones, then others' lost jobs.

        Others' lost jobs come late because their own worker, restarted, has to prepare for them
        only once. Last of all an idle worker takes what a starting one would have got.
        """
        judge = self.judge
        job = judge.next_again(lambda item: item.owner in (None, slot.index))
        if job is None:
            job = self._take_case(slot, eager=False)
        if job is None and not judge.on_hold(slot):
            job = judge.next_new(slot.index) or judge.next_again(lambda item: True)
        if job is None and slot.state is State.IDLE:
            for other in self.slots:
                if other.state is State.STARTING and other.job is not None:
                    job, other.job = other.job, None
                    break
        if job is not None:
            return self._fitted(job)
        return self._take_case(slot, eager=True)

    def _take_case(self, slot: Slot, *, eager: bool) -> Job | None:
        """A job somebody failed with, for a second opinion; by the same worker, a new process."""
        case = self.judge.next_case(slot, eager=eager)
        if case is None:
            return None
        if self.judge.suspects.needs_new_process(case, slot.witness):
            if slot.state is State.IDLE and slot.dirty:
                return None  # it flushes first
            if slot.state is State.IDLE:
                self._rest(slot)
        job = case.jobs.pop(0)
        case.trying = job.id
        return job

    def _fitted(self, job: Job) -> Job | None:
        """As much of a job as ends before the time limit; what does not fit is for the next run."""
        left_s = self.time_left_s()
        while left_s is not None and self.pace.expected_s(job.cost) > left_s:
            parts = self.source.narrow(job, by_size=True) if left_s > 1.0 else []
            if not parts:
                self.ending = "stopped"
                self.judge.again.insert(0, Again(job))
                return None
            job = parts[0]
            self.judge.again[:0] = [Again(part) for part in parts[1:]]
        return job

    def _ending_when_quiet(self) -> Outcome | None:
        """Nothing is under way: everything is done, or there is nobody left to do the rest."""
        if any(slot.active for slot in self.slots):
            return None if self.judge.waiting else "done"
        if not self.judge.waiting and self.judge.next_new(0) is None:
            return "done"
        raise self.last_error or WorkerLostError("all workers are lost")

    def _wind_down(self) -> None:
        for slot in self.slots:
            if slot.state in (State.STARTING, State.PREPARING):
                self._rest(slot)  # it has nothing yet
            elif slot.state is State.RUNNING and self.results_error is not None:
                self._rest(slot)
            elif slot.state is State.IDLE and slot.dirty:
                self._flush(slot)
            elif slot.state is State.IDLE:
                self._send(slot, Command("close"), State.CLOSING)

    def _park_some(self) -> None:
        """Ends workers that fail with what others can do, once they have nothing under way."""
        for index, why in list(self.judge.to_park.items()):
            slot = self.slots[index]
            if slot.state is State.IDLE and slot.dirty:
                self._flush(slot)
            elif slot.state in (State.IDLE, State.DOWN):
                del self.judge.to_park[index]
                self._rest(slot, State.GIVEN_UP)
                self._given_up(slot, why)
            elif slot.state is State.GIVEN_UP:
                del self.judge.to_park[index]

    def _given_up(self, slot: Slot, why: str) -> None:
        slot.state, slot.why = State.GIVEN_UP, why
        logger.warning("worker %d is given up: %s", slot.index, why)
        self.events.on_given_up(slot.index, slot.node, why)
        self._report(slot, "parked")
        self.judge.review()

    # Towards the workers

    def _start(self, slot: Slot) -> None:
        self._report(slot, "restarted" if slot.process else "starting")
        slot.process += 1
        slot.state, slot.ticks, slot.stage = State.STARTING, -1, "load"
        slot.moved = time.monotonic()
        # An actor may wait for a place for hours; what counts begins with its first sign of life.
        slot.since = None if self.transport.waits_for_room else slot.moved
        self.transport.start(slot.index, self.start_blob(slot.index))

    def _send_job(self, slot: Slot) -> None:
        assert slot.job is not None
        if slot.prepares:
            self._send(slot, Command("prepare", slot.job.id, slot.job.payload), State.PREPARING)
        else:
            self._send(slot, Command("run", slot.job.id, slot.job.payload), State.RUNNING)

    def _flush(self, slot: Slot, doomed: str | None = None) -> None:
        slot.doomed = doomed
        self._send(slot, Command("flush"), State.FLUSHING)

    def _send(self, slot: Slot, command: Command, state: State) -> None:
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

    def _rest(self, slot: Slot, state: State = State.DOWN) -> None:
        """Kills the process, if any, and forgets it."""
        running = not slot.at_rest
        self.transport.kill(slot.index)
        slot.state = state
        slot.forget_process()
        if running:
            self._report(slot, "stopped")

    def _report(self, slot: Slot, state: WorkerState) -> None:
        logger.debug("worker %d: %s", slot.index, state)
        self.events.on_worker(slot.index, state)

    # From the workers

    def _on_news(self, slot: Slot, news: bytes | Lost) -> None:
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
        if slot.state is State.CLOSING:  # everything of it is committed
            logger.warning("worker %d %s while closing", slot.index, news.reason)
            self._rest(slot)
            return
        self._on_fatal(slot, self._lost_error(slot, news))

    def _on_answer(self, slot: Slot, answer: Answer) -> None:
        if answer.kind == "beat":
            self._on_beat(slot, *answer.result)
        elif answer.kind == "raised":
            assert answer.error is not None
            self._on_raised(slot, answer.error)
        elif answer.kind == "ready":
            hello: Hello = answer.result
            slot.node, slot.prepares = hello.node, hello.prepares
            self._report(slot, "ready")
            if slot.job is not None:
                self._send_job(slot)
            else:  # another worker has taken it
                self._idle(slot)
        elif answer.kind == "prepared":
            slot.prepares = False
            self._send_job(slot)
        elif answer.kind == "ran":
            self._on_ran(slot, answer)
        elif answer.kind == "flushed":
            self._idle(slot)
            slot.dirty = False
            self.events.on_flush(slot.index, answer.result)
            self._commit(slot, tuple(slot.pending))
            if slot.doomed is not None:
                self._end_process(slot)
        else:
            self._rest(slot)

    def _on_beat(self, slot: Slot, ticks: int, stage: Any) -> None:
        if ticks != slot.ticks:
            slot.ticks, slot.stage, slot.moved = ticks, stage, time.monotonic()
        if slot.since is None:
            slot.since = slot.moved = time.monotonic()

    def _on_ran(self, slot: Slot, answer: Answer) -> None:
        job, slot.job = slot.job, None
        assert job is not None
        if slot.since is not None:
            self.pace.done(job.cost, time.monotonic() - slot.since)
        self._idle(slot)
        slot.dirty = True
        slot.pending[job.id] = job
        self.judge.succeeded(slot, job)
        self.events.on_result(job, answer.result)
        self._commit(slot, answer.committed)
        slot.dirty = bool(slot.pending) or not answer.committed

    def _on_raised(self, slot: Slot, info: ErrorInfo) -> None:
        where = f"worker {slot.index}" + (f", job {slot.job.id}" if slot.job else "")
        error = info.to_error(where)
        if isinstance(error, ResultsError):
            self._on_results_error(slot, error)
        elif slot.state is State.CLOSING:
            logger.warning("worker %d did not close cleanly: %s", slot.index, info.message)
            self._rest(slot)
        elif slot.state in (State.RUNNING, State.PREPARING) and slot.job is not None:
            self._on_failed_job(slot, info, error)
        elif slot.state is State.STARTING and info.worker_usable:
            slot.restarts = self.limits.max_restarts  # bad input stays bad: no use in trying again
            self._on_fatal(slot, error)
        else:
            logger.warning("%s: %s; the worker is restarted", where, info.message)
            self._on_fatal(slot, error)

    def _on_failed_job(self, slot: Slot, info: ErrorInfo, error: EvalcoreError) -> None:
        """A living worker has failed with a job: what it has done before is committed first."""
        job, slot.job = slot.job, None
        assert job is not None
        preparing = slot.state is State.PREPARING
        self._idle(slot)
        if self.ending is None:
            of_group = info.of_group or preparing
            failure = Failure(error, info.scope, of_group, alive=True)
            if not info.worker_usable:
                slot.restarts += 1
            self.judge.failed(slot, job, failure)
        if info.worker_usable:
            slot.dirty = bool(slot.pending)
            return
        where = f"worker {slot.index}, job {job.id}"
        logger.warning("%s: %s; the worker is restarted", where, info.message)
        self.last_error = error
        if slot.pending:
            self._flush(slot, doomed=str(error))
        else:
            self._end_process(slot)

    def _end_process(self, slot: Slot) -> None:
        """Ends a process that is not to be trusted; nothing of it is lost."""
        self.transport.kill(slot.index)
        self._report(slot, "lost")
        slot.state = State.DOWN
        slot.forget_process()
        if self.ending is not None:
            self._report(slot, "stopped")
        else:
            self._count_restarts(slot)

    def _on_results_error(self, slot: Slot, error: ResultsError) -> None:
        """Nobody can write there: no unit's fault, and no use in computing more."""
        self.results_error = self.results_error or error
        self.ending = "stopped"
        self.stop_by = time.monotonic() + self.limits.close_deadline_s
        self._rest(slot)

    def _idle(self, slot: Slot) -> None:
        slot.state, slot.since = State.IDLE, None

    def _commit(self, slot: Slot, job_ids: tuple[str, ...]) -> None:
        for job_id in job_ids:
            job = slot.pending.pop(job_id, None)
            if job is not None:
                self.judge.committed(job)
                self.events.on_committed(job)

    # When a worker must go

    def _on_fatal(self, slot: Slot, error: EvalcoreError) -> None:
        """The worker is gone or not to be trusted: kills it, and sees to its jobs."""
        self.last_error = error
        self.transport.kill(slot.index)
        self._report(slot, "lost")
        state, job, pending = slot.state, slot.job, list(slot.pending.values())
        slot.forget_process()
        slot.state = State.DOWN
        slot.restarts += 1
        if self.ending is not None:  # not restarted; what was not committed is for the next run
            self._report(slot, "stopped")
            return
        if state in (State.RUNNING, State.PREPARING) and job is not None:
            failure = Failure(error, of_group=state is State.PREPARING)
            self.judge.failed(slot, job, failure)
        elif job is not None:
            self.judge.returned(job)
        if state is State.FLUSHING:  # any of those in the buffer may be the cause
            for suspect in pending:
                self.judge.failed(slot, suspect, Failure(error, writing=True))
            pending = []
        self._count_restarts(slot)
        owner = slot.index if slot.active else None
        self.judge.again.extend(Again(earlier, owner=owner) for earlier in pending)

    def _count_restarts(self, slot: Slot) -> None:
        """Gives a worker up that loses process after process with nothing done in between.

        The last one there is has more chances if it has worked, or its engine has stood.
        """
        others = any(other.active for other in self.slots if other is not slot)
        most = self.limits.max_restarts
        if not others and slot.node:
            most = max(most, self.limits.max_given_up)
        if slot.restarts > most:
            slot.state = State.GIVEN_UP
            self._given_up(slot, str(self.last_error))

    def _lost_error(self, slot: Slot, lost: Lost) -> WorkerLostError:
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

    def _excuse(self, seconds: float) -> None:
        """The driver itself stood still: no worker could be heard meanwhile."""
        logger.warning("this process was stopped for %.0f s; deadlines are moved", seconds)
        for slot in self.slots:
            slot.moved += seconds
            if slot.since is not None:
                slot.since += seconds
        if self.stop_by is not None:
            self.stop_by += seconds

    def _check_silence(self) -> None:
        now = time.monotonic()
        for slot in self.slots:
            if slot.at_rest or slot.since is None:
                continue
            limit_s, since, what = self._limit(slot)
            if limit_s is None or now - since < limit_s:
                continue
            if slot.state is State.CLOSING:
                logger.warning("worker %d took too long to close and was killed", slot.index)
                self._rest(slot)
                continue
            lost = dataclasses.replace(
                self.transport.explain(slot.index), reason=f"{what} {limit_s:g} s"
            )
            self._on_fatal(slot, self._lost_error(slot, lost))

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

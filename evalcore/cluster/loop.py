"""The driver's loop over numbered workers, whichever backend carries the messages.

What it promises: a job ends committed, or failed once with a typed error, or untouched by a stop;
a job whose worker died before committing it is done again; nothing is retried for ever; nothing is
waited for without a limit, unless the pool was asked for none. Whose fault a failure is, see
:mod:`evalcore.cluster.suspects`.
"""

from __future__ import annotations

import logging
import pickle
import time
from collections.abc import Callable
from typing import Any

from evalcore.cluster.crew import Crew, PoolEvents, RunLimits
from evalcore.cluster.judge import Again, Failure, Judge
from evalcore.cluster.protocol import (
    Answer,
    AnswerKind,
    Command,
    ErrorInfo,
    Hello,
    Job,
    JobSource,
    Lost,
    Outcome,
    Stop,
    Transport,
)
from evalcore.cluster.slots import Slot, State
from evalcore.errors import EvalcoreError, ResultsError, WorkerLostError

logger = logging.getLogger("evalcore")

ANSWERS: dict[State, AnswerKind] = {
    State.STARTING: "ready",
    State.PREPARING: "prepared",
    State.RUNNING: "ran",
    State.FLUSHING: "flushed",
    State.CLOSING: "closed",
}
"""What a worker says when it is done with what it is at; ``raised`` and ``beat`` it may say too,
and ``warmed`` while it starts."""

POLL_S = 0.1
FROZEN_S = 5.0  # a driver that did nothing for so long was stopped itself: that is nobody's silence


def check_fits(answer: Any, slot: Slot) -> None:
    """Raises where an answer is none to what the worker was told; nothing of it may be used then.

    Raises:
        TypeError: It is no answer, or its parts are not what they should be.
        ValueError: It answers something else.
    """
    if not isinstance(answer, Answer):
        raise TypeError(f"got {type(answer).__name__}")
    if answer.kind == "warmed" and slot.state is State.STARTING:
        return
    if answer.kind == "beat":
        ticks, stage = answer.result
        if not isinstance(ticks, int) or stage not in ("load", "work"):
            raise TypeError(f"a pulse of {str(answer.result)[:60]}")
        return
    wanted = ANSWERS.get(slot.state)
    if wanted is None or answer.kind not in (wanted, "raised"):
        raise ValueError(f"{str(answer.kind)[:20]!r} while it was {slot.state.name.lower()}")
    if answer.kind == "ready" and not isinstance(answer.result, Hello):
        raise TypeError("ready, without a word of where")
    if answer.kind == "raised" and not isinstance(answer.error, ErrorInfo):
        raise TypeError("an error that is none")
    own = None if slot.job is None else slot.job.id
    if answer.kind in ("prepared", "ran") and answer.job_id != own:
        raise ValueError(f"job {str(answer.job_id)[:60]} instead of {own}")


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
        warm: bool = False,
    ) -> None:
        self.transport = transport
        self.source = source
        self.events = events
        self.limits = limits
        self.time_left_s = time_left_s
        self.crew = Crew(workers, start_blob, transport, events, limits)
        self.slots = self.crew.slots
        for slot in self.slots:
            slot.warm = warm
        self.judge = Judge(self.slots, source, events.on_failure)
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
                self.crew.excuse(turned - before)
                if self.stop_by is not None:
                    self.stop_by += turned - before
            for slot, error in self.crew.silent():
                self._on_fatal(slot, error)

    def _kill_all(self) -> None:
        for slot in self.slots:
            if slot.job is not None and slot.state is State.RUNNING:
                logger.warning("worker %d was killed in job %s", slot.index, slot.job.id)
            if not slot.at_rest:
                self.crew.rest(slot)
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
                self.crew.start(slot)
            elif job is not None:
                slot.job = job
                self.crew.send_job(slot, self.source.ahead(slot.index))
            elif slot.state is State.IDLE and slot.dirty:
                self.crew.flush(slot)
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
                self.crew.rest(slot)
        job = case.jobs.pop(0)
        case.trying = job.id
        return job

    def _fitted(self, job: Job) -> Job | None:
        """As much of a job as ends before the time limit; what does not fit is for the next run."""
        left_s = self.time_left_s()
        while left_s is not None and self.crew.pace.expected_s(job.cost) > left_s:
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
        left = self.judge.waiting or self.source.growing
        self.judge.review()  # who is there may have changed with time
        if any(slot.active for slot in self.slots):
            return None if left else "done"
        if not left and self.judge.next_new(0) is None:
            return "done"
        raise self.last_error or WorkerLostError("all workers are lost")

    def _wind_down(self) -> None:
        for slot in self.slots:
            if slot.state in (State.STARTING, State.PREPARING):
                self.crew.rest(slot)  # it has nothing yet
            elif slot.state is State.RUNNING and self.results_error is not None:
                self.crew.rest(slot)
            elif slot.state is State.IDLE and slot.dirty:
                self.crew.flush(slot)
            elif slot.state is State.IDLE:
                self.crew.send(slot, Command("close"), State.CLOSING)

    def _park_some(self) -> None:
        """Ends workers that fail with what others can do, once they have nothing under way."""
        for index, why in list(self.judge.to_park.items()):
            slot = self.slots[index]
            if slot.state is State.IDLE and slot.dirty:
                self.crew.flush(slot)
            elif slot.state in (State.IDLE, State.DOWN):
                del self.judge.to_park[index]
                self.crew.rest(slot, State.GIVEN_UP)
                self._given_up(slot, why)
            elif slot.state is State.GIVEN_UP:
                del self.judge.to_park[index]

    def _given_up(self, slot: Slot, why: str) -> None:
        slot.state, slot.why = State.GIVEN_UP, why
        logger.warning("worker %d is given up: %s", slot.index, why)
        self.events.on_given_up(slot.index, slot.node, why)
        self.crew.report(slot, "parked")
        self.judge.review()

    # From the workers

    def _on_news(self, slot: Slot, news: bytes | Lost) -> None:
        if slot.at_rest:  # it was killed after this was read, or is warm and has no task yet
            if slot.warm and isinstance(news, Lost):
                self.crew.rest(slot, slot.state)
            return
        if isinstance(news, bytes):
            try:
                answer = pickle.loads(news)
                check_fits(answer, slot)
            except Exception as error:
                news = Lost(f"gave an answer that cannot be read: {type(error).__name__}: {error}")
            else:
                self._on_answer(slot, answer)
                return
        if slot.state is State.CLOSING:  # everything of it is committed
            logger.warning("worker %d %s while closing", slot.index, news.reason)
            self.crew.rest(slot)
            return
        self._on_fatal(slot, self.crew.lost_error(slot, news), machine=news.machine)

    def _on_answer(self, slot: Slot, answer: Answer) -> None:
        """One that fits what the worker is at (:func:`check_fits`)."""
        if answer.kind == "beat":
            self._on_beat(slot, *answer.result)
        elif answer.kind == "warmed":
            pass  # and now it does what it was told since
        elif answer.kind == "raised":
            assert answer.error is not None
            self._on_raised(slot, answer.error)
        elif answer.kind == "ready":
            hello: Hello = answer.result
            slot.node, slot.prepares, slot.left = hello.node, hello.prepares, None
            self.crew.report(slot, "ready")
            for what in hello.trouble:
                self.events.on_trouble(slot.index, slot.node, what)
            if slot.job is not None:
                self.crew.send_job(slot)
            else:  # another worker has taken it
                self.crew.idle(slot)
        elif answer.kind == "prepared":
            slot.prepares = False
            self.crew.send_job(slot)
        elif answer.kind == "ran":
            self._on_ran(slot, answer)
        elif answer.kind == "flushed":
            self.crew.idle(slot)
            slot.dirty = False
            self.events.on_flush(slot.index, answer.result)
            self._refuse(slot, answer)
            self._commit(slot, tuple(slot.pending))
            if slot.doomed is not None:
                self._end_process(slot)
        else:
            self.crew.rest(slot)

    def _on_beat(self, slot: Slot, ticks: int, stage: Any) -> None:
        if ticks != slot.ticks:
            slot.ticks, slot.stage, slot.moved = ticks, stage, time.monotonic()
        if slot.since is None:
            slot.since = slot.moved = time.monotonic()

    def _on_ran(self, slot: Slot, answer: Answer) -> None:
        job, slot.job = slot.job, None
        assert job is not None
        if slot.since is not None:
            self.crew.pace.done(job.cost, time.monotonic() - slot.since)
        self.crew.idle(slot)
        slot.dirty = True
        slot.pending[job.id] = job
        self.judge.succeeded(slot, job)
        self.events.on_result(job, answer.result)
        self._refuse(slot, answer)
        self._commit(slot, answer.committed)
        slot.dirty = bool(slot.pending) or not answer.committed

    def _on_raised(self, slot: Slot, info: ErrorInfo) -> None:
        where = f"worker {slot.index}" + (f", job {slot.job.id}" if slot.job else "")
        error = info.to_error(where)
        if isinstance(error, ResultsError):
            self._on_results_error(slot, error)
        elif slot.state is State.CLOSING:
            logger.warning("worker %d did not close cleanly: %s", slot.index, info.message)
            self.crew.rest(slot)
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
        self.crew.idle(slot)
        if self.ending is None:
            if info.scope == "node":
                self.events.on_trouble(slot.index, slot.node, str(error))
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
            self.crew.flush(slot, doomed=str(error))
        else:
            self._end_process(slot)

    def _end_process(self, slot: Slot) -> None:
        """Ends a process that is not to be trusted; nothing of it is lost."""
        self.transport.kill(slot.index)
        self.crew.report(slot, "lost")
        slot.state = State.DOWN
        slot.forget_process()
        if self.ending is not None:
            self.crew.report(slot, "stopped")
        else:
            self._count_restarts(slot)

    def _on_results_error(self, slot: Slot, error: ResultsError) -> None:
        """Nobody can write there: no unit's fault, and no use in computing more."""
        self.results_error = self.results_error or error
        self.ending = "stopped"
        self.stop_by = time.monotonic() + self.limits.close_deadline_s
        self.crew.rest(slot)

    def _commit(self, slot: Slot, job_ids: tuple[str, ...]) -> None:
        for job_id in job_ids:
            job = slot.pending.pop(job_id, None)
            if job is not None:
                self.judge.committed(job)
                self.events.on_committed(job)

    def _refuse(self, slot: Slot, answer: Answer) -> None:
        """Jobs that were run, and whose results are not to be kept."""
        for job_id, info in answer.refused:
            job = slot.pending.pop(job_id, None)
            if job is not None:
                error = info.to_error(f"worker {slot.index}, job {job_id}")
                self.judge.failed(slot, job, Failure(error, info.scope, of_group=True, alive=True))

    # When a worker must go

    def _on_fatal(self, slot: Slot, error: EvalcoreError, *, machine: bool = False) -> None:
        """The worker is gone or not to be trusted: kills it, and sees to its jobs.

        That all of its machine is gone says nothing of them.
        """
        self.last_error = error
        self.transport.kill(slot.index)
        self.crew.report(slot, "lost")
        state, job, pending = slot.state, slot.job, list(slot.pending.values())
        if self.ending is None:
            self.events.on_trouble(slot.index, slot.node, str(error))
        slot.forget_process()
        slot.lost_process(machine=machine)
        if self.ending is not None:  # not restarted; what was not committed is for the next run
            self.crew.report(slot, "stopped")
            return
        if state in (State.RUNNING, State.PREPARING) and job is not None and not machine:
            failure = Failure(error, of_group=state is State.PREPARING)
            self.judge.failed(slot, job, failure)
        elif job is not None:
            self.judge.returned(job)
        if state is State.FLUSHING and not machine:  # any of those in the buffer may be it
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

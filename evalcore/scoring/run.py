"""The loop over the cluster: planned units out, committed rows and a summary back."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from evalcore.cluster import Job, JobPool, Stop, WorkerState
from evalcore.engines.protocol import EngineSpec
from evalcore.errors import EvalcoreError, WitnessError
from evalcore.machine import busy_threads
from evalcore.planning import Unit
from evalcore.scoring.certificates.judging import Rescored, judge
from evalcore.scoring.feed import Feed, Progress
from evalcore.scoring.reports import FlushReport, RunSummary, UnitReport
from evalcore.scoring.watch import Watch
from evalcore.scoring.worker import WorkerConfig
from evalcore.shown import one_line

log = logging.getLogger("evalcore")

FACTORY = "evalcore.scoring.worker:ScoringWorker"


class _Book:
    """Keeps the summary of a run from what the pool says."""

    def __init__(self, summary: RunSummary, progress: Progress, watch: Watch) -> None:
        self.summary, self._progress, self._watch = summary, progress, watch
        self.twice: list[Rescored] = []
        self._reports: dict[str, UnitReport] = {}  # of units scored and not yet committed
        self._told: set[tuple[str, str]] = set()

    def on_result(self, job: Job, report: UnitReport) -> None:
        self._reports[job.id] = report
        self.summary.spent(report)
        self._progress.unit(job.payload.unit.label, report)
        self._watch.scored(job, report)

    def on_committed(self, job: Job) -> None:
        report = self._reports.pop(job.id)
        self.summary.committed(report)
        if report.rescored is not None:
            self.twice.append(report.rescored)
        self._progress.committed(report)
        self._watch.committed(job, report)

    def on_failure(self, job: Job, error: EvalcoreError) -> None:
        unit: Unit = job.payload.unit
        self._reports.pop(job.id, None)
        message = str(error)
        if isinstance(error, WitnessError) and len(unit.members) == 1:
            self.summary.disagreed[unit.subjects[unit.members[0]].weights] = message
        self.summary.failed_examples += unit.num_examples
        for part in unit.slices:
            self.summary.failed_cells[part.cell_key] = message
        if (unit.label, message) not in self._told:
            self._told.add((unit.label, message))
            self._progress.failure(unit.label, message)
        self._watch.failure(job, error)

    def on_flush(self, index: int, report: FlushReport) -> None:
        self.summary.worker_s += report.wall_s
        self.summary.witnessed = self.summary.witnessed.plus(report.witnessed)

    def on_worker(self, index: int, state: WorkerState) -> None:
        self.summary.restarts += state == "restarted"
        self._progress.worker(index, state)
        self._watch.worker(index, state)

    def on_trouble(self, index: int, node: str, what: str) -> None:
        told = f"{_where(index, node)}: {one_line(what)}"
        self.summary.met[told] = self.summary.met.get(told, 0) + 1

    def on_given_up(self, index: int, node: str, why: str) -> None:
        where = _where(index, node)
        self.summary.given_up[where] = why
        self._watch.given_up(index, node, why)


def warm_workers(spec: EngineSpec, **pool_options: Any) -> JobPool:
    """A pool whose processes start now, for :func:`score_units`; whoever calls this closes it.

    Args:
        spec: See :func:`evalcore.engines.registry.warm_up`.
        pool_options: For :class:`evalcore.cluster.JobPool`.
    """
    pool = JobPool(FACTORY, **pool_options)
    try:
        pool.warm("evalcore.scoring.worker:warm_up", spec, busy_threads())
    except BaseException:
        pool.close()
        raise
    return pool


def _where(index: int, node: str) -> str:
    return f"worker {index}" + (f" on {node}" if node else "")


def score_units(
    feed: Feed,
    config: WorkerConfig,
    progress: Progress,
    should_stop: Callable[[], Stop | bool],
    *,
    apart: WorkerConfig | None = None,
    time_left_s: Callable[[], float | None] | None = None,
    summary: RunSummary | None = None,
    watch: Watch | None = None,
    warm: JobPool | None = None,
    **pool_options: Any,
) -> RunSummary:
    """Scores every unit of a plan on a pool of workers.

    Whatever ends the run, what was done is in the summary: an error that left nobody to go on is
    its ``error``.

    Args:
        feed: Units in order, of which more may come meanwhile.
        config: How each worker builds its engine and where it writes.
        progress: Told of every unit, worker and failure.
        should_stop: Polled; ends the run after the units at hand are committed.
        apart: How workers of the feed's second kind build their engine.
        time_left_s: How long units may still take, if that is known.
        summary: Is filled, and given back: whoever has it has it too where something unexpected
            is raised.
        watch: Told of all of it, for whoever looks from outside.
        warm: Processes that wait already, for workers as ``config`` says.
        pool_options: For :class:`evalcore.cluster.JobPool` (workers, backend, env ...).
    """
    summary = RunSummary() if summary is None else summary
    watch = watch or Watch()
    book = _Book(summary, progress, watch)
    begin = time.perf_counter()
    announced = _announced(should_stop, watch)
    try:
        for own, source in zip((config, apart), feed.sources, strict=True):
            if own is None:
                continue
            pool, warm = warm or JobPool(FACTORY, **pool_options), None
            pool.configure(own)
            outcome = pool.run(
                source,
                on_result=book.on_result,
                on_failure=book.on_failure,
                on_committed=book.on_committed,
                on_worker=book.on_worker,
                on_flush=book.on_flush,
                on_given_up=book.on_given_up,
                on_trouble=book.on_trouble,
                on_begun=watch.begun,
                should_stop=announced,
                time_left_s=time_left_s,
            )
            if outcome == "stopped":
                summary.stopped = "asked to stop"
                break
    except EvalcoreError as error:
        summary.error = error
    finally:
        summary.wall_s = time.perf_counter() - begin
    if feed.certify:
        rescored = Rescored.together(book.twice)
        summary.certificate = judge(rescored, config.spec.dtype, feed.strata)
    return summary


def _announced(should_stop: Callable[[], Stop | bool], watch: Watch) -> Callable[[], Stop | bool]:
    """The same, told once when it says so."""
    told = False

    def asked() -> Stop | bool:
        nonlocal told
        level = should_stop()
        if level and not told:
            told = True
            watch.stop(getattr(should_stop, "reason", None) or "asked to stop")
        return level

    return asked

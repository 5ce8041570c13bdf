"""The loop over the cluster: planned units out, committed rows and a summary back."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from evalcore.cluster import Job, JobPool, Stop, WorkerState
from evalcore.engines.certify import Rescored, judge
from evalcore.planning import Plan, PlanCounts, Unit, WorkQueue
from evalcore.scoring.certifying import choose_sample
from evalcore.scoring.reports import FlushReport, RunSummary, UnitReport
from evalcore.scoring.worker import CellWork, UnitJob, WorkerConfig


class Progress(Protocol):
    """What a run tells while it works; every method may do nothing."""

    def begin(self, counts: PlanCounts, limits: Mapping[str, int]) -> None: ...

    def worker(self, index: int, state: str) -> None: ...

    def unit(self, label: str, report: UnitReport) -> None:
        """A unit was scored and has cost this; its rows may still be lost."""

    def committed(self, report: UnitReport) -> None:
        """The unit's rows are on disk; called once for each unit."""

    def failure(self, label: str, message: str) -> None: ...


log = logging.getLogger("evalcore")


class _UnitSource:
    """Feeds the pool from the work queue."""

    def __init__(
        self, plan: Plan, cells: Mapping[str, CellWork], sample: Mapping[str, np.ndarray]
    ) -> None:
        self._queue, self._cells, self._sample = WorkQueue(plan), cells, sample
        self._apart: list[Unit] = []

    def next(self, worker_index: int) -> Job | None:
        unit = self._apart.pop(0) if self._apart else self._queue.next(worker_index)
        if unit is None:
            return None
        keys = {part.cell_key for part in unit.slices}
        needed = {key: self._cells[key] for key in keys}
        sample = {key: self._sample[key] for key in keys if key in self._sample}
        return Job(unit.id, UnitJob(unit, needed, sample))

    def take_apart(self, unit: Unit) -> bool:
        """Has the subjects of a failed unit tried one by one; False if there was only one."""
        if len(unit.members) < 2:
            return False
        self._apart += unit.apart()
        return True


def score_units(
    plan: Plan,
    cells: Mapping[str, CellWork],
    config: WorkerConfig,
    progress: Progress,
    should_stop: Callable[[], Stop | bool],
    *,
    certify: float = 0.0,
    limits: Mapping[str, int] | None = None,
    **pool_options: Any,
) -> RunSummary:
    """Scores every unit of a plan on a pool of workers.

    Args:
        plan: Units in order.
        cells: What each cell asks for, by key.
        config: How each worker builds its engine and where it writes.
        progress: Told of every unit, worker and failure.
        should_stop: Polled; ends the run after the units at hand are committed.
        certify: Share of the examples that is scored a second time (see ``certifying``).
        limits: Least work of the plan, for what progress tells.
        pool_options: For :class:`evalcore.cluster.JobPool` (workers, backend, env ...).
    """
    summary = RunSummary(planned=plan.counts.examples_planned, covered=plan.counts.examples_covered)
    progress.begin(plan.counts, limits or {})
    if not plan.units:
        return summary
    sample = choose_sample(plan, certify) if certify else {}
    source = _UnitSource(plan, cells, sample)
    reports: dict[str, UnitReport] = {}  # of units that are scored and not yet committed
    twice: list[Rescored] = []

    def on_result(job: Job, report: UnitReport) -> None:
        reports[job.id] = report
        summary.spent(report)
        progress.unit(job.payload.unit.label, report)

    def on_committed(job: Job) -> None:
        report = reports.pop(job.id)
        summary.committed(report)
        if report.rescored is not None:
            twice.append(report.rescored)
        progress.committed(report)

    def on_failure(job: Job, error: Exception) -> None:
        unit = job.payload.unit
        reports.pop(job.id, None)
        if source.take_apart(unit):
            log.warning("%s: %s; each goes on alone", unit.label, error)
            return
        for part in unit.slices:
            summary.failed_cells[part.cell_key] = str(error)
        progress.failure(unit.subject.label, str(error))

    def on_flush(index: int, report: FlushReport) -> None:
        summary.worker_s += report.wall_s

    def on_worker(index: int, state: WorkerState) -> None:
        summary.restarts += state == "restarted"
        progress.worker(index, state)

    begin = time.perf_counter()
    pool = JobPool("evalcore.scoring.worker:ScoringWorker", config, **pool_options)
    outcome = pool.run(
        source,
        on_result=on_result,
        on_failure=on_failure,
        on_committed=on_committed,
        on_worker=on_worker,
        on_flush=on_flush,
        should_stop=should_stop,
    )
    summary.wall_s = time.perf_counter() - begin
    if certify:
        summary.certificate = judge(Rescored.together(twice), config.spec.dtype)
    if outcome == "stopped":
        summary.stopped = "asked to stop"
    return summary

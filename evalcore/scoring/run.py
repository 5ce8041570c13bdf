"""The loop over the cluster: planned units out, committed rows and a summary back."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from evalcore.cluster import Job, JobPool, Stop, WorkerState
from evalcore.planning import Plan, Unit, WorkQueue
from evalcore.scoring.worker import CellWork, UnitJob, UnitReport, WorkerConfig

_SUMMED = (
    "computed_tokens", "cached_tokens", "new_tokens", "fallbacks",
    "start_s", "swap_s", "proof_s", "engine_s", "idle_s",
)  # fmt: skip


class Progress(Protocol):
    """What a run tells while it works; every method may do nothing."""

    def begin(self, planned: int, covered: int) -> None: ...

    def worker(self, index: int, state: str) -> None: ...

    def unit(self, label: str, report: UnitReport) -> None: ...

    def failure(self, label: str, message: str) -> None: ...


@dataclass
class RunSummary:
    """What a run did.

    Attributes:
        planned, covered: Examples to score, and examples that were there already.
        examples, choices: Rows committed, and the continuations in them.
        failed_cells: Cell key -> one line why.
        stopped: Reason if it was asked to stop before the end.
        wall_s: From the first worker asked for to the last commit.
    """

    planned: int = 0
    covered: int = 0
    units: int = 0
    examples: int = 0
    choices: int = 0
    computed_tokens: int = 0
    cached_tokens: int = 0
    new_tokens: int = 0
    fallbacks: int = 0
    start_s: float = 0.0
    swap_s: float = 0.0
    proof_s: float = 0.0
    engine_s: float = 0.0
    idle_s: float = 0.0
    wall_s: float = 0.0
    loads: dict[str, int] = field(default_factory=dict)
    restarts: int = 0
    stopped: str | None = None
    failed_cells: dict[str, str] = field(default_factory=dict)

    def spent(self, report: UnitReport) -> None:
        """Counts what a unit cost; a unit done again after a crash costs again."""
        for name in _SUMMED:
            setattr(self, name, getattr(self, name) + getattr(report, name))
        self.loads[report.load] = self.loads.get(report.load, 0) + 1

    def committed(self, report: UnitReport) -> None:
        """Counts what a unit brought, once its rows are on disk."""
        self.units += 1
        self.examples += report.examples
        self.choices += report.choices

    def as_record(self) -> dict[str, Any]:
        """Plain values for the run record."""
        return asdict(self)


class _UnitSource:
    """Feeds the pool from the work queue."""

    def __init__(self, plan: Plan, cells: Mapping[str, CellWork]) -> None:
        self._queue, self._cells = WorkQueue(plan), cells
        self.units: dict[str, Unit] = {}

    def next(self, worker_index: int) -> Job | None:
        unit = self._queue.next(worker_index)
        if unit is None:
            return None
        self.units[unit.id] = unit
        needed = {s.cell_key: self._cells[s.cell_key] for s in unit.slices}
        return Job(unit.id, UnitJob(unit, needed))


def score_units(
    plan: Plan,
    cells: Mapping[str, CellWork],
    config: WorkerConfig,
    progress: Progress,
    should_stop: Callable[[], Stop | bool],
    **pool_options: Any,
) -> RunSummary:
    """Scores every unit of a plan on a pool of workers.

    Args:
        plan: Units in order.
        cells: What each cell asks for, by key.
        config: How each worker builds its engine and where it writes.
        progress: Told of every unit, worker and failure.
        should_stop: Polled; ends the run after the units at hand are committed.
        pool_options: For :class:`evalcore.cluster.JobPool` (workers, backend, env ...).
    """
    summary = RunSummary(planned=plan.counts.examples_planned, covered=plan.counts.examples_covered)
    progress.begin(plan.counts.examples_planned, plan.counts.examples_covered)
    if not plan.units:
        return summary
    source, reports = _UnitSource(plan, cells), dict[str, UnitReport]()

    def on_result(job: Job, report: UnitReport) -> None:
        reports[job.id] = report
        summary.spent(report)
        progress.unit(job.payload.unit.subject.label, report)

    def on_committed(job: Job) -> None:
        summary.committed(reports[job.id])

    def on_failure(job: Job, error: Exception) -> None:
        unit = job.payload.unit
        for part in unit.slices:
            summary.failed_cells[part.cell_key] = str(error)
        progress.failure(unit.subject.label, str(error))

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
        should_stop=should_stop,
    )
    summary.wall_s = time.perf_counter() - begin
    if outcome == "stopped":
        summary.stopped = "asked to stop"
    return summary

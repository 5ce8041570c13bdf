"""Trains the jobs of a plan on a pool of worker processes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from evalcore.cluster import Job, JobPool, Stop
from evalcore.errors import EvalcoreError
from finetune.plan import TuneJob
from finetune.train import TuneConfig, TuneResult


@dataclass(frozen=True, slots=True)
class TuneFailure:
    """A job that gave no adapter.

    Attributes:
        job_id: Which.
        error: The typed error; its text is one line for a person.
    """

    job_id: str
    error: EvalcoreError


@dataclass(frozen=True, slots=True)
class TuneEvent:
    """News of a run: one job is over.

    Attributes:
        done: Jobs over so far, failed ones included.
        total: Jobs of the run.
        elapsed_s: Seconds since the run began.
        result: What was trained, or
        failure: why not.
    """

    done: int
    total: int
    elapsed_s: float
    result: TuneResult | None = None
    failure: TuneFailure | None = None

    @property
    def remaining_s(self) -> float:
        """Estimate from the rate so far."""
        return self.elapsed_s / self.done * (self.total - self.done)


@dataclass(frozen=True, slots=True)
class TuneSummary:
    """What a run did.

    Attributes:
        results: Adapters trained, in the order they were finished.
        failures: Jobs without an adapter.
        stopped: Whether the run was asked to stop before its end.
        wall_s: Seconds of the run.
        tokens: Tokens trained on, padding left out.
    """

    results: tuple[TuneResult, ...]
    failures: tuple[TuneFailure, ...]
    stopped: bool
    wall_s: float
    tokens: int

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.wall_s if self.wall_s > 0 else 0.0

    @property
    def untrained(self) -> tuple[TuneResult, ...]:
        """Adapters whose every delta is zero."""
        return tuple(result for result in self.results if result.untrained)


class AffinitySource:
    """Jobs queued by checkpoint, so that a worker reads a base once.

    A worker goes on with the checkpoint it holds; then it takes a checkpoint nobody holds, else it
    helps with the one that has most jobs left.
    """

    def __init__(self, jobs: Sequence[TuneJob]) -> None:
        self._queues: dict[str, list[TuneJob]] = {}
        for job in jobs:
            self._queues.setdefault(job.checkpoint.path, []).append(job)
        self._held: dict[int, str] = {}

    def next(self, worker_index: int) -> Job | None:
        left = {key: queue for key, queue in self._queues.items() if queue}
        if not left:
            return None
        key = self._held.get(worker_index)
        if key not in left:
            holders = Counter(k for w, k in self._held.items() if w != worker_index)
            # First the checkpoints with fewest holders, of those the one with most jobs left.
            key = min(left, key=lambda k: (holders[k], -len(left[k])))
            self._held[worker_index] = key
        job = left[key].pop(0)
        return Job(job.id, job)


def tune(
    jobs: Sequence[TuneJob],
    *,
    workers: int = 1,
    backend: Literal["local", "ray"] = "local",
    threads: int = 0,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    on_event: Callable[[TuneEvent], None] | None = None,
    should_stop: Callable[[], Stop | bool] | None = None,
    ray_options: Mapping[str, Any] | None = None,
    log_dir: str | Path | None = None,
    deadline_s: float | None = None,
) -> TuneSummary:
    """Trains adapters; one bad job does not stop the others.

    Args:
        jobs: From :func:`finetune.plan_jobs`.
        workers: Worker processes (a GPU each, where there are GPUs).
        backend: Child processes of this one, or Ray actors.
        threads: CPU threads of each worker; 0 leaves the choice to torch.
        device: ``auto`` takes a GPU if there is one.
        on_event: Told of each job that is over.
        should_stop: Polled; true lets running jobs end.
        ray_options: Address and resources of a Ray actor (see :class:`evalcore.cluster.JobPool`).
        log_dir: Folder for the workers' output.
        deadline_s: Longest a single job may take.

    Raises:
        WorkerLostError: If workers die more often than allowed, with jobs left.
    """
    start = time.perf_counter()
    results: list[TuneResult] = []
    failures: list[TuneFailure] = []

    def tell(result: TuneResult | None, failure: TuneFailure | None) -> None:
        if on_event is not None:
            elapsed_s = time.perf_counter() - start
            done = len(results) + len(failures)
            on_event(TuneEvent(done, len(jobs), elapsed_s, result, failure))

    def on_result(job: Job, result: TuneResult) -> None:
        results.append(result)
        tell(result, None)

    def on_failure(job: Job, error: EvalcoreError) -> None:
        failures.append(TuneFailure(job.id, error))
        tell(None, failures[-1])

    outcome = "done"
    if jobs:
        pool = JobPool(
            "finetune.train:TuneWorker",
            TuneConfig(threads=threads, device=device),
            workers=min(workers, len(jobs)),
            backend=backend,
            env=_worker_env(threads),
            deadline_s=deadline_s,
            log_dir=log_dir,
            ray_options=ray_options,
        )
        outcome = pool.run(AffinitySource(jobs), on_result, on_failure, should_stop)
    return TuneSummary(
        results=tuple(results),
        failures=tuple(failures),
        stopped=outcome == "stopped",
        wall_s=time.perf_counter() - start,
        tokens=sum(result.tokens for result in results),
    )


def _worker_env(threads: int) -> dict[str, str | None]:
    # Threads that spin while they wait make a busy machine slower by an order of magnitude.
    env: dict[str, str | None] = {"TOKENIZERS_PARALLELISM": "false", "OMP_WAIT_POLICY": "PASSIVE"}
    if threads:
        env["OMP_NUM_THREADS"] = str(threads)
    return env

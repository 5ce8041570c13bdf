"""Trains the jobs of a plan on a pool of worker processes."""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from evalcore.cluster import Job, JobPool, Stop
from evalcore.errors import EvalcoreError, InputError
from finetune.jobs import TuneJob
from finetune.results import TuneConfig, TuneResult


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

    growing = False

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

    def ahead(self, worker_index: int) -> None:
        """Nothing: a training job reads what it needs itself."""

    def narrow(self, job: Job, *, by_size: bool = False) -> list[Job]:
        """Nothing: a training job is done as a whole."""
        return []


@dataclass(frozen=True, slots=True)
class Devices:
    """Where jobs run.

    Attributes:
        kind: ``auto`` takes a GPU if there is one.
        gpus: GPUs the local workers share, by the names CUDA knows them by; empty on a CPU.
        jobs_per_gpu: Jobs that share a GPU; a job on several GPUs shares none.
        ray_gpus: Share of a GPU that a Ray worker asks for where its jobs take one; 0 on a CPU.
    """

    kind: Literal["auto", "cpu", "cuda"] = "auto"
    gpus: tuple[str, ...] = ()
    jobs_per_gpu: int = 1
    ray_gpus: float = 0.0

    def places(self, devices: int) -> list[str]:
        """CUDA_VISIBLE_DEVICES of each worker whose jobs take so many GPUs; empty without GPUs.

        Raises:
            InputError: If a job wants more GPUs than there are.
        """
        if not self.gpus:
            return []
        if devices > len(self.gpus):
            raise InputError(
                f"method.devices is {devices}, but there are {len(self.gpus)} GPUs here"
            )
        groups = [
            ",".join(self.gpus[i : i + devices])
            for i in range(0, len(self.gpus) - devices + 1, devices)
        ]
        return groups * (self.jobs_per_gpu if devices == 1 else 1)

    def ray_share(self, devices: int) -> float:
        """GPUs a Ray worker asks for, whose jobs take so many."""
        return float(devices) if self.ray_gpus and devices > 1 else self.ray_gpus


def tune(
    jobs: Sequence[TuneJob],
    *,
    workers: int = 1,
    backend: Literal["local", "ray"] = "local",
    threads: int = 0,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    devices: Devices | None = None,
    on_event: Callable[[TuneEvent], None] | None = None,
    should_stop: Callable[[], Stop | bool] | None = None,
    ray_options: Mapping[str, Any] | None = None,
    log_dir: str | Path | None = None,
    deadline_s: float | None = None,
) -> TuneSummary:
    """Trains what is missing; one bad job does not stop the others.

    Jobs that want several GPUs run after those that want one: their workers hold other devices.

    Args:
        jobs: From :func:`finetune.plan_jobs`.
        workers: Worker processes at most; with local GPUs, one per place of ``devices`` at most.
        backend: Child processes of this one, or Ray actors.
        threads: CPU threads of each worker; 0 leaves the choice to torch.
        device: ``auto`` takes a GPU if there is one (short for ``Devices(kind=device)``).
        devices: GPUs to use and how they are shared.
        on_event: Told of each job that is over.
        should_stop: Polled; true lets running jobs end.
        ray_options: Address and resources of a Ray actor (see :class:`evalcore.cluster.JobPool`).
        log_dir: Folder for the workers' output.
        deadline_s: Longest a single job may take.

    Raises:
        InputError: If a job wants more GPUs than there are.
        WorkerLostError: If workers die more often than allowed, with jobs left.
    """
    start = time.perf_counter()
    where = devices or Devices(kind=device)
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

    stopped = False
    for wanted in sorted({job.method.devices for job in jobs}):
        group = [job for job in jobs if job.method.devices == wanted]
        places = where.places(wanted) if backend == "local" else []
        # On Ray a worker of several GPUs takes the place of as many workers of one.
        most = len(places) or (workers // wanted if backend == "ray" else workers)
        pool = JobPool(
            "finetune.train:TuneWorker",
            TuneConfig(threads=threads, device=where.kind),
            workers=max(1, min(workers, len(group), most)),
            backend=backend,
            env=functools.partial(_worker_env, threads, tuple(places)),
            deadline_s=deadline_s,
            log_dir=log_dir,
            ray_options=_with_gpus(ray_options, where.ray_share(wanted)),
        )
        stopped = pool.run(AffinitySource(group), on_result, on_failure, should_stop) == "stopped"
        if stopped:
            break
    return TuneSummary(
        results=tuple(results),
        failures=tuple(failures),
        stopped=stopped,
        wall_s=time.perf_counter() - start,
        tokens=sum(result.tokens for result in results),
    )


def _worker_env(threads: int, places: tuple[str, ...], worker: int) -> dict[str, str | None]:
    # Threads that spin while they wait make a busy machine slower by an order of magnitude.
    env: dict[str, str | None] = {"TOKENIZERS_PARALLELISM": "false", "OMP_WAIT_POLICY": "PASSIVE"}
    if threads:
        env["OMP_NUM_THREADS"] = str(threads)
    if places:
        env["CUDA_VISIBLE_DEVICES"] = places[worker]
    return env


def _with_gpus(options: Mapping[str, Any] | None, gpus: float) -> dict[str, Any]:
    return {**(options or {}), **({"num_gpus": gpus} if gpus else {})}

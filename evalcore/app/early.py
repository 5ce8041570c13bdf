"""Engines start beside the preparation: processes, imports, places on a cluster.

What a worker needs to import takes as long as a small run's whole preparation, and hangs on nothing
but the engine's kind and device. What it needs to start its engine it is told with the first unit.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Self

from evalcore.app.engines import likely_kind
from evalcore.app.place import Place
from evalcore.cluster import JobPool, Patience
from evalcore.config import ScoreConfig
from evalcore.engines.protocol import EngineSpec
from evalcore.scoring import warm_workers
from evalcore.store import ResultStore
from evalcore.store.cells import not_writable


class EarlyWorkers:
    """Worker processes that wait for the plan; a context manager, at whose end none is left."""

    def __init__(self, config: ScoreConfig, run_name: str) -> None:
        self._config, self._name = config, run_name
        self._pool: JobPool | None = None
        self._kind = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def begin(self, place: Place, store: ResultStore) -> None:
        """Starts them, unless the last run into this folder left nothing to do.

        Raises:
            InputError: The cluster has no room for them.
        """
        if self._config.run.dry_run or not may_have_work(store):
            return
        self._kind = likely_kind(self._config)
        spec = EngineSpec.of(
            self._config.engine,
            kind=self._kind,
            dtype=self._config.engine.dtype_on(place.device),
            device=place.device,
            threads=place.threads,
            tensor_parallel=self._config.cluster.tensor_parallel,
        )
        self._pool = warm_workers(spec, **pool_options(self._config, place, self._name))

    def take(self, spec: EngineSpec) -> JobPool | None:
        """The waiting processes, if what they imported is what the engine needs.

        Engines of two kinds do not go together in a process: what one patches spoils the other.
        """
        if spec.kind != self._kind:
            self._close()
        pool, self._pool = self._pool, None
        return pool

    def _close(self) -> None:
        if self._pool is not None:
            self._pool.close()
            self._pool = None


def may_have_work(store: ResultStore) -> bool:
    """Whether the last run into a folder left something to do; a new folder has everything."""
    runs = store.runs.list()
    if not runs:
        return True
    last = runs[-1].get("summary", {})
    stopped = bool(last.get("stopped") or last.get("error"))
    return stopped or last.get("examples", 0) < last.get("planned", 0)


def pool_options(config: ScoreConfig, place: Place, run_name: str) -> dict[str, Any]:
    """How a run's pool is made (see :class:`evalcore.cluster.JobPool`).

    Raises:
        ResultsError: Its logs cannot be written.
    """
    logs = config.run.output / "logs" / run_name
    try:
        logs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise not_writable(config.run.output, error) from error
    gpus = place.gpus if config.cluster.backend == "local" else ()  # Ray gives its actors their own
    return {
        "workers": place.workers,
        "backend": config.cluster.backend,
        "patience": Patience(),
        "env": partial(worker_env, place.threads, config.cluster.tensor_parallel, gpus),
        "log_dir": logs,
        "ray_options": {**place.ray_options, "address": config.cluster.ray_address},
    }


def worker_env(
    threads: int, tensor_parallel: int, gpus: tuple[str, ...], worker: int
) -> dict[str, str | None]:
    """Environment of one worker: its threads, and its own GPUs where there are any."""
    env: dict[str, str | None] = {
        "OMP_NUM_THREADS": str(threads or 1),
        "TOKENIZERS_PARALLELISM": "false",
    }
    if gpus:
        first = worker * tensor_parallel
        env["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[first : first + tensor_parallel])
    return env

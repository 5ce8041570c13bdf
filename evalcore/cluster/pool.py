"""The job pool's front: what a user of it configures and calls."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from evalcore.cluster.crew import PoolEvents, RunLimits
from evalcore.cluster.loop import PoolRun
from evalcore.cluster.patience import Patience
from evalcore.cluster.protocol import (
    Command,
    EnvOption,
    Job,
    JobSource,
    Outcome,
    Stop,
    Transport,
    WorkerState,
)
from evalcore.errors import EvalcoreError, InputError


class JobPool:
    """Runs jobs on worker processes.

    Args:
        factory: ``package.module:callable``; called as ``factory(config, worker_index)`` inside
            each worker process, gives the worker object (see :class:`~.protocol.Worker`).
        config: Any picklable value whose class the worker can import.
        workers: Number of worker processes. A process is started only for a job, or by
            :meth:`warm`.
        backend: ``local`` child processes, or ``ray`` actors.
        env: Environment variables of the workers, set before their interpreters start (None:
            unset): one mapping, or a function from worker index to one.
        max_restarts: Restarts of one worker with no job finished in between; then it is given up.
        deadline_s: Longest ``run`` (and ``flush``), whatever progress it shows; then the worker is
            killed. None: no limit.
        patience: How long a worker may show no progress (see :mod:`evalcore.cluster.pulse`) before
            it is killed. None: for ever.
        startup_deadline_s: Longest time from starting a process to its factory's return; an actor
            that waits for a place in a cluster is not starting yet.
        close_deadline_s: Longest ``close``.
        max_given_up: As ``max_restarts``, for the last worker there is.
        log_dir: Folder for ``worker-<i>.log``, the workers' output.
        ray_options: For ``ray``: ``address``, and ``num_cpus``, ``num_gpus``, ``resources`` of one
            worker.
    """

    def __init__(
        self,
        factory: str,
        config: Any = None,
        *,
        workers: int = 1,
        backend: Literal["local", "ray"] = "local",
        env: EnvOption = None,
        max_restarts: int = 3,
        deadline_s: float | None = None,
        startup_deadline_s: float = 1200.0,
        close_deadline_s: float = 60.0,
        max_given_up: int = 20,
        patience: Patience | None = None,
        log_dir: str | Path | None = None,
        ray_options: Mapping[str, Any] | None = None,
    ) -> None:
        if workers < 1:
            raise InputError(f"number of workers is {workers}; expected at least 1")
        if backend not in ("local", "ray"):
            raise InputError(f"unknown backend {backend!r}; expected local or ray")
        self.factory = factory
        self.configure(config)
        self.workers = workers
        self.backend = backend
        self.env = env
        self.limits = RunLimits(
            max_restarts,
            deadline_s,
            startup_deadline_s,
            close_deadline_s,
            max_given_up,
            patience,
        )
        self.log_dir = None if log_dir is None else Path(log_dir).resolve()
        self.ray_options = dict(ray_options or {})
        self._warm: Transport | None = None

    def configure(self, config: Any) -> None:
        """Takes the workers' configuration, where it was not known when the pool was made."""
        self.config_blob = pickle.dumps(config, protocol=pickle.HIGHEST_PROTOCOL)

    def warm(self, function: str, *given: Any) -> None:
        """Starts all processes, before :meth:`run` has anything for them.

        Whoever calls this calls :meth:`close` too, whatever happens in between.

        Args:
            function: ``package.module:callable`` that each of them calls, for what takes long to
                import; what it raises is left to the factory to run into.
            given: Its arguments.

        Raises:
            InputError: The cluster has no room for them.
        """
        self._warm = self._transport()
        order = pickle.dumps(Command("warm", body=(function, given)), pickle.HIGHEST_PROTOCOL)
        for index in range(self.workers):
            self._warm.start(index, order)

    def close(self) -> None:
        """Ends processes that wait; may be called twice, and when there are none."""
        if self._warm is not None:
            self._warm.close()
            self._warm = None

    def run(
        self,
        source: JobSource,
        on_result: Callable[[Job, Any], None] | None = None,
        on_failure: Callable[[Job, EvalcoreError], None] | None = None,
        should_stop: Callable[[], Stop | bool] | None = None,
        *,
        on_committed: Callable[[Job], None] | None = None,
        on_worker: Callable[[int, WorkerState], None] | None = None,
        on_flush: Callable[[int, Any], None] | None = None,
        on_given_up: Callable[[int, str, str], None] | None = None,
        on_trouble: Callable[[int, str, str], None] | None = None,
        on_begun: Callable[[int, str, Job], None] | None = None,
        time_left_s: Callable[[], float | None] | None = None,
    ) -> Outcome:
        """Runs the source's jobs; returns when all are done or stopping was asked for.

        ``should_stop`` is polled: true (or :attr:`Stop.SOON`) lets running jobs end, flushes and
        closes the workers; :attr:`Stop.NOW` kills them. ``time_left_s`` says how long jobs may
        still take, if that is known: none is begun that would take longer by what was measured.
        See :class:`PoolEvents` for the callbacks.

        Returns:
            ``done`` (every job committed or failed) or ``stopped``.

        Raises:
            EvalcoreError: no worker could be started; the last worker's own typed error.
            ResultsError: a worker could not write its results; nothing else was waited for.
            WorkerLostError: all workers are given up, with jobs left.
        """
        given = {
            "on_result": on_result,
            "on_failure": on_failure,
            "on_committed": on_committed,
            "on_worker": on_worker,
            "on_flush": on_flush,
            "on_given_up": on_given_up,
            "on_trouble": on_trouble,
            "on_begun": on_begun,
        }
        events = PoolEvents(**{k: v for k, v in given.items() if v is not None})  # type: ignore[arg-type]
        warm, self._warm = self._warm, None
        transport = warm or self._transport()
        try:
            run = PoolRun(
                self.workers,
                self._start_blob,
                transport,
                source,
                events,
                self.limits,
                time_left_s or (lambda: None),
                warm is not None,
            )
            return run.loop(should_stop or (lambda: Stop.NO))
        finally:
            transport.close()

    def _start_blob(self, worker_index: int) -> bytes:
        body = (self.factory, self.config_blob, worker_index)
        return pickle.dumps(Command("start", body=body), protocol=pickle.HIGHEST_PROTOCOL)

    def _transport(self) -> Transport:
        if self.backend == "ray":
            from evalcore.cluster.ray_pool import RayTransport

            return RayTransport(self.workers, self.env, self.log_dir, self.ray_options)
        from evalcore.cluster.local import LocalTransport

        return LocalTransport(self.env, self.log_dir)

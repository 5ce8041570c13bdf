"""Workers as Ray actors, on one machine or a cluster.

One actor is one process of the same :class:`WorkerRunner` a local child runs. Ray restarts nothing
by itself (``max_restarts=0``): the pool's loop makes a new actor, so both backends have the same
bounds and the same treatment of lost jobs. The driver never touches an accelerator, and there are
no placement groups: an engine with several GPUs takes them from its own actor.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evalcore.cluster import pulse
from evalcore.cluster.local import read_tail, worker_path
from evalcore.cluster.protocol import EnvOption, Lost, env_for
from evalcore.cluster.ray_session import (
    address_of,
    forwarded,
    handlers_kept,
    initialise,
    is_connected,
    ray_nodes,
    require_room,
)
from evalcore.cluster.runner import WorkerRunner, leave_signals_to_driver, pulse_of
from evalcore.errors import InputError

logger = logging.getLogger("evalcore")

VERDICT_S = 60.0
"""So long an actor that cannot be reached is asked whether it lives: whose fault it is hangs on it.
Ray takes half a minute to find a machine dead that is gone without a word."""
PROBE_S = 0.2
"""Between two such questions."""
KNOWN_OPTIONS = ("address", "num_cpus", "num_gpus", "resources")


class Mailbox:
    """An actor beside the driver that keeps the workers' latest pulses.

    An actor answers one call at a time, so a busy worker cannot be asked; it posts instead.
    """

    def __init__(self) -> None:
        self._pulses: dict[tuple[int, int], tuple[int, pulse.Stage]] = {}

    def post(self, key: tuple[int, int], state: tuple[int, pulse.Stage]) -> None:
        self._pulses[key] = state

    def take(self) -> dict[tuple[int, int], tuple[int, pulse.Stage]]:
        """Pulses posted since the last call, by (worker, process)."""
        pulses, self._pulses = self._pulses, {}
        return pulses


class RayWorker:
    """The actor: commands in, answers out.

    Args:
        unset: Environment variables to remove.
        log_path: File for its output.
        mailbox: Where its pulse goes.
        key: (worker, process) it posts as.
    """

    def __init__(
        self,
        unset: tuple[str, ...] = (),
        log_path: str | None = None,
        mailbox: Any = None,
        key: tuple[int, int] = (0, 0),
    ) -> None:
        leave_signals_to_driver()
        for name in unset:
            os.environ.pop(name, None)
        if log_path is not None:
            _redirect_output(Path(log_path))
        self._runner = WorkerRunner()
        if mailbox is not None:
            import ray  # the driver's module is imported without it

            pulse.beat(lambda state: ray.get(mailbox.post.remote(key, state)))

    def handle(self, blob: bytes) -> bytes:
        return self._runner.handle(blob)


def _redirect_output(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    os.close(fd)


class RayTransport:
    """Actors of :class:`RayWorker`; starts Ray at the first worker, if nobody has.

    Without an address (option, or the variable RAY_ADDRESS) a local Ray of this process is
    started, and stopped at the end; a Ray that was already initialised is used and left as it is.
    """

    waits_for_room = True

    def __init__(
        self, workers: int, env: EnvOption, log_dir: Path | None, options: Mapping[str, Any]
    ) -> None:
        unknown = sorted(set(options) - set(KNOWN_OPTIONS))
        if unknown:
            raise InputError(
                f"unknown Ray option {', '.join(unknown)}; expected {', '.join(KNOWN_OPTIONS)}"
            )
        self._workers = workers
        self._env = env
        self._log_dir = log_dir
        self._options = dict(options)
        self._ray: Any = None
        self._started_ray = False
        self._actors: dict[int, Any] = {}
        self._answers: dict[Any, int] = {}  # object reference of a call -> worker
        self._unreached: dict[Any, tuple[Exception, float]] = {}  # of a question whether it lives
        self._mailbox: Any = None
        self._mail: Any = None  # reference of the question for pulses under way
        self._asked_at = 0.0
        self._processes: dict[int, int] = {}  # worker -> processes it has had

    def start(self, worker_index: int, blob: bytes) -> None:
        self._connect()
        self.kill(worker_index)
        env = env_for(self._env, worker_index)
        variables = forwarded(os.environ)
        variables.update({name: value for name, value in env.items() if value is not None})
        variables.setdefault("PYTHONPATH", worker_path())
        options: dict[str, Any] = {
            "num_cpus": self._options.get("num_cpus", 1),
            "num_gpus": self._options.get("num_gpus", 0),
            "max_restarts": 0,
            "max_task_retries": 0,
            "runtime_env": {"env_vars": variables},
        }
        if self._options.get("resources"):
            options["resources"] = dict(self._options["resources"])
        log_path = self._log_path(worker_index)
        unset = tuple(name for name, value in env.items() if value is None)
        process = self._processes.get(worker_index, 0) + 1
        self._processes[worker_index] = process
        self._actors[worker_index] = (
            self._ray.remote(RayWorker)
            .options(**options)
            .remote(
                unset,
                None if log_path is None else str(log_path),
                self._mailbox,
                (worker_index, process),
            )
        )
        self.send(worker_index, blob)

    def send(self, worker_index: int, blob: bytes) -> None:
        self._answers[self._actors[worker_index].handle.remote(blob)] = worker_index

    def poll(self, timeout_s: float) -> list[tuple[int, bytes | Lost]]:
        if not self._answers:
            time.sleep(timeout_s)
            return []
        if self._mail is None and time.monotonic() - self._asked_at > pulse.BEAT_EVERY_S:
            self._mail, self._asked_at = self._mailbox.take.remote(), time.monotonic()
        waiting = [*self._answers, *([] if self._mail is None else [self._mail])]
        done, _ = self._ray.wait(waiting, num_returns=1, timeout=timeout_s)
        if done:  # whatever else is there by now
            done, _ = self._ray.wait(waiting, num_returns=len(waiting), timeout=0)
        news: list[tuple[int, bytes | Lost]] = []
        if self._mail in done:
            done.remove(self._mail)
            news += self._pulses()
        for reference in done:
            index = self._answers.pop(reference)
            first = self._unreached.pop(reference, None)
            try:
                answer = self._ray.get(reference)
            except self._ray.exceptions.ActorUnavailableError as error:
                self._ask_again(index, first or (error, time.monotonic()), news)
            except self._ray.exceptions.RayError as error:
                news.append((index, self._lost(index, error)))
            else:  # who was out of reach may have lost what it was asked
                news.append((index, answer if first is None else self._lost(index, first[0])))
        return news

    def _ask_again(
        self, index: int, first: tuple[Exception, float], news: list[tuple[int, bytes | Lost]]
    ) -> None:
        """An actor that cannot be reached has died, or its machine has, which Ray learns later."""
        if time.monotonic() - first[1] > VERDICT_S:
            news.append((index, self._lost(index, first[0])))
            return
        time.sleep(PROBE_S)
        probe = self._actors[index].__ray_ready__.remote()
        self._answers[probe], self._unreached[probe] = index, first

    def _pulses(self) -> list[tuple[int, bytes | Lost]]:
        """What the mailbox had, of processes that are still wanted."""
        reference, self._mail = self._mail, None
        try:
            pulses = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            logger.warning("the workers' progress cannot be seen: %s", str(error).split("\n")[0])
            return []
        return [
            (index, pulse_of(state))
            for (index, process), state in pulses.items()
            if process == self._processes.get(index) and index in self._actors
        ]

    def explain(self, worker_index: int) -> Lost:
        path = self._log_path(worker_index)
        if path is None or not path.is_file():
            return Lost("is running")
        with path.open("rb") as file:
            return Lost("is running", read_tail(file), str(path))

    def kill(self, worker_index: int) -> None:
        for reference in [r for r, index in self._answers.items() if index == worker_index]:
            del self._answers[reference]
            self._unreached.pop(reference, None)
        actor = self._actors.pop(worker_index, None)
        if actor is not None:
            with contextlib.suppress(self._ray.exceptions.RayError):
                self._ray.kill(actor, no_restart=True)

    def close(self) -> None:
        for index in list(self._actors):
            self.kill(index)
        if self._mailbox is not None:
            with contextlib.suppress(self._ray.exceptions.RayError):
                self._ray.kill(self._mailbox, no_restart=True)
            self._mailbox = self._mail = None
        if self._started_ray:
            with handlers_kept():
                self._ray.shutdown()
            self._started_ray = False

    def _lost(self, worker_index: int, error: Exception) -> Lost:
        latest = self.explain(worker_index)
        detail = " ".join(str(error).split())
        kind = type(error).__name__
        gone = "node has died" in detail  # Ray 2.56: ActorDiedError, of a lost raylet
        reason = f"was lost ({kind}: {detail[:300]})"
        return Lost(reason, latest.log_tail, latest.log_path, machine=gone)

    def _log_path(self, worker_index: int) -> Path | None:
        return None if self._log_dir is None else self._log_dir / f"worker-{worker_index}.log"

    def _connect(self) -> None:
        if self._ray is not None:
            return
        options, there = self._options, is_connected()
        cpus, gpus = float(options.get("num_cpus", 1)), float(options.get("num_gpus", 0))
        ray = self._ray = initialise(address_of(options.get("address")), self._workers * cpus)
        self._started_ray = not there
        require_room(ray_nodes(), self._workers, cpus, gpus, own=self._started_ray)
        self._mailbox = (
            ray.remote(Mailbox)
            .options(num_cpus=0, runtime_env={"env_vars": {"PYTHONPATH": worker_path()}})
            .remote()
        )

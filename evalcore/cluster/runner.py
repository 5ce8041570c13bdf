"""The worker's side of the protocol, the same in a local child process and in a Ray actor."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import pickle
import signal
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

from evalcore.cluster import pulse
from evalcore.cluster.protocol import Answer, Command, ErrorInfo, Hello, Worker, WorkerReply
from evalcore.errors import EngineError, InputError

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


class WorkerRunner:
    """Takes pickled commands, gives pickled answers, owns the one worker object.

    Every ``Exception`` becomes an answer. What is not one (SystemExit, a crash) ends the process,
    which the driver sees.
    """

    def __init__(self) -> None:
        self.closed = False
        self._worker: Worker | None = None

    def handle(self, blob: bytes) -> bytes:
        """Executes one command and returns the pickled :class:`Answer`."""
        job_id: str | None = None
        try:
            command: Command = pickle.loads(blob)
            job_id = command.job_id
            answer = self._execute(command)
            return pickle.dumps(answer, protocol=pickle.HIGHEST_PROTOCOL)
        except Exception as error:
            return pickle.dumps(Answer("raised", job_id, error=ErrorInfo.of(error)))

    def _execute(self, command: Command) -> Answer:
        if command.kind == "warm":
            name, given = command.body
            with contextlib.suppress(Exception):  # whoever needs it says what is wrong with it
                load_factory(name)(*given)
            return Answer("warmed")
        if command.kind == "start":
            factory, config_blob, worker_index = command.body
            # Imported before the configuration is unpickled: the factory's module may set up what
            # the configuration's classes need.
            make = load_factory(factory)
            self._worker = make(pickle.loads(config_blob), worker_index)
            hello = Hello(
                socket.gethostname(),
                hasattr(self._worker, "prepare"),
                tuple(getattr(self._worker, "trouble", ())),
            )
            return Answer("ready", result=hello)
        if self._worker is None:
            raise EngineError(f"the worker got {command.kind!r} before it was started")
        if command.kind == "prepare":
            self._worker.prepare(command.body)  # type: ignore[attr-defined]
            return Answer("prepared", command.job_id)
        if command.kind == "run":
            if command.ahead is not None and hasattr(self._worker, "ahead"):
                self._worker.ahead(command.ahead)
            value = self._worker.run(command.body)
            if not isinstance(value, WorkerReply):
                value = WorkerReply(value, (command.job_id or "",))
            return Answer("ran", command.job_id, value.result, tuple(value.committed),
                          refused=tuple(value.refused))  # fmt: skip
        if command.kind == "flush":
            value = self._worker.flush()
            if not isinstance(value, WorkerReply):
                value = WorkerReply(value)
            return Answer("flushed", result=value.result, refused=tuple(value.refused))
        self.closed = True
        self._worker.close()
        return Answer("closed")


def pulse_of(state: tuple[int, pulse.Stage]) -> bytes:
    """The pickled answer that carries a worker's pulse."""
    return pickle.dumps(Answer("beat", result=state), protocol=pickle.HIGHEST_PROTOCOL)


def load_factory(name: str) -> Callable[..., Any]:
    """Imports ``package.module:callable``.

    Raises:
        InputError: the name is malformed, or names nothing that can be called.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise InputError(f"worker factory {name!r}: expected package.module:callable")
    target: Any = importlib.import_module(module_name)
    for part in attribute.split("."):
        target = getattr(target, part, None)
    if not callable(target):
        raise InputError(f"worker factory {name!r}: {module_name} has no callable {attribute!r}")
    found: Callable[..., Any] = target
    return found


def leave_signals_to_driver() -> None:
    """Makes stop signals harmless in a worker: the driver gets them too and stops the run.

    Batch systems send SIGTERM and SIGUSR1 to every process of a job, terminals SIGHUP. A handler
    that does nothing is used for these, not SIG_IGN, so that programs the worker starts do not
    inherit deafness.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, _do_nothing)


def die_with_parent(parent_pid: int) -> None:
    """Asks Linux to kill this process when the thread that made it ends; no-op elsewhere."""
    _prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != parent_pid:  # it died before we asked
        os._exit(1)


def adopt_orphans() -> None:
    """Makes Linux hand this process the orphans among its descendants; no-op elsewhere."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def _prctl(option: int, value: int) -> None:
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def _do_nothing(number: int, frame: Any) -> None:
    pass

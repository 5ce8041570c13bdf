"""Workers as child processes of the driver, one machine."""

from __future__ import annotations

import contextlib
import os
import select
import selectors
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from evalcore.cluster.protocol import EnvOption, Lost, env_for
from evalcore.cluster.wire import Wire

TAIL_BYTES = 4000
EXIT_NOTE_TIMEOUT_S = 5.0
GUARD_TIMEOUT_S = 30.0
KILLED_TIMEOUT_S = 5.0


def worker_path() -> str:
    """A PYTHONPATH that lets another process import what this one can.

    The interpreter's own folders are left out (the worker runs the same interpreter), and what
    lies in them: libraries add copies they bring along to the end of ``sys.path`` (setuptools its
    ``_vendor``), and on a PYTHONPATH those would come before what is installed.
    """
    own = {Path(p).resolve() for p in sysconfig.get_paths().values()}
    installed = {Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib")}
    own |= {p / "lib-dynload" for p in own}
    entries = [Path(entry or ".").resolve() for entry in sys.path]
    package_root = Path(__file__).resolve().parents[2]
    kept = dict.fromkeys(
        p
        for p in [*entries, package_root]
        if p.exists() and p not in own and installed.isdisjoint(p.parents)
    )
    inherited = os.environ.get("PYTHONPATH", "")
    return os.pathsep.join([*map(str, kept), *([inherited] if inherited else [])])


def read_tail(file: IO[bytes]) -> str:
    """The last lines of a log, at most ``TAIL_BYTES``."""
    size = os.fstat(file.fileno()).st_size
    data = os.pread(file.fileno(), TAIL_BYTES, max(0, size - TAIL_BYTES))
    return data.decode("utf-8", "replace").strip()


def open_log(log_dir: Path | None, worker_index: int) -> tuple[IO[bytes], str | None]:
    """The file that takes a worker's output (appended to), and its path if it has one."""
    if log_dir is None:
        return tempfile.TemporaryFile(prefix="evalcore-worker-"), None
    log_dir.mkdir(parents=True, exist_ok=True)
    path = log_dir / f"worker-{worker_index}.log"
    return path.open("ab+"), str(path)


@dataclass
class _Child:
    process: subprocess.Popen[bytes]
    wire: Wire
    lifeline: socket.socket
    log: IO[bytes]
    log_path: str | None
    notes: bytes = b""

    def read_notes(self, timeout_s: float) -> dict[str, int]:
        """What the guard wrote (P: worker pid, E: exit code); waits for E at most so long."""
        ends = time.monotonic() + timeout_s
        while b"E" not in self.notes:
            left = max(0.0, ends - time.monotonic())
            if not select.select([self.lifeline], [], [], left)[0]:
                break
            try:
                piece = self.lifeline.recv(256)
            except OSError:
                break
            if not piece:
                break
            self.notes += piece
        return {line[0]: int(line[1:]) for line in self.notes.decode().split()}


class LocalTransport:
    """Child processes, each in a session of its own, that end with the driver.

    The environment is complete before the child's interpreter starts, so variables that libraries
    read at import (OMP_NUM_THREADS, CUDA_VISIBLE_DEVICES) take effect.
    """

    waits_for_room = False

    def __init__(self, env: EnvOption = None, log_dir: Path | None = None) -> None:
        self._env = env
        self._log_dir = log_dir
        self._children: dict[int, _Child] = {}
        self._broken: dict[int, Lost] = {}

    def start(self, worker_index: int, blob: bytes) -> None:
        self.kill(worker_index)
        ours, theirs = socket.socketpair()
        lifeline, their_lifeline = socket.socketpair()
        log, log_path = open_log(self._log_dir, worker_index)
        fds = (theirs.fileno(), their_lifeline.fileno())
        # -P: the current folder must not shadow installed modules; worker_path has what we have.
        command = [sys.executable, "-P", "-m", "evalcore.cluster.child"]
        command += [str(fd) for fd in fds] + [str(os.getpid())]
        try:
            process = subprocess.Popen(
                command,
                env=self._environment(worker_index),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=fds,
                start_new_session=True,
            )
        except BaseException:
            for end in (ours, lifeline, log):
                end.close()
            raise
        finally:
            theirs.close()
            their_lifeline.close()
        self._children[worker_index] = _Child(process, Wire(ours), lifeline, log, log_path)
        self.send(worker_index, blob)

    def send(self, worker_index: int, blob: bytes) -> None:
        try:
            self._children[worker_index].wire.send(blob)
        except OSError:
            self._broken[worker_index] = self._lost(worker_index)

    def poll(self, timeout_s: float) -> list[tuple[int, bytes | Lost]]:
        news: list[tuple[int, bytes | Lost]] = list(self._broken.items())
        self._broken.clear()
        with selectors.DefaultSelector() as selector:
            for index, child in self._children.items():
                wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE * child.wire.waits)
                selector.register(child.wire, wanted, index)
            ready = selector.select(0 if news else timeout_s)
        for key, what in ready:
            if not any(key.data == known for known, _ in news):
                news += self._served(key.data, bool(what & selectors.EVENT_READ))
        return news

    def _served(self, index: int, has_said: bool) -> list[tuple[int, bytes | Lost]]:
        """What one worker's wire has; what waits to be sent goes on."""
        wire = self._children[index].wire
        found: list[tuple[int, bytes | Lost]] = []
        try:
            if has_said:
                found += [(index, blob) for blob in wire.take()]
            wire.push()
            return found
        except (EOFError, OSError):
            return [*found, (index, self._lost(index))]

    def explain(self, worker_index: int) -> Lost:
        child = self._children[worker_index]
        return Lost("is running", read_tail(child.log), child.log_path)

    def kill(self, worker_index: int) -> None:
        self._broken.pop(worker_index, None)
        child = self._children.pop(worker_index, None)
        if child is None:
            return
        notes = child.read_notes(timeout_s=0)
        child.lifeline.close()  # the guard takes this as the order to end everything
        with contextlib.suppress(ProcessLookupError):
            child.process.send_signal(signal.SIGCONT)  # also where it was stopped with its worker
        try:
            child.process.wait(GUARD_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            child.process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):  # the kernel does not let it go
                child.process.wait(KILLED_TIMEOUT_S)
        if "P" in notes:  # the guard has done this, unless it was killed itself
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(notes["P"], signal.SIGKILL)
        child.wire.close()
        child.log.close()

    def close(self) -> None:
        for index in list(self._children):
            self.kill(index)

    def _environment(self, worker_index: int) -> dict[str, str]:
        variables: dict[str, str | None] = {
            **os.environ,
            "PYTHONPATH": worker_path(),
            "PYTHONUNBUFFERED": "1",  # so that the log has a crashed worker's last words
            **env_for(self._env, worker_index),
        }
        return {name: value for name, value in variables.items() if value is not None}

    def _lost(self, worker_index: int) -> Lost:
        child = self._children[worker_index]
        notes = child.read_notes(EXIT_NOTE_TIMEOUT_S)
        how = describe_exit(notes["E"]) if "E" in notes else "was killed together with its guard"
        return Lost(how, read_tail(child.log), child.log_path)


def describe_exit(exit_code: int) -> str:
    """Exit code (-N: signal N) as the end of a sentence."""
    if exit_code >= 0:
        return f"ended by itself with status {exit_code}"
    try:
        name = signal.Signals(-exit_code).name
    except ValueError:
        name = str(-exit_code)
    hint = " (out of memory?)" if name == "SIGKILL" else ""
    return f"was killed by {name}{hint}"

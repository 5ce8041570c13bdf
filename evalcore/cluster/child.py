"""Program of a local worker: ``python -m evalcore.cluster.child CONNECTION LIFELINE DRIVER_PID``.

Two processes in one session of their own. The *worker* answers the driver. The *guard*, its parent,
runs no engine code: it waits until the worker ends or the driver is gone (its end of the lifeline
closes), then kills whatever the worker had started and waits for its end, so that ``kill -9`` of
driver or worker leaves no process and no accelerator memory behind. To the lifeline it writes
``P<worker pid>`` and, when the worker has ended, ``E<exit code>`` (-N: signal N).
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path

from evalcore.cluster import pulse
from evalcore.cluster.runner import (
    WorkerRunner,
    adopt_orphans,
    die_with_parent,
    leave_signals_to_driver,
    pulse_of,
)

REAP_TIMEOUT_S = 15.0
DRIVER_CHECK_S = 1.0


def main(connection_fd: int, lifeline_fd: int, driver_pid: int) -> None:
    """Forks the worker and guards it. Never returns."""
    leave_signals_to_driver()
    for fd in (connection_fd, lifeline_fd):
        os.set_inheritable(fd, False)  # engines start programs; these must not hold the ends
    wake_r, wake_w = os.pipe()
    os.set_blocking(wake_w, False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(wake_w, warn_on_full_buffer=False)
    adopt_orphans()
    guard_pid = os.getpid()
    worker_pid = os.fork()
    if worker_pid == 0:
        os.setpgid(0, 0)  # a group without the guard, which must outlive it
        die_with_parent(guard_pid)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for fd in (wake_r, wake_w, lifeline_fd):
            os.close(fd)
        serve(connection_fd)
    with contextlib.suppress(OSError):  # both do it: whoever comes second may be refused
        os.setpgid(worker_pid, worker_pid)
    os.close(connection_fd)  # the driver must see end-of-file when the worker ends
    _note(lifeline_fd, f"P{worker_pid}")
    exit_code = guard(worker_pid, wake_r, lifeline_fd, driver_pid)
    if exit_code is not None:
        _note(lifeline_fd, f"E{exit_code}")
    end_family(worker_pid)
    os._exit(0)


def serve(connection_fd: int) -> None:
    """Answers commands until the driver says close or goes away. Never returns."""
    status = 0
    connection = Connection(connection_fd)
    runner = WorkerRunner()
    sending = threading.Lock()  # a message must not begin within another

    def send(blob: bytes) -> None:
        with sending:
            connection.send_bytes(blob)

    pulse.beat(lambda state: send(pulse_of(state)))
    try:
        while not runner.closed:
            send(runner.handle(connection.recv_bytes()))
    except (EOFError, OSError):  # the driver is gone
        status = 1
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    # Not sys.exit: engine threads and exit handlers may hang, and everything durable is on disk.
    _flush_output()
    os._exit(status)


def guard(worker_pid: int, wake_fd: int, lifeline_fd: int, driver_pid: int) -> int | None:
    """Waits for the worker's end (gives its exit code, -N for signal N) or the driver's (None)."""
    while True:
        # The parent is looked at too: a forked copy of the driver may hold the lifeline open.
        ready, _, _ = select.select([wake_fd, lifeline_fd], [], [], DRIVER_CHECK_S)
        if lifeline_fd in ready or os.getppid() != driver_pid:
            return None
        if wake_fd in ready:
            os.read(wake_fd, 4096)
        while (ended := _reap()) is not None:
            if ended[0] == worker_pid:
                return ended[1]


def end_family(worker_pid: int) -> None:
    """Kills the worker's process group and every orphan adopted from it; waits for their end."""
    give_up_at = time.monotonic() + REAP_TIMEOUT_S
    while time.monotonic() < give_up_at:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(worker_pid, signal.SIGKILL)
        for pid in _children():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        try:
            while _reap(none_left_raises=True) is not None:
                pass
        except ChildProcessError:
            return
        time.sleep(0.005)


def _reap(none_left_raises: bool = False) -> tuple[int, int] | None:
    """(pid, exit code) of a child that has ended, or None if none has yet."""
    try:
        pid, status = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        if none_left_raises:
            raise
        return None
    return (pid, os.waitstatus_to_exitcode(status)) if pid else None


def _children() -> list[int]:
    """Pids of this process's children; empty where there is no Linux /proc."""
    pid = os.getpid()
    with contextlib.suppress(OSError):
        return [
            int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]
    return []


def _note(lifeline_fd: int, text: str) -> None:
    with contextlib.suppress(OSError):
        os.write(lifeline_fd, f"{text}\n".encode())


def _flush_output() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]))

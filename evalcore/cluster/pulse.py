"""A counter of progress, one per process: what an engine has done so far, in any unit.

Code that works for long calls :func:`tick` whenever a piece is done (a tensor read, a batch
scored); the driver gives up on a worker whose counter stands still for too long, never on one that
moves. An engine may do its work in other processes, one for each GPU (ranks): these count in a
small file of the process that started them (:func:`share`), where their last word is its progress.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
from collections.abc import Callable
from typing import Literal

Stage = Literal["load", "work"]

BEAT_EVERY_S = 1.0

_VARIABLE = "EVALCORE_PULSE_OF"
_WIDTH = 20

_count = 0
_stage: Stage = "load"
_owner = os.getpid()  # of the file
_file: int | None = None


def tick(pieces: int = 1) -> None:
    """Says that some more work is done; costs nothing worth counting."""
    global _count
    _count += pieces  # a tick lost between two threads does not matter
    if _file is not None and os.getpid() != _owner:
        with contextlib.suppress(OSError):
            os.pwrite(_file, b"%0*d" % (_WIDTH, _count), 0)


def share() -> None:
    """What processes that are started from now on do counts as this one's progress.

    The file has no name; they reach it through this process's descriptor.
    """
    global _owner, _file
    if _file is not None and os.getpid() == _owner:
        return
    with tempfile.TemporaryFile(prefix="evalcore-pulse-") as file:
        _owner, _file = os.getpid(), os.dup(file.fileno())
    os.environ[_VARIABLE] = f"{_owner}:{_file}"


def _join() -> None:
    """Finds the file of the process that started this one, if it shares one."""
    global _owner, _file
    owner, _, descriptor = os.environ.get(_VARIABLE, "").partition(":")
    if owner.isdecimal() and descriptor.isdecimal():
        with contextlib.suppress(OSError):  # not on Linux, or a variable of long ago
            path = f"/proc/{owner}/fd/{descriptor}"
            _owner, _file = int(owner), os.open(path, os.O_WRONLY | os.O_CLOEXEC)


def _shared_count() -> int:
    """What the processes of this one's file said last."""
    if _file is None or os.getpid() != _owner:
        return 0
    with contextlib.suppress(OSError, ValueError):
        return int(os.pread(_file, _WIDTH, 0) or 0)
    return 0


def enter(stage: Stage) -> None:
    """Says what is worked on: while weights are loaded (an engine may start), silence is longer."""
    global _stage
    _stage = stage
    tick()


def now() -> tuple[int, Stage]:
    """Ticks since the process began, those it shares included, and the stage."""
    return _count + _shared_count(), _stage


def beat(send: Callable[[tuple[int, Stage]], object], every_s: float = BEAT_EVERY_S) -> None:
    """Has a thread send the state now and whenever it has changed, until sending fails."""

    def run() -> None:
        said: tuple[int, Stage] | None = None
        wait = threading.Event()
        while True:
            if (state := now()) != said:
                said = state
                try:
                    send(state)
                except Exception:  # the driver is gone
                    return
            wait.wait(every_s)

    threading.Thread(target=run, name="evalcore-pulse", daemon=True).start()


_join()

"""Code of others that must end: loops of a chat template, in the time and memory they may take.

A thread watches what was begun and raises in the thread that runs it. That stops whatever is
running as Python's own code, such as a template of Jinja; it does not reach into one long call of
a library written in C, which is done in a process of its own (:func:`run_bounded`).
"""

from __future__ import annotations

import contextlib
import ctypes
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

MAX_TEMPLATE_S = 10.0
"""Seconds one chat may take to be written; the templates there are take milliseconds."""
MAX_TEMPLATE_MB = 500
_EVERY_S = 0.05
_PAGE = 4096
_SAID_BYTES = 10_000


class OverLimitError(BaseException):
    """Raised in the watched thread; no handler of the watched code should take it for its own."""


class _Watched:
    def __init__(self, seconds: float, megabytes: int) -> None:
        self.thread = threading.get_ident()
        self.ends = time.monotonic() + seconds
        self.most_pages = _resident_pages() + megabytes * 1_000_000 // _PAGE
        self.stopped = False


_lock = threading.Lock()
_watched: dict[int, _Watched] = {}
_watcher: threading.Thread | None = None


@contextmanager
def bounded(seconds: float, megabytes: int) -> Iterator[None]:
    """Ends the block when it takes longer, or the process grows by more; not to be nested.

    Args:
        seconds: Wall clock.
        megabytes: Growth of the whole process meanwhile, where ``/proc`` tells it.

    Raises:
        TimeoutError: If it was ended.
    """
    own = _Watched(seconds, megabytes)
    with _lock:
        _watched[id(own)] = own
        _start_watcher()
    arrived = False
    try:
        yield
    except OverLimitError:
        arrived = True
    finally:
        try:
            _watched.pop(id(own), None)
            with _lock:
                pass  # the watcher has seen that it is gone
            while own.stopped and not arrived:  # the error is still on its way
                time.sleep(0.001)
        except OverLimitError:
            arrived = True
    if own.stopped:
        raise TimeoutError(f"did not end within {seconds:g} s and {megabytes:,} MB")


def _start_watcher() -> None:
    global _watcher
    if _watcher is None or not _watcher.is_alive():
        _watcher = threading.Thread(target=_watch, name="evalcore-deadline", daemon=True)
        _watcher.start()


def _watch() -> None:
    while True:
        time.sleep(_EVERY_S)
        with _lock:
            now, pages = time.monotonic(), _resident_pages() if _watched else 0
            for each in list(_watched.values()):
                if not each.stopped and (now > each.ends or pages > each.most_pages):
                    each.stopped = True
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(
                        ctypes.c_ulong(each.thread), ctypes.py_object(OverLimitError)
                    )


def _resident_pages(process: int | str = "self") -> int:
    try:
        return int(Path(f"/proc/{process}/statm").read_bytes().split()[1])
    except (OSError, IndexError, ValueError):
        return 0


@dataclass(frozen=True)
class Ended:
    """How a child of :func:`run_bounded` ended.

    Attributes:
        status: Its exit status; below 0 the signal that ended it.
        said: What it wrote to standard output, at most a few thousand bytes of it.
        why: In a few words, where it was ended from outside.
    """

    status: int
    said: str
    why: str = ""


def run_bounded(code: str, arguments: Sequence[str], seconds: float, megabytes: int) -> Ended:
    """Runs Python code in a process of its own that ends with this call, whatever it does.

    For calls that never return to Python. The code may bound the time of a core itself
    (``RLIMIT_CPU``), which a busy machine does not use up.

    Args:
        code: It finds this package, and its arguments in ``sys.argv[1:]``.
        arguments: For it.
        seconds: Wall clock.
        megabytes: Resident memory, where ``/proc`` tells it.
    """
    root = str(Path(__file__).resolve().parents[1])
    found = f"import sys; sys.path.append({root!r}); {code}"
    command = [sys.executable, "-c", found, *arguments]
    with (
        tempfile.TemporaryFile() as out,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.DEVNULL,
            start_new_session=True,
        ) as child,
    ):  # fmt: skip
        try:
            why = _wait(child, time.monotonic() + seconds, megabytes)
        finally:
            child.kill()
        status = child.wait()
        out.seek(0)
        said = out.read(_SAID_BYTES).decode("utf-8", "replace")
    if not why and status < 0:
        why = f"it was ended by {signal.Signals(-status).name}"
    return Ended(status, said, why)


def _wait(child: subprocess.Popen[bytes], ends: float, megabytes: int) -> str:
    """Until it has ended, or has to be: then why."""
    while child.poll() is None:
        if _resident_pages(child.pid) * _PAGE > megabytes * 1_000_000:
            return "it took more memory"
        if time.monotonic() > ends:
            return "it took longer"
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(_EVERY_S)
    return ""

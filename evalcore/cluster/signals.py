"""Being asked to stop: signals and time limits, as a callable the pool polls."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from evalcore.cluster.protocol import Stop
from evalcore.errors import EXIT_STOPPED, InputError, StoppedError

GRACE_S = 60.0  # batch systems send their signal two minutes before the end
LIMIT_GRACE_S = 15.0  # no unit is begun that should not end in time
LAST_RESORT_S = 45.0  # after a signal's grace; batch systems have given two minutes in all
LIMIT_LAST_RESORT_S = 12.0  # after a time limit's: with both it is half a minute

_UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_duration(text: str) -> float:
    """Seconds of ``5400``, ``90m``, ``1h30m``, ``1:30:00``, ``2-12:00:00`` (as Slurm writes them).

    Raises:
        InputError: the text is none of these, or not above zero.
    """
    wrong = InputError(f"time limit {text!r}: expected seconds, 90m, 1h30m, H:MM:SS or D-HH:MM:SS")
    text = text.strip().lower()
    if re.fullmatch(r"(\d+-)?\d+(:\d+){1,2}|\d+-\d+", text):
        days, _, clock = text.rpartition("-")
        parts = [int(part) for part in clock.split(":")]
        if days:  # D-HH, D-HH:MM, D-HH:MM:SS
            hours, minutes, seconds = [*parts, 0, 0][:3]
        else:  # MM:SS, HH:MM:SS
            hours, minutes, seconds = [0, *parts][-3:]
        total = int(days or 0) * 86400.0 + hours * 3600.0 + minutes * 60.0 + seconds
    elif re.fullmatch(r"\d+(\.\d+)?", text):
        total = float(text)
    elif re.fullmatch(r"(\d+(\.\d+)?[dhms])+", text):
        pieces = re.findall(r"(\d+(?:\.\d+)?)([dhms])", text)
        total = sum(float(number) * _UNITS_S[unit] for number, unit in pieces)
    else:
        raise wrong
    if total <= 0:
        raise wrong
    return total


class _Asked(BaseException):
    """A wish to stop, raised where nothing polls; no ``except Exception`` may swallow it."""


class StopSignals:
    """Turns SIGTERM, SIGUSR1, SIGHUP, SIGINT and a time limit into a wish to stop that is polled.

    As a context manager it installs the handlers and restores the old ones. The first signal asks
    for :attr:`Stop.SOON`; a second Ctrl-C for :attr:`Stop.NOW`, and so does the end of the grace; a
    third Ctrl-C raises KeyboardInterrupt, for code that polls nothing. SIGHUP stays ignored where
    it is (``nohup``). Outside the main thread no handlers can be installed; the time limit and
    :meth:`request` work all the same.

    Args:
        time_limit_s: Seconds from entering the context until stopping is wished; None: no limit.
        grace_s: Seconds from a wish to stop until it is :attr:`Stop.NOW`; None: for ever. After a
            time limit, which is known beforehand, at most ``LIMIT_GRACE_S``.
        last_resort: End the process with status 75 when it is still there well after that.

    Attributes:
        reason: Why stopping is wished (``SIGTERM``, ``time limit``), or None.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)

    def __init__(
        self,
        time_limit_s: float | None = None,
        grace_s: float | None = None,
        *,
        last_resort: bool = False,
    ) -> None:
        self.reason: str | None = None
        self._level = Stop.NO
        self._interrupts = 0
        self._time_limit_s, self._grace_s = time_limit_s, grace_s
        self._last_resort = last_resort
        self._ends_at: float | None = None
        self._asked_at: float | None = None
        self._raises = False
        self._left = threading.Event()
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if self._time_limit_s is not None:
            self._ends_at = time.monotonic() + self._time_limit_s
        if threading.current_thread() is threading.main_thread():
            for number in self.SIGNALS:
                if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                    continue
                self._previous[number] = signal.signal(number, self._on_signal)
        if self._last_resort:
            threading.Thread(target=self._watch, name="evalcore-stop", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        for number, handler in self._previous.items():
            # None: the old handler was not installed from Python and cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous.clear()

    def __call__(self) -> Stop:
        """How urgently stopping is wished now."""
        if self._ends_at is not None and time.monotonic() >= self._ends_at:
            self.request("time limit")
        if self._level == Stop.SOON and self._is_over(0.0, 0.0):
            self._level = Stop.NOW
        return self._level

    def _is_over(self, after_signal_s: float, after_limit_s: float) -> bool:
        """Whether the grace, and so much more, has passed since a signal or since the limit."""
        if self._grace_s is None or self._asked_at is None:
            return False
        ends = self._asked_at + self._grace_s + after_signal_s
        if self._ends_at is not None:
            ends = min(ends, self._ends_at + min(self._grace_s, LIMIT_GRACE_S) + after_limit_s)
        return time.monotonic() >= ends

    def request(self, reason: str, level: Stop = Stop.SOON) -> None:
        """Asks to stop; never lowers the urgency, keeps the first reason."""
        self.reason = self.reason or reason
        if self._asked_at is None:
            self._asked_at = time.monotonic()
        self._level = max(self._level, level)

    def left_s(self) -> float | None:
        """Seconds until the time limit; None without one."""
        return None if self._ends_at is None else self._ends_at - time.monotonic()

    @contextlib.contextmanager
    def interrupting(self, when: str = "before scoring began") -> Iterator[None]:
        """Ends what is done inside at the first wish to stop: for work that polls nothing.

        Args:
            when: For the error: what that was in the middle of.

        Raises:
            StoppedError: Stopping was wished before or meanwhile.
        """
        left_s = self.left_s()
        timed = bool(self._previous) and left_s is not None
        before = signal.getsignal(signal.SIGALRM)
        try:
            self._raises = bool(self._previous)
            if timed and left_s is not None:
                signal.signal(signal.SIGALRM, lambda number, frame: self._raise())
                signal.setitimer(signal.ITIMER_REAL, max(left_s, 1e-3))
            if self():
                raise _Asked
            yield
            if self():
                raise _Asked
        except _Asked:
            raise StoppedError(
                f"stopped ({self.reason}) {when}; run the same command again to go on"
            ) from None
        finally:
            self._raises = False
            if timed:
                signal.setitimer(signal.ITIMER_REAL, 0)
                signal.signal(signal.SIGALRM, before)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if number != signal.SIGINT:
            self.request(name)
        else:
            self._interrupts += 1
            if self._interrupts > 2:
                raise KeyboardInterrupt
            self.request(name, Stop.NOW if self._interrupts == 2 else Stop.SOON)
        if self._raises:
            self._raise()

    def _raise(self) -> None:
        self()
        self._raises = False
        raise _Asked

    def _watch(self) -> None:
        """Where even a signal's handler is not reached (a call that hangs), nothing else helps."""
        while not self._left.wait(1.0):
            if self() and self._is_over(LAST_RESORT_S, LIMIT_LAST_RESORT_S):
                text = f"evalcore: stopped ({self.reason}) by force; run the same command again\n"
                os.write(2, text.encode())
                os._exit(EXIT_STOPPED)


def any_stop(*checks: Callable[[], Stop | bool]) -> Callable[[], Stop]:
    """The most urgent of several wishes to stop."""
    return lambda: max((Stop(int(check())) for check in checks), default=Stop.NO)

"""Being asked to stop: signals and time limits, as a callable the pool polls."""

from __future__ import annotations

import re
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from evalcore.cluster.protocol import Stop
from evalcore.errors import InputError

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


class StopSignals:
    """Turns SIGTERM, SIGUSR1, SIGINT and a time limit into a wish to stop that is polled.

    As a context manager it installs the handlers and restores the old ones. The first signal asks
    for :attr:`Stop.SOON`; a second Ctrl-C for :attr:`Stop.NOW`; a third raises KeyboardInterrupt,
    for code that polls nothing. Outside the main thread no handlers can be installed; the time
    limit and :meth:`request` work all the same.

    Args:
        time_limit_s: Seconds from entering the context until stopping is wished; None: no limit.

    Attributes:
        reason: Why stopping is wished (``SIGTERM``, ``time limit``), or None.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

    def __init__(self, time_limit_s: float | None = None) -> None:
        self.reason: str | None = None
        self._level = Stop.NO
        self._interrupts = 0
        self._time_limit_s = time_limit_s
        self._ends_at: float | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if self._time_limit_s is not None:
            self._ends_at = time.monotonic() + self._time_limit_s
        if threading.current_thread() is threading.main_thread():
            for number in self.SIGNALS:
                self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            # None: the old handler was not installed from Python and cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous.clear()

    def __call__(self) -> Stop:
        """How urgently stopping is wished now."""
        if self._ends_at is not None and time.monotonic() >= self._ends_at:
            self.request("time limit")
        return self._level

    def request(self, reason: str, level: Stop = Stop.SOON) -> None:
        """Asks to stop; never lowers the urgency, keeps the first reason."""
        self.reason = self.reason or reason
        self._level = max(self._level, level)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if number != signal.SIGINT:
            self.request(name)
            return
        self._interrupts += 1
        if self._interrupts > 2:
            raise KeyboardInterrupt
        self.request(name, Stop.NOW if self._interrupts == 2 else Stop.SOON)


def any_stop(*checks: Callable[[], Stop | bool]) -> Callable[[], Stop]:
    """The most urgent of several wishes to stop."""
    return lambda: max((Stop(int(check())) for check in checks), default=Stop.NO)

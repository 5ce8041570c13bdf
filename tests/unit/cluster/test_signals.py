"""Stop signals, time limits, and what the module costs to import."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from evalcore.cluster import Stop, StopSignals, any_stop, parse_duration
from evalcore.errors import InputError


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_signal_asks_to_stop_and_handlers_come_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopSignals() as stop:
        assert stop() == Stop.NO
        os.kill(os.getpid(), number)
        assert stop() == Stop.SOON
        assert stop.reason == number.name
    assert signal.getsignal(number) is before


def test_second_interrupt_is_hard_and_third_raises() -> None:
    with StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert stop() == Stop.SOON
        os.kill(os.getpid(), signal.SIGINT)
        assert (stop(), stop.reason) == (Stop.NOW, "SIGTERM")
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_time_limit() -> None:
    with StopSignals(time_limit_s=0.05) as stop:
        assert stop() == Stop.NO
        time.sleep(0.06)
        assert (stop(), stop.reason) == (Stop.SOON, "time limit")


def test_most_urgent_wish_wins() -> None:
    assert any_stop(lambda: False, lambda: True)() is Stop.SOON
    assert any_stop(lambda: Stop.NOW, lambda: True)() is Stop.NOW
    assert any_stop()() is Stop.NO


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("1.5", 1.5),
        ("90m", 5400),
        ("1h30m", 5400),
        ("02:30", 150),
        ("1:30:00", 5400),
        ("2-12:00:00", 216000),
        ("1-6", 108000),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "soon", "-5", "1:2:3:4", "5x"])
def test_wrong_durations(text: str) -> None:
    with pytest.raises(InputError, match="expected seconds"):
        parse_duration(text)


def test_import_is_light() -> None:
    code = (
        "import sys, evalcore.cluster, evalcore.cluster.ray_pool as _;"
        "heavy = {'ray', 'numpy', 'torch', 'pyarrow', 'pydantic'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

"""Stop signals, time limits, and what the module costs to import."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from evalcore.cluster import Stop, StopSignals, any_stop, parse_duration
from evalcore.cluster.signals import LIMIT_GRACE_S
from evalcore.errors import InputError, StoppedError


@pytest.mark.parametrize("number", StopSignals.SIGNALS)
def test_signal_asks_to_stop_and_handlers_come_back(number: signal.Signals) -> None:
    before = signal.signal(number, signal.default_int_handler)  # ignored under nohup, the hang-up
    try:
        with StopSignals() as stop:
            assert stop() == Stop.NO
            os.kill(os.getpid(), number)
            assert stop() == Stop.SOON
            assert stop.reason == number.name
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, before)


def test_what_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop() == Stop.NO
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


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


def test_a_grace_ends_by_signal_or_by_limit_whichever_is_first() -> None:
    with StopSignals(time_limit_s=0.2, grace_s=0.1) as stop:
        time.sleep(0.21)
        assert stop() == Stop.SOON
        time.sleep(0.11)
        assert stop() == Stop.NOW
    with StopSignals(time_limit_s=0.2, grace_s=60.0) as stop:
        stop.request("SIGTERM")
        assert stop() == Stop.SOON
        stop._ends_at = time.monotonic() - LIMIT_GRACE_S - 0.1
        assert (stop(), stop.reason) == (Stop.NOW, "SIGTERM"), "the limit counts all the same"


HANGS = """
import ctypes, sys
from evalcore.cluster import StopSignals, signals
signals.LIMIT_GRACE_S, signals.LIMIT_LAST_RESORT_S, signals.LAST_RESORT_S = 0.2, 0.2, 0.2
with StopSignals({limit}, 0.2, last_resort=True):
    print("begun", flush=True)
    while True:
        ctypes.CDLL(None).sleep(600)  # a call that is not of Python's, begun again and again
"""


@pytest.mark.parametrize("limit", ["0.3", "None"], ids=["time limit", "SIGTERM"])
def test_a_command_that_hangs_in_a_call_is_ended(limit: str) -> None:
    command = [sys.executable, "-c", HANGS.format(limit=limit)]
    begin = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        if limit == "None":
            process.terminate()
        _, said = process.communicate(timeout=60)
    assert process.returncode == 75
    assert b"by force" in said
    assert time.monotonic() - begin < 30


def test_what_polls_nothing_is_ended_with_its_own_words() -> None:
    with (
        StopSignals(time_limit_s=0.1) as stop,
        pytest.raises(StoppedError, match=r"^stopped \(time limit\) in its middle; run"),
        stop.interrupting("in its middle"),
    ):
        time.sleep(30)

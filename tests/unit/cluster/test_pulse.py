"""Progress of a worker, and of the processes its engine works in."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from evalcore.cluster import pulse


@pytest.fixture(autouse=True)
def own_file(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_file", "_owner", "_count", "_stage"):
        monkeypatch.setattr(pulse, name, getattr(pulse, name))
    monkeypatch.setattr(pulse, "_file", None)
    monkeypatch.setenv(pulse._VARIABLE, "")


RANK = "from evalcore.cluster import pulse; pulse.tick(3); pulse.tick(4)"


def test_what_another_process_does_counts() -> None:
    before = pulse.now()[0]
    subprocess.run([sys.executable, "-c", RANK], check=True)
    assert pulse.now()[0] == before, "it was started by nobody who shares"
    pulse.share()
    subprocess.run([sys.executable, "-c", RANK], check=True)
    assert pulse.now()[0] == before + 7
    pulse.tick()
    assert pulse.now()[0] == before + 8
    pid = os.fork()
    if pid == 0:
        pulse.tick(100)
        os._exit(0)
    os.waitpid(pid, 0)
    assert pulse.now()[0] > before + 8 + 90, "forked ones count as well"


def test_a_variable_of_long_ago_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("1234567890:3", f"{os.getpid()}:999", "x", "a:b", ":"):
        done = subprocess.run([sys.executable, "-c", RANK], env={**os.environ,
                              pulse._VARIABLE: value}, check=False)  # fmt: skip
        assert done.returncode == 0

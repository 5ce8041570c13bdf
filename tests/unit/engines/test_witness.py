"""A witness that stops to answer: whatever it was at, it is left behind, never waited for."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from evalcore.engines import witness
from evalcore.engines.protocol import EngineSpec
from evalcore.engines.witness import WitnessProcess
from evalcore.engines.witness_process import Said, turn
from evalcore.types import Checkpoint, Subject

SUBJECT = Subject(Checkpoint("step-1", "/nowhere", "1" * 32, "2" * 32))
SILENT = """
import sys, time
from multiprocessing.connection import Connection
from evalcore.engines.witness_process import Said
to = Connection(int(sys.argv[-2]))
to.recv()
for kind in sys.argv[1].split():
    if kind != "then":
        to.send(Said(kind))
        continue
    to.recv()
    while True:
        to.send(Said("waiting"))
        time.sleep(0.1)
time.sleep(600)
"""


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Any]:
    """One that says what the parameter says, and nothing afterwards."""
    real = subprocess.Popen

    def popen(command: list[str], **more: Any) -> Any:
        return real([sys.executable, "-c", SILENT, request.param, *command[-2:]], **more)

    monkeypatch.setattr(subprocess, "Popen", popen)
    made = WitnessProcess(EngineSpec(kind="vllm", device="cpu"))
    yield made
    made.close()


@pytest.mark.parametrize(
    ("process", "limit", "reason"),
    [
        ("", "START_S", "did not answer in"),
        ("ready", "SILENT_S", "did not answer in"),
        ("ready begun", "ANSWER_S", "did not answer in"),
        ("ready then", "TURN_S", "had no turn on this machine in"),
    ],
    indirect=["process"],
)
def test_it_is_left_behind(
    process: WitnessProcess, limit: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    process.ask(SUBJECT, 9)
    begin, said = time.monotonic(), []
    while process._state == "starting" and limit != "START_S":
        said += process.poll(0.05)
    while limit == "ANSWER_S" and process._state != "at work":
        said += process.poll(0.05)
    monkeypatch.setattr(witness, limit, 0.3)
    while not said:
        said = process.poll(0.05)
        assert time.monotonic() - begin < 60, "it is waited for"
    assert [answer.id for answer in said] == [1]
    assert reason in said[0].reason
    assert process.gone


def test_who_waits_for_a_turn_says_so(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    told: list[Said] = []

    class Enough(Exception): ...

    def waiting() -> None:
        told.append(Said("waiting"))
        raise Enough

    with turn(waiting):
        assert not told
        with pytest.raises(Enough), turn(waiting):
            pass
    assert len(told) == 1

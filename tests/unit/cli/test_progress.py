"""What a log and a terminal are told before anything is scored."""

from __future__ import annotations

import contextlib
import os
import sys
import time

import pytest

from evalcore.cli import output
from evalcore.cli.progress import ScoreProgress
from evalcore.planning import PlanCounts


def planned(examples: int) -> PlanCounts:
    return PlanCounts(1, 1, 1, 1, 1, examples, 0, 0, 1)


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "LATE_S", 0.05)


@pytest.mark.usefixtures("soon")
def test_a_log_is_told_what_takes_long(capsys: pytest.CaptureFixture[str]) -> None:
    with ScoreProgress() as progress:
        progress.preparing("reading adapters")
        progress.preparing("planning")  # at once: the first is not worth a line
        time.sleep(0.3)
        progress.planned(planned(1200), {}, whole=False)
        progress.planned(planned(1400), {}, whole=True)
        time.sleep(0.3)
        progress.ended()
    said = capsys.readouterr().err.splitlines()
    assert said == ["scoring: planning", "scoring: at least 1,200 examples, starting an engine"]


@pytest.mark.usefixtures("soon")
def test_what_is_quick_needs_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    with output.loading():
        pass
    with ScoreProgress() as progress:
        progress.preparing("planning")
    with ScoreProgress(quiet=True) as progress:
        progress.preparing("planning")
        time.sleep(0.2)
    assert capsys.readouterr().err == ""
    with output.loading():
        time.sleep(0.2)
    assert capsys.readouterr().err == "loading libraries\n"


def test_nobody_who_reads_it_ends_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """``2>&1 | head``, a log on a full disk: said nowhere, and the run goes on."""
    reading, writing = os.pipe()
    os.close(reading)
    for opened in (writing, "/dev/full", None):
        stream = None if opened is None else open(opened, "w")  # noqa: SIM115
        monkeypatch.setattr(sys, "stderr", stream)
        with ScoreProgress() as progress:
            progress.planned(planned(10), {}, whole=True)
            progress.failure("a", "b")
            progress.worker(0, "lost")
            progress.ended()
        if stream is not None:
            with contextlib.suppress(OSError):  # what could not be written is tried again
                stream.close()

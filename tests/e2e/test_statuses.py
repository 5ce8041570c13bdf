"""The table of exit statuses that requeue scripts are written against (docs/running.md)."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from evalcore import errors
from tests.e2e.conftest import run

pytestmark = pytest.mark.slow

COMMAND = ("-t", "pocket_nli", "--limit", "6", "--engine", "hf", "--unit-examples", "2",
           "--commit-every", "0")  # fmt: skip


def start(checkpoint: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "evalcore", "score", "-m", str(checkpoint), "-o", str(out)]
    return subprocess.Popen(
        [*command, *COMMAND, *more], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_done_then_stopped_then_bad_input(tiny_checkpoint: Path, tmp_path: Path) -> None:
    out, log = tmp_path / "results", tmp_path / "events.jsonl"
    done = start(tiny_checkpoint, out, "--log-json", str(log))
    said, complained = done.communicate(timeout=300)
    assert done.returncode == 0, complained
    assert "6 examples" in said
    events = [json.loads(line) for line in log.read_text().splitlines()]
    assert [events[0]["event"], events[-1]["event"]] == ["start", "end"]
    assert sum(event["examples"] for event in events if event["event"] == "committed") == 6
    seen = json.loads(run("status", out, "--json"))
    assert seen["examples"] == 6
    (told,) = seen["runs"]
    assert (told["life"], told["ended"]["status"], told["committed"]) == ("ended", 0, 6)
    assert told["tasks"] == {"pocket_nli": {"planned": 6, "committed": 6, "failed": 0}}
    assert "with status 0: done" in run("status", out)
    late = start(tiny_checkpoint, tmp_path / "late", "--time-limit", "0.2")
    said, complained = late.communicate(timeout=300)
    assert late.returncode == errors.EXIT_STOPPED, complained
    assert "stopped (time limit)" in said + complained
    wrong = start(tiny_checkpoint / "nothing", tmp_path / "wrong")
    _, complained = wrong.communicate(timeout=300)
    assert wrong.returncode == errors.EXIT_BAD_INPUT, complained


def test_a_signal_while_it_prepares_is_a_stop(tiny_checkpoint: Path, tmp_path: Path) -> None:
    early = start(tiny_checkpoint, tmp_path / "results")
    time.sleep(1.5)
    early.send_signal(signal.SIGUSR1)
    said, complained = early.communicate(timeout=120)
    assert early.returncode == errors.EXIT_STOPPED, complained
    assert "stopped (SIGUSR1)" in said + complained


def test_a_results_folder_that_cannot_be_written(tiny_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "results"
    out.mkdir()
    (out / "segments").write_text("no folder")
    lost = start(tiny_checkpoint, out)
    _, complained = lost.communicate(timeout=300)
    assert lost.returncode == errors.EXIT_RESULTS, complained
    assert len(complained.strip().splitlines()) == 1


def test_the_documented_table_is_the_one_of_the_code() -> None:
    text = (Path(__file__).parents[2] / "docs" / "running.md").read_text()
    table = {int(number) for number in re.findall(r"^\| (\d+) \|", text, re.M)}
    known = {value for name, value in vars(errors).items() if name.startswith("EXIT_")}
    assert table == known | {0}

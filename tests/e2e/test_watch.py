"""``evalcore watch``: what a training writes is scored when it is complete, not before."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from evalcore.store import ResultStore
from tests.e2e.compared import assert_same_scores, keys
from tests.e2e.conftest import ASKED, Own

pytestmark = pytest.mark.slow

QUICK = ("--every", "0.3", "--rest", "0.3")
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts the command; its stderr is in ``watch.log``."""
    running: list[subprocess.Popen[str]] = []

    def begin(*args: object) -> subprocess.Popen[str]:
        with open(tmp_path / "watch.log", "w") as log:
            command = [sys.executable, "-m", "evalcore", "watch", *map(str, args)]
            running.append(subprocess.Popen(command, stdout=log, stderr=log, text=True))
        return running[-1]

    yield begin
    for process in running:
        process.kill()
        process.wait()


def said(folder: Path, text: str, timeout_s: float = 240) -> str:
    """What was printed, once it has ``text`` in it."""
    end = time.monotonic() + timeout_s
    while text not in (log := (folder / "watch.log").read_text()):
        assert time.monotonic() < end, log
        time.sleep(0.1)
    return log


def test_a_training_is_followed_to_its_end(own: Own, start: Start, tmp_path: Path) -> None:
    runs, out = tmp_path / "runs", tmp_path / "results"
    whole = (own.runs / "nli-seed0" / "adapter_model.safetensors").read_bytes()
    shutil.copytree(own.runs / "nli-seed0", runs / "nli-seed0")
    (runs / "nli-seed0" / "adapter_model.safetensors").write_bytes(whole[: len(whole) // 2])
    watched = start(
        runs, *ASKED, "-o", out, *QUICK, "--report", tmp_path / "report", "--until", "done"
    )
    time.sleep(3)
    assert not out.exists()  # half a file is not scored
    (runs / "nli-seed0" / "adapter_model.safetensors").write_bytes(whole)
    log = said(tmp_path, "report: ")
    assert f"complete: {runs / 'nli-seed0'}" in log
    first = keys(out)
    assert len(first) == 2 * 2 * 2 * 5  # base and adapter, tasks, prompts, documents

    # The trainer's next step comes under another name first; one adapter never gets finished.
    shutil.copytree(own.runs / "sft" / "checkpoint-10", runs / "tmp-checkpoint-10")
    (runs / "cut").mkdir()
    shutil.copy(own.runs / "nli-seed1" / "adapter_config.json", runs / "cut")
    (runs / "tmp-checkpoint-10").rename(runs / "checkpoint-10")
    (runs / "done").touch()
    assert watched.wait(240) == 1
    log = (tmp_path / "watch.log").read_text()
    assert "the training has ended; 2 folders were complete" in log
    assert f"not scored: {runs / 'cut'}: " in log
    assert "Traceback" not in log
    assert set(keys(out)) > set(first)
    names = ResultStore(out, read_only=True).cells()["adapter"].to_pylist()
    assert {name.rpartition("/")[2] for name in names} == {"(base)", "nli-seed0", "checkpoint-10"}
    assert_same_scores(out, own.results, only=set(keys(out)))
    assert (tmp_path / "report" / "report.html").is_file()


def test_it_can_be_stopped_and_ends_when_nothing_comes(
    own: Own, start: Start, tmp_path: Path
) -> None:
    (tmp_path / "runs").mkdir()
    asked = (tmp_path / "runs", *ASKED, "-o", tmp_path / "results", *QUICK)
    watched = start(*asked)
    time.sleep(3)
    watched.send_signal(signal.SIGTERM)
    assert watched.wait(120) == 75
    assert "the same command again goes on" in (tmp_path / "watch.log").read_text()
    watched = start(*asked, "--idle", "1s")
    assert watched.wait(120) == 0
    assert "nothing new came; 0 folders were complete" in (tmp_path / "watch.log").read_text()
    assert start(*asked, "-t", "no_such_task").wait(120) == 2

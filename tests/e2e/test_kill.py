"""kill -9 in the middle costs a chunk, never a run: the same keys and scores afterwards.

With vllm engines and tuned adapters as a proof; each time with hf engines, which start sooner.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from bench.chaos import build_grid
from bench.strikes import descendants, engine_process
from evalcore.app.status import status
from tests.e2e.compared import TASKS, assert_same_scores
from tests.e2e.waiting import wait_for_segments

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Killed:
    """A grid, what scores it, and results of a run that nobody disturbed."""

    folder: Path
    options: str
    undisturbed: Path

    def command(self, out: Path) -> list[str]:
        """Many small units, each committed at once: there is a middle to be killed in."""
        options = f"{self.options} -p default,io --limit 12 --unit-examples 6 --commit-every 0"
        return ["score", str(self.folder / "adapters"), "-o", str(out), *options.split()]


def start(grid: Killed, out: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "evalcore", *grid.command(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="module", params=["hf", pytest.param("vllm", marks=pytest.mark.proof)])
def grid(
    request: pytest.FixtureRequest, evalcore, tmp_path_factory: pytest.TempPathFactory
) -> Killed:
    folder = tmp_path_factory.mktemp("killed")
    if request.param == "vllm":
        grid = Killed(request.getfixturevalue("mini"), f"-t {TASKS}", folder / "results")
    else:
        build_grid(folder)
        options = "-t pocket_nli --engine hf --threads 1"
        grid = Killed(folder, options, folder / "results")
    done = evalcore(*grid.command(grid.undisturbed))
    assert done.status == 0, done.err
    return grid


def test_driver_killed(grid: Killed, evalcore, tmp_path: Path) -> None:
    out = tmp_path / "results"
    process = start(grid, out)
    wait_for_segments(process, out, 3)
    workers = descendants(process.pid)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < deadline, "workers outlived their driver"
        time.sleep(0.1)
    assert [run.life for run in status(out).runs] == ["dead"]
    done = evalcore(*grid.command(out))
    assert done.status == 0, done.err
    kept = re.search(r"(\d+) were there already", done.out)
    assert kept is not None, done.out
    assert int(kept.group(1)) > 0
    assert [run.life for run in status(out).runs] == ["dead", "ended"]
    assert_same_scores(grid.undisturbed, out)


def test_worker_killed(grid: Killed, tmp_path: Path) -> None:
    out = tmp_path / "results"
    process = start(grid, out)
    wait_for_segments(process, out, 3)
    worker = engine_process(process.pid)
    assert worker is not None
    os.kill(worker, signal.SIGKILL)
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 0, text
    assert "restarts 1" in text
    assert_same_scores(grid.undisturbed, out)


def test_sigterm_commits_and_exits_75(grid: Killed, evalcore, tmp_path: Path) -> None:
    out = tmp_path / "results"
    process = start(grid, out)
    wait_for_segments(process, out, 2)
    process.send_signal(signal.SIGTERM)
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 75, text
    assert "run the same command again" in text
    assert "standard error" not in text, "no table is computed after a wish to stop"
    assert "ended" in str(status(out))
    assert "with status 75: stopped (SIGTERM)" in str(status(out))
    assert evalcore(*grid.command(out)).status == 0
    assert_same_scores(grid.undisturbed, out)


@pytest.mark.proof
def test_a_time_limit_ends_a_command_whose_worker_hangs(grid: Killed, tmp_path: Path) -> None:
    """A worker that is stopped for good answers nothing, and takes no SIGTERM either."""
    out = tmp_path / "results"
    began = time.monotonic()
    command = [sys.executable, "-m", "evalcore", *grid.command(out), "--time-limit", "60"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for_segments(process, out, 1)
    family = descendants(process.pid)
    worker = engine_process(process.pid)
    assert worker is not None
    os.kill(worker, signal.SIGSTOP)
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 75, text
    assert time.monotonic() - began < 90
    assert not any(Path(f"/proc/{pid}").exists() for pid in family), "an orphan"
    assert "with status 75: stopped (time limit)" in str(status(out))

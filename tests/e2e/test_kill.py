"""kill -9 in the middle costs a chunk, never a run: the same keys and scores afterwards."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.e2e.test_score import TASKS, assert_same_scores

pytestmark = pytest.mark.slow


def command(mini: Path, out: Path) -> list[str]:
    """Many small units, each committed at once, so that there is a middle to be killed in."""
    options = f"-t {TASKS} -p default,io --limit 12 --unit-examples 6 --commit-every 0".split()
    return ["score", str(mini / "adapters"), "-o", str(out), *options]


def wait_for_segments(process: subprocess.Popen, out: Path, count: int) -> None:
    deadline = time.monotonic() + 180
    while len(list((out / "segments").glob("[!.]*.arrow"))) < count:
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def start(mini: Path, out: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "evalcore", *command(mini, out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def descendants(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found, todo = [], [pid]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


@pytest.fixture(scope="module")
def undisturbed(mini: Path, evalcore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "results"
    done = evalcore(*command(mini, out))
    assert done.status == 0, done.err
    return out


def test_driver_killed(mini: Path, undisturbed: Path, evalcore, tmp_path: Path) -> None:
    out = tmp_path / "results"
    process = start(mini, out)
    wait_for_segments(process, out, 3)
    workers = descendants(process.pid)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < deadline, "workers outlived their driver"
        time.sleep(0.1)
    done = evalcore(*command(mini, out))
    assert done.status == 0, done.err
    kept = re.search(r"(\d+) were there already", done.out)
    assert kept is not None, done.out
    assert int(kept.group(1)) > 0
    assert_same_scores(undisturbed, out)


def test_worker_killed(mini: Path, undisturbed: Path, tmp_path: Path) -> None:
    out = tmp_path / "results"
    process = start(mini, out)
    wait_for_segments(process, out, 3)
    largest = max(descendants(process.pid), key=resident_pages)  # the one that has the engine
    os.kill(largest, signal.SIGKILL)
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 0, text
    assert "restarts 1" in text
    assert_same_scores(undisturbed, out)


def resident_pages(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0


def test_sigterm_commits_and_exits_75(
    mini: Path, undisturbed: Path, evalcore, tmp_path: Path
) -> None:
    out = tmp_path / "results"
    process = start(mini, out)
    wait_for_segments(process, out, 2)
    process.send_signal(signal.SIGTERM)
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 75, text
    assert "run the same command again" in text
    assert evalcore(*command(mini, out)).status == 0
    assert_same_scores(undisturbed, out)

"""Nothing is waited for without end: real pool and worker, a stub engine that hangs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from evalcore.cluster import Patience, Stop, StopSignals
from tests.toys.scoring import Run, unit_job, write_requests

pytestmark = pytest.mark.slow  # waiting for what hangs takes as long as it does

SHORT = Patience(floor_s=4.0, start_s=8.0, flush_s=8.0, times=1.0)


@pytest.fixture(scope="module")
def requests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_requests(tmp_path_factory.mktemp("requests") / "requests.arrow")


def test_a_hung_worker_is_killed_and_its_unit_done_elsewhere(
    requests: Path, tmp_path: Path
) -> None:
    once = unit_job(requests, "hang:once", 0, tmp_path / "mark")
    for_ever = unit_job(requests, "hang:ever", 0)
    jobs = [*(unit_job(requests, "good", i) for i in range(20)), once, for_ever]
    run = Run(tmp_path / "results", workers=2, patience=SHORT)(jobs)
    assert run.outcome == "done"
    assert len(run.committed) == 21
    assert set(run.failures) == {for_ever.id}
    assert "made no progress for" in str(run.failures[for_ever.id])
    assert max(run.runs.values()) == 1


def test_a_slow_worker_that_moves_is_left_alone(requests: Path, tmp_path: Path) -> None:
    jobs = [unit_job(requests, "good", 0), unit_job(requests, "slow:5", 0)]
    run = Run(tmp_path, patience=SHORT)(jobs)
    assert (run.outcome, run.starts, len(run.committed)) == ("done", 1, 2)


def test_a_worker_stopped_for_less_than_its_deadline_goes_on(
    requests: Path, tmp_path: Path
) -> None:
    stopped: list[int] = []

    def strike() -> bool:
        if len(run.committed) == 3 and not stopped:
            stopped.extend(children(os.getpid()))
            for pid in stopped:
                os.kill(pid, signal.SIGSTOP)
            threading.Timer(2.0, lambda: [os.kill(pid, signal.SIGCONT) for pid in stopped]).start()  # type: ignore[func-returns-value]
        return False

    run = Run(tmp_path, patience=SHORT, env={"TOY_UNIT_S": "0.2"})
    run([unit_job(requests, "good", i) for i in range(12)], strike)
    assert stopped
    assert (run.outcome, run.starts, len(run.committed)) == ("done", 1, 12)


def children(pid: int) -> list[int]:
    below = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [found for child in below for found in (int(child), *children(int(child)))]


@pytest.mark.parametrize("how", ["time limit", "SIGTERM"])
def test_a_stop_ends_a_run_with_a_hung_worker(requests: Path, tmp_path: Path, how: str) -> None:
    jobs = [unit_job(requests, "hang:ever", 0), *(unit_job(requests, "good", i) for i in range(8))]
    run = Run(tmp_path, workers=2)
    asked_at = 0.0
    with StopSignals(600.0, grace_s=1.0) as signals:

        def asked() -> Stop:
            nonlocal asked_at
            if len(run.committed) == 8 and not asked_at:  # however slow the machine is
                asked_at = time.monotonic()
                if how == "SIGTERM":
                    os.kill(os.getpid(), signal.SIGTERM)
                else:
                    signals._ends_at = asked_at
            return signals()

        run(jobs, asked)
    assert (run.outcome, signals.reason) == ("stopped", how)
    assert time.monotonic() - asked_at < 25
    assert len(run.committed) == 8
    assert run.failures == {}, "a unit that was cut is for the next run"


def test_no_unit_is_begun_that_would_not_end_in_time(requests: Path, tmp_path: Path) -> None:
    """Five rows a second; a unit of five is cut to what fits, or left."""
    run = Run(tmp_path, env={"TOY_UNIT_S": "1.0"})
    with StopSignals(600.0, grace_s=0.0) as signals:

        def asked() -> Stop:
            left_s = signals.left_s()
            if run.committed and left_s is not None and left_s > 300:
                signals._ends_at = time.monotonic() + 5.0
            return signals()

        run([unit_job(requests, "good", i) for i in range(50)], asked, time_left_s=signals.left_s)
    assert run.outcome == "stopped"
    assert run.rows_written() > 0
    assert sum(run.runs.values()) * 1.0 < 8.0
    assert run.starts == 1, "none was killed in its middle"


STOPPED_DRIVER = """
import sys
from pathlib import Path
from evalcore.cluster import Patience, loop
from tests.toys.scoring import Run, unit_job
loop.FROZEN_S = 2.0
jobs = [unit_job(Path({requests!r}), "good", i) for i in range(15)]
run = Run(Path({out!r}), env={{"TOY_UNIT_S": "0.2"}}, patience=Patience(3.0, 3.0, 3.0, 1.0))
print("begun", flush=True)
run(jobs)
print(run.outcome, run.starts, len(run.committed))
"""


def test_a_driver_that_was_stopped_blames_nobody(requests: Path, tmp_path: Path) -> None:
    code = STOPPED_DRIVER.format(requests=str(requests), out=str(tmp_path))
    driver: Any = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    driver.stdout.readline()
    while not list((tmp_path / "segments").glob("[!.]*.arrow")):
        time.sleep(0.05)
    everybody = [driver.pid, *children(driver.pid)]
    for pid in everybody:  # as a batch system suspends a job
        os.kill(pid, signal.SIGSTOP)
    time.sleep(4.0)
    for pid in everybody:
        os.kill(pid, signal.SIGCONT)
    output, _ = driver.communicate(timeout=60)
    assert output.strip() == "done 1 15"

"""Adapters of a small study through the local job pool: failures, a killed driver, a second run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from evalcore.identity import adapter_fingerprint, find_adapters
from finetune import TuneEvent, load_study, plan_jobs, tune

ROOT = Path(__file__).resolve().parents[2]
STUDY = """
name: small
checkpoints: {paths: ["step-*"]}
tunings:
  - {name: nli, task: pocket_nli, examples: 40}
  - {name: describe, task: pocket_describe, examples: 40}
controls: [{kind: shuffled_labels, of: [nli]}]
method: {steps: 25, batch_size: 4, rank: 4, learning_rate: 1e-3}
evaluation: {tasks: [pocket_nli, pocket_describe]}
"""
DRIVER = """
import sys
from finetune import load_study, plan_jobs, tune
if __name__ == "__main__":
    out = sys.argv[1]
    jobs = plan_jobs(load_study(out + "/s.yaml"), out).jobs
    tune(jobs, threads=1, device="cpu")
"""


@pytest.fixture
def out(tmp_path: Path, make_checkpoint: Callable[..., Path]) -> Path:
    for step in (1, 2):
        make_checkpoint(tmp_path / f"step-{step:05d}", seed=step)
    (tmp_path / "s.yaml").write_text(STUDY)
    return tmp_path


@pytest.mark.slow
def test_one_bad_job_does_not_stop_the_rest(out: Path) -> None:
    jobs = plan_jobs(load_study(out / "s.yaml"), out).jobs
    weights = out / "step-00001" / "model.safetensors"  # breaks after it was planned
    weights.write_bytes(weights.read_bytes()[:5000])
    events: list[TuneEvent] = []
    summary = tune(jobs, threads=1, device="cpu", on_event=events.append)
    assert sorted(f.job_id for f in summary.failures) == ["step-00001/describe", "step-00001/nli"]
    assert all("\n" not in str(f.error) for f in summary.failures)
    assert len(summary.results) == 3
    assert [event.done for event in events] == [1, 2, 3, 4, 5]
    assert not summary.untrained
    assert summary.tokens > 0


@pytest.mark.slow
def test_killed_in_the_middle_and_run_again(out: Path) -> None:
    driver = out / "driver.py"
    driver.write_text(DRIVER)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, str(driver), str(out)], env=env)
    adapters = out / "adapters"
    deadline = time.monotonic() + 180
    while not list(adapters.rglob("provenance.json")) and process.poll() is None:
        assert time.monotonic() < deadline, "no adapter within three minutes"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(1.0)  # the worker dies with its driver
    plan = plan_jobs(load_study(out / "s.yaml"), out)
    assert 1 <= len(plan.finished) < 5
    assert len(plan.finished) + len(plan.jobs) == 5
    before = {path: (path / "provenance.json").stat().st_mtime_ns for path in plan.finished}
    summary = tune(plan.jobs, threads=1, device="cpu")
    assert not summary.failures
    after = plan_jobs(load_study(out / "s.yaml"), out)
    assert not after.jobs
    assert len(after.finished) == 5
    assert {p: (p / "provenance.json").stat().st_mtime_ns for p in before} == before
    assert len(find_adapters([adapters])) == 5
    assert len({adapter_fingerprint(path) for path in after.finished}) == 5
    assert tune(after.jobs).results == ()

"""A whole grid of adapters trained by one command through Ray, with a worker killed in it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from evalcore.identity import adapter_fingerprint, find_adapters, read_provenance

STUDY = """
name: grid
checkpoints: {paths: ["step-*"]}
tunings:
  - {name: nli, task: pocket_nli, examples: 24, seeds: [0, 1]}
  - {name: paraphrase, task: pocket_paraphrase, examples: 24, seeds: [0, 1]}
  - {name: facts, task: pocket_facts, examples: 24, seeds: [0, 1]}
  - {name: describe, task: pocket_describe, examples: 24, seeds: [0, 1]}
controls: [{kind: shuffled_labels, of: [nli, paraphrase, facts, describe]}]
method: {steps: 5, batch_size: 4, rank: 4, learning_rate: 1e-3, save_every: 2}
"""
STEPS = (1, 2, 4, 8, 16)
ADAPTERS = len(STEPS) * 4 * 2 + 4
KILL_AFTER = ADAPTERS // 3


def records(out: Path) -> dict[Path, int]:
    """Finished adapters and when their records were written (folders being made are hidden)."""
    root = out / "adapters"
    finished = (
        file
        for file in root.rglob("provenance.json")
        if not any(part.startswith(".") for part in file.relative_to(root).parts)
    )
    return {file: file.stat().st_mtime_ns for file in finished}


def actors(driver: int) -> list[psutil.Process]:
    """Worker processes that the driver's own Ray session runs."""
    family = psutil.Process(driver).children(recursive=True)
    return [process for process in family if process.name().startswith("ray::RayWor")]


@pytest.mark.proof
def test_every_adapter_once_though_a_worker_dies(
    tmp_path: Path, make_checkpoint: Callable[..., Path]
) -> None:
    for step in STEPS:
        make_checkpoint(tmp_path / f"step-{step:05d}", seed=step)
    study = tmp_path / "study.yaml"
    study.write_text(STUDY)
    command = [
        sys.executable, "-m", "evalcore", "finetune", str(study), "-o", str(tmp_path),
        "--cluster", "ray", "--tune-workers", "2",
    ]  # fmt: skip
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with open(tmp_path / "log", "w", encoding="utf-8") as log:
        driver = subprocess.Popen(command, stdout=log, stderr=log, env=env)
        deadline = time.monotonic() + 400
        while len(records(tmp_path)) < KILL_AFTER:
            said = (tmp_path / "log").read_text()
            assert driver.poll() is None, said
            assert time.monotonic() < deadline, said
            time.sleep(0.05)
        before = records(tmp_path)
        victim = actors(driver.pid)[0]
        victim.send_signal(signal.SIGKILL)
        assert driver.wait(timeout=400) == 0, (tmp_path / "log").read_text()
    said = (tmp_path / "log").read_text()
    after = records(tmp_path)
    assert len(after) == ADAPTERS == len(find_adapters([tmp_path / "adapters"]))
    # What was finished when the worker died was not touched again; all were made in one run.
    assert before.items() <= after.items()
    (made,) = re.findall(r"(\d+) [a-z ]*trained in|(\d+) [a-z ]*tuned in", said)
    assert str(ADAPTERS) in made, said
    folders = [file.parent for file in after]
    assert len({adapter_fingerprint(folder) for folder in folders}) == ADAPTERS
    assert not list((tmp_path / "adapters").rglob(".*"))
    controls = [r for r in map(read_provenance, folders) if r is not None and r.tuning.control]
    assert len(controls) == 4
    # A second command finds nothing to do.
    again = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert again.returncode == 0, again.stderr
    assert records(tmp_path) == after

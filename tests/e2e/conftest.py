"""A small study made with the real parts: two checkpoints, two adapters on each."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

MINI_STUDY = """
name: mini
description: a study small enough for tests
pretrain: {kind: pocket, steps: 40, save_steps: [10, 40], seed: 0}
checkpoints: {paths: ["pretrained/step-*"]}
method: {kind: lora, rank: 4, alpha: 8, learning_rate: 0.003, steps: 12, batch_size: 8}
tunings:
  - {name: pocket_nli, task: pocket_nli, examples: 96}
  - {name: pocket_describe, task: pocket_describe, examples: 96}
evaluation:
  tasks: [pocket_nli, pocket_describe]
  prompts: default,io
  limit: 12
"""


@dataclass(frozen=True)
class Run:
    """What a command printed and how it ended."""

    status: int
    out: str
    err: str


def run_evalcore(*args: object, timeout_s: float = 300) -> Run:
    """Runs the command line in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "evalcore", *map(str, args)],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    return Run(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="session")
def evalcore() -> Callable[..., Run]:
    return run_evalcore


@pytest.fixture(scope="session")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished mini study: pretrained/, adapters/, results/, report/."""
    folder = tmp_path_factory.mktemp("mini")
    (folder / "study.yaml").write_text(MINI_STUDY)
    done = run_evalcore("run", folder / "study.yaml")
    assert done.status == 0, done.err + done.out
    return folder

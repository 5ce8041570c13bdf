"""A small study made with the real parts: two checkpoints, two adapters on each."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

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


def run_evalcore(*args: object, timeout_s: float = 900) -> Run:
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


ASKED = ("-t", "pocket_nli,pocket_facts", "-p", "default,io", "--limit", "5", "--engine", "hf")


@dataclass(frozen=True)
class Own:
    """A user's folder: runs/ with adapters, results/ with their scores, and what was printed."""

    folder: Path
    base: Path
    printed: str

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    @property
    def results(self) -> Path:
        return self.folder / "results"


def save_adapters(base: Path, folder: Path) -> None:
    """Two adapters as plain PEFT writes them, and a run as TRL's trainer leaves it."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    def save(place: Path, seed: int) -> None:
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_pretrained(base)
        config = LoraConfig(
            r=4, lora_alpha=16, target_modules=["q_proj", "v_proj"], init_lora_weights=False,
            task_type="CAUSAL_LM",
        )  # fmt: skip
        get_peft_model(model, config).save_pretrained(str(place))

    for seed in (0, 1):
        save(folder / f"nli-seed{seed}", seed)
    for step in (10, 20):
        checkpoint = folder / "sft" / f"checkpoint-{step}"
        save(checkpoint, step)
        state = {"global_step": step, "max_steps": 20}
        (checkpoint / "trainer_state.json").write_text(json.dumps(state))
        for name in ("tokenizer.json", "tokenizer_config.json"):  # SFTTrainer saves them as well
            shutil.copy(base / name, checkpoint / name)
    for file in (folder / "sft" / "checkpoint-20").iterdir():  # the last is the run's result too
        if file.name != "trainer_state.json":
            shutil.copy(file, folder / "sft" / file.name)


@pytest.fixture(scope="session")
def own(tmp_path_factory: pytest.TempPathFactory, make_checkpoint: Callable) -> Own:
    """Adapters of another's making, scored by one command."""
    folder = tmp_path_factory.mktemp("own")
    base = make_checkpoint(folder / "models" / "step-00100")
    save_adapters(base, folder / "runs")
    done = run_evalcore("score", folder / "runs", *ASKED, "-o", folder / "results")
    assert done.status == 0, done.err
    return Own(folder, base, done.out)


def run(*args: object) -> str:
    """A command in this process; its output."""
    from evalcore.cli import cli

    done = CliRunner().invoke(cli, [str(a) for a in args], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output

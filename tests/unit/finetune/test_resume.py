"""Interrupted and resumed: the same tensors as without; training checkpoints that are not used."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from evalcore.identity import read_provenance
from finetune import TuneConfig, TuneJob, TuneWorker
from finetune.provenance import working_folder
from finetune.resume import STATE_FILE, Keeper, StepRecord, TrainingState
from tests.toys.finetune import largest_difference, make_job


class Killed(BaseException):
    """Stands for a process that ends at this point; nothing of ours catches it."""


@pytest.fixture(scope="module")
def checkpoint(
    tmp_path_factory: pytest.TempPathFactory, make_checkpoint: Callable[..., Path]
) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("resume") / "step-00005", seed=5)


@pytest.fixture(scope="module")
def worker() -> TuneWorker:
    return TuneWorker(TuneConfig(threads=1, device="cpu"))


def interrupt(worker: TuneWorker, job: TuneJob, at: int) -> None:
    def on_step(step: int, steps: int, loss: float) -> None:
        if step == at:
            raise Killed

    with pytest.raises(Killed):
        worker.run(job, on_step)
    worker.close()


@pytest.mark.parametrize("kind", ["lora", pytest.param("full", marks=pytest.mark.slow)])
def test_resumed_is_uninterrupted(
    checkpoint: Path, worker: TuneWorker, tmp_path: Path, kind: str
) -> None:
    method = {"kind": kind, "steps": 9, "save_every": 2, "weight_decay": 0.01, "warmup_ratio": 0.3}
    if kind == "lora":
        method["dropout"] = 0.2
    whole = make_job(checkpoint, tmp_path / "whole", method={**method, "save_every": None})
    parts = make_job(checkpoint, tmp_path / "parts", method=method)
    worker.run(whole)
    for at in (3, 7):
        interrupt(worker, parts, at)
        assert not Path(parts.directory).exists()
        (kept,) = (working_folder(parts.directory) / "run").iterdir()
        assert kept.name == f"step-{at - 1:08d}"
        assert {file.suffix for file in kept.iterdir()} == {".json", ".safetensors"}
    result = worker.run(parts)
    assert result.resumed_at == (2, 6)
    assert largest_difference(whole, parts) <= 1e-6
    assert not working_folder(parts.directory).exists()
    one, two = read_provenance(Path(whole.directory)), read_provenance(Path(parts.directory))
    assert one is not None
    assert two is not None
    assert two.training["resumed_at"] == [2, 6]
    assert one.training["final_loss"] == pytest.approx(two.training["final_loss"], abs=1e-9)
    losses = [(Path(job.directory) / "loss.arrow").read_bytes() for job in (whole, parts)]
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_checkpoints_of_other_settings_or_broken_ones_are_not_used(
    checkpoint: Path, worker: TuneWorker, tmp_path: Path
) -> None:
    job = make_job(checkpoint, tmp_path / "a", method={"save_every": 1})
    interrupt(worker, job, 3)
    changed = replace(job, seed=1)
    assert worker.run(changed).resumed_at == ()
    again = make_job(checkpoint, tmp_path / "b", method={"save_every": 1})
    interrupt(worker, again, 3)
    (kept,) = (working_folder(again.directory) / "run").iterdir()
    weights = kept / "state.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    assert worker.run(again).resumed_at == ()


def test_keeper_keeps_the_newest_whole_one(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path / "k", {"a": 1}, 2)
    assert keeper.load() is None
    assert [keeper.due(step, 6) for step in range(1, 7)] == [False, True, False, True, False, False]
    for step in (2, 4):
        record = StepRecord([1.5] * step, [0.1] * step, [3] * step)
        keeper.save(TrainingState(step, record, 1.0, [], {"parameter.w": torch.ones(2) * step}))
    assert [place.name for place in (tmp_path / "k").iterdir()] == ["step-00000004"]
    state = keeper.load()
    assert state is not None
    assert (state.step, state.resumed_at, state.record.losses) == (4, [4], [1.5] * 4)
    assert state.tensors["parameter.w"].tolist() == [4, 4]
    assert Keeper(tmp_path / "k", {"a": 2}, 2).load() is None
    (tmp_path / "k" / "step-00000004" / STATE_FILE).write_text(json.dumps({"step": 4}))
    assert keeper.load() is None

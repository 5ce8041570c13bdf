"""Training one adapter: same seed same tensors, base untouched, loss where it should be."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.numpy import load_file
from torch.nn.functional import cross_entropy

from evalcore.errors import IncompatibleError, InputError, TrainingError
from evalcore.identity import adapter_fingerprint, read_provenance, resolve_subjects
from finetune import TuneConfig, TuneJob, TuneWorker, parse_study, plan_jobs
from finetune.loop import check_losses, completion_loss
from finetune.method import MethodSpec
from finetune.packing import IGNORED, collate
from finetune.train import num_steps
from finetune.tuners import weights_checksum

STUDY = """
name: small
checkpoints: {paths: ["step-*"]}
tunings:
  - {name: nli, task: pocket_nli, examples: 24}
  - {name: describe, task: pocket_describe, examples: 24}
controls: [{kind: shuffled_labels, of: [nli]}]
method: {steps: 4, batch_size: 4, rank: 4, dropout: 0.1, learning_rate: 1e-3}
"""


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, make_checkpoint: Callable[..., Path]) -> Path:
    folder = tmp_path_factory.mktemp("study")
    make_checkpoint(folder / "step-00007", seed=7, tied=True)
    return folder


@pytest.fixture(scope="module")
def worker() -> TuneWorker:
    return TuneWorker(TuneConfig(threads=1, device="cpu"))


@pytest.fixture(scope="module")
def jobs(out: Path) -> dict[str, TuneJob]:
    plan = plan_jobs(parse_study(STUDY, out / "s.yaml"), out)
    return {job.id: job for job in plan.jobs}


def elsewhere(job: TuneJob, folder: Path, name: str = "a", **changes: Any) -> TuneJob:
    return replace(job, directory=str(folder / name), **changes)


def tensors(job: TuneJob) -> dict[str, np.ndarray]:
    return load_file(Path(job.directory) / "adapter_model.safetensors")


def same(a: TuneJob, b: TuneJob) -> bool:
    one, two = tensors(a), tensors(b)
    return one.keys() == two.keys() and all(np.array_equal(one[k], two[k]) for k in one)


def test_same_seed_same_tensors_whatever_was_trained_before(
    jobs: dict[str, TuneJob], worker: TuneWorker, tmp_path: Path
) -> None:
    nli = jobs["step-00007/nli"]
    first, again = elsewhere(nli, tmp_path, "first"), elsewhere(nli, tmp_path, "again")
    result = worker.run(first)
    other = elsewhere(nli, tmp_path, "other", seed=1)
    control = elsewhere(jobs["step-00007/nli-shuffled_labels"], tmp_path, "control")
    worker.run(other)
    worker.run(control)
    assert result.load_s > 0
    assert worker.run(again).load_s < 0.01
    assert same(first, again)
    assert not same(first, other)
    assert not same(first, control)
    # In a fresh worker too, which reads the base anew.
    fresh = elsewhere(nli, tmp_path, "fresh")
    TuneWorker(TuneConfig(threads=1, device="cpu")).run(fresh)
    assert same(first, fresh)
    assert adapter_fingerprint(first.directory) == adapter_fingerprint(fresh.directory)


def test_the_directory_is_peft_plus_record_and_nothing_else(
    jobs: dict[str, TuneJob], worker: TuneWorker, tmp_path: Path
) -> None:
    job = elsewhere(jobs["step-00007/describe"], tmp_path)
    result = worker.run(job)
    directory = Path(job.directory)
    assert sorted(p.name for p in directory.iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors", "loss.arrow", "provenance.json",
    ]  # fmt: skip
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    config = json.loads((directory / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == job.checkpoint.path
    assert config["r"] == 4
    assert config["target_modules"] == sorted(config["target_modules"])
    record = read_provenance(directory)
    assert record is not None
    assert record.base.fingerprint == job.checkpoint.fingerprint
    assert (directory / str(record.base.path_relative)).resolve() == Path(job.checkpoint.path)
    assert record.adapter_fingerprint == adapter_fingerprint(directory)
    assert len(record.data["row_ids"]) == 24 == record.tuning.examples
    with pa.OSFile(str(directory / "loss.arrow")) as source:
        losses = pa.ipc.open_file(source).read_all()
    assert losses["step"].to_pylist() == [1, 2, 3, 4]
    assert losses["loss"][0].as_py() == pytest.approx(result.first_loss)
    assert losses["learning_rate"].to_pylist() == pytest.approx([0, 1e-3, 2e-3 / 3, 1e-3 / 3])
    assert not result.untrained
    subjects = resolve_subjects([tmp_path]).subjects
    assert [s.tuning for s in subjects] == [None, "describe"]


def test_peft_loads_it_and_its_delta_is_there(
    jobs: dict[str, TuneJob], worker: TuneWorker, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    job = elsewhere(jobs["step-00007/nli"], tmp_path)
    worker.run(job)
    base = AutoModelForCausalLM.from_pretrained(job.checkpoint.path, dtype=torch.float32)
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        before = base(input_ids=ids).logits
        model = PeftModel.from_pretrained(base, job.directory)
        assert (model(input_ids=ids).logits - before).abs().max() > 1e-4
        deltas = [p for n, p in model.named_parameters() if "lora_B" in n]
    assert len(deltas) == 14
    assert all(bool(p.any()) for p in deltas)


def test_the_base_is_left_as_it_was(
    jobs: dict[str, TuneJob], worker: TuneWorker, tmp_path: Path
) -> None:
    job = elsewhere(jobs["step-00007/nli"], tmp_path)
    worker.run(job)
    base = worker._base
    assert base is not None
    before = {k: v.clone() for k, v in base.model.state_dict().items()}
    worker.run(elsewhere(job, tmp_path, "b", seed=4))
    after = base.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert weights_checksum(base.model) == base.checksum
    with torch.no_grad():
        next(base.model.parameters()).view(-1)[5] += 1e-6
    assert weights_checksum(base.model) != base.checksum
    worker._drop_base()


def test_the_loss_is_the_plain_one_over_completions(out: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(out / "step-00007", dtype=torch.float32)
    rng = np.random.default_rng(0)
    rows = []
    for length, prompt in ((9, 4), (14, 12), (5, 1)):
        ids = rng.integers(3, 300, length).tolist()
        rows.append({"input_ids": ids, "labels": [IGNORED] * prompt + ids[prompt:]})
    batch = collate(rows)
    with torch.no_grad():
        fast = completion_loss(model, batch, takes_columns=True)
        slow = 0.0
        for row in rows:  # one by one: no padding, all logits
            logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1]
            slow += float(cross_entropy(logits, torch.tensor(row["labels"][1:]), reduction="sum"))
    assert float(fast) == pytest.approx(slow, rel=1e-5)


def test_accumulated_batches_are_one_large_batch(
    jobs: dict[str, TuneJob], worker: TuneWorker, tmp_path: Path
) -> None:
    job = jobs["step-00007/nli"]
    whole = elsewhere(job, tmp_path, "whole", method=job.method.merged({"dropout": 0.0}))
    parts = elsewhere(
        job, tmp_path, "parts",
        method=whole.method.merged({"batch_size": 2, "gradient_accumulation": 2}),
    )  # fmt: skip
    a, b = worker.run(whole), worker.run(parts)
    assert a.first_loss == pytest.approx(b.first_loss, rel=1e-5)
    assert a.final_loss == pytest.approx(b.final_loss, rel=1e-3)


def test_broken_weights_stop_the_job_with_one_line(
    make_checkpoint: Callable[..., Path], worker: TuneWorker, tmp_path: Path
) -> None:
    from safetensors.numpy import save_file

    path = make_checkpoint(tmp_path / "step-00001")
    weights = load_file(path / "model.safetensors")
    weights["model.norm.weight"][3] = np.nan
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    job = plan_jobs(parse_study(STUDY, tmp_path / "s.yaml"), tmp_path).jobs[0]
    with pytest.raises(TrainingError, match="step-00001/nli: the loss is nan at step 1") as caught:
        worker.run(job)
    assert str(caught.value).endswith("[loss_not_finite]")
    assert "\n" not in str(caught.value)
    assert not Path(job.directory).exists()


def test_diverging_and_ordinary_losses() -> None:
    check_losses([3.0] * 10 + [2.0] * 10)
    check_losses([0.1] * 10 + [0.9] * 10)
    with pytest.raises(TrainingError, match=r"the loss diverges.*\[loss_diverges\]"):
        check_losses([3.0] * 10 + [7.0] * 10)
    with pytest.raises(TrainingError, match="inf at step 2"):
        check_losses([1.0, float("inf")])


def test_settings_that_do_not_fit_the_base(
    jobs: dict[str, TuneJob], worker: TuneWorker, tmp_path: Path
) -> None:
    job = jobs["step-00007/nli"]
    targets = job.method.merged({"targets": ["c_attn"]})
    with pytest.raises(IncompatibleError, match="c_attn"):
        worker.run(elsewhere(job, tmp_path, method=targets))
    too_long = job.method.merged({"max_length": 100_000})
    with pytest.raises(IncompatibleError, match="positions"):
        worker.run(elsewhere(job, tmp_path, method=too_long))
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        worker.run(replace(job, directory=str(tmp_path / "file" / "nli")))
    assert not (tmp_path / "a").exists()


def test_number_of_steps() -> None:
    assert num_steps(MethodSpec(steps=7), 1000) == 7
    assert num_steps(MethodSpec(epochs=2, batch_size=16), 100) == 13
    assert num_steps(MethodSpec(batch_size=4, gradient_accumulation=2), 100) == 38

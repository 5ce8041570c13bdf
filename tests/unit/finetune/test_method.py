"""What can be trained: kinds of LoRA, all weights, mixes, chosen learning rates, long rows."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from evalcore.app.tuning import tuned_lines
from evalcore.errors import InputError, TrainingError
from evalcore.identity import (
    checkpoint_fingerprint,
    describe_checkpoint,
    open_checkpoint,
    read_provenance,
    resolve_subjects,
    tokenizer_fingerprint,
    weight_layout,
)
from evalcore.prompting import load_tokenizer
from finetune import TuneConfig, TuneSummary, TuneWorker
from finetune.data import build_training_set
from finetune.jobs import MixPart, Selection
from finetune.method import MethodSpec
from finetune.provenance import working_folder
from finetune.selection import choose_learning_rate, split_rows
from tests.toys.finetune import largest_difference, make_job, weights


@pytest.fixture(scope="module")
def checkpoint(
    tmp_path_factory: pytest.TempPathFactory, make_checkpoint: Callable[..., Path]
) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("methods") / "step-00005", seed=5)


@pytest.fixture(scope="module")
def worker() -> TuneWorker:
    return TuneWorker(TuneConfig(threads=1, device="cpu"))


KINDS: dict[str, dict[str, Any]] = {
    "rslora": {"rslora": True},
    "dora": {"dora": True},
    "targets": {"targets": ["q_proj", "down_proj"]},
    "gaussian": {"init": "gaussian"},
    "orthogonal": {"init": "orthogonal"},
}


@pytest.mark.parametrize(
    "kind",
    ["dora", *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS if kind != "dora")],
)
def test_peft_and_resolve_take_every_kind(
    checkpoint: Path, worker: TuneWorker, tmp_path: Path, kind: str
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    job = make_job(checkpoint, tmp_path / kind, method=KINDS[kind])
    result = worker.run(job)
    assert not result.untrained
    config = json.loads((Path(job.directory) / "adapter_config.json").read_text())
    assert config["use_rslora"] == (kind == "rslora")
    assert config["use_dora"] == (kind == "dora")
    assert any("magnitude" in name for name in weights(job)) == (kind == "dora")
    base = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        before = base(input_ids=ids).logits
        model = PeftModel.from_pretrained(base, job.directory)
        assert (model(input_ids=ids).logits - before).abs().max() > 1e-4
    (subject,) = (s for s in resolve_subjects([tmp_path]).subjects if s.adapter)
    assert subject.adapter is not None
    assert not subject.adapter.untrained


@pytest.mark.parametrize("kind", ["dora", "orthogonal"])
def test_an_adapter_that_did_not_move_is_untrained(
    checkpoint: Path, worker: TuneWorker, tmp_path: Path, kind: str
) -> None:
    """One step of a warm-up has learning rate 0: weights stay as they were initialised."""
    job = make_job(checkpoint, tmp_path / "a", method={**KINDS[kind], "steps": 1})
    assert worker.run(job).untrained
    (subject,) = (s for s in resolve_subjects([tmp_path]).subjects if s.adapter)
    assert subject.adapter is not None
    assert subject.adapter.untrained


@pytest.mark.parametrize(("dtype", "least", "most"), [("float32", 0.7, 1.0), ("bfloat16", 0, 0.05)])
def test_steps_lost_in_the_parents_type_are_told(
    checkpoint: Path, worker: TuneWorker, tmp_path: Path, dtype: str, least: float, most: float
) -> None:
    """The same steps of 1e-5: in float32 all weights that are used move, in bfloat16 hardly any."""
    import torch
    from safetensors.torch import load_file, save_file

    parent = tmp_path / "step-00005"
    shutil.copytree(checkpoint, parent)
    file = parent / "model.safetensors"
    tensors = {name: t.to(getattr(torch, dtype)) for name, t in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    method = {"kind": "full", "steps": 3, "learning_rate": 1e-5, "max_grad_norm": None}
    result = worker.run(make_job(parent, tmp_path / "out", method=method))
    assert least < result.moved_share <= most
    assert not result.untrained
    record = read_provenance(Path(result.directory))
    assert record is not None
    assert record.training["moved_share"] == result.moved_share
    (told,) = tuned_lines(TuneSummary((result,), (), False, 1.0, result.tokens))[1:] or [""]
    assert ("smaller steps are lost in the base's data type" in told) == (dtype == "bfloat16")


@pytest.mark.parametrize("norm", [1e-6, None])
def test_gradients_are_scaled_down_or_left_alone(
    checkpoint: Path, worker: TuneWorker, tmp_path: Path, norm: float | None
) -> None:
    """Clipping to almost nothing leaves Adam's first steps as they are, but for its epsilon."""
    method = {"kind": "full", "steps": 3, "learning_rate": 1e-3, "max_grad_norm": norm}
    assert MethodSpec(**method).settings()["max_grad_norm"] == norm
    clipped = worker.run(make_job(checkpoint, tmp_path / "a", method=method)).final_loss
    plain = {**method, "max_grad_norm": 1e9}
    loose = worker.run(make_job(checkpoint, tmp_path / "b", method=plain)).final_loss
    assert (clipped == loose) == (norm is None)


def test_full_tuning_is_a_checkpoint_with_a_parent(
    checkpoint: Path, worker: TuneWorker, tmp_path: Path
) -> None:
    parent = open_checkpoint(str(checkpoint))
    job = make_job(checkpoint, tmp_path / "nli", method={"kind": "full"}, control="shuffled_labels")
    assert not worker.run(job).untrained
    directory = Path(job.directory)
    assert weight_layout(directory) == weight_layout(checkpoint)
    assert (directory / "config.json").read_bytes() == (checkpoint / "config.json").read_bytes()
    assert tokenizer_fingerprint(directory) == parent.tokenizer_fingerprint
    assert checkpoint_fingerprint(checkpoint) == parent.fingerprint  # the parent is untouched
    assert not [f.name for f in directory.iterdir() if f.suffix in (".bin", ".pt", ".pth")]
    tuned = describe_checkpoint(directory)
    assert (tuned.parent, tuned.tuning) == (parent.fingerprint, "nli")
    assert (tuned.control, tuned.seed, tuned.step) == ("shuffled_labels", 0, 5)
    record = read_provenance(directory)
    assert record is not None
    assert record.kind == "full"
    assert record.checkpoint_fingerprint == tuned.fingerprint
    # Found below a folder of outputs, with its parent, or named on its own.
    for subjects in (
        resolve_subjects([tmp_path]).subjects,
        resolve_subjects([], [str(directory)]).subjects,
    ):
        assert [(s.tuning, s.control, s.base_id) for s in subjects] == [
            ("nli", "shuffled_labels", parent.fingerprint),
            (None, None, None),
        ]
    # Moved away from its parent it is scored alone, and that is said; unless the parent is given.
    record_file = directory / "provenance.json"
    about = json.loads(record_file.read_text())
    about["base"] |= {"path": "/gone", "path_relative": "../gone", "source": "/gone"}
    record_file.write_text(json.dumps(about))
    alone = resolve_subjects([], [str(directory)])
    assert [s.tuning for s in alone.subjects] == ["nli"]
    assert "tuned from is not at hand" in alone.notes[0]
    given = resolve_subjects([], [str(checkpoint), str(directory)])
    assert len(given.subjects) == 2
    assert not given.notes


@pytest.mark.slow
def test_full_tuning_that_is_not_what_it_says(
    checkpoint: Path, worker: TuneWorker, tmp_path: Path
) -> None:
    still = make_job(checkpoint, tmp_path / "still", method={"kind": "full", "steps": 1})
    assert worker.run(still).untrained
    with pytest.raises(InputError, match="tuning changed nothing"):
        describe_checkpoint(Path(still.directory))
    (problem,) = resolve_subjects([tmp_path], [str(checkpoint)]).problems
    assert "tuning changed nothing" in problem.message
    job = make_job(checkpoint, tmp_path / "b" / "nli", method={"kind": "full"})
    worker.run(job)
    record = Path(job.directory) / "provenance.json"
    about = json.loads(record.read_text())
    about["checkpoint_fingerprint"] = "0" * 32
    record.write_text(json.dumps(about))
    with pytest.raises(InputError, match=r"is not the one its provenance\.json records"):
        describe_checkpoint(Path(job.directory))


@pytest.mark.slow
def test_full_tuning_keeps_the_type_of_a_bfloat16_parent(
    worker: TuneWorker, tmp_path: Path, make_checkpoint: Callable[..., Path]
) -> None:
    from transformers import AutoModelForCausalLM

    source = make_checkpoint(tmp_path / "float32", tied=True)
    parent = tmp_path / "step-00002"
    AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16).save_pretrained(parent)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (parent / name).write_bytes((source / name).read_bytes())
    job = make_job(parent, tmp_path / "nli", method={"kind": "full", "learning_rate": 1e-2})
    worker.run(job)
    assert weight_layout(job.directory) == weight_layout(parent)
    assert {dtype for dtype, _ in weight_layout(job.directory).values()} == {"BF16"}


@pytest.mark.slow
def test_gradient_checkpointing_and_seeds(
    checkpoint: Path, worker: TuneWorker, tmp_path: Path
) -> None:
    plain = make_job(checkpoint, tmp_path / "plain", method={"dropout": 0.1})
    saving = make_job(
        checkpoint, tmp_path / "saving", method={"dropout": 0.1, "gradient_checkpointing": True}
    )
    worker.run(plain)
    worker.run(saving)
    assert largest_difference(plain, saving) < 1e-6
    assert worker._base is not None
    assert not worker._base.model.is_gradient_checkpointing
    # All weights of one seed are one checkpoint too, whatever was trained before.
    first, again = (
        make_job(checkpoint, tmp_path / name, method={"kind": "full"}) for name in ("a", "b")
    )
    worker.run(first)
    worker.run(again)
    assert largest_difference(first, again) == 0


@pytest.mark.slow
def test_learning_rate_is_chosen_on_held_out_rows(
    checkpoint: Path, worker: TuneWorker, tmp_path: Path
) -> None:
    rates = (1e-9, 1e-2, 1.0)
    job = make_job(
        checkpoint, tmp_path / "nli",
        method={"steps": 12, "learning_rate": rates[0]},
        selection=Selection(rates, held_out_fraction=0.25),
    )  # fmt: skip
    result = worker.run(job)
    record = read_provenance(Path(job.directory))
    assert record is not None
    selection = (record.model_extra or {})["selection"]
    losses = {c["learning_rate"]: c["held_out_loss"] for c in selection["candidates"]}
    assert set(losses) == set(rates)
    chosen = min((loss, rate) for rate, loss in losses.items() if loss is not None)[1]
    assert result.learning_rate == selection["chosen"] == chosen == record.method["learning_rate"]
    assert chosen == 1e-2
    assert selection["held_out_rows"] == 6
    assert set(selection["held_out_row_ids"]) < set(record.data["row_ids"])
    assert result.examples == 24
    assert not working_folder(job.directory).exists()
    # The result is what that rate trains without a choice.
    plain = make_job(checkpoint, tmp_path / "plain", method={"steps": 12, "learning_rate": chosen})
    worker.run(plain)
    assert largest_difference(job, plain) == 0


def test_candidates_that_fail_are_not_chosen_and_none_is_tried_twice(
    checkpoint: Path, tmp_path: Path
) -> None:
    job = make_job(checkpoint, tmp_path / "nli")
    rows = build_training_set(job, load_tokenizer(checkpoint), 512)
    selection = Selection((3.0, 1.0, 2.0), held_out_rows=4)
    tried: list[float] = []

    def train(rate: float, learned: Any, held_out: Any) -> float:
        tried.append(rate)
        assert len(learned) == 20
        assert not set(learned.row_ids) & set(held_out.row_ids)
        if rate == 1.0:
            raise TrainingError("the loss is nan", "loss_not_finite")
        return rate

    chosen, record = choose_learning_rate(selection, rows, 0, tmp_path / "w", "x", train)
    assert chosen == 2.0
    assert [c["error"] is None for c in record["candidates"]] == [True, False, True]
    assert choose_learning_rate(selection, rows, 0, tmp_path / "w", "x", train)[0] == 2.0
    assert tried == [3.0, 1.0, 2.0]
    choose_learning_rate(selection, rows, 0, tmp_path / "w", "other", train)
    assert len(tried) == 6
    with pytest.raises(TrainingError, match=r"none of 1 learning rates.*\[no_learning_rate\]"):
        choose_learning_rate(
            Selection((1.0,), held_out_rows=4), rows, 0, tmp_path / "v", "x", train
        )
    assert split_rows(rows, selection, 1)[1].row_ids != split_rows(rows, selection, 0)[1].row_ids


def test_a_mix_holds_the_rows_of_its_parts(checkpoint: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(checkpoint)
    nli, describe = MixPart("pocket_nli", 10), MixPart("pocket_describe", 6)
    mix = build_training_set(
        make_job(checkpoint, tmp_path / "m", tasks=(nli, describe)), tokenizer, 512
    )
    alone = [
        build_training_set(make_job(checkpoint, tmp_path / "a", tasks=(part,)), tokenizer, 512)
        for part in (nli, describe)
    ]
    assert mix.parts == (("pocket_nli", 10), ("pocket_describe", 6))
    assert mix.row_ids == alone[0].row_ids + alone[1].row_ids
    assert mix.completions == alone[0].completions + alone[1].completions


def test_long_rows_are_left_out_or_lose_the_end_of_a_text(checkpoint: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(checkpoint)
    whole = build_training_set(make_job(checkpoint, tmp_path / "a"), tokenizer, 512)
    lengths = [len(p) + len(c) for p, c in zip(whole.prompts, whole.completions, strict=True)]
    limit = sorted(lengths)[12]
    cut_job = make_job(checkpoint, tmp_path / "b", method={"overlong": "truncate"})
    cut = build_training_set(cut_job, tokenizer, limit)
    left = build_training_set(make_job(checkpoint, tmp_path / "c"), tokenizer, limit)
    long = sum(length > limit for length in lengths)
    assert cut.counts["truncated"] == long == left.counts["too_long"] > 0
    assert len(cut) == 24 == len(left) + long
    assert cut.completions == whole.completions
    assert all(len(p) + len(c) <= limit for p, c in zip(cut.prompts, cut.completions, strict=True))
    for own, other in zip(whole.prompts, cut.prompts, strict=True):
        assert own[:6] == other[:6]  # BOS and the first words of the prompt
        assert own[-4:] == other[-4:]  # its last ones


def test_a_launcher_around_the_run_does_not_make_a_job_wait(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "4"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    worker = TuneWorker(TuneConfig(threads=1, device="cpu"))
    assert "WORLD_SIZE" not in os.environ
    job = make_job(checkpoint, tmp_path / "a", method={"steps": 1})
    worker.run(job)
    assert read_provenance(Path(job.directory)) is not None

"""A short pre-training run writes checkpoints that the usual libraries load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evalcore.errors import InputError
from finetune.pocket.pretrain import PocketConfig, packed_loss, pretrain, schedule

pytestmark = pytest.mark.slow
SMALL = PocketConfig(vocab_size=700, tokenizer_documents=400, sequence_tokens=64, batch_sequences=4)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path], list[Any]]:
    out = tmp_path_factory.mktemp("pretrained")
    calls: list[Any] = []
    folders = pretrain(
        out,
        steps=20,
        save_steps=(5, 20),
        threads=1,
        config=SMALL,
        on_progress=lambda *args: calls.append(args),
    )
    return out, folders, calls


def test_checkpoints_load_with_transformers(run: tuple[Path, list[Path], list[Any]]) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _, folders, _ = run
    assert [folder.name for folder in folders] == ["step-00005", "step-00020"]
    for folder, step in zip(folders, (5, 20), strict=True):
        record = json.loads((folder / "checkpoint.json").read_text())
        assert (record["step"], record["tokens"]) == (step, step * 4 * 64)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        assert type(model).__name__ == "LlamaForCausalLM"
        assert model.dtype == torch.float32
        assert model.config.head_dim == 64
        assert model.lm_head.weight is model.model.embed_tokens.weight
        ids = tokenizer("Nobody knows.")["input_ids"]
        assert ids[0] == tokenizer.bos_token_id == model.config.bos_token_id
        assert tokenizer.eos_token_id == model.generation_config.eos_token_id
        assert torch.isfinite(model(torch.tensor([ids])).logits).all()


def test_it_learns_and_reports(run: tuple[Path, list[Path], list[Any]]) -> None:
    _, folders, calls = run
    losses = [json.loads((f / "checkpoint.json").read_text())["loss"] for f in folders]
    assert losses[1] < losses[0] - 0.5
    assert [call[3]["saved"] for call in calls if call[3]["saved"]] == ["step-00005", "step-00020"]
    assert calls[-1][:2] == (20, 20)
    assert calls[-1][3]["tokens_per_s"] > 0


def test_finished_runs_are_kept_and_repeated_runs_are_equal(
    run: tuple[Path, list[Path], list[Any]], tmp_path: Path
) -> None:
    out, folders, _ = run
    before = [(f / "model.safetensors").stat().st_mtime_ns for f in folders]
    assert pretrain(out, steps=20, save_steps=(5, 20), threads=1, config=SMALL) == folders
    assert [(f / "model.safetensors").stat().st_mtime_ns for f in folders] == before
    (again,) = pretrain(tmp_path, steps=20, save_steps=(5,), threads=1, config=SMALL)
    for name in ("model.safetensors", "tokenizer.json"):
        assert (again / name).read_bytes() == (folders[0] / name).read_bytes()


def test_documents_packed_together_do_not_see_each_other(
    run: tuple[Path, list[Path], list[Any]],
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(run[1][0])
    first, second = [1, 300, 301, 302, 2], [1, 400, 401, 402, 403, 2]
    packed = packed_loss(model, torch.tensor([first + second])).item() * 10
    apart = 0.0
    for ids in (first, second):
        logits = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        apart -= sum(logits[i, t].item() for i, t in enumerate(ids[1:]))
    # The one token more: BOS of the second document, predicted from EOS of the first.
    end = model(torch.tensor([first])).logits[0, -1].log_softmax(-1)[1].item()
    assert packed == pytest.approx(apart - end, abs=1e-3)


def test_schedule_rises_and_falls() -> None:
    rates = [schedule(step, 100, 10) for step in range(1, 101)]
    assert max(rates) == rates[9] == pytest.approx(1.0)
    assert rates[0] == pytest.approx(0.1)
    assert rates[-1] == pytest.approx(0.1)


def test_checkpoints_made_otherwise_are_not_overwritten(
    run: tuple[Path, list[Path], list[Any]],
) -> None:
    out, checkpoints, _ = run
    before = {path: (path / "model.safetensors").read_bytes() for path in checkpoints}
    with pytest.raises(InputError, match="pre-trained with other settings"):
        pretrain(out, steps=20, save_steps=(5, 20), threads=1, config=SMALL, seed=1)
    assert before == {path: (path / "model.safetensors").read_bytes() for path in checkpoints}


def test_save_steps_out_of_range(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected steps from 1 to 10"):
        pretrain(tmp_path, steps=10, save_steps=(5, 11))

"""Checkpoints whose configuration contradicts itself, their weights or what an engine can run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from evalcore.engines.vllm.bases import unsupported
from evalcore.errors import InputError
from evalcore.identity import (
    check_adapter,
    check_base,
    open_checkpoint,
    quantisation,
    weight_layout,
)

FP8 = {"quantization_config": {"quant_method": "fp8"}}


def test_the_checkpoints_of_these_tests_are_sound(tiny_checkpoint: Path) -> None:
    config = json.loads((tiny_checkpoint / "config.json").read_text())
    check_base("c", config, weight_layout(tiny_checkpoint))
    assert quantisation(config, weight_layout(tiny_checkpoint)) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt_neox", "num_key_value_heads": 1}, "key num_key_value_heads: gpt_neox"),
        ({"num_hidden_layers": 3}, "have 2 layers"),
        ({"num_key_value_heads": 1}, "says 1 key heads of 16"),
    ],
)
def test_contradictions_are_named(
    tiny_checkpoint: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "c"))
    config = {**json.loads((folder / "config.json").read_text()), **changes}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=message) as caught:
        open_checkpoint(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ({"model_type": "mamba"}, "state-space"),
        ({"model_type": "llama", "hidden_size": 48, "num_attention_heads": 2}, "heads of 24"),
        ({"model_type": "llama", "head_dim": 8}, "heads of 8"),
        ({"model_type": "gpt2", "n_embd": 64, "n_head": 2}, None),
        ({"model_type": "llama", "head_dim": 128}, None),
        ({"model_type": "deepseek_v2", "head_dim": 7, "kv_lora_rank": 8}, "latent attention"),
    ],
)
def test_what_vllm_cannot_run_on_cpus(
    tiny_checkpoint: Path, config: dict[str, Any], word: str | None
) -> None:
    found = unsupported(str(tiny_checkpoint), config, "cpu")
    assert found is None if word is None else word in str(found)
    assert unsupported(str(tiny_checkpoint), config, "cuda") is None


def test_other_weights_in_the_folder_are_named(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "c"))
    shutil.copy(folder / "model.safetensors", folder / "consolidated.safetensors")
    found = unsupported(str(folder), {}, "cuda")
    assert "consolidated.safetensors beside model.safetensors" in str(found)


def test_nothing_is_merged_into_quantised_weights(
    tiny_checkpoint: Path, tiny_adapter: Path
) -> None:
    layout = weight_layout(tiny_checkpoint)
    coded = {
        name: ("F8_E4M3", shape) if "_proj" in name else (dtype, shape)
        for name, (dtype, shape) in layout.items()
    }
    packed = {
        name.replace("_proj.weight", "_proj.qweight"): ("I32", shape) if "_proj" in name else own
        for name, own in layout.items()
        for shape in [own[1]]
    }
    for config, own, word in (
        (FP8, layout, "quantised (fp8)"),
        ({}, coded, "quantised (F8_E4M3)"),
        ({}, packed, "is quantised"),
    ):
        with pytest.raises(InputError) as caught:
            check_adapter(tiny_adapter, own, config, "base", "merged")
        assert word in str(caught.value)
        check_adapter(tiny_adapter, own, config, "base", "unmerged")
        check_adapter(tiny_adapter, own, config, "base", "batched")

"""What an adapter's configuration promises and its file does not hold, told before planning."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from evalcore.errors import InputError
from evalcore.identity import read_lora
from evalcore.identity.weights import weight_layout

Make = Callable[..., Path]
WEIGHTS = "adapter_model.safetensors"


def read(adapter: Path, base: Path, *, tied: bool = False) -> Any:
    return read_lora(adapter, weight_layout(base), tied=tied, base=base)


def drop(adapter: Path, part: str) -> Path:
    tensors = load_file(adapter / WEIGHTS)
    save_file({k: v for k, v in tensors.items() if part not in k}, adapter / WEIGHTS)
    return adapter


@pytest.mark.parametrize(
    ("config", "lost", "says"),
    [
        ({"target_modules": r".*\.(q|v)_proj"}, "layers.1.", "layers.1.self_attn.q_proj"),
        ({"target_modules": r"model\.layers\.\d+\.self_attn\.(q|v)_proj"}, "1.self_attn.v",
         "layers.1.self_attn.v_proj"),
        ({"target_modules": "all-linear"}, "nothing", "layers.0.mlp.down_proj"),
        ({"exclude_modules": ["layers.0.self_attn.q_proj"]}, "layers.1.", "layers.1.self_attn.q"),
        ({"layers_to_transform": [0, 1], "layers_pattern": "layers"}, "layers.1.",
         "layers.1.self_attn.q_proj"),
        ({"target_modules": r".*\.(q|v)_proj"}, "nothing", None),
        ({"exclude_modules": r".*layers\.1\..*"}, "layers.1.", None),
        ({"exclude_modules": ["layers.1.self_attn.q_proj", "layers.1.self_attn.v_proj"]},
         "layers.1.", None),
        ({"layers_to_transform": 0, "layers_pattern": ["layers"]}, "layers.1.", None),
        ({"layers_to_transform": [0]}, "layers.1.", None),
    ],
)  # fmt: skip
def test_a_layer_lost_is_named(
    tmp_path: Path, tiny_checkpoint: Path, make_adapter: Make, config: dict[str, Any], lost: str,
    says: str | None,
) -> None:  # fmt: skip
    adapter = drop(make_adapter(tmp_path / "a", tiny_checkpoint, **config), lost)
    if says is None:
        read(adapter, tiny_checkpoint)
        return
    with pytest.raises(InputError, match="lacks the LoRA of") as caught:
        read(adapter, tiny_checkpoint)
    assert says in str(caught.value)


def test_layers_the_model_does_not_build_have_no_adapter(
    tmp_path: Path, make_checkpoint: Make, make_adapter: Make
) -> None:
    """Files of some models hold a layer more, for several tokens at once."""
    base = make_checkpoint(tmp_path / "base", layers=3)
    adapter = make_adapter(tmp_path / "a", base, layers=2)
    with pytest.raises(InputError, match=r"layers\.2\.self_attn\.q_proj"):
        read(adapter, base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))
    read(adapter, base)


@pytest.mark.parametrize(
    ("saved", "lost", "says"),
    [
        (["mlp"], "nothing", None),
        (["mlp"], "layers.1.mlp", "layers.1.mlp.down_proj.weight"),
        (["mlp"], "mlp", "layers.0.mlp.down_proj.weight"),
        (["layers.1.mlp"], "layers.0.mlp", None),
        (["layers.1.mlp"], "layers.1.mlp.up_proj", "layers.1.mlp.up_proj.weight"),
        (["norm"], "nothing", None),
        (["norm"], "layers.1.input_layernorm", "layers.1.input_layernorm.weight"),
        (["input_layernorm"], "layers.1.input", "layers.1.input_layernorm.weight"),
        (["score"], "mlp", None),  # nothing of the base is called so
    ],
)
def test_saved_modules_are_whole(
    tmp_path: Path, tiny_checkpoint: Path, make_adapter: Make, saved: list[str], lost: str,
    says: str | None,
) -> None:  # fmt: skip
    """As PEFT finds them: by the ends of names, all tensors within them (peft 0.21)."""
    adapter = make_adapter(tmp_path / "a", tiny_checkpoint, modules_to_save=saved)
    own = {
        f"base_model.model.{name}": tensor
        for name, tensor in load_file(tiny_checkpoint / "model.safetensors").items()
        if ("mlp" in name or "norm" in name) and lost not in name
    }
    save_file({**load_file(adapter / WEIGHTS), **own}, adapter / WEIGHTS)
    if says is None:
        read(adapter, tiny_checkpoint)
        return
    with pytest.raises(InputError, match="lacks the saved module") as caught:
        read(adapter, tiny_checkpoint)
    assert says in str(caught.value)


@pytest.mark.parametrize("targets", [["q_proj", "v_proj", "up_proj"], "all-linear"])
def test_saved_modules_have_no_lora(
    tmp_path: Path, tiny_checkpoint: Path, make_adapter: Make, targets: Any
) -> None:
    """PEFT leaves out of target_modules what modules_to_save names (peft 0.21)."""
    config = {"target_modules": targets, "modules_to_save": ["mlp", "k_proj", "o_proj"]}
    adapter = make_adapter(tmp_path / "a", tiny_checkpoint, **config)
    own = {
        f"base_model.model.{name}": tensor
        for name, tensor in load_file(tiny_checkpoint / "model.safetensors").items()
        if any(word in name for word in ("mlp", "k_proj", "o_proj"))
    }
    save_file({**load_file(adapter / WEIGHTS), **own}, adapter / WEIGHTS)
    found = read(adapter, tiny_checkpoint)
    assert len(found.deltas) == 4
    assert len(found.replacements) == len(own) == 10

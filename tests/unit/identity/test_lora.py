"""What an adapter's configuration promises and its file does not hold, told before planning."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from evalcore.errors import InputError
from evalcore.identity import adapter_is_zero, read_lora
from evalcore.identity.adapter_names import by_core, one_of
from evalcore.identity.lora import stored_transposed
from evalcore.identity.weights import same_values, weight_layout

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
    ("rows", "given", "says"),
    [
        (2, [5, 9, 11], "names 3 rows"),
        (2, [5, 9_999], "names token 9999, the checkpoint has 400"),
        (2, {"embed_tokens": [5]}, "names 1 rows"),
        (2, {"lm_head": [5, 6]}, "does not say which rows"),
        (2, [5, 5], "names a token of model.embed_tokens twice"),
        (2, {"embed_tokens": [5, 6]}, None),
    ],
)
def test_rows_of_tokens_are_those_of_the_file(
    tmp_path: Path, tiny_checkpoint: Path, make_adapter: Make, rows: int, given: Any,
    says: str | None,
) -> None:  # fmt: skip
    adapter = make_adapter(tmp_path / "a", tiny_checkpoint, trainable_token_indices=given)
    name = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"
    own = {name: np.ones((rows, 32), np.float32)}
    save_file({**load_file(adapter / WEIGHTS), **own}, adapter / WEIGHTS)
    if says is None:
        assert read(adapter, tiny_checkpoint).rows["model.embed_tokens.weight"][1] == (5, 6)
        return
    with pytest.raises(InputError, match=says):
        read(adapter, tiny_checkpoint)


@pytest.mark.parametrize("half", [False, True])
def test_embeddings_saved_unchanged_change_nothing(
    tmp_path: Path, make_checkpoint: Make, make_adapter: Make, half: bool
) -> None:
    base = make_checkpoint(tmp_path / "base", tied=True)
    tensors = load_file(base / "model.safetensors")
    if half:  # trainers save what was 16-bit in float32
        tensors = {k: v.astype(np.float16) for k, v in tensors.items()}
        save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    shared = tensors["model.embed_tokens.weight"].astype(np.float32)
    adapter = make_adapter(tmp_path / "a", base)
    before = load_file(adapter / WEIGHTS)
    names = ("base_model.model.lm_head.weight", "base_model.model.model.embed_tokens.weight")
    save_file({**before, **dict.fromkeys(names, shared)}, adapter / WEIGHTS)
    read(adapter, base, tied=True).require_mergeable()
    other = shared.copy()
    other[399, 31] += 1e-3
    save_file({**before, names[0]: shared, names[1]: other}, adapter / WEIGHTS)
    with pytest.raises(InputError, match="shares between"):
        read(adapter, base, tied=True).require_mergeable()
    assert same_values(adapter / WEIGHTS, names[0], base, "model.embed_tokens.weight")
    assert not same_values(adapter / WEIGHTS, names[1], base, "model.embed_tokens.weight")
    assert not same_values(adapter / WEIGHTS, names[1], base, "model.norm.weight")


@pytest.mark.parametrize(
    ("init", "says"),
    [
        ("pissa_niter_16", "--initial FOLDER"), ("corda", "--initial FOLDER"),
        ("lora_ga", "--initial FOLDER"), ("loftq", "quantised one"), ("PiSSA", "is not known"),
        ("novel", "is not known"), ("Gaussian", None), ("eva", None), ("mica", None),
    ],
)  # fmt: skip
def test_what_a_start_did_to_the_base(
    tmp_path: Path, tiny_checkpoint: Path, make_adapter: Make, init: str, says: str | None
) -> None:
    adapter = make_adapter(tmp_path / "a", tiny_checkpoint, init_lora_weights=init)
    if says is None:
        read(adapter, tiny_checkpoint).require_mergeable()
        return
    with pytest.raises(InputError, match=says) as caught:
        read(adapter, tiny_checkpoint)
    assert "\n" not in str(caught.value)


def test_files_in_shards_are_named(
    tmp_path: Path, tiny_checkpoint: Path, make_adapter: Make
) -> None:
    adapter = make_adapter(tmp_path / "a", tiny_checkpoint)
    (adapter / WEIGHTS).rename(adapter / "adapter_model-00001-of-00002.safetensors")
    with pytest.raises(InputError, match="nobody reads adapter_model-00001-of-00002"):
        read(adapter, tiny_checkpoint)


def test_mixtrals_files_name_a_block_otherwise() -> None:
    known = by_core(["model.layers.0.block_sparse_moe.gate.weight", "model.layers.0.mlp.up.weight"])
    wanted = "model.layers.0.mlp.gate.weight"
    assert one_of(wanted, known) == "model.layers.0.block_sparse_moe.gate.weight"
    assert one_of("model.layers.0.mlp.up.weight", known) == "model.layers.0.mlp.up.weight"
    assert one_of("model.layers.0.mlp.down.weight", known) is None


@pytest.mark.parametrize(
    ("pattern", "meant"),
    [
        (r"layers\.0\.self_attn\.q_proj", True),
        (r"^model\.layers\.0\.self_attn\.q_proj", True),
        (r"^layers\.0\.self_attn\.q_proj", False),
        (r"^self_attn\.q_proj", False),
        (r"model\.model\.layers\.0\.self_attn\.q_proj", False),
    ],
)
def test_patterns_mean_the_models_own_names(
    tmp_path: Path, tiny_checkpoint: Path, make_adapter: Make, pattern: str, meant: bool
) -> None:
    """PEFT's rule: ``(.*\\.)?(PATTERN)$`` from the start of the name within the model."""
    from peft.utils.other import get_pattern_key

    name = "model.layers.0.self_attn.q_proj"
    assert (get_pattern_key([pattern], name) == pattern) is meant
    adapter = make_adapter(tmp_path / "a", tiny_checkpoint, alpha_pattern={pattern: 64})
    deltas = read(adapter, tiny_checkpoint).deltas
    other = deltas["model.layers.1.self_attn.q_proj.weight"].scaling
    assert (deltas[f"{name}.weight"].scaling != other) is meant


@pytest.mark.parametrize(
    ("patterns", "sure"),
    [
        ({"q_proj": 3, ".*layers.0.*q_proj": 40}, False),
        ({"q_proj": 3, ".*layers.0.*q_proj": 3}, True),
        ({"k_proj": 3, ".*layers.0.*q_proj": 40}, True),
    ],
)
def test_patterns_whose_order_decides(
    tmp_path: Path, tiny_checkpoint: Path, make_adapter: Make, patterns: dict[str, int], sure: bool
) -> None:
    """PEFT saves patterns sorted: what came first in training nobody can tell."""
    adapter = make_adapter(tmp_path / "a", tiny_checkpoint, alpha_pattern=patterns)
    if sure:
        read(adapter, tiny_checkpoint)
        return
    with pytest.raises(InputError, match=r"layers\.0\.self_attn\.q_proj \(3, 40\), and which came"):
        read(adapter, tiny_checkpoint)


def test_patterns_follow_a_renamed_adapter(
    tmp_path: Path, tiny_checkpoint: Path, make_adapter: Make
) -> None:
    """Its tensors may have been renamed, its patterns not."""
    pattern = {r"^model\.layers\.0\.self_attn\.q_proj": 64}
    adapter = make_adapter(tmp_path / "a", tiny_checkpoint, alpha_pattern=pattern)
    tensors = load_file(adapter / WEIGHTS)
    moved = {
        k.replace("model.layers", "model.language_model.layers"): v for k, v in tensors.items()
    }
    save_file(moved, adapter / WEIGHTS)
    deltas = read(adapter, tiny_checkpoint).deltas
    scalings = {name: delta.scaling for name, delta in deltas.items()}
    assert scalings.pop("model.layers.0.self_attn.q_proj.weight") > max(scalings.values())


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


def test_factors_that_were_exchanged_are_named(
    tmp_path: Path, tiny_checkpoint: Path, make_adapter: Make
) -> None:
    """One such folder ended a whole command: whether a delta is zero is asked first."""
    adapter = make_adapter(tmp_path / "a", tiny_checkpoint)
    other = {"A": "lora_B", "B": "lora_A"}
    turned = {
        re.sub("lora_([AB])", lambda found: other[found[1]], name): values
        for name, values in load_file(adapter / WEIGHTS).items()
    }
    save_file(turned, adapter / WEIGHTS)
    assert not adapter_is_zero(adapter)
    with pytest.raises(InputError, match="its rank should be 4"):
        read(adapter, tiny_checkpoint)


@pytest.mark.parametrize(
    ("names", "turned"),
    [
        ({"h.0.attn.c_attn": (8, 24), "h.0.mlp.c_fc": (8, 4)}, True),  # n_inner below n_embd
        ({"h.0.attn.c_attn": (24, 8), "h.0.mlp.c_fc": (32, 8)}, False),  # GPT-BigCode
        ({"model.layers.0.mlp.c_fc": (4, 8)}, False),  # Starcoder2, a narrow one
    ],
)
def test_which_layers_are_stored_transposed(
    names: dict[str, tuple[int, int]], turned: bool
) -> None:
    layout = {f"{name}.weight": ("F32", shape) for name, shape in names.items()}
    assert {stored_transposed(name, layout) for name in layout} == {turned}

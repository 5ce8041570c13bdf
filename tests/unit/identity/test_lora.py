"""An adapter's tensors at their places in a checkpoint: rows, ranks, patterns, starts."""

from __future__ import annotations

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
from evalcore.identity.weights import same_values, weight_layout

Make = Callable[..., Path]
WEIGHTS = "adapter_model.safetensors"


def read(adapter: Path, base: Path, *, tied: bool = False) -> Any:
    return read_lora(adapter, weight_layout(base), tied=tied, base=base)


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


def test_biases_of_factors_that_nothing_names(
    tmp_path: Path, tiny_checkpoint: Path, make_adapter: Make
) -> None:
    """PEFT leaves them out; merged, one was 0.3 nats off."""
    adapter = make_adapter(tmp_path / "a", tiny_checkpoint)
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.bias"
    own = {name: np.ones(32, np.float32)}
    save_file({**load_file(adapter / WEIGHTS), **own}, adapter / WEIGHTS)
    with pytest.raises(InputError, match="lora_bias is not true"):
        read(adapter, tiny_checkpoint)

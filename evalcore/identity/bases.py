"""What is wrong with a checkpoint as a base, told from its config.json and the weights' headers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from evalcore.errors import InputError
from evalcore.identity.lora import Layout

# Families with as many key heads as query heads: transformers ignores these keys there, vLLM
# believes them and writes beyond its cache (SIGSEGV on CPUs, vLLM 0.32).
_ALL_HEADS = {"gpt_neox", "gpt2", "gptj", "opt", "bloom", "codegen", "gpt_neox_japanese", "biogpt"}
_KEY_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv")


def check_base(path: str, config: Mapping[str, Any], layout: Layout) -> None:
    """Refuses a checkpoint whose configuration contradicts itself or its weights.

    Args:
        path: How to name it.
        config: Its config.json.
        layout: Tensor name -> (dtype, shape) of its weights.

    Raises:
        InputError: Names the key, what it says and what the weights have.
    """
    heads = _first(config, ("num_attention_heads", "n_head"))
    for key in _KEY_HEADS:
        own = config.get(key)
        if config.get("model_type") in _ALL_HEADS and own is not None and own != heads:
            raise InputError(
                f"checkpoint {path}: config.json, key {key}: {config['model_type']} has no such "
                f"key, and engines differ in whether they believe it ({own}); remove it"
            )
    if "text_config" in config or "encoder" in config:
        return  # the numbers below are those of a part
    _check_key_heads(path, config, layout, heads)


def _check_key_heads(
    path: str, config: Mapping[str, Any], layout: Layout, heads: int | None
) -> None:
    keys, size = config.get("num_key_value_heads"), config.get("head_dim")
    width = config.get("hidden_size")
    if size is None and heads and isinstance(width, int):
        size = width // heads
    if not (isinstance(keys, int) and isinstance(size, int)):
        return
    for name, (dtype, shape) in layout.items():
        # Quantised weights are packed, experts and other attentions have other names.
        if name.endswith(".self_attn.k_proj.weight") and dtype in ("F32", "BF16", "F16"):
            if shape[0] != keys * size:
                raise InputError(
                    f"checkpoint {path}: config.json says {keys} key heads of {size}, {name} has "
                    f"{shape[0]} rows; one of them is of another model"
                )
            return


def quantisation(config: Mapping[str, Any], layout: Layout) -> str | None:
    """How a checkpoint's weights are quantised; None if they are not.

    Args:
        config: Its config.json.
        layout: Its tensors.
    """
    text = config.get("text_config")
    for own in (config, text if isinstance(text, dict) else {}):
        found = own.get("quantization_config") or own.get("compression_config")
        if isinstance(found, dict):
            return str(found.get("quant_method") or found.get("format") or "quantised")
    for name, (dtype, _) in layout.items():
        if dtype.startswith("F8") and name.endswith(".weight"):
            return dtype
    return None


def _first(config: Mapping[str, Any], keys: Iterable[str]) -> int | None:
    return next((config[key] for key in keys if isinstance(config.get(key), int)), None)

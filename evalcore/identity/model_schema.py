"""What the sizes in ``config.json`` may be: whole, in range, and those of the weights beside it.

A library builds what the configuration says before it looks at a weight: a number of layers of a
thousand million never ends, and zero heads is a division by zero somewhere. The headers of the
weights tell what is there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from evalcore.errors import InputError

_WIDTHS = (
    "hidden_size", "intermediate_size", "vocab_size", "d_model", "n_embd", "ffn_dim",
    "moe_intermediate_size", "num_attention_heads", "num_key_value_heads", "n_head", "n_heads",
    "head_dim",
)  # fmt: skip
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "num_experts_per_tok")
_POSITIONS = ("max_position_embeddings", "n_positions")
_POSITIVE = ("rope_theta",)
_NOT_NEGATIVE = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon")
_TRUTHS = ("tie_word_embeddings", "attention_bias", "mlp_bias", "use_sliding_window")
_NESTED = ("text_config", "llm_config", "language_config")
_DTYPES = {
    "auto", "float32", "float16", "bfloat16", "float64", "float", "half", "double",
    "float8_e4m3fn", "float8_e5m2", "int8", "uint8",
}  # fmt: skip
MAX_POSITIONS = 1 << 25
"""Longest context: tables are built for all of it (the longest known has 10 million)."""
_SLACK = 64  # a width may be that many times the widest tensor: packed weights hold several a word
_LARGEST = 1 << 31
_LAYER = re.compile(r"\.(\d{1,9})\.")

Layout = Mapping[str, tuple[str, tuple[int, ...]]]


def check_model_config(config: Mapping[str, Any], file: Path) -> None:
    """Checks kinds and ranges of the sizes that every architecture shares; null and lists pass.

    Raises:
        InputError: Names the file, the key, what was expected and what stands there.
    """
    for prefix, part in _parts(config):
        for key in (*_WIDTHS, *_LAYERS, *_EXPERTS, *_POSITIONS):
            value = part.get(key)
            if value is None or (isinstance(value, list) and key not in _POSITIONS):
                continue
            least = 1 if key in (*_WIDTHS, *_LAYERS) else -1 if key in _POSITIONS else 0
            most = MAX_POSITIONS if key in _POSITIONS else _LARGEST
            if type(value) is not int or not least <= value <= most:
                expected = f"a whole number from {max(least, 0)} to {most:,}"
                raise _fault(file, prefix + key, f"expected {expected}, not {_short(value)}")
        for key in (*_POSITIVE, *_NOT_NEGATIVE):
            value = part.get(key)
            if value is None or isinstance(value, (list, dict)):
                continue
            number = type(value) in (int, float) and math.isfinite(value)
            if not number or value < 0 or (key in _POSITIVE and value == 0):
                kind = "above zero" if key in _POSITIVE else "not below zero"
                raise _fault(file, prefix + key, f"expected a number {kind}, not {_short(value)}")
        for key in _TRUTHS:
            value = part.get(key)
            if value is not None and not isinstance(value, bool):
                raise _fault(file, prefix + key, f"expected true or false, not {_short(value)}")
        for key in ("dtype", "torch_dtype"):
            value = part.get(key)
            if value is not None and not _is_dtype(value):
                raise _fault(
                    file, prefix + key, f"expected a type such as bfloat16, not {_short(value)}"
                )
    names = config.get("architectures")
    if names is not None and not (isinstance(names, list) and all(map(_is_text, names))):
        raise _fault(file, "architectures", f"expected a list of names, not {_short(names)}")
    named = config.get("model_type")
    if named is not None and not isinstance(named, str):
        raise _fault(file, "model_type", f"expected text, not {_short(named)}")


def check_sizes(config: Mapping[str, Any], layout: Layout, file: Path) -> None:
    """Checks the sizes against the headers of the weights.

    Args:
        config: Of :func:`check_model_config`.
        layout: Tensor names of the weights -> (dtype, shape).
        file: Where ``config`` stands.

    Raises:
        InputError: If there are more layers than the weights have, or a size beyond all of them.
    """
    widest = max((size for _, shape in layout.values() for size in shape), default=0)
    numbers = [int(found[1]) for found in map(_LAYER.search, layout) if found]
    layers = max(numbers, default=-1) + 1
    for prefix, part in _parts(config):
        for key in _LAYERS:
            value = part.get(key)
            if isinstance(value, int) and layers and value > layers:
                raise _fault(
                    file,
                    prefix + key,
                    f"is {value:,}, the weights beside it have {layers} layers: weights are "
                    f"missing, or the file is another model's",
                )
        for key in (*_WIDTHS, *_EXPERTS):
            value = part.get(key)
            if isinstance(value, int) and widest and value > _SLACK * widest:
                raise _fault(
                    file,
                    prefix + key,
                    f"is {value:,}, the widest of the weights beside it has {widest:,}",
                )


def _parts(config: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield "", config
    for name in _NESTED:
        if isinstance(config.get(name), dict):
            yield f"{name}.", config[name]


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_dtype(value: Any) -> bool:
    return isinstance(value, str) and value.removeprefix("torch.") in _DTYPES


def _fault(file: Path, key: str, reason: str) -> InputError:
    return InputError(f"checkpoint {file.parent}: {file.name}, key {key}: {reason}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."

"""Identity of PEFT LoRA adapters, and whether one fits a base."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from evalcore.errors import IncompatibleError, InputError
from evalcore.identity.adapter_schema import check_adapter_config, check_layers, check_tensors
from evalcore.identity.cache import cached_file_fact
from evalcore.identity.hashing import text_fingerprint
from evalcore.identity.header import read_header
from evalcore.identity.weights import tensor_bits, tensor_digests
from evalcore.reading import read_json

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"

# What decides an adapter's effect, with PEFT's defaults (an absent key means its default).
_NUMERIC: dict[str, Any] = {
    "peft_type": "LORA", "r": 8, "lora_alpha": 8, "rank_pattern": {}, "alpha_pattern": {},
    "use_rslora": False, "use_dora": False, "bias": "none", "lora_bias": False,
    "fan_in_fan_out": False, "target_modules": None, "exclude_modules": None,
    "modules_to_save": None, "layers_to_transform": None, "layers_pattern": None,
    "layer_replication": None, "trainable_token_indices": None, "target_parameters": None,
    "use_qalora": False, "use_bdlora": None, "alora_invocation_tokens": None,
}  # fmt: skip
# Initialisations that leave the base as it is; others (pissa, olora, ...) change what the saved
# tensors mean, so they count.
_PLAIN_INIT = (True, False, None, "gaussian", "default", "orthogonal", "eva")
_UNORDERED = ("target_modules", "exclude_modules", "modules_to_save", "target_parameters")
_PREFIX = "base_model.model."
_LAYER = re.compile(r"\.(\d+)\.")


def adapter_config(path: str | Path) -> dict[str, Any]:
    """Reads and checks ``adapter_config.json``.

    Raises:
        InputError: If it is missing, broken or not of a LoRA adapter.
    """
    file = Path(path) / ADAPTER_CONFIG
    config = read_json(file, "adapter")
    kind = config.get("peft_type", "LORA")
    if kind != "LORA":
        raise InputError(f"adapter {path}: peft_type is {kind!r}, evalcore scores LORA adapters")
    check_adapter_config(config, file)
    return config


def numeric_adapter_config(path: str | Path) -> dict[str, Any]:
    """The part of adapter_config.json that decides scores; lists without order are sorted."""
    config = adapter_config(path)
    numeric: dict[str, Any] = {}
    for key, default in _NUMERIC.items():
        value = config.get(key)
        value = default if value is None else value
        if key in _UNORDERED and isinstance(value, list):
            value = sorted(value) or None
        numeric[key] = value
    init = config.get("init_lora_weights", True)
    numeric["init"] = None if init in _PLAIN_INIT else init
    return numeric


def _weights(path: str | Path) -> Path:
    file = Path(path) / ADAPTER_WEIGHTS
    if not file.is_file():
        other = Path(path) / "adapter_model.bin"
        hint = "; adapter_model.bin is not read, save it as safetensors" if other.exists() else ""
        raise InputError(f"adapter {path}: {ADAPTER_WEIGHTS} is missing{hint}")
    return file


def adapter_fingerprint(path: str | Path) -> str:
    """32 hex digits over an adapter's tensors and numeric configuration, not paths or names.

    Raises:
        InputError: If a file is missing or broken.
    """
    config = numeric_adapter_config(path)
    check_tensors(read_header(_weights(path))[0], _weights(path))
    return text_fingerprint(["adapter", 1, config, tensor_digests(_weights(path))])


def adapter_rank(path: str | Path) -> int:
    """Largest rank of an adapter's modules, from its tensors' shapes."""
    tensors, _ = read_header(_weights(path))
    ranks = [
        info.shape[1] if "lora_embedding_A" not in name and "lora_B" in name else info.shape[0]
        for name, info in tensors.items()
        if ("lora_B" in name or "lora_embedding_A" in name) and len(info.shape) >= 2
    ]
    return max(ranks, default=int(adapter_config(path).get("r", 8)))


def adapter_is_zero(path: str | Path) -> bool:
    """Whether every delta of the adapter is exactly zero (an untrained adapter).

    A delta is the product B A: it is zero when no rank component has a nonzero column of B and a
    nonzero row of A. Tensors other than those pairs (saved modules, biases, DoRA magnitudes)
    count as trained when they hold anything but zeros.
    """
    zero: bool = cached_file_fact(_weights(path), "adapter-zero-1", _is_zero)
    return zero


def _is_zero(file: Path) -> bool:
    rows: dict[str, np.ndarray] = {}  # module -> bool [r], components with a nonzero A
    columns: dict[str, np.ndarray] = {}  # module -> bool [r], components with a nonzero B
    for name, shape, nonzero in tensor_bits(file):
        side = re.search(r"\.lora_(embedding_)?(A|B)(\.|$)", name)
        if side is None or len(shape) < 2:
            if nonzero.any():
                return False
            continue
        module = name[: side.start()] + (side[1] or "")
        cube = nonzero.reshape(shape[0], shape[1], -1)  # convolutions have two more axes
        if side[2] == "A":  # [r, in]
            rows[module] = np.asarray(cube.any(axis=(1, 2)))
        else:  # [out, r]
            columns[module] = np.asarray(cube.any(axis=(0, 2)))
    return not any((rows[module] & columns[module]).any() for module in rows if module in columns)


def check_adapter_fits(
    path: str | Path, layout: Mapping[str, tuple[str, tuple[int, ...]]], base: str
) -> None:
    """Checks that each adapted module exists in the base with a fitting shape.

    Args:
        path: Adapter directory.
        layout: :func:`~evalcore.identity.weights.weight_layout` of the base.
        base: How to name the base in the message.

    Raises:
        IncompatibleError: If a module is not in the base, or has another shape.
    """
    config = adapter_config(path)
    check_layers(config, _layer_count(layout), Path(path) / ADAPTER_CONFIG)
    if config.get("layer_replication"):
        return  # modules are copies of the base's layers; PEFT checks those
    by_suffix = _by_suffix(layout)
    tensors, _ = read_header(_weights(path))
    for name, info in tensors.items():
        side = re.search(r"\.lora_(A|B)\.", name)
        if side is None or len(info.shape) != 2:
            continue
        module = name[: side.start()].removeprefix(_PREFIX)
        shape = _module_shape(module, layout, by_suffix)
        if shape is None:
            # Expert weights are stored fused or split; tied heads are not stored at all.
            if "expert" in module or module.rsplit(".", 1)[-1] in ("lm_head", "embed_out"):
                continue
            raise IncompatibleError(
                f"adapter {path} does not fit base {base}: the base has no module {module}"
            )
        width = info.shape[1] if side[1] == "A" else info.shape[0]
        expected = (
            {shape[0], shape[-1]}
            if config.get("fan_in_fan_out")
            else ({shape[-1]} if side[1] == "A" else {shape[0]})
        )
        if len(shape) == 2 and width not in expected:
            raise IncompatibleError(
                f"adapter {path} does not fit base {base}: {module} is "
                f"{'x'.join(map(str, shape))} there, lora_{side[1]} is "
                f"{'x'.join(map(str, info.shape))}"
            )


def _layer_count(layout: Mapping[str, tuple[str, tuple[int, ...]]]) -> int:
    numbers = [int(match[1]) for match in map(_LAYER.search, layout) if match]
    return max(numbers, default=-1) + 1


def _by_suffix(layout: Mapping[str, tuple[str, tuple[int, ...]]]) -> dict[str, tuple[int, ...]]:
    """Weights without their first name part: bases saved with or without a model prefix."""
    short = {}
    for name, (_, shape) in layout.items():
        match = _LAYER.search(f".{name}")
        if match and name.endswith(".weight"):
            # From the layer's list name on ("layers.0.self_attn.q_proj.weight").
            head = name[: match.start() - 1 if match.start() else 0]
            start = head.rfind(".") + 1
            short[name[start:]] = shape
    return short


def _module_shape(
    module: str,
    layout: Mapping[str, tuple[str, tuple[int, ...]]],
    by_suffix: Mapping[str, tuple[int, ...]],
) -> tuple[int, ...] | None:
    weight = f"{module}.weight"
    if weight in layout:
        return layout[weight][1]
    parts = weight.split(".")
    for start in range(1, len(parts) - 1):
        name = ".".join(parts[start:])
        if name in layout:
            return layout[name][1]
        if name in by_suffix:
            return by_suffix[name]
    return None

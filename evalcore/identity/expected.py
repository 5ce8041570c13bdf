"""Which tensors a checkpoint of a known architecture has to have, from data beside this module.

Libraries find a missing tensor when they load one (transformers would make it up): minutes into a
run, and once per start. Here the headers are enough. ``tensor_names.json`` is what transformers
itself writes for each family (``python -m bench.tensor_names``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from evalcore.errors import InputError
from evalcore.identity.lora_names import Layout

_NUMBER = re.compile(r"\.(\d+)\.")
_COMPUTED = re.compile(r"(rotary_emb\.inv_freq|\.(attn|attention)\.(bias|masked_bias))$")
_LAYERS = ("num_hidden_layers", "n_layer")
_EXPERTS = ("num_local_experts", "num_experts")
# Keys of families whose layers are not all of one kind.
_MIXED = ("mlp_only_layers", "first_k_dense_replace", "text_config", "auto_map")
_SHOWN = 3
# What tensors of the families here are called -> what says how many rows and columns they have.
_SHAPES: dict[str, tuple[str | None, str]] = {
    ".mlp.up_proj.weight": ("intermediate_size", "hidden_size"),
    ".mlp.gate_proj.weight": ("intermediate_size", "hidden_size"),
    ".mlp.down_proj.weight": ("hidden_size", "intermediate_size"),
    ".self_attn.q_proj.weight": (None, "hidden_size"),
    "lm_head.weight": ("vocab_size", "hidden_size"),
}


def check_tensors(path: str, config: Mapping[str, Any], layout: Layout) -> None:
    """Refuses a checkpoint that lacks tensors of its architecture, or holds some of another.

    Of families that are not known, of mixed layers and of other names than transformers' nothing is
    said here: an engine says it.

    Args:
        path: How to name it.
        config: Its config.json.
        layout: Its tensors, not quantised.

    Raises:
        InputError: Names some of them.
    """
    family = _families().get(str(config.get("model_type")))
    layers, experts = _count(config, _LAYERS), _count(config, _EXPERTS)
    if family is None or layers is None or any(config.get(key) for key in _MIXED):
        return
    if config.get("decoder_sparse_step", 1) != 1:
        return
    there = {_NUMBER.sub(".*.", name) for name in layout}
    needed = [name for name in family["names"] if not _is_spared(name, config)]
    if 2 * sum(name in there for name in needed) < len(needed):
        return  # saved under other names
    if not config.get("tie_word_embeddings", family["tied"]):
        needed += family["head"]
    lacking = [
        name for pattern in needed for name in _each(pattern, layers, experts or 0)
        if name not in layout
    ]  # fmt: skip
    if lacking:
        raise _fault(path, "lacks {} tensors its config.json promises", lacking)
    known = {*family["names"], *family["head"], *family["biases"]}
    extra = [
        name for name in layout
        if not _COMPUTED.search(name)
        and (_NUMBER.sub(".*.", name) not in known or not _is_within(name, layers, experts))
    ]  # fmt: skip
    if extra:
        raise _fault(path, "has {} tensors its architecture has no place for", sorted(extra))
    _check_shapes(path, config, layout)


def _check_shapes(path: str, config: Mapping[str, Any], layout: Layout) -> None:
    """Matrices that were saved turned, or are of other sizes than ``config.json`` says."""
    for name, (_, shape) in layout.items():
        for ending, keys in _SHAPES.items():
            if not name.endswith(ending) or len(shape) != 2:
                continue
            for key, size in zip(keys, shape, strict=True):
                said = config.get(key) if key is not None else None
                if isinstance(said, int) and size != said:
                    raise InputError(
                        f"checkpoint {path}: {name} has shape {list(shape)}, config.json says "
                        f"{key} {said:,}; it was saved turned, or one of them is of another model"
                    )


@lru_cache(maxsize=1)
def _families() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(__file__).with_name("tensor_names.json").read_text())
    return found


def _is_spared(name: str, config: Mapping[str, Any]) -> bool:
    """A bias that the configuration says is not there."""
    return name.endswith(".bias") and any(
        value is False for key, value in config.items() if "bias" in key
    )


def _each(pattern: str, layers: int, experts: int) -> Iterator[str]:
    """The names a pattern stands for: the first ``*`` is a layer, the second an expert."""
    if "*" not in pattern:
        yield pattern
        return
    for layer in range(layers):
        own = pattern.replace("*", str(layer), 1)
        yield from (own.replace("*", str(i)) for i in range(experts)) if "*" in own else (own,)


def _is_within(name: str, layers: int, experts: int | None) -> bool:
    numbers = [int(number) for number in _NUMBER.findall(name)]
    return all(number < most for number, most in zip(numbers, (layers, experts or 0), strict=False))


def _count(config: Mapping[str, Any], keys: tuple[str, ...]) -> int | None:
    return next((config[key] for key in keys if type(config.get(key)) is int), None)


def _fault(path: str, what: str, names: list[str]) -> InputError:
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return InputError(
        f"checkpoint {path} {what.format(f'{len(names):,}')}: {', '.join(names[:_SHOWN])}{more}; "
        f"it was not saved whole, or config.json is another model's"
    )

"""What the keys of ``adapter_config.json`` may hold, checked before anything is planned.

PEFT takes the file as it is and fails later, in the middle of building a model, with an error that
names neither file nor key. The kinds are those of ``peft.LoraConfig``; keys not listed decide
nothing that is loaded here, or are newer than this list, and pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from evalcore.errors import InputError
from evalcore.identity.header import TensorInfo
from evalcore.identity.patterns import pattern_fault

MAX_RANK = 1 << 20
MAX_ALPHA = 1e9
_FLOATS = ("F16", "BF16", "F32", "F64")
_GATHER = "; a sharded trainer (ZeRO-3, FSDP) has to gather them before it saves: save it again"
_MAX_PATTERNS = 20_000


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _whole(value: Any, least: int = 0) -> bool:
    return type(value) is int and least <= value < 2**31


def _rank(value: Any) -> bool:
    return _whole(value, 1) and value <= MAX_RANK


def _number(value: Any) -> bool:
    kind = type(value)
    return kind in (int, float) and math.isfinite(value) and abs(value) <= MAX_ALPHA


def _list_of(one: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(one, value))


def _map_of(one: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(map(one, value.values()))


def _either(*kinds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: any(kind(value) for kind in kinds)


def _pair(value: Any) -> bool:
    return _list_of(_whole)(value) and len(value) == 2 and value[0] < value[1]


_Kind = tuple[Callable[[Any], bool], str]
_FLAG: _Kind = (_flag, "true or false")
_TEXT: _Kind = (_text, "text")
_NAMES: _Kind = (_list_of(_text), "a list of names")
_TARGETS: _Kind = (_either(_text, _list_of(_text)), "a list of names, or one pattern as text")
_OBJECT: _Kind = (lambda value: isinstance(value, dict), "an object")
_KINDS: dict[str, _Kind] = {
    "peft_type": _TEXT, "base_model_name_or_path": _TEXT, "revision": _TEXT, "task_type": _TEXT,
    "r": (_rank, f"a whole number from 1 to {MAX_RANK:,}"),
    "lora_alpha": (_number, f"a finite number up to {MAX_ALPHA:,.0f}"),
    "rank_pattern": (_map_of(_rank), "an object of module patterns and whole numbers from 1"),
    "alpha_pattern": (_map_of(_number), "an object of module patterns and finite numbers"),
    "use_rslora": _FLAG, "use_dora": _FLAG, "lora_bias": _FLAG, "fan_in_fan_out": _FLAG,
    "use_qalora": _FLAG, "ensure_weight_tying": _FLAG,
    "bias": (lambda value: value in ("none", "all", "lora_only"), "none, all or lora_only"),
    "target_modules": _TARGETS, "exclude_modules": _TARGETS,
    "modules_to_save": _NAMES, "target_parameters": _NAMES,
    "layers_to_transform": (
        _either(_whole, _list_of(_whole)), "a layer's number, or a list of them"
    ),
    "layers_pattern": (_either(_text, _list_of(_text)), "text, or a list of texts"),
    "layer_replication": (_list_of(_pair), "a list of [first, end] layers, first < end"),
    "trainable_token_indices": (
        _either(_list_of(_whole), _map_of(_list_of(_whole))), "token ids, or an object of those"
    ),
    "alora_invocation_tokens": (_list_of(_whole), "a list of token ids"),
    "init_lora_weights": (_either(_flag, _text), "true, false or a method's name"),
    "loftq_config": _OBJECT, "eva_config": _OBJECT, "corda_config": _OBJECT,
    "lora_ga_config": _OBJECT, "arrow_config": _OBJECT, "kasa_config": _OBJECT,
    "use_bdlora": (_either(_flag, _OBJECT[0]), "true, false or an object"),
    "auto_mapping": _OBJECT,
}  # fmt: skip
_NEVER_NULL = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "bias")


def check_adapter_config(config: Mapping[str, Any], file: Path) -> None:
    """Checks kinds of values, what may not stand together, and that every pattern ends.

    Raises:
        InputError: Names the file, the key, what was expected and what stands there.
    """
    for key, (holds, expected) in _KINDS.items():
        if key not in config or (config[key] is None and key not in _NEVER_NULL):
            continue
        if not holds(config[key]):
            raise _fault(file, key, f"expected {expected}, not {_short(config[key])}")
    if config.get("megatron_config"):
        raise _fault(file, "megatron_config", "is for Megatron's own layers; merge the adapter")
    if isinstance(config.get("target_modules"), str):
        for key in ("layers_to_transform", "layers_pattern"):
            if config.get(key) is not None:
                raise _fault(file, key, "does not go with a target_modules that is one pattern")
    _check_patterns(config, file)


def _check_patterns(config: Mapping[str, Any], file: Path) -> None:
    """The expressions as PEFT puts them together (0.18 to 0.21: tuners_utils, utils.other)."""
    patterns: list[tuple[str, str, str]] = []
    for key in ("target_modules", "exclude_modules"):
        if isinstance(config.get(key), str):
            patterns.append((key, config[key], config[key]))
    for key in ("rank_pattern", "alpha_pattern"):
        patterns += [(key, p, rf"(.*\.)?({p})$") for p in config.get(key) or ()]
    for name in config.get("modules_to_save") or ():
        patterns.append(("modules_to_save", name, rf"(^|.*\.){name}($|\..*)"))
    layers = config.get("layers_pattern") or ()
    for name in [layers] if isinstance(layers, str) else layers:
        patterns.append(("layers_pattern", name, rf"(?:^|.*?\.){name}\.(?P<idx>\d+)\."))
    if len(patterns) > _MAX_PATTERNS:
        raise _fault(file, patterns[0][0], f"has more than {_MAX_PATTERNS:,} patterns")
    for key, shown, pattern in patterns:
        fault = pattern_fault(pattern)
        if fault is not None:
            raise _fault(file, key, f"pattern {_short(shown)} {fault}")


def check_layers(config: Mapping[str, Any], layers: int, file: Path) -> None:
    """Checks layer numbers against how many layers the base has (0: not known).

    Raises:
        InputError: If one is beyond them.
    """
    for first, end in config.get("layer_replication") or () if layers else ():
        if end > layers:
            raise _fault(
                file, "layer_replication", f"[{first}, {end}] is beyond the base's {layers} layers"
            )


def check_tensors(tensors: Mapping[str, TensorInfo], file: Path) -> None:
    """Checks that there are tensors, that each has elements, and that factors are no integers.

    Raises:
        InputError: Names the file and the tensor.
    """
    for name, info in tensors.items():
        if info.start == info.stop:
            raise InputError(
                f"adapter {file.parent}: tensor {name} in {file.name} is empty{_GATHER}"
            )
        if "lora_" in name and info.dtype not in _FLOATS:
            raise InputError(
                f"adapter {file.parent}: tensor {name} in {file.name} is of type {info.dtype}, "
                f"expected one of {', '.join(_FLOATS)}; save it again"
            )
    if not tensors:
        raise InputError(f"adapter {file.parent}: {file.name} holds no tensors{_GATHER}")


def _fault(file: Path, key: str, reason: str) -> InputError:
    return InputError(f"adapter {file.parent}: {file.name}, key {key}: {reason}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."

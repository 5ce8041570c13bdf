"""Rotary positions in ``config.json``: complete, of the right kinds, and said once.

transformers warns of most mistakes here and computes something; other libraries compute something
else, or end in a KeyError while they load.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from evalcore.errors import InputError

_NEEDED: dict[str, tuple[str, ...]] = {
    "default": (),
    "mrope": (),
    "proportional": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "longrope": ("short_factor", "long_factor"),
    "su": ("short_factor", "long_factor"),
    "llama3": (
        "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings",
    ),
}  # fmt: skip
_FACTORS = ("factor", "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow",
            "original_max_position_embeddings", "attention_factor", "rope_theta")  # fmt: skip
_SAME = ({"su", "longrope"}, {"mrope", "default"})  # an old name and a new one
_KEYS = ("rope_parameters", "rope_scaling")


def check_rope(path: str, config: Mapping[str, Any]) -> None:
    """Refuses rotary positions that are malformed or said twice in two ways.

    Args:
        path: How to name the checkpoint.
        config: Its config.json.

    Raises:
        InputError: Names the key, what it says and what was expected.
    """
    told = {key: config[key] for key in _KEYS if config.get(key) is not None}
    for key, value in told.items():
        if not isinstance(value, Mapping):
            raise _fault(path, key, f"expected a mapping, not {value!r}")
    if len(told) == 2 and _plain(told["rope_parameters"]) != _plain(told["rope_scaling"]):
        raise _fault(path, "rope_scaling", "says other than rope_parameters does; remove one")
    for key, rope in rope_parts(config):
        _check_part(path, key, rope, config)


def rope_parts(config: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(key, its values) of each kind of rotary positions a configuration describes."""
    for key in _KEYS:
        value = config.get(key)
        if not isinstance(value, Mapping):
            continue
        nested = {
            name: part for name, part in value.items()
            if isinstance(part, Mapping) and name.endswith("attention")
        }  # fmt: skip
        if nested:
            yield from ((f"{key}.{name}", part) for name, part in nested.items())
        else:
            yield key, value


def rope_kind(rope: Mapping[str, Any]) -> str:
    """Its type, by the newer name of the key."""
    return str(rope.get("rope_type") or rope.get("type") or "default")


def _check_part(path: str, key: str, rope: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    names = {rope[name] for name in ("rope_type", "type") if isinstance(rope.get(name), str)}
    if len(names) == 2 and names not in _SAME:
        both = " and ".join(sorted(names))
        raise _fault(path, key, f"has two types, {both}; remove one of rope_type and type")
    kind = rope_kind(rope)
    if kind not in _NEEDED and "auto_map" not in config:
        known = ", ".join(sorted(_NEEDED))
        raise _fault(path, key, f"type {kind!r} is none of {known}")
    if not names and set(rope) - {"rope_theta", "partial_rotary_factor", "mrope_section"}:
        raise _fault(path, key, "has no rope_type, so that libraries would ignore it")
    for name in _NEEDED.get(kind, ()):
        if rope.get(name) is None and not (name.startswith("original") and name in config):
            raise _fault(path, key, f"type {kind} needs {name}, which is not there")
    for name in _FACTORS:
        value = rope.get(name)
        if value is not None and not _is_positive(value):
            raise _fault(path, f"{key}.{name}", f"expected a number above zero, not {value!r}")
    if kind != "default" and _is_positive(rope.get("factor")) and rope["factor"] < 1:
        raise _fault(path, f"{key}.factor", f"expected at least 1, not {rope['factor']!r}")
    if kind == "llama3" and rope["low_freq_factor"] >= rope["high_freq_factor"]:
        raise _fault(path, key, "low_freq_factor has to be below high_freq_factor")
    if kind in ("longrope", "su"):
        _check_lists(path, key, rope)
    theta, own = config.get("rope_theta"), rope.get("rope_theta")
    if theta is not None and own is not None and "." not in key and theta != own:
        raise _fault(path, key, f"rope_theta is {own!r} there and {theta!r} beside it; remove one")


def _check_lists(path: str, key: str, rope: Mapping[str, Any]) -> None:
    lists = [rope["short_factor"], rope["long_factor"]]
    for name, value in zip(("short_factor", "long_factor"), lists, strict=True):
        if not isinstance(value, list) or not all(map(_is_positive, value)) or not value:
            raise _fault(path, f"{key}.{name}", "expected a list of numbers above zero")
    if len(lists[0]) != len(lists[1]):
        raise _fault(path, key, "short_factor and long_factor are not of one length")


def _plain(rope: Mapping[str, Any]) -> dict[str, Any]:
    """What both ways of saying it have in common."""
    own = {k: v for k, v in rope.items() if k not in ("type", "rope_type", "rope_theta")}
    return {**own, "rope_type": rope_kind(rope)}


def _is_positive(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value > 0


def _fault(path: str, key: str, reason: str) -> InputError:
    return InputError(f"checkpoint {path}: config.json, key {key}: {reason}")

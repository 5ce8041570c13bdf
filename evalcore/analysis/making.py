"""Whether numbers that are compared were made alike: by which versions, on what, in which way.

Rounding differs between GPUs, kernels, ways of scoring and numbers of ranks: in 16 bits by as much
as a small gain (0.1 nats between two ways of scoring), in float32 on CPUs by less than anything
here shows. There only versions count, which may change more than rounding.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Making = tuple[tuple[str, str], ...]
"""What of a maker's record can move numbers of its class: (what, which), sorted."""

UNRECORDED: Making = ()
"""Of rows of which nobody recorded what made them."""

_PACKAGES = {"vllm": ("evalcore", "vllm", "torch", "transformers"),
             "hf": ("evalcore", "transformers", "peft", "torch")}  # fmt: skip
_ROUNDING = ("device", "strategy", "tensor_parallel", "attention", "block_size")


def making_of(record: Mapping[str, Any], numerics: str) -> Making:
    """What of a record counts.

    Args:
        record: Of a maker (``ResultStore.makers``).
        numerics: Label of the class of the numbers (``vllm/float32/head-float32/cpu``).
    """
    engine, *parts = numerics.split("/")
    versions = record.get("versions") or {}
    if not isinstance(versions, Mapping):
        versions = {"versions": versions}
    known = _PACKAGES.get(engine, tuple(versions))
    found = {name: str(versions.get(name, "not recorded")) for name in known}
    found["numerics"] = numerics
    if parts[:3] != ["float32", "head-float32", "cpu"]:
        found |= {name: _text(record.get(name)) for name in _ROUNDING}
        variables = record.get("variables") or {}
        found["variables"] = " ".join(f"{k}={v}" for k, v in sorted(variables.items())) or "none"
    return tuple(sorted(found.items()))


def record_of(line: str) -> dict[str, Any]:
    """The record behind a line of column ``maker``."""
    found: dict[str, Any] = {}
    for part in re.split(r", (?=\w+=)", line):
        name, _, text = part.partition("=")
        try:
            found[name] = json.loads(text)
        except ValueError:
            found[name] = text
    return found


def unlike(makings: Iterable[Making]) -> str:
    """In what some differ: ``different vllm (0.26.0 | 0.32.0)``; ``""`` where all are alike."""
    every = set(makings)
    known = [dict(making) for making in every if making != UNRECORDED]
    shared = [name for name in known[0] if all(name in one for one in known)] if known else []
    parts = []
    for name in sorted(shared):
        values = sorted({one[name] for one in known})
        if len(values) > 1:
            parts.append(f"{name} ({' | '.join(values)})")
    texts = [f"different {', '.join(parts)}"] if parts else []
    if known and UNRECORDED in every:
        texts.append("something not recorded")
    return " and ".join(texts)


def apart(one: Sequence[Making], other: Sequence[Making]) -> str:
    """:func:`unlike` of two sides; ``""`` where both were made in the same ways."""
    return unlike([*one, *other]) if one and other and set(one) != set(other) else ""


def _text(value: Any) -> str:
    return "not recorded" if value is None else str(value) or "unknown"

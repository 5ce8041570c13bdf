"""A tuning with a grid written out: one tuning for every combination of values."""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING, Any

from finetune.method import MethodSpec

if TYPE_CHECKING:
    from finetune.study import TuningSpec

Value = bool | int | float | str | list[str]
OWN_KEYS = ("examples", "variants")
_SHORT = {"learning_rate": "lr"}
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_.@-]+")


def grid_keys() -> list[str]:
    """Keys a grid may vary: hyper-parameters, and the tuning's own rows and prompts."""
    return [*OWN_KEYS, *(key for key in MethodSpec.model_fields if key != "kind")]


def expand_grid(tuning: TuningSpec) -> list[TuningSpec]:
    """The tuning itself where it has no grid; else one per combination, the last key fastest.

    A name says behind plus signs what differs (``mnli+rank8+lr0.0002``).
    """
    if not tuning.grid:
        return [tuning]
    given = tuning.model_dump(exclude_unset=True, exclude={"grid"})
    expanded = []
    for values in itertools.product(*tuning.grid.values()):
        point = dict(zip(tuning.grid, values, strict=True))
        own = {key: _own_value(key, value) for key, value in point.items() if key in OWN_KEYS}
        method = {key: value for key, value in point.items() if key not in OWN_KEYS}
        name = "+".join([tuning.name, *(_piece(key, value) for key, value in point.items())])
        merged = {**given, **own, "name": name, "method": {**tuning.method, **method}}
        expanded.append(type(tuning).model_validate(merged))
    return expanded


def as_number(value: Value) -> Value:
    """A text such as ``1e-3`` as the number it is (YAML takes it for text without a dot)."""
    if not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError:
        return value


def _own_value(key: str, value: Any) -> Any:
    return [value] if key == "variants" and isinstance(value, str) else value


def _piece(key: str, value: Any) -> str:
    """``rank8``, ``lr0.0002``, ``doratrue``, ``targetsq_proj_v_proj``."""
    if isinstance(value, bool):
        text = str(value).lower()
    elif isinstance(value, float):
        text = f"{value:g}"
    else:
        text = "_".join(value) if isinstance(value, list) else str(value)
    return _SHORT.get(key, key) + _NOT_IN_NAMES.sub("_", text)

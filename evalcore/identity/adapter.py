"""Identity of PEFT LoRA adapters, and whether one fits a base."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np

from evalcore.errors import InputError
from evalcore.identity.adapter_schema import check_adapter_config, check_tensors
from evalcore.identity.away import away_at, files_state
from evalcore.identity.cache import FileMemo, cached_file_fact
from evalcore.identity.hashing import text_fingerprint
from evalcore.identity.header import read_header
from evalcore.identity.weights import is_finite, nonfinite_tensor, tensor_bits, tensor_digests
from evalcore.reading import is_there, read_json

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


def adapter_config(path: str | Path) -> dict[str, Any]:
    """Reads and checks ``adapter_config.json``.

    Raises:
        InputError: If it is missing, broken or not of a LoRA adapter.
    """
    return _CONFIGS.of(Path(path) / ADAPTER_CONFIG)


def _read_config(file: Path) -> dict[str, Any]:
    config = read_json(file, "adapter")
    kind = config.get("peft_type")
    if kind is None:
        raise InputError(
            f"adapter {file.parent}: {ADAPTER_CONFIG}, key peft_type is missing: PEFT does "
            f"not load it; add LORA if that is what it is"
        )
    if kind != "LORA":
        raise InputError(
            f"adapter {file.parent}: peft_type is {kind!r}, evalcore scores LORA adapters"
        )
    check_adapter_config(config, file)
    return config


_CONFIGS = FileMemo(_read_config, deepcopy)


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


def adapter_file(path: str | Path) -> Path:
    """The file of an adapter's tensors.

    Raises:
        InputError: If there is none that evalcore reads.
    """
    file = Path(path) / ADAPTER_WEIGHTS
    if not is_there(file) and away_at(path) is None:
        hint = "; copy it there, or remove the folder"
        others = sorted(other.name for other in Path(path).glob("adapter_model*"))
        if "adapter_model.bin" in others:
            own = shlex.quote(str(path))
            hint = f"; evalcore convert {own} -o FOLDER makes it of adapter_model.bin"
        elif others:
            hint = f"; nobody reads {others[0]}, which is beside it: save the adapter as one file"
        raise InputError(f"adapter {path}: {ADAPTER_WEIGHTS} is missing{hint}")
    return file


def adapter_fingerprint(path: str | Path, digests: Mapping[str, str] | None = None) -> str:
    """32 hex digits over an adapter's tensors and numeric configuration, not paths or names.

    Args:
        path: Adapter directory.
        digests: Of its tensors, by whoever has just read them; None: from the file.

    Raises:
        InputError: If a file is missing or broken.
    """
    config = numeric_adapter_config(path)
    file = adapter_file(path)
    check_tensors(read_header(file)[0], file)
    away = away_at(path)
    if digests is None and away is not None:
        return away.fingerprint(files_state(config, away.files.values()))[0]
    digests = tensor_digests(file, whole=True) if digests is None else digests
    return text_fingerprint(["adapter", 1, config, digests])


def adapter_rank(path: str | Path) -> int:
    """Largest rank of an adapter's modules, from its tensors' shapes."""
    tensors, _ = read_header(adapter_file(path))
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
    count as trained when they hold anything but zeros. Of one on the hub that nobody has read only
    its configuration tells.
    """
    away = away_at(path)
    if away is not None:
        return (away.name is not None and away.name.untrained) or _is_switched_off(path)
    zero: bool = cached_file_fact(adapter_file(path), "adapter-zero-1", _is_zero)
    return zero or _is_switched_off(path)


def _is_switched_off(path: str | Path) -> bool:
    """Whether lora_alpha is 0 and there is nothing else that could change a score."""
    config = adapter_config(path)
    alphas = [config.get("lora_alpha", 8), *(config.get("alpha_pattern") or {}).values()]
    names = read_header(adapter_file(path))[0]
    pairs = all(re.search(r"\.lora_(embedding_)?[AB](\.|$)", name) for name in names)
    return pairs and all(alpha == 0 for alpha in alphas)


def check_finite(path: str | Path) -> None:
    """Raises InputError if a number of an adapter is NaN or infinite, naming its tensor.

    One that is still on the hub is looked at by whoever fetches it.
    """
    if away_at(path) is not None:
        return
    found = cached_file_fact(adapter_file(path), "adapter-finite-1", _nonfinite)
    if found is not None:
        raise InputError(
            f"adapter {path}: tensor {found[0]} holds {found[1]}; its training diverged, it cannot "
            f"be scored"
        )


def _nonfinite(file: Path) -> tuple[str, str] | None:
    return None if is_finite(file) else nonfinite_tensor(file)


def _is_zero(file: Path) -> bool:
    """The first part that does anything tells; only of an untrained adapter all are read."""
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
        if module in rows and module in columns and _both(rows[module], columns[module]):
            return False
    return True


def _both(rows: np.ndarray, columns: np.ndarray) -> bool:
    """Whether some rank component has both; factors that do not fit are refused elsewhere."""
    return rows.shape != columns.shape or bool((rows & columns).any())

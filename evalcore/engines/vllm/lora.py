"""PEFT LoRA directories as deltas on checkpoint tensors, exact, or refused by name."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evalcore.errors import IncompatibleError
from evalcore.identity import adapter_config, weight_layout

_PREFIX = "base_model.model."
_WEIGHTS = "adapter_model.safetensors"
_PART = re.compile(
    r"\.(lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)(\.weight)?$"
)
# These initialisations subtract from the base what the adapter starts with; the saved tensors alone
# do not say what.
_MUTATING_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga", "lorga")
_UNSUPPORTED = (
    "layer_replication", "target_parameters", "trainable_token_indices", "use_qalora",
    "use_bdlora", "alora_invocation_tokens", "lora_bias", "arrow_config",
)  # fmt: skip


@dataclass
class ModuleDelta:
    """What an adapter does to one weight: tensor names in its file, and the scaling of B A."""

    scaling: float
    parts: dict[str, str] = field(default_factory=dict)


@dataclass
class LoraAdapter:
    """An adapter resolved against a checkpoint's tensors.

    Attributes:
        path: Its directory.
        deltas: Checkpoint tensor name -> low-rank change.
        replacements: Checkpoint tensor name -> tensor in the adapter's file that replaces it.
        transposed: Whether weights are stored [in, out] (``fan_in_fan_out``).
    """

    path: str
    deltas: dict[str, ModuleDelta]
    replacements: dict[str, str]
    transposed: bool

    @property
    def touched(self) -> set[str]:
        return set(self.deltas) | set(self.replacements)


def open_adapter(
    path: str, layout: Mapping[str, tuple[str, tuple[int, ...]]], *, tied: bool
) -> LoraAdapter:
    """Reads an adapter's configuration and header and matches every tensor with a checkpoint's.

    Args:
        path: PEFT directory.
        layout: Tensor name -> (dtype, shape) of the checkpoint.
        tied: Whether input embeddings and output head share one tensor.

    Raises:
        IncompatibleError: Something of it cannot be merged exactly.
        InputError: A file is missing or broken.
    """
    config = adapter_config(path)
    _refuse(path, config)
    shapes = {n: shape for n, (_, shape) in weight_layout(Path(path) / _WEIGHTS).items()}
    deltas: dict[str, ModuleDelta] = {}
    replacements: dict[str, str] = {}
    for name in shapes:
        if not name.startswith(_PREFIX):
            raise IncompatibleError(f"adapter {path}: tensor {name} is not named as PEFT names it")
        part = _PART.search(name)
        if part is None:
            # PEFT saves adapted embeddings and heads together with their base weights.
            own = name.removeprefix(_PREFIX).replace(".base_layer.", ".")
            target = _match(path, own, layout)
            if shapes[name] != layout[target][1]:
                raise IncompatibleError(
                    f"adapter {path}: saved module {name} has shape {shapes[name]}, the "
                    f"checkpoint's {target} has {layout[target][1]}"
                )
            replacements[target] = name
            continue
        module = name[len(_PREFIX) : part.start()]
        target = _match(path, f"{module}.weight", layout)
        delta = deltas.setdefault(target, ModuleDelta(0.0))
        delta.parts[part[1]] = name
        if part[1] in ("lora_A", "lora_embedding_A"):
            delta.scaling = _scaling(config, module, shapes[name][0])
    adapter = LoraAdapter(path, deltas, replacements, bool(config.get("fan_in_fan_out")))
    _check(adapter, shapes, layout, tied)
    return adapter


def _refuse(path: str, config: Mapping[str, Any]) -> None:
    if config.get("bias", "none") != "none":
        raise IncompatibleError(f"adapter {path}: bias={config['bias']!r} cannot be merged")
    init = config.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(_MUTATING_INITS):
        raise IncompatibleError(
            f"adapter {path}: init_lora_weights={init!r} changed its base; convert it to a plain "
            f"LoRA first (PEFT: path_initial_model_for_weight_conversion)"
        )
    for key in _UNSUPPORTED:
        if config.get(key):
            raise IncompatibleError(f"adapter {path}: {key} cannot be merged")


def _scaling(config: Mapping[str, Any], module: str, rank: int) -> float:
    """lora_alpha / r, or / sqrt(r) for rsLoRA; alpha_pattern keys match as in PEFT."""
    alpha = config.get("lora_alpha", 8)
    for key, value in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            alpha = value
            break
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _match(path: str, name: str, layout: Mapping[str, tuple[str, tuple[int, ...]]]) -> str:
    """The checkpoint tensor an adapter tensor belongs to; a model prefix may differ."""
    if name in layout:
        return name
    found = [t for t in layout if t.endswith(f".{name}") or name.endswith(f".{t}")]
    if len(found) == 1:
        return found[0]
    hint = " (it shares the embeddings' tensor)" if name.startswith("lm_head") else ""
    raise IncompatibleError(f"adapter {path}: the checkpoint has no tensor {name}{hint}")


def _check(
    adapter: LoraAdapter,
    shapes: Mapping[str, tuple[int, ...]],
    layout: Mapping[str, tuple[str, tuple[int, ...]]],
    tied: bool,
) -> None:
    path = adapter.path
    for target in adapter.touched if tied else ():
        if "embed" in target or "lm_head" in target or target.endswith(".wte.weight"):
            # PEFT changes only one of the two uses; merged, it would change both.
            raise IncompatibleError(
                f"adapter {path}: it changes {target}, which the checkpoint shares between input "
                f"embeddings and output head; such an adapter cannot be merged"
            )
    for target, delta in adapter.deltas.items():
        embedding = "lora_embedding_A" in delta.parts
        a, b = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A", "lora_B")
        if a not in delta.parts or b not in delta.parts:
            raise IncompatibleError(f"adapter {path}: {target} has only one of {a} and {b}")
        shape_a, shape_b = shapes[delta.parts[a]], shapes[delta.parts[b]]
        dora = "lora_magnitude_vector" in delta.parts
        turned = embedding or adapter.transposed
        expected = (shape_a[-1], shape_b[0]) if turned else (shape_b[0], shape_a[-1])
        if len(shape_a) != 2 or shape_b[-1] != shape_a[0] or layout[target][1] != expected:
            raise IncompatibleError(
                f"adapter {path}: {b} {shape_b} x {a} {shape_a} does not fit {target} "
                f"{layout[target][1]}"
            )
        if dora and turned:
            raise IncompatibleError(f"adapter {path}: DoRA on {target} cannot be merged exactly")


class Merger:
    """Adds an adapter to checkpoint tensors as they stream by, and knows what is still missing."""

    def __init__(self, adapter: LoraAdapter) -> None:
        from safetensors import safe_open

        self._adapter = adapter
        self._file = safe_open(str(Path(adapter.path) / _WEIGHTS), framework="pt")
        self._left = adapter.touched
        self.changed_weights = 0

    def __call__(self, name: str, tensor: Any, dtype: Any) -> Any:
        """The merged tensor in ``dtype``: sum in float32, cast once; other tensors unchanged."""
        if name not in self._left:
            return tensor
        self._left.discard(name)
        adapter, device = self._adapter, tensor.device
        merged = tensor.float()
        if name in adapter.replacements:
            merged = self._read(adapter.replacements[name], device)
        if name in adapter.deltas:
            merged = self._merge(merged, adapter.deltas[name], device)
        merged = merged.to(dtype)
        self.changed_weights += int((merged != tensor.to(dtype)).sum())
        return merged

    def _read(self, name: str, device: Any) -> Any:
        return self._file.get_tensor(name).to(device).float()

    def _merge(self, weight: Any, delta: ModuleDelta, device: Any) -> Any:
        parts = {part: self._read(name, device) for part, name in delta.parts.items()}
        embedding = "lora_embedding_A" in parts
        a = parts["lora_embedding_A" if embedding else "lora_A"]
        b = parts["lora_embedding_B" if embedding else "lora_B"]
        change = (b @ a) * delta.scaling
        if embedding or self._adapter.transposed:
            change = change.T
        weight = weight + change
        magnitude = parts.get("lora_magnitude_vector")
        if magnitude is not None:
            # DoRA: rows rescaled to the trained magnitude (PEFT: magnitude / norm over dim 1).
            weight = weight * (magnitude.reshape(-1) / weight.norm(dim=1))[:, None]
        return weight

    def finish(self) -> None:
        """Raises IncompatibleError unless every tensor of the adapter was used."""
        if self._left:
            raise IncompatibleError(
                f"adapter {self._adapter.path}: not applied to {sorted(self._left)[0]}"
                f" and {len(self._left) - 1} more"
            )

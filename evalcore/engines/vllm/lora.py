"""PEFT LoRA directories merged into checkpoint tensors, exact, or refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from evalcore.errors import IncompatibleError
from evalcore.identity import Layout, LoraAdapter, ModuleDelta, read_lora
from evalcore.identity.adapter import adapter_file


def open_adapter(
    path: str, layout: Layout, *, tied: bool, base: str | Path | None = None
) -> LoraAdapter:
    """Reads an adapter that can be merged into a checkpoint exactly.

    Args:
        path: PEFT directory.
        layout: Tensor name -> (dtype, shape) of the checkpoint.
        tied: Whether input embeddings and output head share one tensor.
        base: Directory of the checkpoint, to see whether saved tensors are its own.

    Raises:
        IncompatibleError: It does not fit, or something of it cannot be merged exactly.
        InputError: A file is missing or broken.
    """
    adapter = read_lora(path, layout, tied=tied, base=base)
    adapter.require_mergeable()
    return adapter


class AdapterTensors:
    """Tensors of an adapter's file, in float32 on a device."""

    def __init__(self, adapter: LoraAdapter) -> None:
        from safetensors import safe_open

        self._file: Any = safe_open(str(adapter_file(adapter.path)), framework="pt")
        self._shared: tuple[dict[str, str], dict[str, Any]] | None = None

    def read(self, name: str, device: Any) -> Any:
        """One tensor by its name in the file."""
        return self._file.get_tensor(name).to(device).float()

    def parts(self, delta: ModuleDelta, device: Any) -> dict[str, Any]:
        """A delta's factors; those of all experts stay at hand for the next expert."""
        if self._shared is not None and self._shared[0] == delta.parts:
            return self._shared[1]
        parts = {part: self.read(name, device) for part, name in delta.parts.items()}
        self._shared = (delta.parts, parts) if delta.expert is not None else None
        return parts


class Merger:
    """Adds an adapter to checkpoint tensors as they stream by, and knows what is still missing."""

    def __init__(self, adapter: LoraAdapter) -> None:
        adapter.require_mergeable()
        self._adapter, self._tensors = adapter, AdapterTensors(adapter)
        self._left = adapter.touched
        self.changed_weights = 0

    def __call__(self, name: str, tensor: Any, dtype: Any) -> Any:
        """The merged tensor in ``dtype``: sum in float32, cast once; other tensors unchanged."""
        return self.cast(name, tensor, self.sum(name, tensor), dtype)

    def cast(self, name: str, tensor: Any, merged: Any, dtype: Any) -> Any:
        """What :meth:`sum` gave in ``dtype``, and what it changed counted."""
        if name not in self._adapter.touched:
            return merged
        merged = merged.to(dtype)
        self.changed_weights += int((merged != tensor.to(dtype)).sum())
        return merged

    def sum(self, name: str, tensor: Any) -> Any:
        """float32, the tensor with what the adapter does to it; other tensors unchanged."""
        if name not in self._left:
            return tensor
        self._left.discard(name)
        adapter, device = self._adapter, tensor.device
        merged = tensor.float()
        if name in adapter.replacements:
            merged = self._tensors.read(adapter.replacements[name], device)
        if name in adapter.biases:
            own, scaling = adapter.biases[name]
            merged = merged + self._tensors.read(own, device) * scaling
        if name in adapter.rows:
            own, rows = adapter.rows[name]
            merged = merged.clone()
            merged[list(rows)] = self._tensors.read(own, device)
        if name in adapter.deltas:
            merged = self._merge(merged, adapter.deltas[name], device)
        return merged

    def _merge(self, weight: Any, delta: ModuleDelta, device: Any) -> Any:
        parts = self._tensors.parts(delta, device)
        embedding = "lora_embedding_A" in parts
        a = parts["lora_embedding_A" if embedding else "lora_A"]
        b = parts["lora_embedding_B" if embedding else "lora_B"]
        if delta.expert is not None:
            a, b = delta.expert.of(a, b)
        change = (b @ a) * delta.scaling
        if embedding or delta.transposed:
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

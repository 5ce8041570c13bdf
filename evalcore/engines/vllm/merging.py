"""A merge held to its parts, and merged copies of checkpoints on disk."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from evalcore.engines.vllm.lora import AdapterTensors, Merger, open_adapter
from evalcore.engines.vllm.traces import probe
from evalcore.errors import NodeError, ProofError
from evalcore.files import scratch_folder
from evalcore.identity import LoraAdapter, ModuleDelta, weight_files, weight_layout
from evalcore.types import Subject

# Unit roundoff of float32. A sum of n terms t in float32 is off by about u sqrt(n) |t|; a few more
# roundings (scaling, adding up, casting of what is compared) come to it, and libraries whose sums
# are twice as coarse.
_ROUNDOFF = 2.0**-24
_COARSE = 2.0


class MergeCheck:
    """Compares merged weights, before they are rounded, with what an adapter's file says.

    Low-rank changes are never formed: x (W + s B A)^T is x W^T + s (x A^T) B^T, for seeded vectors
    x; DoRA's norms follow from W A^T and A A^T. Before rounding, both sides differ by float32's
    roundings only, whatever the engine's dtype is, so that even the delta of one training step
    counts. Everything else an adapter brings is compared as it is.
    """

    def __init__(self, adapter: LoraAdapter) -> None:
        self._adapter, self._touched = adapter, adapter.touched
        self._tensors = AdapterTensors(adapter)
        self._wrong: dict[str, float] = {}

    def __call__(self, name: str, tensor: Any, total: Any, merged: Any) -> None:
        """Looks at one tensor.

        Args:
            name: Its name.
            tensor: As the checkpoint has it.
            total: float32, with the adapter.
            merged: The same in the engine's dtype.
        """
        if name not in self._touched:
            error = 0.0 if merged is tensor else float("inf")
        elif not _equal(total.to(merged.dtype), merged):
            error = float("inf")
        else:
            error = self._error(name, tensor, total)
        if not error <= 1.0:
            self._wrong[name] = error

    def _error(self, name: str, tensor: Any, total: Any) -> float:
        """Distance of a float32 sum from what it should be, in roundings that may be."""
        adapter, weight = self._adapter, tensor.float()
        if name in adapter.replacements:
            weight = self._tensors.read(adapter.replacements[name], tensor.device)
        if name in adapter.biases:
            own, scaling = adapter.biases[name]
            weight = weight + scaling * self._tensors.read(own, tensor.device)
        if name in adapter.rows:
            own, rows = adapter.rows[name]
            values = self._tensors.read(own, tensor.device)
            if not _equal(total[list(rows)], values):
                return float("inf")
            weight = weight.clone()
            weight[list(rows)] = values
        delta = adapter.deltas.get(name)
        if delta is None:
            return 0.0 if _equal(total, weight) else float("inf")
        return self._product_error(delta, weight, total)

    def _product_error(self, delta: ModuleDelta, weight: Any, total: Any) -> float:
        parts = self._tensors.parts(delta, weight.device)
        embedding = "lora_embedding_A" in parts
        a = parts["lora_embedding_A" if embedding else "lora_A"]
        b = parts["lora_embedding_B" if embedding else "lora_B"]
        if delta.expert is not None:
            a, b = delta.expert.of(a, b)
        if embedding or delta.transposed:
            a, b = b.T, a.T
        x = probe(weight.shape[1], weight.dtype, weight.device)
        scaling = delta.scaling
        wanted = x @ weight.T + scaling * ((x @ a.T) @ b.T)
        # Sums of squares of all terms: what their roundings are relative to.
        terms = x.square() @ weight.square().T
        terms += scaling**2 * ((x.square() @ a.square().T) @ b.square().T)
        size = terms.sqrt()
        magnitude = parts.get("lora_magnitude_vector")
        if magnitude is not None:
            factor = magnitude.reshape(-1) / _row_norms(weight, a, b, scaling)
            wanted, size = wanted * factor, size * factor.abs()
        gap = (x @ total.T - wanted).abs() / size.clamp(min=float(size.max()) * 1e-6 or 1.0)
        error = max(float(gap.square().mean().sqrt()), float(gap.max()) / 10)
        terms_count = weight.shape[1] ** 0.5 + a.shape[0] ** 0.5 + 4
        return error / float(_ROUNDOFF * _COARSE * terms_count)

    def finish(self, label: str) -> None:
        """Raises ProofError if a tensor was not as its parts say."""
        if self._wrong:
            name = sorted(self._wrong)[0]
            raise ProofError(
                f"{label}: merging the adapter into {name} gave weights that are not what its "
                f"matrices say ({self._wrong[name]:.2g} times what rounding explains)"
            )


def _equal(one: Any, other: Any) -> bool:
    import torch

    return one.shape == other.shape and bool(torch.equal(one, other))


def _row_norms(weight: Any, a: Any, b: Any, scaling: float) -> Any:
    """float32 [out]: norms of the rows of W + s B A, from products with A only (float64)."""
    a, b = a.double(), b.double()
    squares = weight.square().sum(1).double()
    squares = squares + 2 * scaling * (b * (weight.double() @ a.T)).sum(1)
    squares = squares + scaling**2 * ((b @ (a @ a.T)) * b).sum(1)
    return squares.clamp(min=0).sqrt().float()


@contextmanager
def merged_copy(subject: Subject, dtype: str, *, tied: bool, budget: int) -> Iterator[str]:
    """A checkpoint folder with the adapter merged, while the context lasts.

    Args:
        subject: With an adapter.
        dtype: Type of merged tensors.
        tied: Whether input embeddings and output head share one tensor.
        budget: Bytes it may take; 0: nine tenths of what is free.

    Raises:
        NodeError: There is no room for it.
        IncompatibleError: The adapter cannot be merged.
    """
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    assert subject.adapter is not None
    source = Path(subject.checkpoint.path)
    files = weight_files(source)
    layout = weight_layout(source)
    merger = Merger(open_adapter(subject.adapter.path, layout, tied=tied, base=source))
    need = sum(file.stat().st_size for file in files)
    place = Path(tempfile.gettempdir())
    room = int(shutil.disk_usage(place).free * 0.9)
    room = min(room, budget) if budget else room
    if need > room:
        raise NodeError(
            f"{subject.label}: a merged copy of the checkpoint takes {need / 1e9:.1f} GB, "
            f"{place} may hold {room / 1e9:.1f} GB; make room or set TMPDIR"
        )
    with scratch_folder("merged") as folder:
        for file in files:
            with safe_open(str(file), framework="pt") as tensors:
                merged = {
                    name: merger(name, tensors.get_tensor(name), getattr(torch, dtype)).contiguous()
                    for name in tensors.keys()  # noqa: SIM118 (not a dict)
                }
            save_file(merged, str(folder / file.name), metadata={"format": "pt"})
        merger.finish()
        written = {file.name for file in files}
        for other in source.iterdir():
            if other.is_file() and other.name not in written and other.suffix != ".bin":
                (folder / other.name).symlink_to(other.resolve())
        yield str(folder)

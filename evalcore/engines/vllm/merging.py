"""A merge held to its parts, and merged copies of checkpoints on disk."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from evalcore.engines.vllm.lora import Merger, open_adapter
from evalcore.engines.vllm.traces import probe
from evalcore.errors import NodeError, ProofError
from evalcore.identity import LoraAdapter, weight_files, weight_layout
from evalcore.identity.adapter import adapter_file
from evalcore.types import Subject

# Of a product with the merged weights, relative; rounding them once leaves 1.7e-3 in bfloat16.
_TOLERANCE = {"float32": 2e-5, "bfloat16": 2.2e-3, "float16": 2.8e-4}
_PAIRS = ({"lora_A", "lora_B"}, {"lora_embedding_A", "lora_embedding_B"})


class MergeCheck:
    """Compares merged weights with x W^T + s (x A^T) B^T, which never forms the delta.

    DoRA, and modules an adapter replaces, are not low-rank changes: they are left out.
    """

    def __init__(self, adapter: LoraAdapter, dtype: Any) -> None:
        from safetensors import safe_open

        self._adapter = adapter
        self._limit = _TOLERANCE[str(dtype).removeprefix("torch.")]
        self._file = safe_open(str(adapter_file(adapter.path)), framework="pt")
        self._wrong: dict[str, float] = {}

    def __call__(self, name: str, tensor: Any, merged: Any) -> None:
        """Looks at one tensor before and after the merge."""
        delta = self._adapter.deltas.get(name)
        others = (self._adapter.replacements, self._adapter.biases, self._adapter.rows)
        if delta is None or tensor.ndim != 2 or any(name in other for other in others):
            return
        if set(delta.parts) not in _PAIRS:
            return
        read = {
            part[-1]: self._file.get_tensor(own).to(tensor.device).float()
            for part, own in delta.parts.items()
        }
        x = probe(tensor.shape[1], tensor.float().dtype, tensor.device)
        if delta.transposed or "lora_embedding_A" in delta.parts:
            change = (x @ read["B"]) @ read["A"]
        else:
            change = (x @ read["A"].T) @ read["B"].T
        wanted = x @ tensor.float().T + delta.scaling * change
        gap = x @ merged.float().T - wanted
        error = float(gap.square().mean().sqrt()) / (float(wanted.square().mean().sqrt()) or 1.0)
        if not error <= self._limit:
            self._wrong[name] = error

    def finish(self, label: str) -> None:
        """Raises ProofError if a tensor was not as its parts say."""
        if self._wrong:
            name = sorted(self._wrong)[0]
            raise ProofError(
                f"{label}: merging the adapter into {name} gave weights that are "
                f"{self._wrong[name]:.2g} off what its matrices say"
            )


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
    merger = Merger(open_adapter(subject.adapter.path, layout, tied=tied))
    need = sum(file.stat().st_size for file in files)
    place = Path(tempfile.gettempdir())
    room = int(shutil.disk_usage(place).free * 0.9)
    room = min(room, budget) if budget else room
    if need > room:
        raise NodeError(
            f"{subject.label}: a merged copy of the checkpoint takes {need / 1e9:.1f} GB, "
            f"{place} may hold {room / 1e9:.1f} GB; make room or set TMPDIR"
        )
    with tempfile.TemporaryDirectory(prefix="evalcore-merged-") as folder:
        for file in files:
            with safe_open(str(file), framework="pt") as tensors:
                merged = {
                    name: merger(name, tensors.get_tensor(name), getattr(torch, dtype)).contiguous()
                    for name in tensors.keys()  # noqa: SIM118 (not a dict)
                }
            save_file(merged, str(Path(folder) / file.name), metadata={"format": "pt"})
        merger.finish()
        written = {file.name for file in files}
        for other in source.iterdir():
            if other.is_file() and other.name not in written and other.suffix != ".bin":
                (Path(folder) / other.name).symlink_to(other.resolve())
        yield folder

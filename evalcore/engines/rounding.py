"""What is left of an adapter that is merged into 16-bit weights.

Adapters are trained beside 16-bit weights, in float32; merged, a weight w becomes round(w + d), and
where d is small against the spacing of numbers around w most of it is lost, or comes out too large.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from evalcore.identity import Layout, LoraAdapter, read_lora, weight_files, weight_layout
from evalcore.identity.adapter import adapter_file
from evalcore.identity.cache import cached_file_fact
from evalcore.identity.header import read_header
from evalcore.types import Adapter, Checkpoint

MOST_LOST = 0.05
"""Share of a change above which merging it counts as scoring something else."""
_MODULES, _ROWS = 8, 128


def lost_in(adapter: Adapter, checkpoint: Checkpoint, dtype: str) -> float:
    """The share of an adapter's change that rounding takes or adds when it is merged.

    rms(round(w + d) - round(w) - d) / rms(d), over a seeded sample of rows of a seeded sample of
    modules; 0 for float32 and where nothing is a plain low-rank change. Remembered with the
    adapter's file.

    Args:
        adapter: The adapter.
        checkpoint: What it would be merged into.
        dtype: Type of the merged weights.

    Raises:
        EvalcoreError: The adapter does not fit the checkpoint.
    """
    if dtype == "float32":
        return 0.0
    kind = f"lost-1-{dtype}-{checkpoint.fingerprint}"
    return float(
        cached_file_fact(
            adapter_file(adapter.path), kind, lambda _: _measure(adapter.path, checkpoint, dtype)
        )
    )


def _measure(path: str, checkpoint: Checkpoint, dtype: str) -> float:
    import torch
    from safetensors import safe_open

    layout: Layout = weight_layout(checkpoint.path)
    lora = read_lora(path, layout, tied=False, base=checkpoint.path)
    targets = _sample(lora)
    files = weight_files(Path(checkpoint.path))
    homes = {name: file for file in files for name in read_header(file)[0]}
    lost = change = 0.0
    with safe_open(str(adapter_file(path)), framework="pt") as own:
        for target in targets:
            delta = lora.deltas[target]
            with safe_open(str(homes[target]), framework="pt") as base:
                part = base.get_slice(target)
                rows = _rows(target, part.get_shape()[0])
                weight = torch.stack([part[row] for row in rows]).float()
            a, b = (own.get_tensor(delta.parts[p]).float() for p in ("lora_A", "lora_B"))
            if delta.expert is not None:
                a, b = delta.expert.of(a, b)
            # [out, in]; Conv1D stores [in, out], and its rows are the delta's columns.
            wanted = (a.T[rows] @ b.T if delta.transposed else b[rows] @ a) * delta.scaling
            gap = _rounded(weight + wanted, dtype) - _rounded(weight, dtype) - wanted
            lost += float(gap.double().square().sum())
            change += float(wanted.double().square().sum())
    return float(np.sqrt(lost / change)) if change else 0.0


def _rounded(values: Any, dtype: str) -> Any:
    import torch

    return values.to(getattr(torch, dtype)).float()


def _sample(lora: LoraAdapter) -> list[str]:
    plain = sorted(
        target for target, delta in lora.deltas.items() if set(delta.parts) == {"lora_A", "lora_B"}
    )
    order = np.random.default_rng(len(plain)).permutation(len(plain))
    return [plain[i] for i in order[:_MODULES]]


def _rows(target: str, count: int) -> list[int]:
    return sorted(
        np.random.default_rng(len(target)).permutation(count)[:_ROWS].tolist()  # seeded by name
    )

"""What a tensor leaves behind for a proof: row checksums, and products with seeded vectors."""

from __future__ import annotations

import functools
from typing import Any

TOLERANCE = {"float32": 2e-5, "bfloat16": 5e-5, "float16": 2e-5}
"""Root mean square error of a product beyond the rounding of its results, over the root mean
square of the product; the largest single error may be ten times that. A LoRA of ten steps changes a
layer's product by about 1e-3."""
DOUBTFUL = {"float32": 2e-5, "bfloat16": 1e-2, "float16": 2e-3}
"""Up to this, rounding between a kernel's sums may be all there is to it: not proven, not wrong."""

# Half a step of results between 1/2 and 1.
_HALF_STEP = {"float32": 2.0**-25, "bfloat16": 2.0**-9, "float16": 2.0**-12}
_PROBES = 2
_AT_ONCE = 1 << 22  # numbers whose checksums are computed together


def probe(width: int, dtype: Any, device: Any) -> Any:
    """Seeded vectors [2, width] in ``dtype``, the same for every caller."""
    import torch

    generator = torch.Generator().manual_seed(9176 + width)
    return torch.randn(_PROBES, width, generator=generator).to(dtype).to(device)


def excess(got: Any, wanted: Any, dtype: Any) -> float:
    """Relative error of a product beyond the rounding of its results to ``dtype``.

    Args:
        got: [2, out] as a kernel gives it.
        wanted: float32 [2, out].
        dtype: Type of the kernel's results.

    Returns:
        Root mean square of what is left of the errors (or a tenth of the largest, if that is more)
        over that of ``wanted``; infinite where shapes differ or something is no number.
    """
    if got.shape != wanted.shape:
        return float("inf")
    import torch

    half = torch.ldexp(
        torch.full_like(wanted, _HALF_STEP[str(dtype).removeprefix("torch.")]),
        torch.frexp(wanted).exponent,
    )
    scale = float(wanted.square().mean().sqrt()) or 1.0
    gap = (got.float() - wanted).abs() - half
    gap = gap.clamp(min=0) if bool(gap.isfinite().all()) else gap
    error = max(float(gap.square().mean().sqrt()), float(gap.max()) / 10) / scale
    return error if error == error else float("inf")


def row_sums(tensor: Any) -> Any:
    """int64 [rows]: a checksum of the bits of each row (of each number of a vector).

    The bits are whole numbers, multiplied by seeded odd ones and added up modulo 2^64: rows that
    differ have the same sum once in about 2^63.
    """
    import torch

    bits = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    rows = tensor.contiguous().view(bits).reshape(tensor.shape[0] if tensor.ndim else 1, -1)
    factors = _factors(rows.shape[1]).to(rows.device)
    step = max(1, _AT_ONCE // max(1, rows.shape[1]))
    parts = [
        (rows[i : i + step].to(torch.int64) * factors).sum(-1) for i in range(0, len(rows), step)
    ]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64, device=rows.device)


@functools.lru_cache(maxsize=16)
def _factors(width: int) -> Any:
    import torch

    generator = torch.Generator().manual_seed(40503 + width)
    high = torch.randint(-(1 << 62), 1 << 62, (width,), generator=generator, dtype=torch.int64)
    return high * 2 + 1


def is_finite(tensor: Any) -> bool:
    """Whether every number is one; a sum that overflows is looked at again."""
    import torch

    if not tensor.is_floating_point() or not tensor.numel():
        return True
    if tensor.element_size() < 2:  # 8-bit codes
        return True
    return bool(torch.isfinite(tensor.sum(dtype=torch.float32))) or bool(
        torch.isfinite(tensor).all()
    )

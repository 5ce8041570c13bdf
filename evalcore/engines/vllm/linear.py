"""Float32 products on CPUs, summed in parts.

vLLM multiplies by oneDNN there, 2.3 to 3.7 times as fast as torch's own product on the machine it
was measured on, but it adds up each sum of products in one chain: the rounding error grows with its
length and is twice that of torch's at 1,536 terms. Some models magnify that: SmolLM2-135M's hidden
numbers pass through 10^4 in the middle layers after a lone BOS, and log-probabilities came out
1.6e-3 nats from their float64 values. Adding up parts of at most ``TERMS`` makes the error that of
torch's product, and a product of 512 rows 2 to 10 % longer (figures: docs/lm-eval.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from evalcore.engines.vllm import compat

TERMS = 192
"""Longest chain of additions."""


@dataclass(frozen=True)
class _Parts:
    """oneDNN handlers of a weight's parts, and how many terms each has."""

    handlers: list[Any]
    terms: list[int]


def sum_in_parts() -> None:
    """Makes vLLM's oneDNN products in float32 add up in parts, for layers made from now on."""
    ops = compat.onednn()
    if ops is None or hasattr(ops, "evalcore_whole"):
        return
    create, multiply = ops.create_onednn_mm, ops.onednn_mm
    ops.evalcore_whole = (create, multiply)

    def create_parts(weight: Any, *options: Any, **named: Any) -> Any:
        import torch

        if weight.dtype != torch.float32 or weight.shape[0] <= TERMS:
            return create(weight, *options, **named)
        parts = weight.split(TERMS)  # oneDNN is told how far apart their rows are
        return _Parts(
            [create(part, *options, **named) for part in parts], [len(part) for part in parts]
        )

    def multiply_parts(handler: Any, x: Any, bias: Any) -> Any:
        if not isinstance(handler, _Parts):
            return multiply(handler, x, bias)
        total = None
        for one, part in zip(handler.handlers, x.split(handler.terms, dim=-1), strict=True):
            if total is None:
                total = multiply(one, part, bias)
            else:
                total += multiply(one, part, None)
        return total

    ops.create_onednn_mm, ops.onednn_mm = create_parts, multiply_parts

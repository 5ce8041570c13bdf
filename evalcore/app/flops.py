"""Floating-point operations of a run by the roofline, and the share of a device's peak it reached.

A forward pass costs two operations per weight of a matrix product and token; attention costs four
per layer, unit of width and position attended to (query times keys, weights times values); the
output head costs two per weight and row (Kaplan et al. 2020, arXiv:2001.08361, appendix B; the
same count as in PaLM's appendix B, arXiv:2204.02311). Norms, biases, rotations, look-ups and
softmax are left out, as is usual.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from evalcore.types import OffsetArray

_GATED = {
    "llama", "mistral", "ministral", "qwen2", "qwen3", "olmo", "olmo2", "olmo3", "smollm3",
    "gemma", "gemma2", "gemma3_text",
}  # fmt: skip
_PLAIN = {"gpt_neox"}
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_intermediate_size")

PEAK_TFLOPS: tuple[tuple[str, Mapping[str, float]], ...] = (
    # Dense (without sparsity) figures of the vendors' data sheets, boost clocks. 16-bit figures are
    # of tensor cores with float32 accumulation; float32 is of the ordinary cores, which is what
    # float32 products use unless TF32 is allowed. The first name found in the device's name counts.
    ("B200", {"16": 2250.0, "32": 75.0}),  # NVIDIA HGX B200 data sheet, per GPU
    ("H200 NVL", {"16": 835.5, "32": 60.0}),  # NVIDIA H200 data sheet
    ("H200", {"16": 989.4, "32": 66.9}),  # NVIDIA H200 data sheet (SXM)
    ("GH200", {"16": 989.4, "32": 66.9}),  # NVIDIA GH200 data sheet
    ("H100 NVL", {"16": 835.5, "32": 60.0}),  # NVIDIA H100 data sheet
    ("H100 PCIe", {"16": 756.0, "32": 51.2}),  # NVIDIA H100 architecture white paper
    ("H100", {"16": 989.4, "32": 66.9}),  # NVIDIA H100 architecture white paper (SXM5)
    ("A100", {"16": 312.0, "32": 19.5}),  # NVIDIA A100 data sheet
    ("A40", {"16": 149.7, "32": 37.4}),  # NVIDIA A40 data sheet
    ("A10", {"16": 125.0, "32": 31.2}),  # NVIDIA A10 data sheet
    ("L40S", {"16": 362.1, "32": 91.6}),  # NVIDIA L40S data sheet
    ("L4", {"16": 121.0, "32": 30.3}),  # NVIDIA L4 data sheet
    ("RTX 4090", {"16": 165.2, "32": 82.6}),  # NVIDIA Ada architecture white paper
    ("RTX 3090", {"16": 71.0, "32": 35.6}),  # NVIDIA GA102 architecture white paper
)


@dataclass(frozen=True)
class ModelShape:
    """What of a dense decoder decides its cost.

    Attributes:
        layers: Transformer blocks.
        hidden: Width d of the residual stream.
        attention_width: Heads x head width.
        vocabulary: Rows of the output head.
        body_weights: Weights of all matrix products but the output head (embeddings are looked up).
    """

    layers: int
    hidden: int
    attention_width: int
    vocabulary: int
    body_weights: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> ModelShape | None:
        """The shape of a Hugging Face config; None for mixtures of experts and unknown families.

        Args:
            config: ``config.json`` or :func:`evalcore.identity.numeric_config`.
        """
        family = config.get("model_type")
        if family not in _GATED | _PLAIN or any(config.get(name) for name in _EXPERTS):
            return None
        try:
            layers, hidden = int(config["num_hidden_layers"]), int(config["hidden_size"])
            heads, inner = int(config["num_attention_heads"]), int(config["intermediate_size"])
            vocabulary = int(config["vocab_size"])
        except (KeyError, TypeError, ValueError):
            return None
        head_dim = int(config.get("head_dim") or hidden // heads)
        kv_heads = int(config.get("num_key_value_heads") or heads)
        width, kv_width = heads * head_dim, kv_heads * head_dim
        attention = 2 * hidden * width + 2 * hidden * kv_width  # q and o, k and v
        feed_forward = (3 if family in _GATED else 2) * hidden * inner
        return cls(layers, hidden, width, vocabulary, layers * (attention + feed_forward))

    def flops(self, *, computed: float, rows: float, attended: float) -> float:
        """Operations of a run.

        Args:
            computed: Tokens run through the model.
            rows: Rows that went through the output head.
            attended: Positions attended to, summed over computed tokens (see :func:`attended`); a
                sliding window makes it less than this module counts.
        """
        return (
            2.0 * self.body_weights * computed
            + 2.0 * self.hidden * self.vocabulary * rows
            + 4.0 * self.layers * self.attention_width * attended
        )


def attended(lengths: OffsetArray, shared: OffsetArray | None = None) -> int:
    """Positions attended to when each sequence computes what it does not share.

    Args:
        lengths: int64 [S], tokens of each sequence.
        shared: int64 [S], leading tokens of each that were computed before; None: none.
    """
    whole = np.asarray(lengths, dtype=np.int64)
    before = np.zeros_like(whole) if shared is None else np.asarray(shared, dtype=np.int64)
    return int((whole * (whole + 1) - before * (before + 1)).sum()) // 2


def run_flops(
    config: Mapping[str, Any], *, computed_tokens: int, head_rows: int, mean_context: float
) -> float | None:
    """Operations of a run of which only totals are known; None if the family is not known.

    Args:
        config: The checkpoint's numeric config.
        computed_tokens: Tokens run through the model, generated ones included.
        head_rows: Rows through the output head (continuation tokens at least).
        mean_context: Mean number of positions a computed token attends to; half the mean sequence
            length is right for prompts computed from their beginning.
    """
    shape = ModelShape.of(config)
    if shape is None:
        return None
    return shape.flops(
        computed=computed_tokens, rows=head_rows, attended=computed_tokens * mean_context
    )


def peak_flops(device_name: str, dtype: str, override_tflops: float | None = None) -> float | None:
    """Peak operations per second of a device; None where it is not known.

    Args:
        device_name: As torch reports it (``NVIDIA H100 80GB HBM3``).
        dtype: ``float32``, ``bfloat16`` or ``float16``.
        override_tflops: ``--peak-tflops``.
    """
    if override_tflops:
        return override_tflops * 1e12
    words = device_name.replace("-", " ").upper().split()
    for name, peaks in PEAK_TFLOPS:
        wanted = name.upper().split()
        if all(word in words for word in wanted):
            return peaks["32" if dtype == "float32" else "16"] * 1e12
    return None


def mfu(flops: float | None, seconds: float, peak: float | None) -> float | None:
    """Share of the peak (0 to 1); None where one of the figures is not known."""
    if flops is None or not peak or seconds <= 0:
        return None
    return flops / seconds / peak

"""Which model families were seen to agree with transformers, and how far apart agreeing scores are.

What is compared are the log-probabilities of the canary batch: those of an engine, and those of
transformers (PEFT for adapters) in float32, from a process of its own (see
:mod:`evalcore.engines.witness`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from evalcore.config.engine import Device, Dtype
from evalcore.engines.protocol import package_versions
from evalcore.engines.vllm.compat import unverified
from evalcore.types import FloatArray

SEEN: Mapping[Device, frozenset[str]] = {
    "cpu": frozenset({
        "LlamaForCausalLM", "OlmoForCausalLM", "Olmo2ForCausalLM", "GPTNeoXForCausalLM",
        "Qwen2ForCausalLM", "MistralForCausalLM", "GPT2LMHeadModel", "GPTJForCausalLM",
        "FalconForCausalLM", "BloomForCausalLM", "OlmoeForCausalLM", "MixtralForCausalLM",
        "Qwen3MoeForCausalLM",
    }),
    "cuda": frozenset(),
}  # fmt: skip
"""Architectures that tests hold to transformers, bare and with adapters, by device.

Any other is compared before anything of it is scored. ``test_scoring_witness`` keeps the
list.
"""

FLOAT32: Mapping[Device, float] = {"cpu": 1e-4, "cuda": 5e-3}
"""Nats that a token's log-probability may be off in float32: sums in another order give 5e-6 on
CPUs; on GPUs vLLM's attention multiplies in TF32 (7e-4 on the canaries of a 1B model)."""

SUMMED = 10.0
"""How many times further off a whole continuation may be than a token, in float32."""

NOISE_TIMES = 8.0
"""In 16 bits: how many times transformers' own noise an engine may be off (root mean square).

The noise is what the same model's log-probabilities change by when transformers computes them in
that dtype. An engine was off by 0.6 to 1.6 times as much (Llama, OLMo-2, Qwen2 and OLMoE, bare and
merged, both dtypes); the canaries are 15 tokens in three contexts, hence as few as 3 independent
values, so that honest ratios scatter.
"""
LEAST_NOISE = {"bfloat16": 2e-3, "float16": 3e-4}
"""A model that shows less noise by chance counts as having this, in nats."""


@dataclass(frozen=True)
class Comparison:
    """An engine's canaries beside the witness's.

    Attributes:
        gap: Nats they are apart: a token's most in float32, the root mean square in 16 bits.
        allowed: The most that counts as agreeing.
    """

    gap: float
    allowed: float

    @property
    def agrees(self) -> bool:
        """Whether they agree; a gap that is no number does not."""
        return self.gap <= self.allowed


def architecture_of(config: Mapping[str, Any]) -> str:
    """The architecture a config.json names; where it names none, that of its model type."""
    named = config.get("architectures") or ()
    if named:
        return str(named[0])
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    kind = str(config.get("model_type", "unknown"))
    return str(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind, kind))


def is_seen(architecture: str, device: Device) -> bool:
    """Whether a family was seen to agree on such a device, with the vLLM that is installed."""
    version = package_versions().get("vllm", "")
    return unverified(version) is None and architecture in SEEN[device]


def compare(
    values: FloatArray,
    exact: FloatArray,
    rough: FloatArray | None,
    dtype: Dtype,
    device: Device,
    *,
    sums: bool = False,
) -> Comparison:
    """Compares an engine's log-probabilities with the witness's.

    Args:
        values: float64 [T], the engine's.
        exact: float64 [T], the witness's in float32.
        rough: float64 [T], the witness's in the engine's dtype; None in float32.
        dtype, device: The engine's.
        sums: They are of whole continuations, not of tokens.
    """
    if values.shape != exact.shape:
        return Comparison(float("inf"), 0.0)
    off = np.abs(values - exact)
    if rough is None:
        return Comparison(float(off.max()), FLOAT32[device] * (SUMMED if sums else 1.0))
    noise = max(_rms(rough - exact), LEAST_NOISE[dtype])
    return Comparison(_rms(off), NOISE_TIMES * noise)


def _rms(values: FloatArray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))

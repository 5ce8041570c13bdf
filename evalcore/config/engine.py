"""What computes, and in which numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from evalcore.config.option import check_part, option

EngineKind = Literal["vllm", "hf"]
Dtype = Literal["float32", "bfloat16", "float16"]
Device = Literal["cpu", "cuda"]
Strategy = Literal["auto", "packed", "cached", "plain"]
AdapterWay = Literal["merged", "batched"]


@dataclass(frozen=True)
class EngineConfig:
    """What computes, and in which numbers.

    What a field is called here it is called in ``engines.EngineSpec`` too: a field added here is
    what every engine gets, without another line.
    """

    SECTION: ClassVar[str] = "Engine"

    kind: Literal["auto"] | EngineKind = option(
        "vllm", "vllm is fast; hf (transformers and peft) is slow and plain, the reference; auto: "
        "vllm where it can score a checkpoint and its adapters, else hf for them.",
        "--engine", name="engine", study="engine",
    )  # fmt: skip
    dtype: Literal["auto"] | Dtype = option(
        "auto", "auto: float32 on CPUs, bfloat16 on GPUs.", "--dtype", study="dtype"
    )
    strategy: Strategy = option(
        "auto", "How choices are scored; auto takes the cheapest exact one.", "--strategy",
        study="strategy",
    )  # fmt: skip
    adapters: Literal["auto"] | AdapterWay = option(
        "auto", "merged: into the weights, one adapter at a time; batched: beside them, several "
        "together; auto: merged on CPUs, on GPUs by a rule (docs/engines.md).",
        "--adapters", name="adapter_way", study="adapters",
    )  # fmt: skip
    witness: Literal["auto", "all", "off"] = option(
        "auto", "Compare canaries with transformers, in a process beside the engine: of the first "
        "subject of each kind and of some more; of all, which then must agree; of none.",
        "--witness",
    )  # fmt: skip
    trust_remote_code: bool = option(
        False, "Let checkpoints run their own Python code.", "--trust-remote-code"
    )

    def __post_init__(self) -> None:
        check_part(self)

    def dtype_on(self, device: Device) -> Dtype:
        """The type of weights and activations on a device."""
        if self.dtype != "auto":
            return self.dtype
        return "float32" if device == "cpu" else "bfloat16"

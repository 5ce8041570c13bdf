"""What PEFT refuses, told before an engine starts: as PEFT itself says it."""

from __future__ import annotations

from typing import Any

import pytest

from evalcore.identity.peft_alone import peft_refuses

ATTENTION = ["model.layers.0.self_attn.q_proj.weight"]
W1 = ["model.layers.0.block_sparse_moe.experts.0.w1.weight"]
UP = ["model.layers.0.mlp.experts.0.up_proj.weight"]


@pytest.mark.parametrize(
    ("config", "model_type", "modules", "said"),
    [
        ({"target_modules": ["q_proj"]}, "llama", ATTENTION, None),
        ({"use_bdlora": {"nblocks": 2}}, "llama", ATTENTION, "neither of"),
        ({"use_bdlora": True}, "llama", ATTENTION, "neither of"),
        ({"use_bdlora": {"match_strict": False}}, "llama", ATTENTION, None),
        ({"use_bdlora": {"target_modules_bd_a": ["q_proj"]}}, "llama", ATTENTION, None),
        (
            {"use_bdlora": {"target_modules_bd_a": ["q_"], "target_modules_bd_b": ["attn"]}},
            "llama", ATTENTION, "both of",
        ),
        ({"target_modules": ["w1", "w2"]}, "mixtral", W1, "w1 without w3"),
        ({"target_modules": ["w1", "w3"]}, "mixtral", W1, None),
        ({"target_modules": ["w2"]}, "mixtral", W1, None),
        ({"target_modules": ["w1"]}, "llama", W1, None),
        ({"target_modules": ["model.layers.0.mlp.up_proj"]}, "olmoe", UP, "up_proj without gate"),
        ({"target_modules": r".*experts.*up_proj"}, "qwen3_moe", UP, "up_proj without gate"),
        ({"target_modules": "all-linear"}, "qwen3_moe", ATTENTION, None),
    ],
)  # fmt: skip
def test_as_peft_says(
    config: dict[str, Any], model_type: str, modules: list[str], said: str | None
) -> None:
    reason = peft_refuses(config, model_type, modules)
    assert reason is None if said is None else said in (reason or "")


@pytest.mark.slow
def test_the_tables_are_those_of_the_installed_peft() -> None:
    conversion = pytest.importorskip("peft.utils.transformers_weight_conversion")
    from evalcore.identity import peft_alone

    fused = conversion._MOE_FUSED_TARGETS
    ours = {kind: set(peft_alone._FUSED[key]) for kind, key in peft_alone._EXPERTS.items()}
    theirs = {
        kind: set(fused[pattern]["gate_up_proj"])
        for kind, pattern in conversion._MODEL_TO_CONVERSION_PATTERN.items()
        if pattern in fused
    }
    assert ours == theirs

"""What PEFT itself refuses to load, told from an adapter's configuration.

Engine hf hands an adapter to PEFT; vLLM's ways read its tensors themselves. Rules of PEFT 0.20 and
0.21 (``tuners/lora/variants.py``, ``utils/transformers_weight_conversion.py``).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

# Experts that transformers 5 keeps as one parameter: what PEFT adapts together or not at all.
_FUSED = {
    "w": ("w1", "w3"),
    "proj": ("gate_proj", "up_proj"),
}
_EXPERTS = {
    **dict.fromkeys(("mixtral", "minimax", "minimax_m2"), "w"),
    **dict.fromkeys(
        (
            "afmoe", "cohere2_moe", "deepseek_v2", "deepseek_v3", "deepseek_v32", "dots1",
            "ernie4_5_moe", "exaone_moe", "flex_olmo", "glm4_moe", "glm4_moe_lite", "glm4v_moe",
            "glm_moe_dsa", "hunyuan_v1_moe", "longcat_flash", "mellum", "olmoe", "qwen3_moe",
            "qwen3_next", "qwen3_omni_moe", "qwen3_omni_moe_thinker", "solar_open",
        ),
        "proj",
    ),
}  # fmt: skip


def peft_refuses(
    config: Mapping[str, Any], model_type: str, modules: Collection[str]
) -> str | None:
    """Why PEFT cannot load an adapter that fits its base; None if it can.

    Args:
        config: adapter_config.json.
        model_type: Of the base's config.json.
        modules: Names of the weights that have factors in the adapter, as the checkpoint has them.
    """
    return _block_diagonal(config, modules) or _fused_experts(config, model_type, modules)


def _block_diagonal(config: Mapping[str, Any], modules: Collection[str]) -> str | None:
    blocks = config.get("use_bdlora")
    if not blocks:
        return None
    given = blocks if isinstance(blocks, Mapping) else {}
    in_a, in_b = (given.get(f"target_modules_bd_{part}") or () for part in "ab")
    for module in sorted(modules):
        sides = [any(pattern in module for pattern in side) for side in (in_a, in_b)]
        if all(sides) or (given.get("match_strict", True) and not any(sides)):
            which = "both of" if all(sides) else "neither of"
            return (
                f"use_bdlora: PEFT loads it only if target_modules_bd_a or target_modules_bd_b "
                f"names each module; {module.removesuffix('.weight')} is in {which} them"
            )
    return None


def _fused_experts(
    config: Mapping[str, Any], model_type: str, modules: Collection[str]
) -> str | None:
    together = _FUSED.get(_EXPERTS.get(model_type, ""), ())
    targets = config.get("target_modules")
    if isinstance(targets, str):  # PEFT looks which experts the expression means
        names = {name.removesuffix(".weight") for name in modules if ".experts." in name}
    else:
        names = set(targets or ())
    leaves = {name.rpartition(".")[2] for name in names}
    found = [name for name in together if name in leaves]
    if not found or len(found) == len(together):
        return None
    (missing,) = set(together) - set(found)
    return (
        f"it adapts {found[0]} without {missing} of a mixture of experts, which PEFT loads only "
        f"together; engine vllm merges it"
    )

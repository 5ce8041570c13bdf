"""Adapters as people have them: small ones of each kind, and what becomes of each."""

from __future__ import annotations

from typing import Any

from tests.agreement.engine_models import VOCAB
from tests.agreement.wild_edits import (
    ATTENTION,
    LINEAR,
    Case,
    both,
    drop,
    edit_config,
    edit_tensors,
    poison,
    rename,
)
from tests.agreement.wild_further import FURTHER

_P = "base_model.model."
_ALL = {"targets": LINEAR}
_TIED: dict[str, Any] = {"base": "llama-tied", "vllm": "shares between"}

CASES: dict[str, Case] = {
    "plain": Case(options=_ALL),
    "fan_true_linear": Case(edit=edit_config(fan_in_fan_out=True)),
    "gpt2_fan_false": Case(
        "gpt2", {"targets": ("c_attn", "c_proj", "c_fc")}, edit_config(fan_in_fan_out=False)
    ),
    "gpt2_fan_true": Case("gpt2", {"targets": ("c_proj",), "fan_in_fan_out": True}),
    "key_default": Case(edit=rename(".weight", ".default.weight")),
    "key_sft": Case(edit=rename(".weight", ".sft.weight")),
    "key_noprefix": Case(edit=rename(_P, "")),
    "key_double": Case(edit=rename(_P, _P + _P)),
    "key_compiled": Case(edit=rename(_P, _P + "_orig_mod.")),
    "key_ddp": Case(edit=rename(_P, "module." + _P)),
    "key_fsdp": Case(edit=rename(".layers.0.", ".layers.0._fsdp_wrapped_module.")),
    "key_vl": Case(edit=rename("model.layers", "model.language_model.layers")),
    "key_lm": Case(edit=rename("model.layers", "language_model.model.layers")),
    "key_nomodel": Case(edit=rename("model.model.layers", "model.layers")),
    "key_vl_patterns": Case(
        options={
            "rank_pattern": {"model.layers.0.self_attn.q_proj": 4},
            "alpha_pattern": {"model.layers.1.self_attn.v_proj": 64},
        },
        edit=both(
            rename("model.layers", "model.language_model.layers"),
            edit_config(
                rank_pattern={"model.language_model.layers.0.self_attn.q_proj": 4},
                alpha_pattern={"model.language_model.layers.1.self_attn.v_proj": 64},
                target_modules=r"(?:.*?(?:language).*?(?:self_attn).*?(?:q_proj|v_proj).*?)",
            ),
        ),
    ),
    "key_other": Case(edit=rename("q_proj", "w_proj"), vllm="has no tensor", hf="has no tensor"),
    "key_vision": Case(
        edit=edit_tensors(
            lambda t: {
                **t,
                **{
                    k.replace("model.layers", "vision_tower.encoder.layers"): v
                    for k, v in t.items()
                },
            }
        ),
        vllm="has no tensor",
        hf="has no tensor",
    ),
    "twice": Case(
        edit=edit_tensors(lambda t: {**t, **{k.replace(_P, ""): v + 1 for k, v in t.items()}}),
        vllm="same tensor twice",
        hf="same tensor twice",
    ),
    "empty": Case(edit=edit_tensors(lambda t: {}), vllm="no tensors", hf="no tensors"),
    "zero3": Case(
        edit=edit_tensors(lambda t: {k: v[:0, 0] for k, v in t.items()}),
        vllm="is empty",
        hf="is empty",
    ),
    "half": Case(edit=drop("0.self_attn.q_proj.lora_B"), vllm="only one of", hf="only one of"),
    "layer_lost": Case(edit=drop("layers.1."), vllm="lacks", hf="lacks"),
    "rank_other": Case(edit=edit_config(r=4), vllm="rank", hf="rank"),
    "nan": Case(edit=edit_tensors(poison(float("nan"))), vllm="holds NaN", hf="holds NaN"),
    "inf": Case(edit=edit_tensors(poison(float("inf"))), vllm="holds infinity", hf="holds inf"),
    "alpha_nan": Case(
        edit=edit_config(lora_alpha=float("nan")), vllm="a finite number", hf="a finite number"
    ),
    "alpha_huge": Case(
        edit=edit_config(lora_alpha=1e308), vllm="a finite number", hf="a finite number"
    ),
    "alpha0": Case(options={"lora_alpha": 0}),
    "dora": Case(options={"use_dora": True}),
    "dora_lost": Case(
        options={"use_dora": True},
        edit=drop("magnitude"),
        vllm="lora_magnitude_vector",
        hf="lora_magnitude_vector",
    ),
    "rslora": Case(options={"use_rslora": True, "r": 16}),
    "bias_all_qwen": Case("qwen", {"bias": "all"}),
    "bias_only_qwen": Case("qwen", {"bias": "lora_only"}),
    "bias_all_llama": Case(options={"bias": "all"}),
    "lora_bias_qwen": Case("qwen", {"lora_bias": True, "targets": ("q_proj", "v_proj")}),
    "lora_bias_llama": Case(options={"lora_bias": True}, vllm="no bias"),
    "head": Case(options={"targets": ("q_proj", "lm_head")}),
    "embed": Case(options={"targets": ("q_proj", "embed_tokens")}),
    "saved_head": Case(options={"modules_to_save": ["lm_head"]}),
    "saved_embed": Case(options={"modules_to_save": ["embed_tokens"]}),
    "saved_norm": Case(options={"modules_to_save": ["norm"]}),
    "saved_named": Case(
        options={"modules_to_save": ["lm_head"]},
        edit=rename("lm_head.weight", "lm_head.modules_to_save.default.weight"),
    ),
    "tied_head": Case(**_TIED, options={"targets": ("q_proj", "lm_head")}),
    "tied_embed": Case(**_TIED, options={"targets": ("q_proj", "embed_tokens")}),
    "tied_saved_head": Case(**_TIED, options={"modules_to_save": ["lm_head"]}),
    "tied_saved_embed": Case(**_TIED, options={"modules_to_save": ["embed_tokens"]}),
    "tied_saved_both": Case(**_TIED, options={"modules_to_save": ["embed_tokens", "lm_head"]}),
    "tokens": Case(options={"trainable_token_indices": [5, 9, 77]}),
    "tokens_tied": Case("llama-tied", {"trainable_token_indices": [5, 9, 77]}),
    "tokens_both": Case(
        options={"trainable_token_indices": {"embed_tokens": [5, 9], "lm_head": [7, 8]}}
    ),
    "resized": Case(
        rows=VOCAB + 32,
        options={"modules_to_save": ["embed_tokens", "lm_head"]},
        vllm="resized vocabulary",
    ),
    "resized_lora": Case(
        rows=VOCAB + 2,
        options={"targets": ("q_proj", "embed_tokens", "lm_head")},
        vllm="resized vocabulary",
    ),
    "resized_tied": Case(
        "llama-tied",
        rows=VOCAB + 32,
        options={"modules_to_save": ["embed_tokens"]},
        vllm="shares between",
    ),
    "resized_head": Case(
        rows=VOCAB + 32, options={"modules_to_save": ["lm_head"]}, vllm="resized vocabulary"
    ),
    "pissa": Case(options={"init_lora_weights": "pissa"}, vllm="changed its base"),
    "olora": Case(options={"init_lora_weights": "olora"}, vllm="changed its base"),
    "corda": Case(
        edit=edit_config(init_lora_weights="corda"), vllm="changed its base", hf="changed its base"
    ),
    "loftq": Case(
        edit=edit_config(init_lora_weights="loftq"), vllm="changed its base", hf="changed its base"
    ),
    "replication": Case(options={"layer_replication": [[0, 2], [1, 2]]}, vllm="layer_replication"),
    "megatron": Case(edit=edit_config(megatron_config={"a": 1}), vllm="megatron", hf="megatron"),
    "ia3": Case(edit=edit_config(peft_type="IA3"), vllm="IA3", hf="IA3"),
    "prefix": Case(
        edit=edit_config(peft_type="PREFIX_TUNING"), vllm="PREFIX_TUNING", hf="PREFIX_TUNING"
    ),
    "prompt": Case(
        edit=edit_config(peft_type="PROMPT_TUNING"), vllm="PROMPT_TUNING", hf="PROMPT_TUNING"
    ),
    "mixtral_attention": Case("mixtral", {"targets": ATTENTION}),
    "mixtral_parameters": Case(
        "mixtral",
        {
            "targets": ("q_proj",),
            "target_parameters": ["experts.gate_up_proj", "experts.down_proj"],
        },
    ),
    "mixtral_experts": Case("mixtral", experts=("w1", "w2", "w3")),
    "mixtral_w2": Case("mixtral", experts=("w2",)),
    "mixtral_w1": Case("mixtral", experts=("w1",), hf="without w3"),
    "mixtral_some_experts": Case(
        "mixtral", experts=("w2",), edit=drop(".experts.2."), vllm="lacks", hf="lacks"
    ),
    "olmoe_experts": Case("olmoe", experts=("gate_proj", "up_proj", "down_proj")),
    "olmoe_attention": Case("olmoe", {"targets": ATTENTION}),
    "olmoe_router": Case(
        "olmoe",
        {"targets": ("q_proj",), "target_parameters": ["gate.weight"]},
    ),
} | FURTHER

"""Further adapters of the same kinds: other wrappers' names, other flags, other files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.agreement.wild_edits import (
    LINEAR,
    Case,
    both,
    drop,
    edit_config,
    edit_tensors,
    rename,
)

_P = "base_model.model."
TOKEN = 416  # begins the text that a third of the rows share


def _cast(dtype: str) -> Callable[[Path], None]:
    def change(tensors: dict[str, Any]) -> dict[str, Any]:
        import torch

        return {name: tensor.to(getattr(torch, dtype)) for name, tensor in tensors.items()}

    return edit_tensors(change)


def _cut(size: int) -> Callable[[Path], None]:
    """A file whose writing was ended: its last bytes are missing, or all after the first few."""

    def edit(folder: Path) -> None:
        file = folder / "adapter_model.safetensors"
        held = file.read_bytes()
        file.write_bytes(held[:size] if size >= 0 else held[: len(held) + size])

    return edit


def _shards(folder: Path) -> None:
    """As a whole model is saved in parts; PEFT has no such files for adapters."""
    from safetensors.torch import load_file, save_file

    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    file.unlink()
    names, places = sorted(tensors), {}
    for i, own in enumerate((names[::2], names[1::2]), 1):
        part = f"adapter_model-0000{i}-of-00002.safetensors"
        save_file({name: tensors[name] for name in own}, folder / part)
        places |= dict.fromkeys(own, part)
    index = {"metadata": {}, "weight_map": places}
    (folder / "adapter_model.safetensors.index.json").write_text(json.dumps(index))


def _mlx(tensors: dict[str, Any]) -> dict[str, Any]:
    """Names of another library: factors turned, in lower case."""
    return {
        k.replace(_P, "").replace("lora_A.weight", "lora_a").replace("lora_B.weight", "lora_b"): v.T
        for k, v in tensors.items()
    }


def _no_rank(tensors: dict[str, Any]) -> dict[str, Any]:
    return {k: (v[:0] if "lora_A" in k else v[:, :0]) for k, v in tensors.items()}


def _both_says(line: str) -> dict[str, Any]:
    return {"vllm": line, "hf": line}


FURTHER: dict[str, Case] = {
    # names
    "key_vl_base": Case(edit=rename(_P + "model.", _P + "model.language_model.")),
    "key_thinker": Case(
        edit=rename(_P + "model.", _P + "thinker.model."), **_both_says("has no tensor")
    ),
    "key_compiled_layer": Case(edit=rename(".layers.0.", ".layers.0._orig_mod.")),
    "key_compiled_all": Case(edit=rename(_P, "_orig_mod." + _P)),
    "key_ddp_inside": Case(edit=rename(_P, _P + "module.")),
    "key_checkpointed": Case(
        edit=rename(
            ".layers.1.", ".layers.1._fsdp_wrapped_module._checkpoint_wrapped_module."
        )
    ),
    "key_fsdp_all": Case(edit=rename(_P, "_fsdp_wrapped_module." + _P)),
    "key_deepspeed": Case(edit=rename(_P, "module." + _P + "_orig_mod.")),
    "key_model_twice": Case(edit=rename(_P + "model.", _P + "model.model.")),
    "key_llm": Case(edit=rename(_P + "model.", _P + "llm.model.")),
    "key_bare_layers": Case(edit=rename(_P + "model.", "")),
    "key_no_leaf": Case(edit=edit_tensors(
        lambda t: {k.removesuffix(".weight"): v for k, v in t.items()}
    )),
    "key_mlx": Case(edit=edit_tensors(_mlx), **_both_says("has no tensor")),
    "key_adapter_name_odd": Case(edit=rename(".weight", ".my adapter/2.weight")),
    # flags
    "layers_one": Case(options={"layers_to_transform": [1], "layers_pattern": "layers"}),
    "layers_number": Case(options={"layers_to_transform": 0, "targets": LINEAR}),
    "layers_pattern_list": Case(options={"layers_to_transform": [0], "layers_pattern": ["layers"]}),
    "rank_regex": Case(
        options={
            "targets": LINEAR,
            "rank_pattern": {r"^model\.layers\.0\..*q_proj": 4, r"(v|o)_proj": 2},
            "alpha_pattern": {r"layers\.1\.self_attn\.[qk]_proj": 40, "down_proj": 1},
        }
    ),
    "rank_regex_rslora": Case(
        options={"use_rslora": True, "rank_pattern": {"q_proj": 16}, "alpha_pattern": {"v": 3}}
    ),
    "alpha_anchored": Case(options={"alpha_pattern": {r"^layers\.0\.self_attn\.q_proj": 64}}),
    "alpha_anchored_whole": Case(
        options={"alpha_pattern": {r"^model\.layers\.0\.self_attn\.q_proj": 64}}
    ),
    "alpha_overlapping": Case(
        options={"alpha_pattern": {"v_proj": 3, ".*layers.0.*v_proj": 40}},
        **_both_says("several of its patterns"),
    ),
    "alpha_pattern_zero": Case(options={"alpha_pattern": {"q_proj": 0}}),
    "alpha_negative": Case(options={"lora_alpha": -16}),
    "exclude_list": Case(options={"targets": LINEAR, "exclude_modules": ["layers.0.mlp.up_proj"]}),
    "exclude_regex": Case(options={"targets": LINEAR, "exclude_modules": r".*layers\.0\..*"}),
    "all_linear": Case(options={"target_modules": "all-linear"}),
    "all_linear_kept": Case(
        options={"target_modules": "all-linear"}, edit=edit_config(target_modules="all-linear")
    ),
    "all_linear_lost": Case(
        edit=edit_config(target_modules="all-linear"), **_both_says("lacks")
    ),
    "target_regex": Case(options={"target_modules": r".*\.layers\.[01]\.(mlp|self_attn)\.[qdg].*"}),
    "target_regex_lost": Case(
        options={"target_modules": r".*\.(q|v)_proj"},
        edit=drop("layers.1."),
        **_both_says("lacks"),
    ),
    "target_full_names": Case(
        options={"targets": ("model.layers.0.self_attn.q_proj", "layers.1.mlp.down_proj")}
    ),
    "gaussian": Case(options={"init_lora_weights": "gaussian"}),
    "orthogonal": Case(options={"init_lora_weights": "orthogonal"}),
    "init_false": Case(options={"init_lora_weights": False}),
    "eva": Case(edit=edit_config(init_lora_weights="eva", eva_config={"rho": 2.0})),
    "mica": Case(options={"init_lora_weights": "mica"}),
    "pissa_fast": Case(
        options={"init_lora_weights": "pissa_niter_4"}, **_both_says("changed its base")
    ),
    "pissa_upper": Case(edit=edit_config(init_lora_weights="PiSSA"), **_both_says("is not known")),
    "lora_ga": Case(
        edit=edit_config(init_lora_weights="lora_ga"), **_both_says("changed its base")
    ),
    "init_unknown": Case(edit=edit_config(init_lora_weights="novel"), **_both_says("is not known")),
    "kasa": Case(options={"kasa_config": {}}, **_both_says("kasa_config")),
    "configs_at_rest": Case(
        edit=edit_config(
            loftq_config={"loftq_bits": 4}, eva_config={"rho": 2.0}, corda_config=None,
            megatron_core="megatron.core", runtime_config={"ephemeral_gpu_offload": True},
        )
    ),
    "newer_flag": Case(edit=edit_config(some_flag_of_tomorrow=True)),
    "arrow": Case(edit=edit_config(arrow_config={"top_k": 2}), vllm="arrow_config"),
    "alora": Case(options={"alora_invocation_tokens": [TOKEN]}, vllm="alora_invocation_tokens"),
    "qalora": Case(edit=edit_config(use_qalora=True), vllm="use_qalora"),
    "bdlora": Case(edit=edit_config(use_bdlora={"nblocks": 2}), vllm="use_bdlora", hf="use_bdlora"),
    "no_task": Case(options={"task_type": None}),
    "classifier": Case(
        edit=both(
            edit_config(task_type="SEQ_CLS", modules_to_save=["score"]),
            edit_tensors(
                lambda t: {**t, _P + "score.weight": next(iter(t.values()))[:2].clone()}
            ),
        ),
        **_both_says("has no tensor"),
    ),
    "adalora": Case(edit=edit_config(peft_type="ADALORA"), **_both_says("ADALORA")),
    "vera": Case(edit=edit_config(peft_type="VERA"), **_both_says("VERA")),
    "xlora": Case(edit=edit_config(peft_type="XLORA"), **_both_says("XLORA")),
    "dora_rslora": Case(options={"use_dora": True, "use_rslora": True, "targets": LINEAR}),
    "dora_pattern": Case(options={"use_dora": True, "rank_pattern": {"q_proj": 4}}),
    "dora_old_name": Case(
        options={"use_dora": True}, edit=rename("magnitude_vector.weight", "magnitude_vector")
    ),
    "dora_named": Case(
        options={"use_dora": True}, edit=rename(".weight", ".default.weight")
    ),
    "dora_head": Case(options={"use_dora": True, "targets": ("q_proj", "lm_head")}),
    "gpt2_dora": Case(
        "gpt2", {"use_dora": True, "targets": ("c_attn",)}, vllm="cannot be merged exactly"
    ),
    "gpt2_positions": Case("gpt2", {"targets": ("c_attn", "wpe")}),
    "gpt2_all_linear": Case("gpt2", {"target_modules": "all-linear"}),
    "gpt2_biases": Case("gpt2", {"targets": ("c_attn",), "bias": "lora_only"}),
    "dora_embed": Case(
        options={"use_dora": True, "targets": ("q_proj", "embed_tokens")}, vllm="cannot be merged"
    ),
    "saved_norms": Case(options={"modules_to_save": ["input_layernorm"]}),
    "saved_mlp": Case(options={"modules_to_save": ["mlp"]}),
    "saved_same_layer": Case(
        options={"targets": ("q_proj", "down_proj"), "modules_to_save": ["up_proj"]}
    ),
    "saved_beside_targets": Case(options={"targets": LINEAR, "modules_to_save": ["mlp"]}),
    "saved_one_layer": Case(options={"modules_to_save": ["layers.0.mlp"]}),
    "saved_layer_lost": Case(
        options={"modules_to_save": ["input_layernorm"]},
        edit=drop("layers.1.input_layernorm"),
        **_both_says("lacks the saved module"),
    ),
    "saved_nothing": Case(options={"modules_to_save": ["score"]}),
    "saved_unchanged": Case(
        options={"modules_to_save": ["embed_tokens", "lm_head"]}, still=("modules_to_save",)
    ),
    "tied_saved_unchanged": Case(
        "llama-tied", {"modules_to_save": ["embed_tokens"]}, still=("modules_to_save",)
    ),
    "layers_saved": Case(save={"save_embedding_layers": True}),
    "tied_layers_saved": Case("llama-tied", save={"save_embedding_layers": True}),
    "tied_together": Case(
        "llama-tied",
        {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
        vllm="shares between",
    ),
    "tied_tokens_together": Case(
        "llama-tied",
        {"trainable_token_indices": {"embed_tokens": [3, 400]}, "ensure_weight_tying": True},
    ),
    "tied_lora_together": Case(
        "llama-tied",
        {"targets": ("q_proj", "embed_tokens"), "ensure_weight_tying": True},
        vllm="shares between",
    ),
    "tokens_and_norm": Case(
        options={"trainable_token_indices": {"embed_tokens": [511]}, "modules_to_save": ["norm"]}
    ),
    "tokens_unsorted": Case(options={"trainable_token_indices": [77, 5, 9]}),
    "tokens_beyond": Case(
        options={"trainable_token_indices": [5, 9]},
        edit=edit_config(trainable_token_indices=[5, 9_999]),
        **_both_says("trainable_token_indices"),
    ),
    "tokens_more": Case(
        options={"trainable_token_indices": [5, 9]},
        edit=edit_config(trainable_token_indices=[5, 9, 11]),
        **_both_says("trainable_token_indices"),
    ),
    # files
    "dtype_bfloat16": Case(rounded="bfloat16", edit=_cast("bfloat16")),
    "dtype_float16": Case(rounded="float16", edit=_cast("float16")),
    "dtype_float64": Case(edit=_cast("float64")),
    "dtype_float8": Case(edit=_cast("float8_e4m3fn"), **_both_says("of type F8_E4M3")),
    "shards": Case(edit=_shards, **_both_says("adapter_model-00001-of-00002")),
    "cut_tail": Case(edit=_cut(-40), **_both_says("adapter_model.safetensors")),
    "cut_header": Case(edit=_cut(60), **_both_says("adapter_model.safetensors")),
    "cut_whole": Case(edit=_cut(0), **_both_says("adapter_model.safetensors")),
    "rank_zero": Case(edit=edit_tensors(_no_rank), **_both_says("is empty")),
    "rank_mixed": Case(
        edit=edit_tensors(
            lambda t: {k: v[:4] if k.endswith("0.self_attn.q_proj.lora_A.weight") else v
                       for k, v in t.items()}
        ),
        **_both_says("rank"),
    ),
    "turned": Case(
        edit=edit_tensors(lambda t: {k: v.T if "lora_B" in k else v for k, v in t.items()}),
        **_both_says("does not fit"),
    ),
    "one_extra": Case(
        edit=edit_tensors(lambda t: {**t, "extra.counter": next(iter(t.values()))[:1].clone()}),
        **_both_says("has no tensor"),
    ),
}  # fmt: skip

"""Adapters as people have them: small ones of each kind, and what transformers + PEFT say of them.

Run as a process of its own (``python -m tests.agreement.wild_cases FOLDER CASE ...``): it writes
each case's base and adapter, and the log-probabilities of :func:`batch` under the very model that
was saved (float32, eager attention), before anything of it was renamed on disk.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from evalcore.types import ScoreBatch, Subject
from tests.agreement.engine_models import VOCAB, random_batch, save_tokenizer, subject

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
LINEAR = (*ATTENTION, "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Case:
    """One adapter on one base.

    Attributes:
        base: A key of ``BASES``.
        options: Of PEFT's LoraConfig; ``targets`` for short.
        edit: What is done to the folder after saving.
        experts: Matrices of each expert that have their own LoRA, as older PEFT saved them; then
            the reference is the base with the products added to its file's tensors.
        rows: Rows of the vocabulary the base is given before tuning, if more.
        vllm: ``scores``, or what the refusal of engine vllm says.
        hf: The same of engine hf.
    """

    base: str = "llama"
    options: dict[str, Any] = field(default_factory=dict)
    edit: Callable[[Path], None] | None = None
    experts: tuple[str, ...] = ()
    rows: int = 0
    vllm: str = "scores"
    hf: str = "scores"


def edit_config(**changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        file = folder / "adapter_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return edit


def edit_tensors(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        file = folder / "adapter_model.safetensors"
        made = {
            name: tensor.clone().contiguous() for name, tensor in change(load_file(file)).items()
        }
        save_file(made, file, metadata={"format": "pt"})

    return edit


def rename(old: str, new: str) -> Callable[[Path], None]:
    return edit_tensors(lambda tensors: {k.replace(old, new): v for k, v in tensors.items()})


def drop(part: str) -> Callable[[Path], None]:
    return edit_tensors(lambda t: {k: v for k, v in t.items() if part not in k})


def _poison(value: float) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def change(tensors: dict[str, Any]) -> dict[str, Any]:
        next(iter(tensors.values())).view(-1)[3] = value
        return tensors

    return change


def _both(*edits: Callable[[Path], None]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        for one in edits:
            one(folder)

    return edit


_P = "base_model.model."
_ALL = {"targets": LINEAR}
_TIED = {"base": "llama-tied", "vllm": "shares between"}

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
        edit=_both(
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
    "nan": Case(edit=edit_tensors(_poison(float("nan"))), vllm="holds NaN", hf="holds NaN"),
    "inf": Case(edit=edit_tensors(_poison(float("inf"))), vllm="holds infinity", hf="holds inf"),
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
        vllm="target_parameters",
    ),
    "mixtral_experts": Case("mixtral", experts=("w1", "w2", "w3")),
    "mixtral_w2": Case("mixtral", experts=("w2",)),
    "mixtral_w1": Case("mixtral", experts=("w1",), hf="without also targeting w3"),
    "mixtral_some_experts": Case(
        "mixtral", experts=("w2",), edit=drop(".experts.2."), vllm="lacks", hf="lacks"
    ),
    "olmoe_experts": Case("olmoe", experts=("gate_proj", "up_proj", "down_proj")),
    "olmoe_attention": Case("olmoe", {"targets": ATTENTION}),
    "olmoe_router": Case(
        "olmoe",
        {"targets": ("q_proj",), "target_parameters": ["gate.weight"]},
        vllm="target_parameters",
    ),
}


def config_of(kind: str) -> Any:
    import transformers as t

    common: dict[str, Any] = {
        "vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 512,
        "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "tie_word_embeddings": False,
    }  # fmt: skip
    if kind == "gpt2":
        return t.GPT2Config(
            vocab_size=VOCAB, n_embd=64, n_layer=2, n_head=2, n_positions=512, bos_token_id=0,
            eos_token_id=1,
        )  # fmt: skip
    if kind == "qwen":
        return t.Qwen2Config(**common)
    if kind == "mixtral":
        return t.MixtralConfig(**common, num_local_experts=4, num_experts_per_tok=2)
    if kind == "olmoe":
        return t.OlmoeConfig(**common, num_experts=4, num_experts_per_tok=2)
    return t.LlamaConfig(**{**common, "tie_word_embeddings": kind.endswith("-tied")})


def save_base(folder: Path, kind: str) -> Path:
    import torch
    from transformers import AutoModelForCausalLM

    if (folder / "config.json").exists():
        return folder
    torch.manual_seed(11)
    model = AutoModelForCausalLM.from_config(config_of(kind)).float().eval()
    shake(model.named_parameters(), 0.1)
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def shake(parameters: Any, size: float) -> None:
    """Random numbers onto parameters: large on matrices, small on norms and biases."""
    import torch

    with torch.no_grad():
        for _, parameter in parameters:
            parameter.add_(torch.randn_like(parameter) * size)


def save_case(folder: Path, case: Case, base: Path) -> tuple[Path, Any]:
    """Saves the adapter of a case; (its folder, the model it was saved from)."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(5)
    options = dict(case.options)
    targets = list(options.pop("targets", ("q_proj", "v_proj")))
    config = LoraConfig(
        **{"r": 8, "lora_alpha": 16, "target_modules": targets, "task_type": "CAUSAL_LM", **options}
    )
    model = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.float32, attn_implementation="eager"
    )
    if case.rows:
        model.resize_token_embeddings(case.rows, mean_resizing=False)
        with torch.no_grad():
            for part in (model.get_input_embeddings(), model.get_output_embeddings()):
                part.weight[VOCAB:].normal_(0, 0.1)
    model = get_peft_model(model, config)
    shake(((n, p) for n, p in model.named_parameters() if p.requires_grad), 0.06)
    model.save_pretrained(folder)
    if case.edit is not None:
        case.edit(folder)
    return folder, model.eval()


def save_expert_case(folder: Path, case: Case, base: Path) -> tuple[Path, Any]:
    """An adapter of single experts, written by hand; the base with its products added."""
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM

    torch.manual_seed(5)
    tensors = load_file(base / "model.safetensors")
    own: dict[str, Any] = {}
    for name, weight in tensors.items():
        if name.split(".")[-2] in case.experts and ".experts." in name:
            module = f"{_P}{name.removesuffix('.weight')}"
            down, up = torch.randn(4, weight.shape[1]) * 0.3, torch.randn(weight.shape[0], 4) * 0.3
            own |= {f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up}
            tensors[name] = weight + 2.0 * (up @ down)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(own, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "bias": "none",
        "target_modules": list(case.experts), "base_model_name_or_path": str(base),
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))
    if case.edit is not None:
        case.edit(folder)
    merged = folder.parent / f"merged-{folder.name}"
    shutil.copytree(base, merged, dirs_exist_ok=True)
    save_file(tensors, merged / "model.safetensors", metadata={"format": "pt"})
    model = AutoModelForCausalLM.from_pretrained(
        merged, dtype=torch.float32, attn_implementation="eager"
    )
    return folder, model.eval()


def batch() -> ScoreBatch:
    return random_batch(3, 10, max_context=40)


def scores(model: Any, rows: ScoreBatch) -> np.ndarray:
    """float64 [T_continuation] of a batch: one plain forward for each row."""
    import torch

    values = []
    for i, owner in enumerate(rows.continuation_context):
        context, tokens = rows.context(int(owner)), rows.continuation(i)
        ids = torch.from_numpy(np.concatenate([context, tokens]).astype(np.int64))
        with torch.inference_mode():
            logits = model(input_ids=ids[None, :-1]).logits[0, len(context) - 1 :].double()
        chosen = logits.log_softmax(-1)[torch.arange(len(tokens)), ids[len(context) :]]
        values.append(chosen.numpy())
    return np.concatenate(values)


def paths(folder: Path, name: str) -> tuple[Path, Path]:
    return folder / "bases" / CASES[name].base, folder / "adapters" / name


def who(folder: Path, name: str) -> Subject:
    return subject(*paths(folder, name))


def main(folder: Path, names: list[str]) -> None:
    """Writes cases, and what PEFT says of each to ``expected.npz`` (NaN-free, float64)."""
    import torch
    from transformers import AutoModelForCausalLM

    expected: dict[str, np.ndarray] = {}
    for name in names:
        case = CASES[name]
        base, adapter = paths(folder, name)
        save_base(base, case.base)
        if f"base:{case.base}" not in expected:
            plain = AutoModelForCausalLM.from_pretrained(
                base, dtype=torch.float32, attn_implementation="eager"
            )
            expected[f"base:{case.base}"] = scores(plain.eval(), batch())
        shutil.rmtree(adapter, ignore_errors=True)
        save = save_expert_case if case.experts else save_case
        _, model = save(adapter, case, base)
        expected[name] = scores(model, batch())
    np.savez(folder / "expected.npz", **expected)  # type: ignore[arg-type]


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])

"""Writes wild cases, and what transformers + PEFT say of them.

Run as a process of its own (``python -m tests.agreement.wild_making FOLDER CASE ...``): it writes
each case's base and adapter, and the log-probabilities of :func:`batch` under the very model that
was saved (float32, eager attention), before anything of it was renamed on disk. A case is named as
in ``CASES``, or ``NAME@BASE`` on another base than its own.
"""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from evalcore.types import ScoreBatch, Subject
from tests.agreement.engine_models import VOCAB, random_batch, save_tokenizer, subject
from tests.agreement.wild_cases import CASES
from tests.agreement.wild_edits import Case


def config_of(kind: str) -> Any:
    import transformers as t

    common: dict[str, Any] = {
        "vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 512,
        "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "tie_word_embeddings": False,
    }  # fmt: skip
    family, _, special = kind.partition("-")
    common["tie_word_embeddings"] = special == "tied"
    if family == "gpt2":
        return t.GPT2Config(
            vocab_size=VOCAB, n_embd=64, n_layer=2, n_head=2, n_positions=512, bos_token_id=0,
            eos_token_id=1, tie_word_embeddings=special != "untied",
        )  # fmt: skip
    experts = {"num_experts": 4, "num_experts_per_tok": 2}
    if family == "qwen2moe":
        own = {"moe_intermediate_size": 96, "shared_expert_intermediate_size": 96}
        return t.Qwen2MoeConfig(**common, **experts, **own)
    if family == "mixtral":
        return t.MixtralConfig(**common, num_local_experts=4, num_experts_per_tok=2)
    if family == "olmoe":
        return t.OlmoeConfig(**common, **experts)
    return {"qwen": t.Qwen2Config, "llama": t.LlamaConfig}[family](**common)


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
    tuned = [
        (n, p)
        for n, p in model.named_parameters()
        if p.requires_grad and not any(word in n for word in case.still)
    ]
    shake(tuned, 0.06)
    if case.rounded:
        for _, parameter in tuned:
            parameter.data = parameter.data.to(getattr(torch, case.rounded)).float()
    model.save_pretrained(folder, **case.save)
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
            module = f"base_model.model.{name.removesuffix('.weight')}"
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


def case_of(name: str) -> Case:
    """A case on its own base, or (``NAME@BASE``) on another."""
    plain, _, base = name.partition("@")
    return replace(CASES[plain], base=base) if base else CASES[plain]


def paths(folder: Path, name: str) -> tuple[Path, Path]:
    return folder / "bases" / case_of(name).base, folder / "adapters" / name


def who(folder: Path, name: str) -> Subject:
    return subject(*paths(folder, name))


def main(folder: Path, names: list[str]) -> None:
    """Writes cases, and what PEFT says of each to ``expected.npz`` (NaN-free, float64).

    What PEFT cannot make is in ``unmade.json``, with the first line of why.
    """
    import torch
    from transformers import AutoModelForCausalLM

    expected: dict[str, np.ndarray] = {}
    unmade: dict[str, str] = {}
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        case = case_of(name)
        base, adapter = paths(folder, name)
        save_base(base, case.base)
        if f"base:{case.base}" not in expected:
            plain = AutoModelForCausalLM.from_pretrained(
                base, dtype=torch.float32, attn_implementation="eager"
            )
            expected[f"base:{case.base}"] = scores(plain.eval(), batch())
        shutil.rmtree(adapter, ignore_errors=True)
        save = save_expert_case if case.experts else save_case
        try:
            _, model = save(adapter, case, base)
        except (ValueError, RuntimeError, KeyError, TypeError) as error:
            unmade[name] = f"{type(error).__name__}: {error}".splitlines()[0]
            continue
        expected[name] = scores(model, batch())
    np.savez(folder / "expected.npz", **expected)  # type: ignore[arg-type]
    (folder / "unmade.json").write_text(json.dumps(unmade))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])

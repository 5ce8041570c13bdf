"""Small models of many architectures, and what transformers + PEFT say of them.

Run as a process of its own (``python -m tests.agreement.families FOLDER FAMILY``): it writes two
checkpoints, an adapter on every linear layer of each, and the log-probabilities of
:func:`tests.agreement.wild_making.batch` (float32, eager attention, one plain forward a row).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.agreement import engine_models
from tests.agreement.engine_models import VOCAB, save_tokenizer
from tests.agreement.wild_making import batch, scores

_TOKENS = {"vocab_size": VOCAB, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
_DENSE = {
    **_TOKENS, "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}  # fmt: skip
_TIED = {**_DENSE, "tie_word_embeddings": True}
_OLD = {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 512, **_TOKENS}
_MOE = {**_DENSE, "intermediate_size": 96, "moe_intermediate_size": 96, "num_experts_per_tok": 2}
_FALCON = {
    **_TOKENS, "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 128, "bias": False,
    "alibi": False,
}  # fmt: skip
_MLA = {
    **_MOE, "num_key_value_heads": 4, "kv_lora_rank": 512, "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 32, "v_head_dim": 32, "n_routed_experts": 4, "n_shared_experts": 1,
    "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
}  # fmt: skip
_GROUPED = {
    "head_dim": 32, "n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1,
    "n_group": 1, "topk_group": 1,
}  # fmt: skip
_MAMBA = {**_TOKENS, "hidden_size": 64, "state_size": 16, "num_hidden_layers": 2}
_WINDOW = {"sliding_window": 24}


def _of(name: str, **own: Any) -> Callable[[], Any]:
    """The configuration class of that name, with these values, built when it is needed."""

    def build() -> Any:
        import transformers

        return getattr(transformers, f"{name}Config")(**own)

    return build


def _known(kind: str) -> Callable[[], Any]:
    return lambda: engine_models._config(kind, 2)


FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": _known("llama-untied"),
    "llama-tied": _known("llama-tied"),
    "olmo": _known("olmo-tied"),
    "olmo2": _known("olmo2-untied"),
    "olmo3": _of("Olmo3", **_DENSE, **_WINDOW),
    "gpt-neox": _known("neox-untied"),
    "qwen2": _known("qwen-tied"),
    "qwen3": _of("Qwen3", **_DENSE, head_dim=32),
    "mistral-window": _of("Mistral", **_DENSE, **_WINDOW),
    "gemma2": _of("Gemma2", **_TIED, **_WINDOW, head_dim=32, attn_logit_softcapping=5.0,
                  final_logit_softcapping=10.0),
    "gemma3": _of("Gemma3Text", **_TIED, **_WINDOW, head_dim=32),
    "gpt2": _of("GPT2", **_OLD),
    "gpt2-bare": _of("GPT2", **_OLD),
    "gptj": _of("GPTJ", **_OLD, rotary_dim=16),
    "opt": _of("OPT", **_TOKENS, hidden_size=128, ffn_dim=192, num_hidden_layers=2,
               num_attention_heads=4, word_embed_proj_dim=128),
    "falcon": _of("Falcon", **_FALCON, multi_query=True, parallel_attn=True),
    "falcon-groups": _of("Falcon", **_FALCON, new_decoder_architecture=True, num_kv_heads=2),
    "bloom": _of("Bloom", **_TOKENS, hidden_size=64, n_layer=2, n_head=2),
    "phi": _of("Phi", **_DENSE),
    "phi3": _of("Phi3", **_DENSE),
    "granite": _of("Granite", **_DENSE, logits_scaling=4.0, attention_multiplier=0.1),
    "cohere": _of("Cohere", **_TIED),
    "stablelm": _of("StableLm", **_DENSE),
    "starcoder2": _of("Starcoder2", **_DENSE),
    "smollm3": _of("SmolLM3", **_DENSE),
    "glm4": _of("Glm4", **_DENSE, head_dim=32),
    "olmoe": _known("olmoe-untied"),
    "mixtral": _known("mixtral-untied"),
    "qwen2-moe": _of("Qwen2Moe", **_MOE, num_experts=4, shared_expert_intermediate_size=96),
    "qwen3-moe": _known("qwen3moe-untied"),
    "granite-moe": _of("GraniteMoe", **_DENSE, num_local_experts=4, num_experts_per_tok=2),
    "deepseek-v2": _of("DeepseekV2", **_MLA, q_lora_rank=None),
    "deepseek-v3": _of("DeepseekV3", **_MLA, q_lora_rank=32, norm_topk_prob=True,
                       topk_method="noaux_tc", scoring_func="sigmoid"),
    "gemma": _of("Gemma", **_TIED, head_dim=32),
    "cohere2": _of("Cohere2", **_TIED, head_dim=32),
    "ministral": _of("Ministral", **_DENSE, **_WINDOW, head_dim=32),
    "nemotron": _of("Nemotron", **_DENSE),
    "exaone4": _of("Exaone4", **_DENSE, **_WINDOW, sliding_window_pattern=2),
    "hunyuan": _of("HunYuanDenseV1", **_DENSE, head_dim=32),
    "hunyuan-moe": _of("HunYuanMoEV1", **_DENSE, head_dim=32, num_experts=4, moe_topk=2),
    "ernie": _of("Ernie4_5", **_TIED, head_dim=32),
    "ernie-moe": _of("Ernie4_5_Moe", **_MOE, moe_num_experts=4, moe_k=2, moe_layer_start_index=0,
                     moe_num_shared_experts=1),
    "apertus": _of("Apertus", **_DENSE),
    "seed-oss": _of("SeedOss", **_DENSE, head_dim=32),
    "gpt-oss": _of("GptOss", **_DENSE, **_WINDOW, head_dim=32, num_local_experts=4,
                   num_experts_per_tok=2),
    "arcee": _of("Arcee", **_DENSE),
    "helium": _of("Helium", **_DENSE, head_dim=32),
    "glm": _of("Glm", **_DENSE, head_dim=32),
    "glm4-moe": _of("Glm4Moe", **_MOE, **_GROUPED),
    "dots1": _of("Dots1", **_MOE, **_GROUPED),
    "persimmon": _of("Persimmon", **{k: v for k, v in _DENSE.items() if "key_value" not in k}),
    "olmoe-clip": _of("Olmoe", **_MOE, num_experts=4, clip_qkv=0.5),
    "gemma-bias": _of("Gemma", **_TIED, head_dim=32, attention_bias=True),
    "stablelm-parallel": _of("StableLm", **_DENSE, use_parallel_residual=True),
    "lfm2": _of("Lfm2", **_TIED, layer_types=["conv", "full_attention"], conv_dim=128,
                conv_dim_out=128, block_dim=128),
    "mamba": _of("Mamba", **_MAMBA),
    "mamba2": _of("Mamba2", **_MAMBA, num_heads=4, head_dim=32, n_groups=1),
    "falcon-mamba": _of("FalconMamba", **_MAMBA),
    "jamba": _of("Jamba", **_DENSE, num_experts=2, attn_layer_period=2, attn_layer_offset=1,
                 use_mamba_kernels=False),
    "falcon-h1": _of("FalconH1", **_DENSE, mamba_d_ssm=64, mamba_n_heads=2, mamba_d_state=16),
}  # fmt: skip
"""Family -> what builds its configuration."""


def save_family(base: Path, family: str, seed: int) -> Path:
    """Saves a random float32 checkpoint of an architecture."""
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(FAMILIES[family]()).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.08)
    model.save_pretrained(base)
    save_tokenizer(base)
    if family == "gpt2-bare":  # as OpenAI's own file on the Hub names its tensors
        file = base / "model.safetensors"
        bare = {k.removeprefix("transformer."): v for k, v in load_file(file).items()}
        save_file(bare, file, metadata={"format": "pt"})
    return base


def linear_layers(model: Any) -> list[str]:
    """Names of all linear layers but the head; experts that are one parameter are none."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    # Beside experts PEFT takes names of such layers for those of the experts' parameters.
    experts = any("expert" in name for name, _ in model.named_parameters())
    other = ("mlp", "feed_forward", "block_sparse_moe") if experts else ()
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
        and module is not model.get_output_embeddings()
        # PEFT refuses these in state-space layers, whose kernels read the weights themselves.
        and not name.endswith(("mamba.out_proj", "mixer.out_proj"))
        and not any(word in name for word in other)
    ]


def main(folder: Path, family: str) -> None:
    """Writes the models of a family and ``expected.npz`` (float64 [T_continuation] each)."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    expected: dict[str, np.ndarray] = {}
    for seed in (1, 2):
        base = save_family(folder / f"step-{seed}", family, seed)
        model = AutoModelForCausalLM.from_pretrained(
            base, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        expected[f"base-{seed}"] = scores(model, batch())
        config = LoraConfig(
            r=8, lora_alpha=16, target_modules=linear_layers(model), task_type="CAUSAL_LM"
        )
        tuned = get_peft_model(model, config)
        with torch.no_grad():
            for parameter in tuned.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.05)
        tuned.save_pretrained(folder / f"tuned-{seed}")
        expected[f"tuned-{seed}"] = scores(tuned.eval(), batch())
    np.savez(folder / "expected.npz", **expected)  # type: ignore[arg-type]


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])

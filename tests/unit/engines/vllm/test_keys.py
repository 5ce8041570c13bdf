"""Keys of config.json that only one of transformers and vLLM goes by, told without an engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from safetensors.numpy import save_file

from evalcore.engines.vllm.bases import refused, unknown, unsupported
from evalcore.engines.vllm.contract import installed
from evalcore.engines.vllm.keys import transformers_source, unread

needs_vllm = pytest.mark.skipif(installed() is None, reason="vllm is not installed")


@needs_vllm
@pytest.mark.parametrize(
    ("kind", "architecture", "changes", "key"),
    [
        # vLLM 0.32 was 0.4 to 2.3 nats off, or did not start.
        ("olmoe", "OlmoeForCausalLM", {"clip_qkv": 0.5}, "clip_qkv"),
        ("gpt2", "GPT2LMHeadModel", {"scale_attn_weights": False}, "scale_attn_weights"),
        ("mixtral", "MixtralForCausalLM", {"hidden_act": "gelu"}, "hidden_act"),
        ("gemma", "GemmaForCausalLM", {"attention_bias": True}, "attention_bias"),
        ("olmoe", "OlmoeForCausalLM", {"norm_topk_prob": True}, "norm_topk_prob"),
        ("stablelm", "StableLmForCausalLM", {"use_parallel_residual": True}, "parallel_residual"),
        ("stablelm", "StableLmForCausalLM", {"qk_layernorm": True}, "qk_layernorm"),
        ("qwen2_moe", "Qwen2MoeForCausalLM", {"qkv_bias": False}, "qkv_bias"),
        ("granitemoe", "GraniteMoeForCausalLM", {"attention_bias": True}, "attention_bias"),
        ("gemma3_text", "Gemma3ForCausalLM", {"use_bidirectional_attention": True}, "bidirect"),
        # Usual values, keys that both read, keys that change nothing.
        ("olmoe", "OlmoeForCausalLM", {"clip_qkv": None, "norm_topk_prob": False}, None),
        ("llama", "LlamaForCausalLM", {"attention_bias": True, "mlp_bias": True}, None),
        ("qwen3_moe", "Qwen3MoeForCausalLM", {"norm_topk_prob": True}, None),
        ("gemma3_text", "Gemma3ForCausalLM", {"attn_logit_softcapping": 5.0}, None),
        ("mixtral", "MixtralForCausalLM", {"router_jitter_noise": 0.1}, None),
        ("olmo", "OlmoForCausalLM", {"clip_qkv": 8.0}, None),  # by transformers' own code
        ("of tomorrow", "OlmoeForCausalLM", {"clip_qkv": 8.0}, None),
        ("olmoe", "TomorrowForCausalLM", {"clip_qkv": 8.0}, None),
    ],
)
def test_keys_that_only_transformers_reads(
    kind: str, architecture: str, changes: dict[str, Any], key: str | None
) -> None:
    found = unread({"model_type": kind, "architectures": [architecture], **changes})
    if key is None:
        assert found is None
    else:
        assert key in str(found)
        assert f"vLLM's {architecture} does not read it" in str(found)


@needs_vllm
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "llama", "partial_rotary_factor": 0.5}, "key partial_rotary_factor"),
        ({"model_type": "llama", "rotary_pct": 0.25}, "key rotary_pct: vLLM goes by it (0.25)"),
        ({"model_type": "llama", "partial_rotary_factor": 1.0}, None),
        # transformers' code of other kinds of positions goes by it, too.
        ({"model_type": "llama", "partial_rotary_factor": 0.5,
          "rope_parameters": {"rope_type": "linear", "factor": 2.0}}, None),
        ({"model_type": "phi", "partial_rotary_factor": 0.5}, None),
        ({"model_type": "gpt_neox", "rotary_pct": 0.25}, None),
    ],
)  # fmt: skip
def test_positions_of_a_part_that_only_vllm_believes(
    tiny_checkpoint: Path, changes: dict[str, Any], said: str | None
) -> None:
    names = {"llama": "LlamaForCausalLM", "phi": "PhiForCausalLM",
             "gpt_neox": "GPTNeoXForCausalLM"}  # fmt: skip
    config = {"head_dim": 64, "architectures": [names[changes["model_type"]]], **changes}
    found = unsupported(str(tiny_checkpoint), config, "cpu")
    assert found is None if said is None else said in str(found)


@pytest.mark.parametrize(
    ("rope", "said"),
    [
        ({"rope_type": "yarn", "factor": 8.0, "beta_fast": 32.0, "beta_slow": 1.0}, None),
        ({"rope_type": "yarn", "factor": 8.0, "beta_slow": 1.0}, "gpt_oss needs beta_fast"),
        ({"rope_type": "yarn", "factor": 8.0, "beta_fast": 32.0}, "gpt_oss needs beta_slow"),
        ({"rope_type": "default"}, "takes yarn, whatever its type (default)"),
        ({"rope_type": "yarn", "factor": 8.0, "beta_fast": 32.0, "beta_slow": 1.0,
          "attention_factor": 1.3}, "attention_factor: vLLM's gpt_oss does not read it"),
    ],
)  # fmt: skip
def test_gpt_oss_has_yarn_of_these_keys(
    tiny_checkpoint: Path, rope: dict[str, Any], said: str | None
) -> None:
    config = {"model_type": "gpt_oss", "head_dim": 64, "rope_scaling": rope}
    found = unsupported(str(tiny_checkpoint), config, "cpu")
    assert found is None if said is None else said in str(found)


def test_llama_4s_scaled_queries_in_long_texts(tiny_checkpoint: Path) -> None:
    config: dict[str, Any] = {"model_type": "llama4_text", "head_dim": 64}
    where = str(tiny_checkpoint)
    assert unsupported(where, config, "cpu", 8192) is None
    found = str(unsupported(where, config, "cpu", 8193))
    assert "key attn_temperature_tuning: vLLM's Llama 4 does not go by it" in found
    assert "--max-length 8192" in found
    parts = {"model_type": "llama4", "text_config": config}
    assert unsupported(where, parts, "cpu", 8193) == found, "of several parts, the text's"
    assert unsupported(where, config, "cpu", 40_000) is None, "there vLLM scales by itself"
    off = {**config, "attn_temperature_tuning": False}
    assert unsupported(where, off, "cpu", 8193) is None
    assert unsupported(where, off, "cpu", 40_000) is not None


def test_llama_4s_scaled_queries_as_another_file_says(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    for file in tiny_checkpoint.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "generation_config.json").unlink(missing_ok=True)
    (tmp_path / "generation_config.json").write_text(json.dumps({"attn_temperature_tuning": True}))
    config = {"model_type": "llama4_text", "head_dim": 64}
    assert unsupported(str(tmp_path), config, "cpu", 8193) is None


def test_the_text_part_is_what_counts(tiny_checkpoint: Path) -> None:
    parts = {"model_type": "kimi_vl", "text_config": {"model_type": "x", "kv_lora_rank": 8}}
    assert "latent attention" in str(unsupported(str(tiny_checkpoint), parts, "cpu"))
    parts["text_config"] = {"model_type": "x", "hidden_size": 48, "num_attention_heads": 2}
    assert "heads of 24" in str(unsupported(str(tiny_checkpoint), parts, "cpu"))


@needs_vllm
@pytest.mark.parametrize(
    ("kind", "name"),
    [("llama", "Llama"), ("qwen2", "Qwen2"), ("mistral", "Mistral"), ("phi3", "Phi3")],
)
def test_activations_that_vllm_lacks(kind: str, name: str) -> None:
    config = {"model_type": kind, "architectures": [f"{name}ForCausalLM"], "hidden_act": "gelu"}
    assert f"vLLM's {name}ForCausalLM has silu alone, not 'gelu'" in str(unread(config))
    assert unread({**config, "hidden_act": "silu"}) is None
    assert unread({"model_type": "gemma", "architectures": ["GemmaForCausalLM"],
                   "hidden_act": "gelu_pytorch_tanh"}) is None  # fmt: skip


def test_falcons_alibi_is_rounded_by_transformers_alone() -> None:
    """0.6 nats off in texts of 130 tokens."""
    assert "key alibi" in str(unread({"model_type": "falcon", "alibi": True}))
    assert unread({"model_type": "falcon", "alibi": False}) is None
    assert unread({"model_type": "bloom"}) is None


@needs_vllm
def test_experts_that_a_bias_chooses_on_cpus(tmp_path: Path) -> None:
    """Ernie 4.5's: 0.5 nats off on CPUs; GLM-4's, whose experts are in groups: right."""
    name = "model.layers.0.mlp.moe_statics.e_score_correction_bias"
    names = (name, "lm_head.weight", "model.embed_tokens.weight")
    save_file(dict.fromkeys(names, np.zeros(4, np.float32)), tmp_path / "model.safetensors")
    config = {"model_type": "x", "architectures": ["Ernie4_5_MoeForCausalLM"]}
    assert name in str(unsupported(str(tmp_path), config, "cpu"))
    assert unsupported(str(tmp_path), config, "cuda") is None
    config["architectures"] = ["Glm4MoeForCausalLM"]
    assert unsupported(str(tmp_path), config, "cpu") is None


@pytest.mark.parametrize(
    ("kind", "said"), [("apertus", "in bfloat16, whatever"), ("phimoe", "ends in an error")]
)
def test_families_that_vllm_does_not_score_on_cpus(
    tiny_checkpoint: Path, kind: str, said: str
) -> None:
    config = {"model_type": kind, "head_dim": 64}
    assert said in str(unsupported(str(tiny_checkpoint), config, "cpu"))
    assert unsupported(str(tiny_checkpoint), config, "cuda") is None


@needs_vllm
def test_what_vllm_has_no_code_for_costs_no_start(tiny_checkpoint: Path) -> None:
    config = {"model_type": "mpt", "architectures": ["MptForCausalLM"]}
    assert "has no code for MptForCausalLM" in str(refused(str(tiny_checkpoint), config, "cpu"))


@needs_vllm
def test_models_that_take_images_need_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it vLLM says "failed to be inspected. Please check the logs", after minutes."""
    config = {"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"],
              "vision_config": {}}  # fmt: skip
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "LlavaForConditionalGeneration, which takes images as well, needs" in str(
        unknown(config)
    )
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    assert unknown(config) is None


def test_a_text_part_is_its_familys() -> None:
    assert "class Gemma3" in transformers_source("gemma3_text")
    assert transformers_source("../x") == transformers_source("of tomorrow") == ""


def test_a_value_that_no_rule_can_read_is_a_refusal(tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.mkdir()
    config = {"model_type": "phi3", "architectures": ["Phi3ForCausalLM"],
              "rope_parameters": {"rope_type": "yarn"}}  # fmt: skip
    (path / "config.json").write_text(json.dumps(config))
    with patch("evalcore.engines.vllm.bases._unsupported", side_effect=KeyError("factor")):
        reason = refused(str(path), config, "cpu")
    assert reason is not None
    assert "another kind than vLLM's code of the family reads (KeyError: 'factor'" in reason

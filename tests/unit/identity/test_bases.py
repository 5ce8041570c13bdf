"""Checkpoints whose configuration contradicts itself, their weights or what an engine can run."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from bench.tensor_names import described
from evalcore.engines.vllm.bases import unsupported
from evalcore.engines.vllm.contract import installed
from evalcore.errors import InputError
from evalcore.identity import (
    check_adapter,
    check_base,
    expected,
    open_checkpoint,
    quantisation,
    shares_embeddings,
    weight_layout,
)
from evalcore.identity.expected import check_tensors
from evalcore.identity.rope import check_rope

FP8 = {"quantization_config": {"quant_method": "fp8"}}


def test_the_checkpoints_of_these_tests_are_sound(tiny_checkpoint: Path) -> None:
    config = json.loads((tiny_checkpoint / "config.json").read_text())
    check_base("c", config, weight_layout(tiny_checkpoint))
    assert quantisation(config, weight_layout(tiny_checkpoint)) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt_neox", "num_key_value_heads": 1}, "key num_key_value_heads: gpt_neox"),
        ({"num_hidden_layers": 3}, "have 2 layers"),
        ({"tie_word_embeddings": "false"}, "expected true or false, not 'false'"),
        ({"model_type": None}, "has no model_type"),
        ({"is_encoder_decoder": True}, "LlamaForCausalLM has an encoder and a decoder"),
        ({"architectures": ["BertForMaskedLM"]}, "BertForMaskedLM fills in masked words"),
        ({"num_key_value_heads": 1}, "says 1 key heads of 16"),
        ({"intermediate_size": 48}, "config.json says intermediate_size 48; it was saved turned"),
        ({"attention_bias": True}, "key attention_bias: true, but the weights have none"),
        ({"mlp_bias": True}, "key mlp_bias: true, but the weights have none"),
        ({"vocab_size": 399}, "says vocab_size 399, model.embed_tokens.weight has 400 rows"),
        ({"tie_word_embeddings": True}, "hold another lm_head.weight, and libraries differ"),
    ],
)
def test_contradictions_are_named(
    tiny_checkpoint: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "c"))
    config = {**json.loads((folder / "config.json").read_text()), **changes}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=message) as caught:
        open_checkpoint(str(folder))
    assert "\n" not in str(caught.value)


def compressed(form: str, bits: int, inputs: int | None, kind: str = "int") -> dict[str, Any]:
    group = {
        "weights": {"num_bits": bits, "type": kind},
        "input_activations": None if inputs is None else {"num_bits": inputs, "type": kind},
    }
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": {"g": group}}


@pytest.mark.parametrize(
    ("own", "word"),
    [
        ({"quant_method": "fp8", "weight_block_size": [32, 32]}, "fp8"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"quant_method": "novel"}, "novel"),
        ({"quant_method": "gptq", "bits": 8}, "gptq of other than 4 bits"),
        ({"quant_method": "gptq", "bits": 4}, None),
        ({"quant_method": "awq", "bits": 4}, None),
        (compressed("pack-quantized", 4, None), None),
        (compressed("int-quantized", 8, 8), None),
        (compressed("int-quantized", 8, None), "int-quantized of 8 bits"),
        (compressed("float-quantized", 8, 8, "float"), "float-quantized of 8 bits"),
        ({"quant_method": "compressed-tensors"}, "compressed-tensors"),
    ],
)
def test_codes_that_vllm_was_not_seen_to_score_on_cpus(
    tiny_checkpoint: Path, own: dict[str, Any], word: str | None
) -> None:
    config = {"model_type": "llama", "head_dim": 32, "quantization_config": own}
    found = unsupported(str(tiny_checkpoint), config, "cpu")
    assert found is None if word is None else word in str(found)
    assert word is None or "--engine hf" in str(found)
    assert unsupported(str(tiny_checkpoint), config, "cuda") is None


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ({"model_type": "mamba"}, "state-space"),
        ({"model_type": "llama", "hidden_size": 48, "num_attention_heads": 2}, "heads of 24"),
        ({"model_type": "llama", "head_dim": 8}, "heads of 8"),
        ({"model_type": "gpt2", "n_embd": 64, "n_head": 2}, None),
        ({"model_type": "llama", "head_dim": 128}, None),
        ({"model_type": "deepseek_v2", "head_dim": 7, "kv_lora_rank": 8}, "latent attention"),
    ],
)
def test_what_vllm_cannot_run_on_cpus(
    tiny_checkpoint: Path, config: dict[str, Any], word: str | None
) -> None:
    found = unsupported(str(tiny_checkpoint), config, "cpu")
    assert found is None if word is None else word in str(found)
    assert unsupported(str(tiny_checkpoint), config, "cuda") is None


@pytest.mark.parametrize(
    ("config", "key"),
    [
        ({"model_type": "llama", "sliding_window": 16, "max_position_embeddings": 512},
         "sliding_window"),
        ({"model_type": "gpt_neox", "sliding_window": 16}, "sliding_window"),
        ({"model_type": "llama", "sliding_window": 512, "max_position_embeddings": 512}, None),
        ({"model_type": "llama", "sliding_window": None}, None),
        ({"model_type": "mistral", "sliding_window": 16}, None),
        ({"model_type": "of tomorrow", "sliding_window": 16}, None),
        ({"model_type": "llama", "logit_scale": 0.5}, "logit_scale"),
        ({"model_type": "llama", "logit_scale": 1.0}, None),
        ({"model_type": "cohere", "logit_scale": 0.5}, None),
        ({"model_type": "granite", "logit_scale": 0.5, "architectures": ["GraniteForCausalLM"]},
         "logit_scale"),
        ({"model_type": "smollm3", "logit_scale": 0.5, "architectures": ["SmolLM3ForCausalLM"]},
         "logit_scale"),
        ({"model_type": "smollm3", "final_logit_softcapping": 30.0,
          "architectures": ["SmolLM3ForCausalLM"]}, "final_logit_softcapping"),
        ({"model_type": "gemma2", "final_logit_softcapping": 30.0,
          "architectures": ["Gemma2ForCausalLM"]}, None),
        ({"model_type": "qwen2", "dual_chunk_attention_config": {"chunk_size": 262144},
          "architectures": ["Qwen2ForCausalLM"]}, "dual_chunk_attention_config"),
        ({"model_type": "qwen2", "logit_scale": 0.5, "architectures": ["Qwen2ForCausalLM"]}, None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_keys_that_only_vllm_believes(
    tiny_checkpoint: Path, config: dict[str, Any], key: str | None, device: Any
) -> None:
    found = unsupported(str(tiny_checkpoint), config, device)
    assert found is None if key is None else f"key {key}: vLLM goes by it" in str(found)


def _edited(folder: Path, edit: Callable[[dict[str, Any]], None]) -> Path:
    """Changes the tensors of a checkpoint in one file."""
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("before", ["module.", "_orig_mod.", "base_model.model."])
def test_models_saved_from_inside_a_wrapper_are_named(
    tiny_checkpoint: Path, tmp_path: Path, before: str
) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "c"))
    tensors = load_file(folder / "model.safetensors")
    save_file({before + name: own for name, own in tensors.items()}, folder / "model.safetensors")
    with pytest.raises(InputError, match=f"tensors begin with '{before}', of what was"):
        open_checkpoint(str(folder))


def test_weights_without_tensors_and_models_without_a_head(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "c"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["LlamaModel"]}))
    assert open_checkpoint(str(folder)).fingerprint, "with a head it does"
    _edited(folder, lambda t: t.pop("lm_head.weight"))
    with pytest.raises(InputError, match=r"no output head \(LlamaModel\)"):
        open_checkpoint(str(folder))
    norm = "model.norm.weight"
    _edited(folder, lambda t: t.update({norm: t[norm][:0]}))
    with pytest.raises(InputError, match=f"{norm} is empty; it was saved without gathering"):
        open_checkpoint(str(folder))
    _edited(folder, lambda t: t.clear())
    with pytest.raises(InputError, match="hold no tensors"):
        open_checkpoint(str(folder))


def test_a_head_stored_beside_shared_embeddings(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "c"))
    config = json.loads((folder / "config.json").read_text())
    embeddings = "model.embed_tokens.weight"

    _edited(folder, lambda t: t.update({"lm_head.weight": t[embeddings].copy()}))
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    assert open_checkpoint(str(folder)).fingerprint, "the same numbers twice are one tensor"

    _edited(folder, lambda t: t.pop("lm_head.weight"))
    assert open_checkpoint(str(folder)).fingerprint
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="have no output head"):
        open_checkpoint(str(folder))


def test_biases_that_the_configuration_leaves_no_room_for(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "c"))
    bias = "model.layers.0.self_attn.q_proj.bias"
    _edited(folder, lambda t: t.update({bias: t["model.norm.weight"]}))
    with pytest.raises(InputError, match="key attention_bias: false, but the weights have model"):
        open_checkpoint(str(folder))
    config = json.loads((folder / "config.json").read_text())
    for changes in ({"attention_bias": True}, {"model_type": "qwen2", "attention_bias": False}):
        (folder / "config.json").write_text(json.dumps({**config, **changes}))
        assert open_checkpoint(str(folder)).fingerprint


def test_families_that_share_embeddings_without_saying_so(tiny_checkpoint: Path) -> None:
    layout = weight_layout(tiny_checkpoint)
    assert not shares_embeddings({"model_type": "llama"}, layout)
    assert shares_embeddings({"model_type": "gemma2"}, layout)
    assert not shares_embeddings({"model_type": "gemma2", "tie_word_embeddings": False}, layout)
    assert shares_embeddings({"text_config": {"model_type": "gemma3_text"}}, layout)


@pytest.mark.parametrize("same", [True, False])
def test_a_tensor_in_two_files(tiny_checkpoint: Path, tmp_path: Path, same: bool) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "c"))
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    norm = {"model.norm.weight": tensors["model.norm.weight"] * (1 if same else 2)}
    save_file(tensors, folder / "model-1.safetensors", metadata={"format": "pt"})
    save_file(norm, folder / "model-2.safetensors", metadata={"format": "pt"})
    places = dict.fromkeys(tensors, "model-1.safetensors")
    places |= {"model.norm.weight": "model-2.safetensors"}
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    if same:
        assert open_checkpoint(str(folder)).fingerprint
    else:
        with pytest.raises(InputError, match="hold different tensors"):
            open_checkpoint(str(folder))


def test_other_weights_in_the_folder_are_named(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "c"))
    shutil.copy(folder / "model.safetensors", folder / "consolidated.safetensors")
    found = unsupported(str(folder), {}, "cuda")
    assert "consolidated.safetensors beside model.safetensors" in str(found)


def test_nothing_is_merged_into_quantised_weights(
    tiny_checkpoint: Path, tiny_adapter: Path
) -> None:
    layout = weight_layout(tiny_checkpoint)
    coded = {
        name: ("F8_E4M3", shape) if "_proj" in name else (dtype, shape)
        for name, (dtype, shape) in layout.items()
    }
    packed = {
        name.replace("_proj.weight", "_proj.qweight"): ("I32", shape) if "_proj" in name else own
        for name, own in layout.items()
        for shape in [own[1]]
    }
    for config, own, word in (
        (FP8, layout, "quantised (fp8)"),
        ({}, coded, "quantised (F8_E4M3)"),
        ({}, packed, "is quantised"),
    ):
        with pytest.raises(InputError) as caught:
            check_adapter(tiny_adapter, own, config, "base", "merged")
        assert word in str(caught.value)
        check_adapter(tiny_adapter, own, config, "base", "unmerged")
        check_adapter(tiny_adapter, own, config, "base", "batched")


def test_whole_numbers_for_weights_are_named(tiny_checkpoint: Path) -> None:
    config = json.loads((tiny_checkpoint / "config.json").read_text())
    layout = dict(weight_layout(tiny_checkpoint))
    name = next(own for own in layout if "q_proj" in own)
    layout[name] = ("I8", layout[name][1])
    with pytest.raises(InputError, match="holds whole numbers"):
        check_base("c", config, layout)
    check_base("c", {**config, "quantization_config": {"quant_method": "x"}}, layout)


def test_a_head_that_vllm_never_ties_is_named(tiny_checkpoint: Path, tmp_path: Path) -> None:
    if installed() is None:
        pytest.skip("reads vLLM's source")
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "c"))
    config = json.loads((folder / "config.json").read_text())
    olmoe = {**config, "architectures": ["OlmoeForCausalLM"], "tie_word_embeddings": True}
    assert unsupported(str(folder), olmoe, "cuda") is None, "the files hold a head"
    for name in ("Gemma2ForCausalLM", "Lfm2ForCausalLM"):
        own = {**olmoe, "architectures": [name], "tie_word_embeddings": False}
        assert "always takes instead" in (unsupported(str(folder), own, "cuda") or ""), name
    tensors = load_file(folder / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors")
    found = unsupported(str(folder), olmoe, "cuda")
    assert "OlmoeForCausalLM has a head of its own" in (found or "")
    for name in ("LlamaForCausalLM", "MixtralForCausalLM", "GPT2LMHeadModel", "Gemma2ForCausalLM"):
        tied = {**olmoe, "architectures": [name]}
        assert unsupported(str(folder), tied, "cuda") is None, name


def drop(folder: Path, *endings: str) -> None:
    """Removes tensors from a checkpoint's file."""
    tensors = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in tensors.items() if not name.endswith(endings)}
    assert len(kept) < len(tensors)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def test_what_config_json_promises_has_to_be_there(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Told from headers in milliseconds, by what transformers writes for each family."""
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "c"))
    drop(folder, "layers.1.mlp.up_proj.weight", "model.norm.weight")
    with pytest.raises(InputError, match=r"c lacks 2 tensors .*: model\.layers\.1\.mlp\.up_proj"):
        open_checkpoint(str(folder))
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "d"))
    drop(folder, "lm_head.weight")
    edit(folder, tie_word_embeddings=None)  # Llama's default is a head of its own
    with pytest.raises(InputError, match=r"lacks 1 tensors .*: lm_head\.weight; it was not saved"):
        open_checkpoint(str(folder))
    edit(folder, tie_word_embeddings=True)
    assert open_checkpoint(str(folder)).name == "d"
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "e"))
    edit(folder, num_hidden_layers=1)
    with pytest.raises(InputError, match=r"has 9 tensors .* no place for: model\.layers\.1\."):
        open_checkpoint(str(folder))
    edit(folder, num_hidden_layers=2, model_type="qwen2", architectures=["Qwen2ForCausalLM"])
    with pytest.raises(InputError, match=r"lacks 6 tensors .*: model\.layers\.0\.self_attn\.k_pro"):
        open_checkpoint(str(folder))


def edit(folder: Path, **changes: Any) -> None:
    config = {**json.loads((folder / "config.json").read_text()), **changes}
    config = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))


def layout_of(family: str, layers: int = 2, experts: int = 3) -> dict[str, tuple[str, Any]]:
    """A header as transformers writes it."""
    known = json.loads((Path(expected.__file__).with_name("tensor_names.json")).read_text())[family]
    names = [
        name
        for pattern in known["names"] + known["head"]
        for name in expected._each(pattern, layers, experts)
    ]
    return dict.fromkeys(names, ("F32", (4, 4)))


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "olmoe", "qwen2_moe"])
def test_a_lost_expert_is_named(family: str) -> None:
    config = {"model_type": family, "num_hidden_layers": 2, "tie_word_embeddings": False}
    config |= {"num_local_experts" if family == "mixtral" else "num_experts": 3}
    layout = layout_of(family)
    check_tensors("c", config, layout)
    (lost,) = {name for name in layout if ".1." in name and "experts.2." in name
               and name.endswith(("w2.weight", "down_proj.weight"))}  # fmt: skip
    del layout[lost]
    with pytest.raises(InputError, match=rf"lacks 1 tensors .*: {lost.replace('.', '[.]')}"):
        check_tensors("c", config, layout)
    with pytest.raises(InputError, match=r"has .* no place for"):
        check_tensors("c", config, layout_of(family, experts=4))
    # Of layers that are not all alike, and of other names, nothing is said here.
    check_tensors("c", {**config, "mlp_only_layers": [0]}, layout)
    check_tensors("c", config, {f"transformer.{name}": value for name, value in layout.items()})
    check_tensors("c", {**config, "model_type": "of_somebody"}, layout)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "qwen2", "mixtral"])
def test_the_names_are_transformers_own(family: str) -> None:
    """All of them: ``python -m bench.tensor_names`` changes nothing."""
    known = json.loads((Path(expected.__file__).with_name("tensor_names.json")).read_text())
    assert described(family) == known[family]


ROPE = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64}  # fmt: skip


@pytest.mark.parametrize(
    ("rope", "said"),
    [
        (ROPE, None),
        ({"type": "linear", "factor": 2}, None),
        ({"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64}, None),
        ({"type": "su", "rope_type": "longrope", "short_factor": [1.0], "long_factor": [2]}, None),
        ({"rope_theta": 5000.0}, None),
        ("linear", "expected a mapping, not 'linear'"),
        ([2.0], "expected a mapping"),
        ({"factor": 2.0}, "has no rope_type"),
        ({"type": "lineal", "factor": 2.0}, "type 'lineal' is none of default, dynamic, linear"),
        ({"type": "ntk", "factor": 2.0}, "type 'ntk' is none of"),
        ({"rope_type": "linear"}, "type linear needs factor"),
        ({"rope_type": "linear", "factor": "2"}, "key rope_scaling.factor: expected a number"),
        ({"rope_type": "linear", "factor": float("nan")}, "expected a number above zero"),
        ({"rope_type": "dynamic", "factor": 0.5}, "expected at least 1, not 0.5"),
        ({"rope_type": "yarn", "type": "linear", "factor": 2}, "two types, linear and yarn"),
        ({**ROPE, "low_freq_factor": 4.0}, "low_freq_factor has to be below high_freq_factor"),
        ({**ROPE, "high_freq_factor": None}, "type llama3 needs high_freq_factor"),
        ({"type": "longrope", "short_factor": 2, "long_factor": [1]}, "expected a list"),
        ({"type": "longrope", "short_factor": [1], "long_factor": [1, 2]}, "not of one length"),
        ({"rope_type": "default", "rope_theta": 7.0}, "rope_theta is 7.0 there and 5000.0 beside"),
    ],
)
def test_rotary_positions_are_complete_and_said_once(rope: Any, said: str | None) -> None:
    config = {"rope_theta": 5000.0, "rope_scaling": rope}
    if said is None:
        check_rope("c", config)
        check_rope("c", {"rope_parameters": {"full_attention": rope}})
        return
    with pytest.raises(InputError, match=re.escape(said)) as caught:
        check_rope("c", config)
    assert "\n" not in str(caught.value)


def test_rotary_positions_that_are_said_twice() -> None:
    linear = {"type": "linear", "factor": 2.0}
    check_rope(
        "c", {"rope_scaling": linear, "rope_parameters": {"rope_type": "linear", "factor": 2.0}}
    )
    with pytest.raises(InputError, match="says other than rope_parameters does"):
        check_rope("c", {"rope_scaling": linear, "rope_parameters": {**linear, "factor": 4.0}})


@pytest.mark.parametrize(
    ("rope", "said"),
    [
        ({"rope_type": "dynamic", "factor": 2.0}, None),
        ({"rope_type": "dynamic", "factor": 2.0, "alpha": 3.0}, "alpha: vLLM goes by it"),
        ({"rope_type": "longrope", "original_max_position_embeddings": 4096}, None),
        (
            {"rope_type": "longrope", "original_max_position_embeddings": 512},
            "long_factor for every",
        ),
        ({"type": "su", "original_max_position_embeddings": 4096, "factor": 2.0}, None),
        ({"type": "su", "original_max_position_embeddings": 4096, "factor": 3.0}, "does not read"),
    ],
)
def test_rotary_positions_that_vllm_reads_otherwise(
    rope: dict[str, Any], said: str | None, tiny_checkpoint: Path
) -> None:
    config = {"model_type": "llama", "rope_scaling": rope, "max_position_embeddings": 8192,
              "head_dim": 64}  # fmt: skip
    for device in ("cpu", "cuda"):
        found = unsupported(str(tiny_checkpoint), config, device)  # type: ignore[arg-type]
        assert (found is None) == (said is None), found
        assert said is None or said in str(found)


@pytest.mark.parametrize(
    ("config", "longest", "said"),
    [
        ({"model_type": "cohere2"}, 512, True),
        ({"model_type": "cohere2_moe"}, 65, True),
        ({"model_type": "cohere2"}, 64, False),
        ({"model_type": "cohere2", "layer_types": ["full_attention"]}, 512, False),
        ({"model_type": "cohere2", "max_position_embeddings": 64}, 512, False),
        ({"model_type": "gemma2"}, 512, False),
    ],
)
def test_a_window_that_is_one_token_wider_in_vllm(
    tiny_checkpoint: Path, config: dict[str, Any], longest: int, said: bool
) -> None:
    """0.05 nats off in texts longer than the window, which canaries are not."""
    config = {"sliding_window": 64, "head_dim": 64, **config}
    found = unsupported(str(tiny_checkpoint), config, "cpu", longest)
    assert ("one token more" in str(found)) == said, found


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "qwen2", "max_window_layers": 1}, "some layers have it"),
        ({"model_type": "qwen3", "max_window_layers": 1}, "some layers have it"),
        ({"model_type": "qwen2_moe", "max_window_layers": 3}, "some layers have it"),
        ({"model_type": "qwen2_moe"}, "some layers have it"),
        ({"model_type": "qwen2", "max_window_layers": 0}, None),
        ({"model_type": "qwen2", "max_window_layers": 3}, None),
        ({"model_type": "qwen2"}, None),
        ({"model_type": "qwen2", "max_window_layers": 1, "use_sliding_window": False}, None),
        ({"model_type": "qwen2", "max_window_layers": 1, "sliding_window": 4096}, None),
        ({"model_type": "qwen2", "layer_types": ["full_attention", "sliding_attention"]},
         "some layers have it"),
        ({"model_type": "qwen2", "layer_types": ["sliding_attention"] * 3}, None),
        ({"model_type": "gpt_oss", "layer_types": ["sliding_attention", "full_attention"]}, None),
        ({"model_type": "gpt_oss", "layer_types": ["full_attention", "sliding_attention"]},
         "every other layer"),
    ],
)  # fmt: skip
def test_windows_of_some_layers(
    tiny_checkpoint: Path, config: dict[str, Any], said: str | None
) -> None:
    config = {"sliding_window": 64, "use_sliding_window": True, "num_hidden_layers": 3,
              "head_dim": 64, **config}  # fmt: skip
    found = unsupported(str(tiny_checkpoint), config, "cpu", 512)
    assert found is None if said is None else said in str(found)


def test_longer_texts_than_usual_count(tiny_checkpoint: Path) -> None:
    rope = {"rope_type": "longrope", "original_max_position_embeddings": 4096}
    config = {"model_type": "llama", "rope_scaling": rope, "max_position_embeddings": 8192,
              "head_dim": 64}  # fmt: skip
    assert unsupported(str(tiny_checkpoint), config, "cpu", 4095) is None
    # At 4,096 vLLM has room for 4,097: 2.2 nats off in texts of any length.
    assert "--max-length 4095" in str(unsupported(str(tiny_checkpoint), config, "cpu", 4096))


def test_queries_that_grow_with_the_text_are_named(tiny_checkpoint: Path) -> None:
    """Ministral 3: 0.67 nats off in texts beyond the first length."""
    rope = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64,
            "llama_4_scaling_beta": 0.1}  # fmt: skip
    config = {"model_type": "ministral3", "rope_parameters": rope, "head_dim": 64}
    assert unsupported(str(tiny_checkpoint), config, "cpu", 64) is None
    found = unsupported(str(tiny_checkpoint), config, "cpu", 65)
    assert "key rope_parameters.llama_4_scaling_beta: vLLM does not read it" in str(found)
    rope["llama_4_scaling_beta"] = 0
    assert unsupported(str(tiny_checkpoint), config, "cpu", 512) is None


def test_positions_beyond_vllms_table_are_named(tiny_checkpoint: Path) -> None:
    rope = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64}
    config = {"model_type": "llama", "rope_parameters": rope, "head_dim": 64,
              "max_position_embeddings": 512}  # fmt: skip
    assert unsupported(str(tiny_checkpoint), config, "cpu", 128) is None
    found = unsupported(str(tiny_checkpoint), config, "cpu")
    assert "table of positions ends at 128" in str(found)
    assert "\n" not in str(found)
    rope["factor"] = 8.0
    assert unsupported(str(tiny_checkpoint), config, "cpu") is None


@pytest.mark.parametrize("name", ["lm_head.weight", "model.layers.1.mlp.up_proj.weight"])
def test_a_matrix_that_was_saved_turned_is_named(tiny_checkpoint: Path, name: str) -> None:
    layout = dict(weight_layout(tiny_checkpoint))
    kind, shape = layout[name]
    layout[name] = (kind, shape[::-1])
    config = json.loads((tiny_checkpoint / "config.json").read_text())
    with pytest.raises(InputError, match=f"{name} has shape .*saved turned"):
        check_base("c", config, layout)


def test_key_heads_that_are_left_out_are_all_heads(
    make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    base = make_checkpoint(tmp_path / "c")
    config = json.loads((base / "config.json").read_text())
    layout = dict(weight_layout(base))
    name = "model.layers.0.self_attn.k_proj.weight"
    layout[name] = (layout[name][0], (16, layout[name][1][1]))
    del config["num_key_value_heads"]
    with pytest.raises(InputError, match="key heads of"):
        check_base("c", config, layout)


def test_a_key_that_only_vllm_needs_is_named(tiny_checkpoint: Path) -> None:
    lfm2 = {"model_type": "lfm2", "conv_dim": 64}
    found = unsupported(str(tiny_checkpoint), lfm2, "cuda")
    assert found == "config.json has no key block_dim, which vLLM's lfm2 goes by"
    assert unsupported(str(tiny_checkpoint), {**lfm2, "block_dim": 64}, "cuda") is None
    found = unsupported(str(tiny_checkpoint), {**lfm2, "block_dim": 64}, "cpu")
    assert "short convolutions" in (found or "")

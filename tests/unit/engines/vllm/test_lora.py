"""Merging against peft's own merge_and_unload, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evalcore.engines.vllm.adapters import (
    linear_modules,
    reason_to_merge,
    slot_rank,
    without_slots,
)
from evalcore.engines.vllm.contract import installed, takes_adapters
from evalcore.engines.vllm.lora import Merger, open_adapter
from evalcore.engines.vllm.merging import MergeCheck
from evalcore.errors import IncompatibleError, InputError
from evalcore.identity import weight_layout
from tests.agreement.engine_models import ALL_LINEAR, save_adapter, save_model, subject


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {
        kind: save_model(folder / kind, kind, 1, layers=2)
        for kind in ("llama-tied", "llama-untied")
    }


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True, "r": 16},
    "patterns": {
        "rank_pattern": {"layers.0.self_attn.q_proj": 4, "down_proj": 2},
        "alpha_pattern": {"layers.1.self_attn.q_proj": 64, "gate_proj": 3},
    },
    "dora": {"use_dora": True},
    "head": {"targets": ("q_proj", "lm_head")},
    "embeddings": {"targets": ("v_proj", "embed_tokens")},
    "saved": {"modules_to_save": ["lm_head"]},
    "one layer": {"layers_to_transform": [1]},
}


@pytest.mark.parametrize("case", CASES)
def test_merge_equals_peft(bases: dict[str, Path], tmp_path: Path, case: str) -> None:
    import torch
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    base = bases["llama-untied"]
    adapter = save_adapter(tmp_path / "adapter", base, 3, **CASES[case])
    merger = Merger(open_adapter(str(adapter), weight_layout(base), tied=False))
    merged = {
        name: merger(name, tensor, torch.float32)
        for name, tensor in load_file(base / "model.safetensors").items()
    }
    merger.finish()
    assert merger.changed_weights > 0
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    expected = model.merge_and_unload().state_dict()
    assert set(merged) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(merged[name], value, rtol=1e-6, atol=1e-6, msg=name)


BOTH = ("experts.gate_up_proj", "experts.down_proj")
FUSED: dict[str, dict[str, Any]] = {
    "both": {"target_parameters": BOTH},
    "one": {"target_parameters": BOTH[1:]},
    "router": {"target_parameters": ("gate.weight", *BOTH), "use_rslora": True},
}


@pytest.mark.parametrize("kind", ["mixtral", "olmoe", "qwen2-moe", "qwen3moe"])
@pytest.mark.parametrize("case", FUSED)
def test_experts_that_are_one_parameter_merge_as_peft_merges_them(
    tmp_path: Path, kind: str, case: str
) -> None:
    import torch
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    from tests.agreement.families import save_family

    base = tmp_path / "base"
    if kind == "qwen2-moe":
        save_family(base, kind, 1)
    else:
        save_model(base, f"{kind}-untied", 1, layers=2)
    options = {**FUSED[case], "target_parameters": list(FUSED[case]["target_parameters"])}
    adapter = save_adapter(tmp_path / "adapter", base, 3, targets=("q_proj",), r=3, **options)
    opened = open_adapter(str(adapter), weight_layout(base), tied=False, base=base)
    merger, check = Merger(opened), MergeCheck(opened)
    merged = {}
    for name, tensor in load_file(base / "model.safetensors").items():
        total = merger.sum(name, tensor)
        merged[name] = merger.cast(name, tensor, total, torch.float32)
        check(name, tensor, total, merged[name])
    merger.finish()
    check.finish("honest")
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    model.merge_and_unload().save_pretrained(tmp_path / "by-peft")
    expected = load_file(tmp_path / "by-peft" / "model.safetensors")
    assert set(merged) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(merged[name], value, rtol=1e-6, atol=1e-6, msg=name)
    changed = [
        n for n in merged if not torch.equal(merged[n], load_file(base / "model.safetensors")[n])
    ]
    assert any(".experts.3." in name for name in changed)
    reason = reason_to_merge(
        subject(base, adapter).adapter,  # type: ignore[arg-type]
        weight_layout(base),
        64,
        "cuda",
        base=str(base),
    )
    assert "experts" in str(reason)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {k: v for k, v in t.items() if "1.mlp.experts.base_layer" not in k}, "lacks"),
        (lambda t: {k: v for k, v in t.items() if "0.mlp.experts.lora_A" not in k}, "only one of"),
        (lambda t: {k: v[:6] if "experts.lora_A" in k else v for k, v in t.items()}, "fit neither"),
        (lambda t: {k: v[:4] if "experts.lora_A" in k else v[:, :4] if "experts.lora_B" in k else v
                    for k, v in t.items()}, "its rank should be 3"),
    ],
)  # fmt: skip
def test_fused_experts_that_do_not_fit_are_named(tmp_path: Path, change: Any, message: str) -> None:
    from safetensors.torch import load_file, save_file

    base = save_model(tmp_path / "base", "olmoe-untied", 1, layers=2)
    adapter = save_adapter(
        tmp_path / "adapter", base, 3, targets=("q_proj",), r=3, target_parameters=list(BOTH)
    )
    file = adapter / "adapter_model.safetensors"
    save_file({k: v.contiguous() for k, v in change(load_file(file)).items()}, file)
    with pytest.raises(InputError, match=message):
        open_adapter(str(adapter), weight_layout(base), tied=False, base=base)


@pytest.mark.parametrize("option", ["rank_pattern", "alpha_pattern"])
def test_patterns_on_parameters_are_left_to_peft(tmp_path: Path, option: str) -> None:
    base = save_model(tmp_path / "base", "olmoe-untied", 1, layers=2)
    adapter = save_adapter(
        tmp_path / "adapter", base, 3, targets=("q_proj",), r=3, target_parameters=list(BOTH)
    )
    with pytest.raises(IncompatibleError, match=f"cannot be merged with {option}"):
        open_adapter(edit(adapter, **{option: {"q_proj": 3}}), weight_layout(base), tied=False,
                     base=base)  # fmt: skip


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("plain", None),
        ("rslora", None),
        ("one layer", None),
        ("dora", "DoRA"),
        ("head", "lm_head"),
        ("embeddings", "embed_tokens"),
        ("saved", "replaces lm_head"),
        ("high rank", "rank 24"),
    ],
)
def test_what_is_merged_although_adapters_are_batched(
    bases: dict[str, Path], tmp_path: Path, case: str, reason: str | None
) -> None:
    base = bases["llama-untied"]
    options = {"r": 24} if case == "high rank" else CASES[case]
    adapter = subject(base, save_adapter(tmp_path / "adapter", base, 3, **options)).adapter
    assert adapter is not None
    found = reason_to_merge(adapter, weight_layout(base), 16)
    assert found is None if reason is None else reason in str(found)


def test_slots_and_targets(bases: dict[str, Path]) -> None:
    assert [slot_rank(r) for r in (1, 2, 8, 9, 300, 600)] == [1, 8, 8, 16, 320, 512]
    assert set(linear_modules(weight_layout(bases["llama-untied"]))) == set(ALL_LINEAR)


def test_zero_delta_changes_nothing(bases: dict[str, Path], tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    base = bases["llama-tied"]
    adapter = save_adapter(tmp_path / "zero", base, 3, zero=True)
    merger = Merger(open_adapter(str(adapter), weight_layout(base), tied=True))
    for name, tensor in load_file(base / "model.safetensors").items():
        assert torch.equal(merger(name, tensor, torch.float32), tensor)
    merger.finish()
    assert merger.changed_weights == 0


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_tied_embeddings_cannot_be_merged(
    bases: dict[str, Path], tmp_path: Path, target: str
) -> None:
    base = bases["llama-tied"]
    adapter = save_adapter(tmp_path / "adapter", base, 3, targets=("q_proj", target))
    with pytest.raises(IncompatibleError, match=r"shares"):
        open_adapter(str(adapter), weight_layout(base), tied=True)


def edit(adapter: Path, **changes: Any) -> str:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return str(adapter)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init_lora_weights": "pissa"}, "changed its base"),
        ({"lora_bias": True}, "biases"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
    ],
)
def test_what_cannot_be_merged_is_refused_by_name(
    bases: dict[str, Path], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    base = bases["llama-tied"]
    adapter = edit(save_adapter(tmp_path / "adapter", base, 3), **changes)
    with pytest.raises(InputError, match=message) as caught:
        open_adapter(adapter, weight_layout(base), tied=True)
    assert adapter in str(caught.value)


def test_adapter_of_another_base_is_refused(bases: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    base = bases["llama-tied"]
    adapter = save_adapter(tmp_path / "adapter", base, 3)
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    layout = weight_layout(base)
    for old, new in (("layers.1.", "layers.7."), ("q_proj", "w_proj")):
        save_file({k.replace(old, new): v for k, v in tensors.items()}, file)
        with pytest.raises(IncompatibleError, match="has no tensor"):
            open_adapter(str(adapter), layout, tied=True)
    save_file({k: v[:, :-1].contiguous() for k, v in tensors.items()}, file)
    with pytest.raises(IncompatibleError, match="does not fit"):
        open_adapter(str(adapter), layout, tied=True)
    save_file({k: v for k, v in tensors.items() if "0.self_attn.q_proj.lora_B" not in k}, file)
    with pytest.raises(IncompatibleError, match="only one of"):
        open_adapter(str(adapter), layout, tied=True)


def test_architectures_without_slots_are_known_from_vllms_source() -> None:
    if installed() is None:
        pytest.skip("reads vLLM's source")
    for name in ("BloomForCausalLM", "FalconForCausalLM", "StableLmForCausalLM"):
        assert takes_adapters(name) is False, name
        reason = without_slots({}, {"architectures": [name]}, "cuda")
        assert reason == f"vLLM's {name} has no slots for adapters"
    for name in (
        "LlamaForCausalLM",
        "MistralForCausalLM",
        "Qwen2ForCausalLM",
        "GPTNeoXForCausalLM",
    ):
        assert takes_adapters(name) is not False, name
        assert without_slots({}, {"architectures": [name]}, "cuda") is None
    assert takes_adapters("NobodysForCausalLM") is None
    stacked = {"model.layers.0.block_sparse_moe.input_linear.weight": ("F32", (4, 8, 8))}
    assert without_slots(stacked, {}, "cuda") is None
    assert "mixtures of experts" in (without_slots(stacked, {}, "cpu") or "")

"""Keys of adapter_config.json: every wrong kind is one line that names the key, before planning."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from evalcore.errors import InputError
from evalcore.identity import adapter_config, resolve_subjects
from evalcore.identity.adapter_schema import _KINDS

Make = Callable[..., Path]
BAD: dict[str, tuple[Any, str]] = {
    "r of text": ({"r": "8"}, "key r: expected a whole number"),
    "r true": ({"r": True}, "key r: expected a whole number"),
    "r zero": ({"r": 0}, "key r"),
    "r huge": ({"r": 10**9}, "key r"),
    "r null": ({"r": None}, "key r"),
    "alpha nan": ({"lora_alpha": float("nan")}, "key lora_alpha: expected a finite number"),
    "alpha inf": ({"lora_alpha": float("inf")}, "key lora_alpha"),
    "alpha 1e308": ({"lora_alpha": 1e308}, "key lora_alpha"),
    "rank_pattern list": ({"rank_pattern": ["q_proj"]}, "key rank_pattern: expected an object"),
    "rank_pattern null": ({"rank_pattern": None}, "key rank_pattern"),
    "rank_pattern text": ({"rank_pattern": {"q_proj": "4"}}, "key rank_pattern"),
    "alpha_pattern nan": ({"alpha_pattern": {"q_proj": float("nan")}}, "key alpha_pattern"),
    "bias object": ({"bias": {}}, "key bias: expected none, all or lora_only"),
    "target number": ({"target_modules": 7}, "key target_modules: expected a list of names"),
    "target mixed": ({"target_modules": ["q_proj", 7]}, "key target_modules"),
    "target broken": ({"target_modules": "((("}, "key target_modules: pattern '[(]+' is no reg"),
    "target endless": ({"target_modules": "(x+)+"}, "key target_modules: .*could take for ever"),
    "exclude endless": ({"exclude_modules": "(x+)+"}, "key exclude_modules"),
    "rank endless": ({"rank_pattern": {"(([a-z_.0-9]+)+)+$!": 4}}, "key rank_pattern: pattern"),
    "alpha endless": ({"alpha_pattern": {"(a|a)*!": 4}}, "key alpha_pattern"),
    "saved endless": ({"modules_to_save": ["(a+)+"]}, "key modules_to_save"),
    "saved text": ({"modules_to_save": "lm_head"}, "key modules_to_save: expected a list"),
    "layers text": ({"layers_to_transform": "all"}, "key layers_to_transform"),
    "layers pattern": (
        {"layers_to_transform": [0], "layers_pattern": "(l+)+"}, "key layers_pattern"
    ),
    "layers and pattern": (
        {"target_modules": ".*q_proj", "layers_to_transform": [0]}, "key layers_to_transform"
    ),
    "replication": ({"layer_replication": [[0, 2, 4]]}, "key layer_replication"),
    "replication beyond": ({"layer_replication": [[0, 99]]}, "beyond the base's 2 layers"),
    "dora text": ({"use_dora": "yes"}, "key use_dora: expected true or false"),
    "init list": ({"init_lora_weights": []}, "key init_lora_weights"),
    "tokens": ({"trainable_token_indices": {"embed": "all"}}, "key trainable_token_indices"),
    "revision": ({"revision": 3}, "key revision: expected text"),
    "base": ({"base_model_name_or_path": ["x"]}, "key base_model_name_or_path"),
    "megatron": ({"megatron_config": {"a": 1}}, "key megatron_config"),
    "deep": ({"eva_config": json.loads("[" * 200 + "]" * 200)}, "nested too deeply"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_wrong_key_is_one_line(
    tmp_path: Path, tiny_checkpoint: Path, make_adapter: Make, case: str
) -> None:
    changes, reason = BAD[case]
    make_adapter(tmp_path / "a/good", tiny_checkpoint)
    make_adapter(tmp_path / "a/bad", tiny_checkpoint, seed=2, **changes)
    resolved = resolve_subjects([tmp_path / "a"])
    assert [s.label for s in resolved.subjects] == ["step-00100", "step-00100 + good"]
    (problem,) = resolved.problems
    with pytest.raises(InputError, match=reason):
        raise InputError(problem.message)
    assert "a/bad" in problem.message
    assert "\n" not in problem.message


def test_what_a_path_leads_to(tmp_path: Path, tiny_checkpoint: Path, make_adapter: Make) -> None:
    for name in ("pipe", "device", "large", "folder", "weights-pipe"):
        make_adapter(tmp_path / "a" / name, tiny_checkpoint)
    for name in ("pipe", "device", "folder"):
        (tmp_path / "a" / name / "adapter_config.json").unlink()
    os.mkfifo(tmp_path / "a/pipe/adapter_config.json")
    (tmp_path / "a/device/adapter_config.json").symlink_to("/dev/zero")
    (tmp_path / "a/folder/adapter_config.json").mkdir()
    with open(tmp_path / "a/large/adapter_config.json", "wb") as file:
        file.truncate(1 << 40)
    (tmp_path / "a/weights-pipe/adapter_model.safetensors").unlink()
    os.mkfifo(tmp_path / "a/weights-pipe/adapter_model.safetensors")
    resolved = resolve_subjects([tmp_path / "a"], [str(tiny_checkpoint)])
    found = {Path(problem.path).name: problem.message for problem in resolved.problems}
    assert set(found) == {"pipe", "device", "large", "folder", "weights-pipe"}
    assert "is a pipe" in found["pipe"]
    assert "is a device" in found["device"]
    assert "too large" in found["large"]


def test_every_key_stands_in_pefts_own_class() -> None:
    """A key renamed by PEFT would be checked for ever and never be there."""
    from peft import LoraConfig

    theirs = {field.name for field in fields(LoraConfig)} | {"auto_mapping"}
    assert sorted(set(_KINDS) - theirs) == []


def test_good_configurations_pass(tmp_path: Path, make_adapter: Make) -> None:
    good: dict[str, Any] = {
        "target_modules": r".*\.(q_proj|v_proj)", "rank_pattern": {r"^model\.layers\.0\..*q": 8},
        "alpha_pattern": {"q_proj": 0.5}, "modules_to_save": None, "bias": "lora_only",
        "layer_replication": [[0, 2], [1, 2]], "trainable_token_indices": {"embed_tokens": [1]},
        "init_lora_weights": "gaussian", "something_newer": {"a": [1]}, "lora_alpha": 16.5,
        "loftq_config": {}, "eva_config": None, "megatron_config": None, "use_bdlora": None,
    }  # fmt: skip
    assert adapter_config(make_adapter(tmp_path / "x", "base", **good))["lora_alpha"] == 16.5

"""Sizes in config.json that no model has, or not this one: one line before anything is built."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evalcore.errors import InputError
from evalcore.identity import describe_checkpoint

BAD: dict[str, tuple[dict[str, Any], str]] = {
    "layers 1e9": (
        {"num_hidden_layers": 10**9},
        "num_hidden_layers: is 1,000,000,000, .* 2 la",
    ),
    "layers 3": ({"num_hidden_layers": 3}, "weights are missing, or the file is another"),
    "layers 1e99": ({"num_hidden_layers": 10**99}, "key num_hidden_layers: expected a whole"),
    "layers text": ({"num_hidden_layers": "2"}, "key num_hidden_layers: expected a whole"),
    "heads zero": ({"num_attention_heads": 0}, "key num_attention_heads"),
    "hidden negative": ({"hidden_size": -8}, "key hidden_size"),
    "hidden 1e9": ({"hidden_size": 10**9}, "key hidden_size: is 1,000,000,000, the widest"),
    "hidden fraction": ({"hidden_size": 8.5}, "key hidden_size"),
    "vocabulary": ({"vocab_size": 10**9}, "key vocab_size"),
    "positions": ({"max_position_embeddings": 10**12}, "key max_position_embeddings"),
    "dtype": ({"torch_dtype": "float99"}, "key torch_dtype: expected a type such as"),
    "dtype number": ({"dtype": 16}, "key dtype"),
    "theta": ({"rope_theta": 0}, "key rope_theta"),
    "eps": ({"rms_norm_eps": float("nan")}, "key rms_norm_eps"),
    "nested": ({"text_config": {"hidden_size": 0}}, r"key text_config\.hidden_size"),
    "type": ({"model_type": ["llama"]}, "key model_type"),
    "architecture": ({"architectures": 1.5}, "key architectures"),
    "architectures": ({"architectures": ["LlamaForCausalLM", None]}, "key architectures"),
    "truth": ({"num_key_value_heads": True}, "key num_key_value_heads"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_size_that_is_wrong_is_one_line(tmp_path: Path, tiny_checkpoint: Path, case: str) -> None:
    changes, reason = BAD[case]
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "x")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(InputError, match=reason) as caught:
        describe_checkpoint(folder)
    assert str(folder) in str(caught.value)
    assert "config.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_sizes_that_differ_by_architecture_pass(
    tmp_path: Path, tiny_checkpoint: Path, make_checkpoint: Callable[..., Path]
) -> None:
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "x")
    config = json.loads((folder / "config.json").read_text())
    extra = {
        "num_key_value_heads": None, "num_experts": 0, "head_dim": None, "rope_theta": 10000,
        "max_position_embeddings": 10_485_760, "dtype": "torch.bfloat16", "rope_scaling": None,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps({**config, **extra}))
    assert describe_checkpoint(folder).fingerprint

"""Quantised checkpoints are scored as they are, or named in one line; the next one is scored."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from evalcore.engines import create_engine
from evalcore.engines.protocol import EngineSpec
from evalcore.errors import IncompatibleError
from evalcore.identity import checkpoint_fingerprint, open_checkpoint
from evalcore.types import Checkpoint, ScoreBatch, Subject

Make = Callable[..., Path]
BATCH = ScoreBatch.from_lists([([5, 9, 100], [[7, 8], [300]]), ([17] * 5, [[4]])])
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [32, 32]}
GROUPS = {"bits": 4, "group_size": 32}
OTHERS = {
    "awq": {"quant_method": "awq", **GROUPS, "zero_point": True, "version": "gemm"},
    "gptq": {"quant_method": "gptq", **GROUPS, "desc_act": False, "sym": True},
    "bitsandbytes": {
        "quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_compute_dtype": "bfloat16",
    },
}  # fmt: skip


def fp8(name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    blocks = [-(-size // 32) for size in weight.shape]
    return {name: weight.to(torch.float8_e4m3fn), f"{name}_scale_inv": torch.full(blocks, 2.0)}


def packed(name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    rows, columns = weight.shape
    module = name.removesuffix("weight")
    return {
        f"{module}qweight": torch.zeros(columns // 8, rows, dtype=torch.int32),
        f"{module}qzeros": torch.zeros(columns // 32, rows // 8, dtype=torch.int32),
        f"{module}scales": torch.ones(columns // 32, rows, dtype=torch.float16),
    }


def coded(folder: Path, quantisation: dict[str, Any] | None, change: Callable[..., Any]) -> Path:
    """Gives the linear layers of a checkpoint another form."""
    tensors = load_file(folder / "model.safetensors")
    made = {}
    for name, weight in tensors.items():
        made |= change(name, weight) if "_proj.weight" in name else {name: weight}
    save_file(made, folder / "model.safetensors", metadata={"format": "pt"})
    file = folder / "config.json"
    own = {} if quantisation is None else {"quantization_config": quantisation}
    file.write_text(json.dumps({**json.loads(file.read_text()), **own}))
    return folder


def scores(engine: Any, folder: Path) -> np.ndarray:
    engine.load(Subject(Checkpoint("c", str(folder), checkpoint_fingerprint(folder), "tokenizer")))
    return engine.score(BATCH).token_logprobs


@pytest.mark.slow
def test_each_costs_itself_alone(tmp_path: Path, make_checkpoint: Make) -> None:
    engine = create_engine(EngineSpec(kind="hf", device="cpu"))
    for name, quantisation in OTHERS.items():
        folder = coded(make_checkpoint(tmp_path / name, seed=3), quantisation, packed)
        open_checkpoint(str(folder))  # nothing in its headers speaks against it
        said = ""
        try:
            assert np.isfinite(scores(engine, folder)).all()  # where its library is installed
        except IncompatibleError as error:
            said = str(error)
        assert "\n" not in said
        assert not said or name in said
    # Off a GPU transformers computes fp8 weights back, in bfloat16: of 4 bits nothing is lost.
    own = coded(make_checkpoint(tmp_path / "fp8", seed=3), FP8, fp8)
    plain = coded(
        make_checkpoint(tmp_path / "plain", seed=3),
        None,
        lambda name, w: {name: w.to(torch.float8_e4m3fn).float() * 2},
    )
    np.testing.assert_allclose(scores(engine, own), scores(engine, plain), atol=1e-4)


@pytest.mark.parametrize("method", ["fp8", *OTHERS])
def test_the_plan_says_that_nothing_is_merged_into_them(
    tmp_path: Path, make_checkpoint: Make, make_adapter: Make, method: str
) -> None:
    from evalcore.identity import resolve_subjects

    change, own = (fp8, FP8) if method == "fp8" else (packed, OTHERS[method])
    base = coded(make_checkpoint(tmp_path / "base", seed=3), own, change)
    make_adapter(tmp_path / "a", base)
    (problem,) = resolve_subjects([tmp_path / "a"], [str(base)], applied="merged").problems
    assert f"is quantised ({method})" in problem.message
    assert not resolve_subjects([tmp_path / "a"], applied="unmerged").problems

"""Tiny quantised checkpoints, each beside a plain twin that holds the numbers it stands for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.agreement.engine_models import save_model

GROUP = 32
"""Inputs that share a scale."""
Made = tuple[dict[str, Any], Any]  # tensors that stand for a weight, and the weight they stand for


def _ints(tensor: Any, bits: int = 4) -> Any:
    """int32 [rows, columns / 8]: numbers of 4 bits along the last axis, the first in front."""
    import torch

    parts = tensor.to(torch.int64).reshape(*tensor.shape[:-1], -1, 32 // bits)
    shifts = torch.arange(0, 32, bits)
    packed = (parts << shifts).sum(-1)
    return torch.where(packed >= 2**31, packed - 2**32, packed).to(torch.int32)


def _groups(weight: Any, levels: int, group: int = GROUP) -> tuple[Any, Any]:
    """(whole numbers of -levels to levels - 1, float16-exact scales [rows, groups])."""
    rows, columns = weight.shape
    parts = weight.reshape(rows, columns // group, group)
    scales = (parts.abs().amax(-1) / (levels - 1)).half().float()
    codes = (parts / scales[..., None]).round().clamp(-levels, levels - 1)
    return codes.reshape(rows, columns), scales


def fp8(name: str, weight: Any) -> Made:
    """One scale for a matrix."""
    import torch

    scale = weight.abs().max() / 448
    codes = (weight / scale).to(torch.float8_e4m3fn)
    return {f"{name}.weight": codes, f"{name}.weight_scale": scale.reshape(1)}, (
        codes.float() * scale
    )


def fp8_blocks(name: str, weight: Any) -> Made:
    """One scale for each block of a matrix."""
    import torch

    rows, columns = weight.shape
    scales = torch.full((-(-rows // GROUP), -(-columns // GROUP)), 2.0**-9)
    codes = (weight * 2.0**9).to(torch.float8_e4m3fn)
    return {f"{name}.weight": codes, f"{name}.weight_scale_inv": scales}, codes.float() * 2.0**-9


def int8(name: str, weight: Any) -> Made:
    """One scale for each output."""
    import torch

    codes, scales = _groups(weight, 128, weight.shape[1])
    parts = {f"{name}.weight": codes.to(torch.int8), f"{name}.weight_scale": scales}
    return parts, codes * scales


def int4(name: str, weight: Any) -> Made:
    """Of compressed-tensors: packed along the inputs."""
    import torch

    codes, scales = _groups(weight, 8)
    made = {
        f"{name}.weight_packed": _ints(codes + 8),
        f"{name}.weight_scale": scales,
        f"{name}.weight_shape": torch.tensor(weight.shape),
    }
    return made, codes * scales.repeat_interleave(GROUP, 1)


def gptq(name: str, weight: Any) -> Made:
    """Packed along the inputs, stored [in, out]; zero points are stored less one."""
    import torch

    codes, scales = _groups(weight, 8)
    zeros = torch.full((scales.shape[1], weight.shape[0]), 7)
    made = {
        f"{name}.qweight": _ints(codes + 8).T.contiguous(),
        f"{name}.qzeros": _ints(zeros),
        f"{name}.scales": scales.T.contiguous().half(),
        f"{name}.g_idx": torch.arange(weight.shape[1], dtype=torch.int32) // GROUP,
    }
    return made, codes * scales.repeat_interleave(GROUP, 1)


def awq(name: str, weight: Any) -> Made:
    """Packed along the outputs in AWQ's order, stored [in, out]."""
    import torch

    codes, scales = _groups(weight, 8)
    order = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])

    def along(numbers: Any) -> Any:
        return _ints(numbers.reshape(numbers.shape[0], -1, 8)[..., order].flatten(1))

    made = {
        f"{name}.qweight": along((codes + 8).T.contiguous()),
        f"{name}.qzeros": along(torch.full((scales.shape[1], weight.shape[0]), 8)),
        f"{name}.scales": scales.T.contiguous().half(),
    }
    return made, codes * scales.repeat_interleave(GROUP, 1)


def _compressed(
    form: str, weights: dict[str, Any], inputs: dict[str, Any] | None
) -> dict[str, Any]:
    common = {"type": "int", "symmetric": True}
    group = {
        "targets": ["Linear"],
        "weights": {**common, "dynamic": False, **weights},
        "input_activations": None if inputs is None else {**common, "dynamic": True, **inputs},
    }
    return {
        "quant_method": "compressed-tensors", "format": form, "ignore": ["lm_head"],
        "quantization_status": "compressed", "config_groups": {"group_0": group},
    }  # fmt: skip


KINDS: dict[str, tuple[Callable[[str, Any], Made], dict[str, Any]]] = {
    "fp8": (fp8, {"quant_method": "fp8", "activation_scheme": "dynamic"}),
    "fp8 blocks": (
        fp8_blocks,
        {"quant_method": "fp8", "activation_scheme": "dynamic",
         "weight_block_size": [GROUP, GROUP]},
    ),
    "compressed-tensors W8A8": (
        int8,
        _compressed("int-quantized", {"num_bits": 8, "strategy": "channel"},
                    {"num_bits": 8, "strategy": "token"}),
    ),
    "compressed-tensors W4A16": (
        int4,
        _compressed("pack-quantized",
                    {"num_bits": 4, "strategy": "group", "group_size": GROUP}, None),
    ),
    "gptq": (
        gptq,
        {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": True},
    ),
    "awq": (
        awq,
        {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True,
         "version": "gemm"},
    ),
    "bitsandbytes": (
        fp8,
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4",
         "bnb_4bit_compute_dtype": "bfloat16"},
    ),
}  # fmt: skip


def save_quantised(folder: Path, kind: str, seed: int = 3) -> tuple[Path, Path]:
    """(checkpoint of a kind, plain float32 checkpoint with the same numbers)."""
    from safetensors.torch import load_file, save_file

    change, settings = KINDS[kind]
    plain = save_model(folder / "plain", "llama-untied", seed, layers=2)
    coded = save_model(folder / "coded", "llama-untied", seed, layers=2)
    tensors = load_file(plain / "model.safetensors")
    made, meant = {}, {}
    for name, weight in tensors.items():
        if name.endswith("_proj.weight"):
            parts, meant[name] = change(name.removesuffix(".weight"), weight)
            made |= parts
        else:
            made[name] = meant[name] = weight
    for where, what in ((plain, meant), (coded, made)):
        tidy = {name: tensor.contiguous() for name, tensor in what.items()}
        save_file(tidy, where / "model.safetensors", metadata={"format": "pt"})
    file = coded / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "quantization_config": settings}))
    return coded, plain

"""Adapters whose start changed their base (PiSSA, OLoRA, CorDA ...), written again as plain LoRA.

Such a start takes B0 A0 out of the weights: the model tuned is W - s B0 A0 + s B A. The same over
the unchanged W is a LoRA of twice the rank, [A; A0] and [B, -B0]; PEFT writes it while training
(``path_initial_model_for_weight_conversion``), this does it afterwards.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from pathlib import Path
from typing import Any

from evalcore.errors import InputError
from evalcore.files import scratch_folder
from evalcore.identity.adapter import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    adapter_config,
    adapter_file,
)
from evalcore.reading import read_json

_FROM_BASE = ("pissa", "olora")
_CHANGES = ("pissa", "olora", "corda", "lora_ga")
_FACTOR = re.compile(r"\.lora_(embedding_)?([AB])(\.|$)")
_SAME = ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern")
_BESIDE = ("*.json", "*.jinja", "*.txt", "*.model", "*.md")


def to_plain(
    source: Path, output: Path, *, initial: Path | None = None, base: str | None = None
) -> Path:
    """Writes an adapter again as a plain LoRA over its unchanged base.

    Args:
        source: The adapter; it is not changed.
        output: A folder that does not exist yet.
        initial: The adapter as it was before its first step.
        base: Directory of its base, from which PiSSA's and OLoRA's start is computed again.

    Returns:
        The file of weights that was written.

    Raises:
        InputError: It is plain already, the start is another's or cannot be computed, or
            ``output`` is there.
    """
    config = adapter_config(source)
    init = config.get("init_lora_weights")
    if not isinstance(init, str) or not init.lower().startswith(_CHANGES):
        raise InputError(
            f"convert: {source}: init_lora_weights is {init!r}, which leaves the base as it is; "
            f"nothing to convert"
        )
    if output.exists():
        raise InputError(f"convert: {output} exists already; give a new folder")
    own = _tensors(source)
    if initial is not None:
        _check_same(config, adapter_config(initial), source, initial)
        start = _tensors(initial)
    elif base is not None:
        own, start = _again(source, init, base, own)
    else:
        raise InputError(
            f"convert: {source}: init_lora_weights={init!r} needs --initial FOLDER (the adapter "
            f"before its first step), or --base BASE for pissa and olora"
        )
    made = _joined(own, start, source)
    output.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder("convert", output.parent) as place:
        folder = place / "made"
        folder.mkdir()
        for pattern in _BESIDE:
            for other in source.glob(pattern):
                if other.is_file() and other.name != "provenance.json":
                    shutil.copyfile(other, folder / other.name)
        _save(folder, made)
        text = json.dumps(_doubled(source), indent=2, sort_keys=True)
        (folder / ADAPTER_CONFIG).write_text(text, "utf-8")
        os.replace(folder, output)
    return output / ADAPTER_WEIGHTS


def _tensors(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return dict(load_file(str(adapter_file(folder))))


def _save(folder: Path, tensors: dict[str, Any]) -> None:
    from safetensors.torch import save_file

    save_file(tensors, str(folder / ADAPTER_WEIGHTS), metadata={"format": "pt"})


def _check_same(config: Any, other: Any, source: Path, initial: Path) -> None:
    for key in _SAME:
        if config.get(key) != other.get(key):
            raise InputError(
                f"convert: {initial} is not the start of {source}: key {key} is "
                f"{other.get(key)!r} there and {config.get(key)!r} here"
            )


def _again(
    source: Path, init: str, base: str, own: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the adapter's tensors, its start as PEFT makes it of the base), under equal names."""
    if init.lower() not in _FROM_BASE:
        raise InputError(
            f"convert: {source}: init_lora_weights={init!r} cannot be made again from the base; "
            f"give --initial FOLDER, the adapter before its first step"
        )
    from peft import PeftConfig, PeftModelForCausalLM, get_peft_model_state_dict

    from evalcore.engines.hf_loading import build_base, under_our_names

    model = build_base(base, "float32")
    own, config = under_our_names(model, own, PeftConfig.from_pretrained(str(source)))
    config.inference_mode = True
    made = PeftModelForCausalLM(model, config)
    start = get_peft_model_state_dict(made, save_embedding_layers=False)
    return own, {name: tensor for name, tensor in start.items() if _FACTOR.search(name)}


def _joined(own: dict[str, Any], start: dict[str, Any], source: Path) -> dict[str, Any]:
    """Factors of twice the rank; everything else as it is."""
    import torch

    factors = {name for name in own if _FACTOR.search(name)}
    others = {name for name in start if _FACTOR.search(name)}
    if factors != others:
        odd = sorted(factors ^ others)[0]
        where = "the start lacks" if odd in factors else f"{source} lacks"
        raise InputError(f"convert: {where} {odd}; they do not belong together")
    made = {}
    for name, tensor in own.items():
        found = _FACTOR.search(name)
        if found is None:
            made[name] = tensor.contiguous()
            continue
        before = start[name].to(tensor.dtype)
        if before.shape != tensor.shape:
            raise InputError(
                f"convert: {name} has shape {list(tensor.shape)} in {source}, its start has "
                f"{list(before.shape)}"
            )
        parts = [tensor, before] if found[2] == "A" else [tensor, -before]
        made[name] = torch.cat(parts, 0 if found[2] == "A" else 1).contiguous()
    return made


def _doubled(source: Path) -> dict[str, Any]:
    """adapter_config.json for twice the rank and the same scaling, and a plain start."""
    config = read_json(source / ADAPTER_CONFIG, "convert")
    # alpha / r, or alpha / sqrt(r) for rsLoRA, stays what it was.
    factor = math.sqrt(2.0) if config.get("use_rslora") else 2
    config["r"] = 2 * config.get("r", 8)
    config["lora_alpha"] = factor * config.get("lora_alpha", 8)
    config["rank_pattern"] = {k: 2 * v for k, v in (config.get("rank_pattern") or {}).items()}
    config["alpha_pattern"] = {
        k: factor * v for k, v in (config.get("alpha_pattern") or {}).items()
    }
    config |= {"init_lora_weights": True, "corda_config": None, "lora_ga_config": None}
    return config

"""Whether an engine can apply an adapter, told from its configuration, header and numbers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from evalcore.errors import IncompatibleError, InputError
from evalcore.identity.adapter import ADAPTER_CONFIG, adapter_config, check_finite
from evalcore.identity.adapter_schema import check_layers
from evalcore.identity.bases import quantisation
from evalcore.identity.layout import shares_embeddings
from evalcore.identity.lora import LoraAdapter, read_lora
from evalcore.identity.lora_names import Layout, layer_of
from evalcore.identity.peft_alone import peft_refuses

Applied = Literal["unmerged", "merged", "batched", "either"]
"""How adapters are applied: by PEFT on top (engine hf), into the weights, or beside them (vllm);
``either``: by PEFT or into the weights, whichever can."""


def check_adapter(
    path: str | Path,
    layout: Layout,
    config: Mapping[str, Any],
    base: str,
    applied: Applied,
    folder: str | Path | None = None,
) -> None:
    """Everything that can be wrong with an adapter before an engine is started.

    Args:
        path: PEFT directory.
        layout: Tensor name -> (dtype, shape) of its base.
        config: The base's config.json.
        base: How to name the base in the message.
        applied: What the engine of the run does with adapters.
        folder: Of the base, to see whether saved tensors are its own.

    Raises:
        IncompatibleError: It does not fit the base.
        InputError: It is broken, or this engine cannot apply it exactly.
    """
    check_layers(adapter_config(path), _layer_count(layout), Path(path) / ADAPTER_CONFIG)
    try:
        adapter = read_lora(path, layout, tied=shares_embeddings(config, layout), base=folder)
    except IncompatibleError as error:
        reason = str(error).removeprefix(f"adapter {path}: ")
        raise IncompatibleError(f"adapter {path} does not fit base {base}: {reason}") from None
    check_finite(path)
    refused = _refused(adapter, config, layout, base, applied)
    if refused is not None:
        raise InputError(refused)


def vllm_refuses(
    path: str | Path,
    layout: Layout,
    config: Mapping[str, Any],
    base: str,
    applied: Applied,
    folder: str | Path | None = None,
) -> str | None:
    """Why vLLM cannot apply an adapter that fits its base and that PEFT applies; None if it can.

    Args:
        path, layout, config, base, applied, folder: As of :func:`check_adapter`, which it has
            passed as ``unmerged``.
    """
    adapter = read_lora(path, layout, tied=shares_embeddings(config, layout), base=folder)
    return _refused(adapter, config, layout, base, applied)


def _refused(
    adapter: LoraAdapter, config: Mapping[str, Any], layout: Layout, base: str, applied: Applied
) -> str | None:
    if applied in ("unmerged", "either"):
        reason = peft_refuses(
            adapter_config(adapter.path), str(config.get("model_type", "")), adapter.deltas
        )
        if reason is None:
            return None
        if applied == "either" and _refused(adapter, config, layout, base, "merged") is None:
            return None
        return f"adapter {adapter.path}: {reason}"
    quantised = quantisation(config, layout)
    if applied == "merged" and quantised is not None:
        return (
            f"adapter {adapter.path}: its base {base} is quantised ({quantised}): nothing can be "
            f"merged into it; --adapters batched or --engine hf may apply it"
        )
    try:
        if applied == "batched":
            adapter.require_applicable()
        else:
            adapter.require_mergeable()
    except IncompatibleError as error:
        return f"{error}; engine hf scores it (--engine hf or auto)"
    return None


def _layer_count(layout: Layout) -> int:
    numbers = [layer for name in layout if (layer := layer_of(name)) is not None]
    return max(numbers, default=-1) + 1

"""State that vLLM's kernels derive from weights, made anew with each reload.

Upstream traps (vLLM 0.32), both silent: scores of the old weights, or of weights that a kernel
reads in a layout they are not in. ``test_engines_vllm`` and ``test_engines_experts`` say when they
can go. What else of this kind there may be, the proof finds (see proof).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from evalcore.engines.vllm import compat
from evalcore.engines.vllm.traces import row_sums


def before_reload(model: Any) -> None:
    """Makes layers of fused experts process their weights as on a first load.

    Their method sets its kernel up once, and it is that which packs the weights on CPUs; a reload
    would put plain weights where the kernel goes on reading packed ones. On GPUs a reload writes
    into the storage that captured graphs read, and the kernel stays.
    """
    for module in model.modules():
        method = getattr(module, "quant_method", None)
        on_cpu = any(p.device.type == "cpu" for p in module.parameters(recurse=False))
        if on_cpu and getattr(method, "moe_kernel", None) is not None:
            method.moe_kernel = None  # type: ignore[union-attr]


def after_reload(model: Any) -> None:
    """Makes output heads follow reloaded weights.

    With tied embeddings no tensor is loaded into the head itself, so that a reload does not process
    it again, and on CPUs it goes on multiplying with the packed copy of the old weights.
    """
    for head in head_modules(model):
        method = getattr(head, "quant_method", None)
        if method is not None:
            method.process_weights_after_loading(head)


def head_modules(model: Any) -> Iterator[Any]:
    """Output heads of a model, each once."""
    for module in model.modules():
        if isinstance(module, compat.layer_types().head):
            yield module


def buffer_sums(model: Any) -> dict[str, Any]:
    """Checksums (int64 [rows]) of what no checkpoint brings and a model computes once.

    Rotary tables and the like: buffers that a state dict leaves out. A reload must leave them as
    they were at the start.
    """
    sums: dict[str, Any] = {}
    seen: set[int] = set()  # layers share tables
    for prefix, module in model.named_modules():
        for leaf in sorted(module._non_persistent_buffers_set):
            buffer = module._buffers.get(leaf)
            if buffer is None or not buffer.is_floating_point() or buffer.data_ptr() in seen:
                continue
            seen.add(buffer.data_ptr())
            sums[f"{prefix}.{leaf}"] = row_sums(buffer)
    return sums

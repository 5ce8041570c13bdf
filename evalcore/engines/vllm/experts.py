"""Fused experts asked for their products, each by itself.

An expert's result is act(x W1^T) * (x W3^T) W2^T: its three matrices are proven together. Kernels
differ in storage (packed, shuffled, plain); all of them answer to the same call.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from evalcore.engines.vllm import compat
from evalcore.engines.vllm.objects import Experts
from evalcore.engines.vllm.places import Place, Unplaced
from evalcore.engines.vllm.traces import probe


@dataclass
class Expert:
    """What an expert should give.

    Attributes:
        module: The layer of fused experts.
        expert: Its number on this rank.
        products: float32 [2, hidden] of kernels that keep the first products in float32, and of
            those that round them to the type of the weights.
        names: Its checkpoint tensors, with ``parameters`` (where they lie) and ``counts``.
    """

    module: Any
    expert: int
    products: list[Any] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    parameters: list[str] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    parts: dict[str, Any] = field(default_factory=dict)


class ExpertTraces:
    """Experts whose matrices are streaming by; a down projection waits for the other two."""

    def __init__(self, dtype: Any) -> None:
        self._dtype = dtype
        self._experts: dict[tuple[str, int], Expert] = {}

    def add(self, name: str, place: Place, tensor: Any) -> None:
        """Takes one matrix of an expert."""
        key = (place.name, place.expert)
        expert = self._experts.setdefault(key, Expert(place.module, place.expert))
        expert.names.append(name)
        expert.parameters.append(place.parameter)
        expert.counts.append(tensor.numel())
        tensor = tensor.to(self._dtype)
        if place.part == "w2":
            expert.parts["w2"] = tensor
        else:
            x = probe(tensor.shape[1], self._dtype, tensor.device).float()
            expert.parts[place.part] = x @ tensor.float().T
        if {"w1", "w2", "w3"} <= set(expert.parts):
            gate, up, down = (expert.parts.pop(part) for part in ("w1", "w3", "w2"))
            act = _activation(place.module)
            for kept in (gate.dtype, self._dtype):
                inner = act(gate.to(kept).float()) * up.to(kept).float()
                # What lies between the two products is in the type of the weights in any kernel.
                expert.products.append(inner.to(self._dtype).float() @ down.float().T)

    def complete(self, unproven: dict[str, str]) -> Iterator[Expert]:
        """Experts of which everything came; the others' tensors go to ``unproven``."""
        for expert in self._experts.values():
            if not expert.products:
                unproven |= dict.fromkeys(expert.names, "matrices of its expert are missing")
            else:
                yield expert


def stored_plainly(module: Any) -> bool:
    """Whether the experts' kernel reads the matrices as they were loaded."""
    backend = getattr(module.quant_method, "unquantized_backend", None)
    return getattr(backend, "name", "") in ("TRITON", "BATCHED_TRITON")


def expert_products(module: Experts, cache: dict[str, Any]) -> Any:
    """[2, experts of this rank, hidden] of a layer, by its own kernel."""
    import torch

    key = f"experts {id(module)}"
    if key not in cache:
        method = module.quant_method
        if getattr(method, "is_monolithic", False):
            raise Unplaced("the experts' kernel routes by itself")
        held = getattr(module, "w13_weight")  # noqa: B009 (not declared)
        count = int(module.local_num_experts)
        numbers = [
            number
            for number in range(int(module.global_num_experts))
            if compat.local_expert(module, number) >= 0
        ]
        x = probe(int(module.moe_config.hidden_dim), module.params_dtype, held.device)
        ids = torch.tensor(numbers, dtype=torch.int32, device=held.device).repeat(len(x))[:, None]
        ones = torch.ones_like(ids, dtype=torch.float32)
        rows = x.repeat_interleave(count, 0)
        got = method.apply(
            layer=module,
            x=rows,
            topk_weights=ones,
            topk_ids=ids,
            shared_experts=None,
            shared_experts_input=None,
        )
        order = [compat.local_expert(module, number) for number in numbers]
        by_number = torch.empty(len(x), count, got.shape[-1], dtype=got.dtype, device=got.device)
        by_number[:, order] = got.view(len(x), count, -1)
        cache[key] = by_number
    return cache[key]


def _activation(module: Any) -> Any:
    """The function between the two products, as torch has it."""
    import torch.nn.functional as f

    functions = {
        "silu": f.silu,
        "gelu": f.gelu,
        "gelu_tanh": lambda x: f.gelu(x, approximate="tanh"),
    }
    name = str(getattr(module.activation, "value", module.activation))
    if name not in functions or getattr(module.moe_config, "has_bias", False):
        raise Unplaced(f"experts with {name}" + (" and biases" if name in functions else ""))
    return functions[name]

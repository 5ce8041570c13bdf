"""Adapters beside the weights, held to their files bit by bit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evalcore.engines.vllm import compat
from evalcore.engines.vllm.lora import open_adapter
from evalcore.engines.vllm.objects import Runner
from evalcore.engines.vllm.places import Atlas, Place
from evalcore.errors import ProofError
from evalcore.identity import weight_layout
from evalcore.identity.adapter import adapter_file
from evalcore.types import Subject

_Slices = dict[tuple[str, int], tuple[Any, Any]]


def require_slot(runner: Runner, subject: Subject, number: int, *, tied: bool) -> None:
    """Checks that vLLM's slot of an adapter holds what its file says, and nothing else.

    Args:
        runner: vLLM's model runner.
        subject: With the adapter.
        number: What vLLM calls it.
        tied: Whether input embeddings and output head share one tensor.

    Raises:
        ProofError: A matrix differs, is missing, or is there though the file has none.
    """
    manager = compat.lora_manager(runner)
    if number not in manager.lora_index_to_id:
        manager.activate_adapter(number)
    slot = manager.lora_index_to_id.index(number)
    dtype = runner.vllm_config.model_config.dtype
    counts = {name: len(module.lora_a_stacked) for name, module in manager.modules.items()}
    wanted = _slices(runner.get_model(), subject, counts, tied=tied)
    for name, module in manager.modules.items():
        for index in range(len(module.lora_a_stacked)):
            matrices = wanted.pop((name, index), (None, None))
            stacks = (module.lora_a_stacked[index], module.lora_b_stacked[index])
            for held, value in zip(stacks, matrices, strict=True):
                if not _same(held[slot, 0], value, dtype):
                    raise ProofError(
                        f"{subject.label}: vllm holds other numbers for {name} beside the weights "
                        f"than the adapter's file"
                    )
    if wanted:
        raise ProofError(
            f"{subject.label}: vllm applies nothing of the adapter to {sorted(wanted)[0][0]}"
        )


def _slices(model: Any, subject: Subject, counts: Mapping[str, int], *, tied: bool) -> _Slices:
    """(layer, number in the fused layer) -> A and scaled B of this rank.

    Args:
        model: vLLM's.
        subject: With the adapter.
        counts: Layer -> matrices that vLLM's slot has for it.
        tied: Whether input embeddings and output head share one tensor.
    """
    import torch
    from safetensors import safe_open

    assert subject.adapter is not None
    layout = weight_layout(subject.checkpoint.path)
    adapter = open_adapter(subject.adapter.path, layout, tied=tied, base=subject.checkpoint.path)
    atlas, slices = Atlas(model, layout, tied=tied), _Slices()
    with safe_open(str(adapter_file(adapter.path)), framework="pt") as tensors:
        for target, delta in adapter.deltas.items():
            a, b = (tensors.get_tensor(delta.parts[part]) for part in ("lora_A", "lora_B"))
            places = atlas.find(target, layout[target][1])
            if len(places) > 1 and counts.get(places[0].name) == 1:
                # Fused in the file already (Phi-3): one A, and the parts of one B.
                rows = torch.cat([b[place.rows] for place in places])
                slices[places[0].name, 0] = a[:, places[0].columns], (rows, delta.scaling)
                continue
            first = atlas.number(target)
            for offset, place in enumerate(places):
                slices[place.name, first + offset] = _cut(place, a, b, delta.scaling)
    return slices


def _cut(place: Place, a: Any, b: Any, scaling: float) -> tuple[Any, Any]:
    """A and B of this rank, and the scaling that goes into B."""
    return a[:, place.columns], (b[place.rows], scaling)


def _same(held: Any, value: Any, dtype: Any) -> bool:
    """Whether a slot's matrix is the wanted one, and zero where it is larger."""
    import torch

    scaling = 1.0
    if isinstance(value, tuple):
        value, scaling = value
    wanted = torch.zeros_like(held)
    if value is not None:
        part = value.to(dtype)
        if scaling != 1:
            part = part * scaling  # vLLM scales B in its own type
        if part.shape[0] > held.shape[0] or part.shape[1] > held.shape[1]:
            return False
        wanted[: part.shape[0], : part.shape[1]] = part.to(held.device)
    return bool(torch.equal(held, wanted))

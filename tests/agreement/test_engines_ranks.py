"""Parts of a rank: what vLLM's own loaders put into a layer is what places say lies there."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from evalcore.engines.vllm.places import Place, _expert_places
from tests.agreement.engine_processes import Child, import_vllm

_LAYERS = ("column", "row", "merged", "qkv", "qkv with copied keys", "embedding", "head")


def layer_of(what: str) -> tuple[Any, list[tuple[Any, Any]]]:
    """A real layer of this rank, and (shard, tensor) of each of its checkpoint tensors."""
    import torch
    from vllm.model_executor.layers import linear as li
    from vllm.model_executor.layers.vocab_parallel_embedding import (
        ParallelLMHead,
        VocabParallelEmbedding,
    )

    def draw(rows: int, columns: int) -> Any:
        return torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows))

    if what == "column":
        return li.ColumnParallelLinear(24, 32, bias=False), [(None, draw(32, 24))]
    if what == "row":
        return li.RowParallelLinear(24, 32, bias=False), [(None, draw(32, 24))]
    if what == "merged":
        layer = li.MergedColumnParallelLinear(24, [16, 40], bias=False)
        return layer, [(0, draw(16, 24)), (1, draw(40, 24))]
    if what.startswith("qkv"):
        keys = 1 if "copied" in what else 4
        layer = li.QKVParallelLinear(24, 8, 8, keys, bias=False)
        return layer, [("q", draw(64, 24)), ("k", draw(8 * keys, 24)), ("v", draw(8 * keys, 24))]
    kind = VocabParallelEmbedding if what == "embedding" else ParallelLMHead
    return kind(509, 24), [(None, draw(509, 24))]  # filled up to 512 rows


def places_of(layer: Any, shard: Any, shape: tuple[int, ...]) -> list[Place]:
    from vllm.model_executor.layers.linear import LinearBase

    from evalcore.engines.vllm.places import _linear_places, _vocabulary

    if isinstance(layer, LinearBase):
        return _linear_places("x", layer, "weight", shard, shape)
    rows, at = _vocabulary(layer)
    return [Place("x", layer, "weight", "embedding", rows, at=at)]


def faults(size: int) -> list[str]:
    """Layers whose rank does not hold what places say; ``[]`` if all do."""
    from unittest.mock import patch

    import torch
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.model_executor import parameter
    from vllm.model_executor.layers import linear, vocab_parallel_embedding

    wrong = []
    for what in _LAYERS:
        covered = []
        for rank in range(size):
            with set_current_vllm_config(VllmConfig()):
                stack = [
                    patch.object(module, f"get_tensor_model_parallel_{name}", lambda v=value: v)
                    for module in (linear, vocab_parallel_embedding, parameter)
                    for name, value in (("rank", rank), ("world_size", size))
                ]
                for one in stack:
                    one.start()
                try:
                    layer, tensors = layer_of(what)
                    layer.weight.data.fill_(float("nan"))
                    for shard, tensor in tensors:
                        arguments = () if shard is None else (shard,)
                        layer.weight.weight_loader(layer.weight, tensor, *arguments)
                finally:
                    for one in stack:
                        one.stop()
            count = 0
            for shard, tensor in tensors:
                for place in places_of(layer, shard, tuple(tensor.shape)):
                    held, part = place.held(), place.cut(tensor)
                    count += part.numel()
                    if not torch.equal(held, part):
                        wrong.append(f"{what} {shard} on rank {rank} of {size}")
            covered.append(count)
            filled = int((~layer.weight.isnan() & (layer.weight != 0)).sum())
            if filled != count:
                wrong.append(f"{what} on rank {rank}: {count} of {filled} numbers have a place")
        if sum(covered) < sum(tensor.numel() for _, tensor in tensors):
            wrong.append(f"{what}: the ranks together do not hold everything")
    return wrong


@pytest.mark.slow
def test_places_are_where_vllms_loaders_put_things() -> None:
    child = Child(import_vllm)
    try:
        for size in (1, 2, 4):
            assert child.call(faults, size) == []
    finally:
        child.close()


@pytest.mark.parametrize("rank", [0, 1])
def test_parts_of_experts(rank: int) -> None:
    torch = pytest.importorskip("torch")
    inner, padded, hidden = 6, 8, 4  # of each rank; kernels may fill up
    gate, up = torch.randn(2 * inner, hidden), torch.randn(2 * inner, hidden)
    down = torch.randn(hidden, 2 * inner)
    own = slice(rank * inner, (rank + 1) * inner)
    w13, w2 = torch.zeros(3, 2 * padded, hidden), torch.zeros(3, hidden, padded)
    w13[2, :inner], w13[2, padded : padded + inner] = gate[own], up[own]
    w2[2, :, :inner] = down[:, own]
    config = SimpleNamespace(
        num_experts=4,
        num_logical_experts=4,
        intermediate_size_per_partition_unpadded=inner,
        intermediate_size_per_partition=padded,
        tp_size=2,
        tp_rank=rank,
    )
    layer = SimpleNamespace(
        ckpt_gate_proj_name="w1",
        ckpt_up_proj_name="w3",
        ckpt_down_proj_name="w2",
        moe_config=config,
        w13_weight=w13,
        w2_weight=w2,
        _map_global_expert_id_to_local_expert_id=lambda number: number - 1,
    )
    for part, tensor in (("w1", gate), ("w3", up), ("w2", down)):
        (place,) = _expert_places("x", layer, f"3.{part}.weight", tuple(tensor.shape))
        assert torch.equal(place.held(), place.cut(tensor)), part
    assert _expert_places("x", layer, "0.w1.weight", tuple(gate.shape)) == [], "another rank's"

"""Where a vLLM model keeps a checkpoint's tensors: module, parameter and the part of both.

Names are mapped as vLLM's own loaders map them (``hf_to_vllm_mapper``, ``packed_modules_mapping``,
the experts' names); parts follow from the sizes and the rank that parallel layers carry. What is
not known here is an :class:`Unplaced`: not proven, never assumed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Literal

from evalcore.engines.vllm import compat
from evalcore.engines.vllm.objects import Experts, Linear, Vocabulary
from evalcore.identity import Layout
from evalcore.identity.layout import stored_transposed

Kind = Literal["linear", "embedding", "head", "expert", "plain"]


# Rotary tables and causal masks that old checkpoints bring; models compute their own.
_RECOMPUTED = (
    ".rotary_emb.inv_freq", ".rotary_pos_emb.inv_freq", ".rotary_emb.cos_cached",
    ".rotary_emb.sin_cached", ".attn.bias", ".attn.masked_bias", ".attention.bias",
    ".attention.masked_bias",
)  # fmt: skip
# Models whose loaders put fused queries, keys and values in another order.
_GROUPED = ("BloomForCausalLM", "FalconForCausalLM")


class Unplaced(Exception):
    """Why a tensor cannot be followed into the model."""


class Dropped(Unplaced):
    """vLLM's layer has no such bias: its loader passes over the file's, without a word."""


def _whole() -> slice:
    return slice(None)


@dataclass(frozen=True)
class Place:
    """One part of a checkpoint tensor in this rank's model.

    Attributes:
        name: The module's qualified name, LoRA wrappers left out.
        module: The module.
        leaf: Name of its parameter.
        kind: What sort of module it is.
        rows: Rows of the checkpoint tensor that this rank holds.
        columns: Its columns (ignored for vectors).
        at: Rows of the parameter (of an expert: of its matrices) where they lie.
        expert: Local number of the expert.
        part: Which of an expert's matrices: ``w1`` (gate), ``w3`` (up), ``w2`` (down).
    """

    name: str
    module: Any
    leaf: str
    kind: Kind
    rows: slice = field(default_factory=_whole)
    columns: slice = field(default_factory=_whole)
    at: slice = field(default_factory=_whole)
    expert: int = -1
    part: str = ""

    @property
    def parameter(self) -> str:
        """Qualified name of the parameter."""
        return f"{self.name}.{self.leaf}" if self.name else self.leaf

    def held(self) -> Any:
        """What the parameter holds here, where it is stored as it was loaded."""
        held = getattr(self.module, self.leaf)
        if self.kind != "expert":
            return held[self.at] if held.ndim else held
        inner = int(self.module.moe_config.intermediate_size_per_partition_unpadded)
        held = held[self.expert]
        return held[:, :inner] if self.part == "w2" else held[self.at]

    def cut(self, tensor: Any) -> Any:
        """The part of a checkpoint tensor that lies here."""
        part = tensor[self.rows] if tensor.ndim else tensor
        return part[:, self.columns] if part.ndim > 1 else part


class Atlas:
    """Places of one model's tensors."""

    def __init__(self, model: Any, layout: Layout, *, tied: bool) -> None:
        """Args:
        model: The running vLLM model.
        layout: Tensor name -> (dtype, shape) of the checkpoint.
        tied: Whether the head uses the embeddings' tensor.
        """
        self._model, self._layout, self._tied = model, layout, tied
        self._experts = {
            module.layer_name: (name, module)
            for name, module in model.named_modules()
            if compat.is_experts(module)
        }

    def find(self, name: str, shape: tuple[int, ...]) -> list[Place]:
        """Places of a checkpoint tensor; [] if this rank needs nothing of it.

        Raises:
            Unplaced: It is not known where the tensor goes.
            Exception: Whatever vLLM's modules raise where they are not as expected.
        """
        mapped = self._map(name)
        if mapped is None or name.endswith(_RECOMPUTED):
            return []
        target, shard = mapped
        for layer, (where, module) in self._experts.items():
            if target.startswith(f"{layer}.") and not hasattr(self._model, target):
                return _expert_places(where, module, target[len(layer) + 1 :], shape)
        path, _, leaf = target.rpartition(".")
        return self._module_places(path, leaf, shard, shape)

    def as_held(self, name: str, tensor: Any) -> Any:
        """A checkpoint's tensor in the order in which vLLM's linear layers hold it.

        GPT-2's family stores matrices [in, out]; BLOOM and Falcon store queries, key and value of
        one group of heads after the other, where vLLM holds all queries, all keys, all values.
        """
        if tensor.ndim == 2 and stored_transposed(name, self._layout):
            return tensor.T
        import torch

        grouped = type(self._model).__name__ in _GROUPED and ".query_key_value." in name
        if not grouped:
            return tensor
        mapped = self._map(name)
        layer = self._model.get_submodule(mapped[0].rpartition(".")[0] if mapped else "")
        layer = compat.bare(layer)
        groups = int(layer.total_num_kv_heads)
        queries = int(layer.total_num_heads) // groups
        parts = tensor.view(groups, queries + 2, -1, *tensor.shape[1:])
        ordered = [parts[:, :queries], parts[:, queries], parts[:, queries + 1]]
        return torch.cat([part.reshape(-1, *tensor.shape[1:]) for part in ordered])

    def number(self, name: str) -> int:
        """Which matrix of a fused layer a tensor is; 0 where it is the only one."""
        mapped = self._map(name)
        shard = mapped[1] if mapped is not None else None
        number = {None: 0, "q": 0, "k": 1, "v": 2}.get(shard, shard)
        if not isinstance(number, int):
            raise Unplaced(f"shard {shard!r}")
        return number

    def _map(self, name: str) -> tuple[str, Any] | None:
        """vLLM's name of a tensor and its shard; None where its loader drops the tensor."""
        mapped = compat.name_in_model(self._model, name)
        if mapped is None:
            return None
        name, shard = mapped
        first = name.partition(".")[0]
        inner = getattr(self._model, "transformer", None)
        if not hasattr(self._model, first) and hasattr(inner, first):
            name = f"transformer.{name}"  # files of the bare model, as GPT-2's and BLOOM's own
        path, _, leaf = name.rpartition(".")
        # Of models that fuse inside load_weights; experts have a layer of their own for that.
        if shard is None and not any(name.startswith(f"{layer}.") for layer in self._experts):
            parent, _, last = path.rpartition(".")
            for fused, parts in compat.fused_layers(self._model).items():
                if last in parts and len(parts) > 1:
                    return f"{parent}.{fused}.{leaf}", parts.index(last)
        return name, shard

    def _module_places(
        self, path: str, leaf: str, shard: Any, shape: tuple[int, ...]
    ) -> list[Place]:
        types = compat.layer_types()
        module = compat.bare(self._model.get_submodule(path))
        has = getattr(module, "weight", None) is not None
        if leaf == "bias" and has and getattr(module, leaf, None) is None:
            raise Dropped(f"{type(module).__name__} has no bias")
        if isinstance(module, types.vocabulary):
            is_head = isinstance(module, types.head)
            rows, at = _vocabulary(module)
            if leaf == "bias":
                return [Place(path, module, leaf, "plain", rows, at=at)]
            if is_head and self._tied:
                return []  # a stored head that a tied model does not use
            return [Place(path, module, leaf, "head" if is_head else "embedding", rows, at=at)]
        if isinstance(module, types.linear):
            return _linear_places(path, module, leaf, shard, shape)
        held = tuple(getattr(module, leaf).shape)
        if held != shape:
            raise Unplaced(f"{type(module).__name__} holds {held} of {shape}")
        return [Place(path, module, leaf, "plain")]


def _vocabulary(module: Vocabulary) -> tuple[slice, slice]:
    """(rows of the checkpoint's tensor, rows of the parameter) of this rank."""
    own = module.shard_indices
    start, stop = int(own.org_vocab_start_index), int(own.org_vocab_end_index)
    if module.num_added_embeddings:
        raise Unplaced("embeddings with added rows")
    return slice(start, stop), slice(0, stop - start)


def input_width(module: Linear) -> int:
    """Inputs of a linear layer on this rank."""
    return int(getattr(module, "input_size_per_partition", module.input_size))


def _linear_places(
    name: str, module: Linear, leaf: str, shard: Any, shape: tuple[int, ...]
) -> list[Place]:
    """Places in a linear layer, fused or not, of this rank's part."""
    if leaf not in ("weight", "bias"):
        raise Unplaced(f"{leaf} of a quantised layer")
    whole, local = int(module.input_size), input_width(module)
    rank = int(module.tp_rank)
    columns = slice(None) if whole == local else slice(rank * local, (rank + 1) * local)
    if leaf == "weight" and (len(shape) != 2 or shape[1] != whole):
        raise Unplaced(f"shape {shape} for {whole} inputs")
    pieces = _pieces(module)
    if shard is not None:
        index = {"q": 0, "k": 1, "v": 2}.get(shard, shard)
        if not isinstance(index, int):
            raise Unplaced(f"shard {shard!r}")
        pieces = [pieces[index]]
        total = pieces[0].total
    else:
        total = sum(piece.total for piece in pieces)
    if shape[0] != total:
        raise Unplaced(f"shape {shape} for {total} outputs")
    places, begin = [], 0
    for piece in pieces:
        rows = slice(begin + piece.start, begin + piece.start + piece.count)
        at = slice(piece.at, piece.at + piece.count)
        places.append(Place(name, module, leaf, "linear", rows, columns, at))
        begin += piece.total
    return places


@dataclass(frozen=True)
class _Piece:
    """Rows of one logical matrix of a linear layer: in the whole, and in this rank's parameter."""

    total: int
    start: int
    count: int
    at: int


def _pieces(module: Linear) -> list[_Piece]:
    rank = int(module.tp_rank)
    if hasattr(module, "num_kv_head_replicas"):  # QKVParallelLinear
        totals = [
            module.total_num_heads * module.head_size,
            module.total_num_kv_heads * module.head_size,
            module.total_num_kv_heads * module.v_head_size,
        ]
        counts = [
            module.num_heads * module.head_size,
            module.num_kv_heads * module.head_size,
            module.num_kv_heads * module.v_head_size,
        ]
        kv_rank = rank // module.num_kv_head_replicas
        ranks = [rank, kv_rank, kv_rank]
    else:
        counts = [int(count) for count in module.output_partition_sizes]
        size = int(module.output_size) // sum(counts)  # ranks that share the outputs
        totals = [count * size for count in counts]
        ranks = [rank if size > 1 else 0] * len(counts)
    pieces, at = [], 0
    for total, count, own in zip(totals, counts, ranks, strict=True):
        pieces.append(_Piece(int(total), int(own * count), int(count), at))
        at += int(count)
    return pieces


def _expert_places(name: str, module: Experts, rest: str, shape: tuple[int, ...]) -> list[Place]:
    """Places in a layer of fused experts; ``rest``: the tensor's name after the layer's."""
    found = re.fullmatch(r"(\d+)\.(\w+)\.weight", rest)
    parts = {
        module.ckpt_gate_proj_name: "w1",
        module.ckpt_up_proj_name: "w3",
        module.ckpt_down_proj_name: "w2",
    }
    if found is None or found[2] not in parts or len(shape) != 2:
        raise Unplaced(f"{rest} of fused experts")
    config = module.moe_config
    if config.num_experts != config.num_logical_experts:
        raise Unplaced("redundant experts")
    expert = compat.local_expert(module, int(found[1]))
    if expert < 0:
        return []  # another rank's
    part = parts[found[2]]
    inner = int(config.intermediate_size_per_partition_unpadded)
    if shape[1 if part == "w2" else 0] != inner * config.tp_size:
        raise Unplaced(f"shape {shape} for {inner} x {config.tp_size} inner numbers")
    own = slice(config.tp_rank * inner, (config.tp_rank + 1) * inner)
    if part == "w2":
        return [Place(name, module, "w2_weight", "expert", columns=own, expert=expert, part=part)]
    begin = 0 if part == "w1" else int(config.intermediate_size_per_partition)
    at = slice(begin, begin + inner)
    return [Place(name, module, "w13_weight", "expert", own, at=at, expert=expert, part=part)]

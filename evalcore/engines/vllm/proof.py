"""Proof that the weights in place are the wanted ones, by probe vectors through each kernel.

While a checkpoint streams by, each tensor W leaves its product W x with a seeded vector behind.
Afterwards each module of the model multiplies the same x with whatever it holds - fused, prepacked,
tied - and must give the same. It costs one pass over the weights and needs no copy of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from evalcore.engines.vllm.derived import head_modules
from evalcore.errors import ProofError

# Root mean square error over that of the product; the largest single error may be ten times that.
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-3, "float16": 1e-3}
_PROBES = 2
_IDS_AT_ONCE = 8192


def probe(width: int, dtype: Any, device: Any) -> Any:
    """Seeded vectors [2, width] in ``dtype``, the same for every caller."""
    import torch

    generator = torch.Generator().manual_seed(9176 + width)
    return torch.randn(_PROBES, width, generator=generator).to(dtype).to(device)


class Products:
    """Products of streamed tensors with the probe, and copies of the one-dimensional ones."""

    def __init__(self, dtype: Any, device: Any) -> None:
        self._dtype, self._device = dtype, device
        self.values: dict[str, Any] = {}  # float32 [2, out] or the tensor itself [n]
        self.skipped: list[str] = []

    def add(self, name: str, tensor: Any) -> None:
        """Remembers W x of a matrix (in the engine's dtype), or a whole vector."""
        if tensor.ndim == 2:
            x = probe(tensor.shape[1], self._dtype, self._device).float()
            self.values[name] = x @ tensor.to(self._dtype).float().T
        elif tensor.ndim == 1:
            self.values[name] = tensor.to(self._dtype).clone()
        else:
            self.skipped.append(name)


@dataclass
class Verdict:
    """Outcome of a proof.

    Attributes:
        proven: Checkpoint tensors that a module reproduced.
        wrong: Tensor -> relative error of the module that should hold it.
        unmapped: Tensors without a module this proof knows how to ask.
        seen: Largest relative error of a proven matrix.
    """

    proven: set[str] = field(default_factory=set)
    wrong: dict[str, float] = field(default_factory=dict)
    unmapped: set[str] = field(default_factory=set)
    seen: float = 0.0

    def require(self, trusted: set[str], what: str) -> None:
        """Raises ProofError if a tensor of ``trusted`` is not proven."""
        bad = sorted(trusted - self.proven)
        if bad:
            error = self.wrong.get(bad[0])
            size = f" (relative error {error:.2g})" if error is not None else ""
            raise ProofError(
                f"{what}: the running model does not hold {bad[0]} of the checkpoint{size}; "
                f"{len(bad)} of {len(trusted)} tensors are wrong after the swap"
            )


def check(model: Any, products: Products, dtype_name: str, *, tied: bool) -> Verdict:
    """Asks every module for its products.

    Args:
        model: The running vLLM model (tensor-parallel size 1).
        products: Of the tensors that should be in place.
        dtype_name: The engine's dtype.
        tied: Whether the head uses the embeddings' tensor.
    """
    import torch

    verdict = Verdict(unmapped=set(products.skipped))
    cache: dict[str, Any] = {}
    with torch.inference_mode():
        for name, wanted in products.values.items():
            try:
                got = _ask(model, name, wanted, cache, tied)
            except (AttributeError, KeyError, NotImplementedError, RuntimeError, TypeError):
                got = []
            if got is None:  # a stored head that a tied model does not use
                continue
            if not got:
                verdict.unmapped.add(name)
                continue
            error = max(_error(value, wanted, dtype_name) for value in got)
            if error <= TOLERANCE[dtype_name]:
                verdict.proven.add(name)
                verdict.seen = max(verdict.seen, error)
            else:
                verdict.wrong[name] = error
    return verdict


def _error(got: Any, wanted: Any, dtype_name: str) -> float:
    """Root mean square error relative to the wanted values (largest error / 10 if that is more)."""
    if got.shape != wanted.shape:
        return float("inf")
    if wanted.ndim == 1:  # vectors are held as they are
        return 0.0 if bool((got.to(wanted.dtype) == wanted).all()) else float("inf")
    scale = float(wanted.square().mean().sqrt()) or 1.0
    gap = (got.float() - wanted).abs()
    error = max(float(gap.square().mean().sqrt()), float(gap.max()) / 10) / scale
    return error if error == error else float("inf")


def _place(model: Any, name: str) -> tuple[str, str, Any]:
    """(module, leaf, shard) in which vLLM keeps a checkpoint tensor."""
    mapper = getattr(model, "hf_to_vllm_mapper", None)
    shard: Any = None
    if mapper is not None and hasattr(mapper, "_map_name_with_shard"):
        mapped = mapper._map_name_with_shard(name)
        if mapped is None:
            raise KeyError(name)
        name, shard = mapped
    elif mapper is not None:
        name = mapper._map_name(name) or name
    module, _, leaf = name.rpartition(".")
    if shard is None:  # models that fuse inside load_weights
        parent, _, last = module.rpartition(".")
        for fused, parts in (getattr(model, "packed_modules_mapping", None) or {}).items():
            if last in parts and len(parts) > 1:
                module = f"{parent}.{fused}"
                shard = parts.index(last)
    return module, leaf, shard


def _ask(model: Any, name: str, wanted: Any, cache: dict[str, Any], tied: bool) -> list[Any] | None:
    """What the modules that use a tensor give for the probe; [] if there is none."""
    from vllm.model_executor.layers.linear import LinearBase
    from vllm.model_executor.layers.vocab_parallel_embedding import (
        ParallelLMHead,
        VocabParallelEmbedding,
    )

    place, leaf, shard = _place(model, name)
    module = model.get_submodule(place)
    module = getattr(module, "base_layer", module)  # wrapped for batched adapters
    if isinstance(module, ParallelLMHead) and leaf == "weight":
        return None if tied else _head_products(module, wanted)
    if isinstance(module, VocabParallelEmbedding) and leaf == "weight":
        return [_embedding_product(module, wanted)] + (
            [p for head in head_modules(model) for p in _head_products(head, wanted)]
            if tied
            else []
        )
    if isinstance(module, LinearBase):
        if leaf == "weight" and wanted.ndim == 2:
            if place not in cache:
                x = probe(module.input_size, module.params_dtype, wanted.device)
                cache[place] = module.quant_method.apply(module, x, None)
            full = cache[place]
        else:
            full = getattr(module, leaf)
        return [full[..., _part(module, shard)]]
    value = getattr(module, leaf)
    return [value] if value.shape == wanted.shape and wanted.ndim == 1 else []


def _part(module: Any, shard: Any) -> slice:
    """Output columns of one tensor in a fused layer."""
    if shard is None:
        return slice(None)
    index = {"q": 0, "k": 1, "v": 2}.get(shard, shard)
    sizes = list(module.output_sizes)
    start = sum(sizes[:index])
    return slice(start, start + sizes[index])


def _embedding_product(module: Any, wanted: Any) -> Any:
    """x E^T by looking every id up."""
    import torch

    parts = []
    for start in range(0, wanted.shape[1], _IDS_AT_ONCE):
        ids = torch.arange(start, min(start + _IDS_AT_ONCE, wanted.shape[1]), device=wanted.device)
        rows = module(ids)
        parts.append(probe(rows.shape[1], rows.dtype, rows.device).float() @ rows.float().T)
    return torch.cat(parts, dim=1)


def _head_products(head: Any, wanted: Any) -> list[Any]:
    """x W^T by the head's kernel and by its plain weight (used when the head's dtype differs)."""
    x = probe(head.weight.shape[1], head.weight.dtype, head.weight.device)
    count = wanted.shape[1]
    kernel = head.quant_method.apply(head, x, None)[:, :count]
    plain = x.float() @ head.weight[:count].float().T
    return [kernel, plain]

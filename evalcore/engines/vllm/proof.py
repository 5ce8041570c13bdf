"""Proof that the weights in place are the wanted ones.

While a checkpoint streams by, each tensor leaves small traces of the part this rank holds. What a
kernel reads as it was loaded is compared bit by bit, by a checksum of every row. What a kernel
packs for itself is asked for its product with seeded vectors, through that kernel, and may differ
from the product with the streamed tensor by no more than rounding. It costs one pass over the
weights and needs no copy of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from evalcore.engines.vllm import compat
from evalcore.engines.vllm.derived import head_modules
from evalcore.engines.vllm.experts import ExpertTraces, expert_products, stored_plainly
from evalcore.engines.vllm.places import Atlas, Dropped, Place, Unplaced, input_width
from evalcore.engines.vllm.traces import DOUBTFUL, TOLERANCE, excess, is_finite, probe, row_sums
from evalcore.identity import Layout

# Embeddings of positions; vLLM gives those the same class.
_POSITIONS = ("wpe", "embed_positions", "position_embeddings")


@dataclass
class Verdict:
    """Outcome of a proof on one rank, or combined over ranks.

    Attributes:
        proven: Checkpoint tensors that the model holds.
        wrong: Tensor -> relative error of the module that should hold it.
        unproven: Tensor -> why nothing can be said of it.
        nonfinite: Tensors with numbers that are none.
        uncovered: Parameters of the model that no proven tensor covers -> share of it covered.
        share: Share of the model's parameters that proven tensors cover.
        seen: Largest relative error of a proven product.
    """

    proven: set[str] = field(default_factory=set)
    wrong: dict[str, float] = field(default_factory=dict)
    unproven: dict[str, str] = field(default_factory=dict)
    nonfinite: list[str] = field(default_factory=list)
    uncovered: dict[str, float] = field(default_factory=dict)
    share: float = 0.0
    seen: float = 0.0

    @classmethod
    def of_ranks(cls, verdicts: list[Verdict]) -> Verdict:
        """What holds on every rank; each rank saw its own part of every tensor."""
        one = cls(share=min(verdict.share for verdict in verdicts))
        one.seen = max(verdict.seen for verdict in verdicts)
        for rank, verdict in enumerate(verdicts):
            at = f" (rank {rank})" if len(verdicts) > 1 else ""
            one.wrong |= {f"{name}{at}": gap for name, gap in verdict.wrong.items()}
            one.unproven |= verdict.unproven
            one.uncovered |= verdict.uncovered
            one.nonfinite += [name for name in verdict.nonfinite if name not in one.nonfinite]
        bad = {name for verdict in verdicts for name in (*verdict.wrong, *verdict.unproven)}
        one.proven = set.union(*(verdict.proven for verdict in verdicts)) - bad
        return one

    def hidden(self) -> str:
        """What is not proven and why, for a message; ``""`` if all is."""
        if not self.uncovered and not self.unproven:
            return ""
        if self.unproven:
            name = sorted(self.unproven)[0]
            return f"{name}: {self.unproven[name]}"
        return f"{sorted(self.uncovered)[0]} is loaded from no tensor"


@dataclass
class _Trace:
    """What a part of a tensor left behind: row checksums, or the product with the probe."""

    name: str
    place: Place
    sums: Any = None  # int64 [rows]
    product: Any = None  # float32 [2, rows]
    dtype: Any = None
    count: int = 0


class Traces:
    """Traces of streamed tensors, and what became of those that could not be followed."""

    def __init__(self, model: Any, dtype: Any, layout: Layout, *, tied: bool, packs: bool) -> None:
        """Args:
        model: The running vLLM model.
        dtype: The engine's dtype.
        layout: Tensor name -> (dtype, shape) of the checkpoint.
        tied: Whether the head uses the embeddings' tensor.
        packs: Whether kernels pack weights for themselves (on CPUs they do).
        """
        self._model, self._dtype, self._tied = model, dtype, tied
        self._packs = packs
        self._atlas = Atlas(model, layout, tied=tied)
        self._experts = ExpertTraces(dtype)
        self._traces: list[_Trace] = []
        self._heads_held = False  # whether tied heads were compared
        self._lost = 0  # numbers of tensors that could not be followed
        self.verdict = Verdict()

    def add(self, name: str, tensor: Any) -> None:
        """Keeps the traces of a tensor; never raises."""
        try:
            if not is_finite(tensor):
                self.verdict.nonfinite.append(name)
            tensor = self._atlas.as_held(name, tensor)
            for place in self._atlas.find(name, tuple(tensor.shape)):
                self._trace(name, place, tensor)
        except Dropped:
            if bool((tensor != 0).any()):  # a bias of zeros changes nothing
                self.verdict.wrong[name] = float("inf")
        except Exception as error:
            self.verdict.unproven[name] = reason(error)
            self._lost += tensor.numel()

    def _trace(self, name: str, place: Place, tensor: Any) -> None:
        if place.kind == "expert" and (self._packs or not stored_plainly(place.module)):
            self._experts.add(name, place, place.cut(tensor))
            return
        held = getattr(place.module, place.leaf)
        dtype = getattr(place.module, "params_dtype", None) or held.dtype
        part = place.cut(tensor).to(dtype)
        matrix = place.leaf == "weight" and part.ndim == 2
        packed = self._packs and matrix and place.kind in ("linear", "head")
        trace = _Trace(name, place, dtype=dtype, count=part.numel())
        if packed or (self._packs and self._shares(place)):
            trace.product = probe(part.shape[1], dtype, part.device).float() @ part.float().T
        if not (packed and place.kind == "linear"):
            trace.sums = row_sums(part)
        self._traces.append(trace)

    def keep(self, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
        """Takes checksums of what a reload must leave as it was (see derived.buffer_sums)."""
        for name in {**before, **after}:
            same = name in before and name in after and before[name].equal(after[name])
            if not same:
                self.verdict.wrong[name] = float("inf")

    def _shares(self, place: Place) -> bool:
        """Whether a place is the input embeddings that the output head uses, too."""
        last = place.name.rpartition(".")[2]
        return self._tied and place.kind == "embedding" and last not in _POSITIONS

    # -- the model's side ----------------------------------------------------------------------

    def check(self, lacks: str = "") -> Verdict:
        """Asks every module; what cannot be asked is unproven, with the reason.

        Args:
            lacks: What this vLLM lacks for a proof (see compat.probe): then nothing is asked.
        """
        if lacks:
            return self._unasked(f"{lacks} (vllm {compat.vllm_version()})")
        try:
            return self._check()
        except Exception as problem:
            return self._unasked(reason(problem))

    def _unasked(self, why: str) -> Verdict:
        """The verdict where the model as a whole cannot be asked."""
        self.verdict.proven.clear()
        self.verdict.unproven["the model"] = why
        self.verdict.share = 0.0
        return self.verdict

    def _check(self) -> Verdict:
        import torch

        verdict = self.verdict
        cache: dict[str, Any] = {}  # products of whole layers
        covered: dict[str, int] = {}
        with torch.inference_mode():
            for trace in self._traces:
                try:
                    error = self._error(trace, cache)
                except Exception as problem:
                    verdict.unproven[trace.name] = reason(problem)
                    continue
                self._judge(trace.name, trace.place.parameter, trace.count, error, covered)
            for one in self._experts.complete(verdict.unproven):
                try:
                    got = expert_products(one.module, cache)[:, one.expert]
                    error = min(excess(got, wanted, self._dtype) for wanted in one.products)
                except Exception as problem:
                    verdict.unproven |= dict.fromkeys(one.names, reason(problem))
                    continue
                for name, leaf, count in zip(one.names, one.parameters, one.counts, strict=True):
                    self._judge(name, leaf, count, error, covered)
        if self._tied and not self._heads_held and list(head_modules(self._model)):
            verdict.unproven["output head"] = "no embeddings to hold it to"
            self._lost += 1
        verdict.proven -= set(verdict.wrong) | set(verdict.unproven)
        self._cover(covered)
        return verdict

    def _judge(
        self, name: str, parameter: str, count: int, error: float, covered: dict[str, int]
    ) -> None:
        dtype = str(self._dtype).removeprefix("torch.")
        if error <= TOLERANCE[dtype]:
            self.verdict.proven.add(name)
            self.verdict.seen = max(self.verdict.seen, error)
            covered[parameter] = covered.get(parameter, 0) + count
        elif error <= DOUBTFUL[dtype]:
            self.verdict.unproven[name] = f"its kernel's product is {error:.1e} off"
        else:
            self.verdict.wrong[name] = max(error, self.verdict.wrong.get(name, 0.0))

    def _error(self, trace: _Trace, cache: dict[str, Any]) -> float:
        """Largest error of the modules that use a tensor's part."""
        place, errors = trace.place, []
        heads = [place.module] if place.kind == "head" else []
        if self._shares(place):
            heads = list(head_modules(self._model))
            self._heads_held = True
        if trace.sums is not None:
            for holder in [place, *(replace(place, module=head) for head in heads)]:
                held = holder.held().to(trace.dtype)
                same = held.shape[:1] == trace.sums.shape and bool(
                    (row_sums(held) == trace.sums).all()
                )
                errors.append(0.0 if same else float("inf"))
        if trace.product is not None:
            if place.kind == "linear":
                errors.append(excess(_kernel(place, cache), trace.product, trace.dtype))
            for head in heads:
                errors.append(excess(_head_kernel(head, place), trace.product, trace.dtype))
        _require_plain(place)
        return max(errors)

    def _cover(self, covered: dict[str, int]) -> None:
        """Counts what of the model's parameters proven tensors cover."""
        total, proven = self._lost, 0
        for name, size in _sizes(self._model).items():
            have = min(covered.get(name, 0), size)
            total, proven = total + size, proven + have
            if have < size:
                self.verdict.uncovered[name] = have / size
        self.verdict.share = proven / total if total else 0.0


def _require_plain(place: Place) -> None:
    """Raises Unplaced where a kernel reads something else than the weight in its layer."""
    method = getattr(place.module, "quant_method", None)
    multiplies = place.kind in ("linear", "embedding", "head")
    if multiplies and not isinstance(method, compat.layer_types().plain_methods):
        raise Unplaced(f"{type(method).__name__} is not a plain product")


def _kernel(place: Place, cache: dict[str, Any]) -> Any:
    """float [2, rows]: the layer's product with the probe, where this part's outputs are."""
    module = place.module
    whole = cache.get(place.name)
    if whole is None:
        device = next(module.parameters(recurse=False)).device
        x = probe(input_width(module), module.params_dtype, device)
        whole = cache[place.name] = module.quant_method.apply(module, x, None)
    return whole[..., place.at]


def _head_kernel(head: Any, place: Place) -> Any:
    """float [2, rows]: an output head's product with the probe."""
    x = probe(head.weight.shape[1], head.weight.dtype, head.weight.device)
    return head.quant_method.apply(head, x, None)[..., place.at]


def _sizes(model: Any) -> dict[str, int]:
    """Numbers that a checkpoint brings for each parameter and kept buffer of a model.

    Kernels replace parameters by packed ones; vLLM remembers their first shapes for reloading.
    Rows and columns that only fill up are left out.
    """
    vocabulary = compat.layer_types().vocabulary
    sizes: dict[str, int] = {}
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        at = compat.bare_name(prefix)
        before = compat.first_tensors(module)
        for leaf, tensor in _kept(module):
            if id(tensor) in seen:
                continue  # tied
            seen.add(id(tensor))
            first = before.get(leaf, tensor)
            size = compat.loaded_numbers(first)
            if isinstance(module, vocabulary) and leaf in ("weight", "bias"):
                own = module.shard_indices
                rows = own.org_vocab_end_index - own.org_vocab_start_index
                size = rows * int(first.shape[1] if first.ndim > 1 else 1)
            sizes[f"{at}.{leaf}" if at else leaf] = size
    return sizes


def _kept(module: Any) -> list[tuple[str, Any]]:
    """A module's own parameters, and its buffers of real numbers that a state dict would hold."""
    own = [(leaf, tensor) for leaf, tensor in module._parameters.items() if tensor is not None]
    return own + [
        (leaf, tensor)
        for leaf, tensor in module._buffers.items()
        if tensor is not None
        and leaf not in module._non_persistent_buffers_set
        and tensor.is_floating_point()
        and tensor.numel() > 1  # scales of quantised caches, 1 where no tensor brings them
    ]


def reason(error: Exception) -> str:
    """An exception while proving, for a message: what it is, what it says, which vLLM."""
    if isinstance(error, Unplaced):
        return str(error)
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''} (vllm {compat.vllm_version()})"

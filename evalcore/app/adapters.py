"""How a run applies adapters: merged into the weights, or beside them (see docs/engines.md)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from evalcore.engines.protocol import (
    AdapterWay,
    Device,
    EngineSpec,
    merge_reason,
    numerics_class,
)
from evalcore.errors import EvalcoreError, InputError
from evalcore.identity import adapter_config
from evalcore.planning import PlannedCell
from evalcore.store import ResultStore
from evalcore.types import Subject

BATCH_BELOW_TOKENS = 50_000
"""Prompt tokens asked of an adapter above which merging it costs less than applying it beside the
weights. Measured on an H100 with a model of 1B (docs/benchmarks.md): merging took 0.6 s; then
230,000 prompt tokens a second were scored packed, but 56,000 by the strategy beside adapters
(choices of several tokens, part of the contexts cached): T / 56,000 = 0.6 + T / 230,000."""
BATCH_FROM_ADAPTERS = 2
"""Adapters of a checkpoint, in the mean, from which there is anything to batch."""


@dataclass(frozen=True)
class AdapterPlan:
    """How the adapters of a run are applied.

    Attributes:
        way: ``merged`` or ``batched``.
        beside: Ids of the subjects whose adapters are applied beside the weights.
        together: Most of them that one checkpoint has.
        rank: The highest rank among them.
    """

    way: AdapterWay
    beside: frozenset[str] = frozenset()
    together: int = 1
    rank: int = 1

    def fitted(self, spec: EngineSpec) -> EngineSpec:
        """A spec with the way settled, and slots no more and no larger than needed."""
        if self.way == "merged":
            return replace(spec, adapters="merged")
        return replace(
            spec,
            adapters="batched",
            max_loras=min(spec.max_loras, self.together),
            max_lora_rank=min(spec.max_lora_rank, self.rank),
        )


def check_way(spec: EngineSpec) -> None:
    """Refuses what can not be.

    Raises:
        InputError: Batched adapters with an engine or a strategy that cannot apply them.
    """
    if spec.adapters != "batched":
        return
    if spec.kind != "vllm":
        raise InputError(
            f"--adapters batched: engine {spec.kind} takes one adapter at a time; use --engine "
            f"vllm, or --adapters merged"
        )
    if spec.strategy == "packed":
        raise InputError(
            "--adapters batched: strategy packed cannot apply adapters beside the weights; use "
            "--strategy cached or auto, or --adapters merged"
        )


def can_stand_beside(spec: EngineSpec, subjects: Sequence[Subject]) -> frozenset[str]:
    """Ids of the subjects whose adapters vLLM can apply beside the weights.

    One that fits its checkpoint in no way is not among them either: it fails alone, in the worker.
    """
    found = set()
    for subject in subjects:
        if subject.adapter is None:
            continue
        try:
            reason = merge_reason(spec, subject)
        except EvalcoreError as error:
            reason = str(error)
        if reason is None:
            found.add(subject.id)
    return frozenset(found)


def choose_way(device: Device, adapters_each: float, tokens_each: float) -> AdapterWay:
    """The rule of ``--adapters auto``.

    Args:
        device: Where it runs. On CPUs vLLM's kernel for batched adapters is several times slower
            than none, and merged weights are scored by the packed strategy.
        adapters_each: Adapters of a checkpoint that can be batched, in the mean.
        tokens_each: Prompt tokens asked of one adapter, in the mean.
    """
    if device == "cpu" or adapters_each < BATCH_FROM_ADAPTERS:
        return "merged"
    return "batched" if tokens_each < BATCH_BELOW_TOKENS else "merged"


def stored_way(store: ResultStore, spec: EngineSpec) -> AdapterWay | None:
    """The way of the cells a folder has, where it is part of their identity (16-bit).

    A folder keeps to it: with the other way every cell would be another one and scored again.
    """
    if spec.dtype == "float32":
        return None
    have = set(store.cells()["numerics"].to_pylist())
    ways: tuple[AdapterWay, ...] = ("merged", "batched")
    labels = {way: numerics_class(replace(spec, adapters=way), "cuda").label for way in ways}
    return next((way for way in ways if labels[way] in have), None)


def plan_adapters(
    spec: EngineSpec, store: ResultStore, cells: Sequence[PlannedCell]
) -> AdapterPlan:
    """Settles how the adapters of a grid are applied.

    Args:
        spec: With ``adapters`` as asked for, and with a device.
        store: The results folder.
        cells: The whole grid, whatever is scored already: a run that goes on decides the same.
    """
    device: Device = "cuda" if spec.device == "cuda" else "cpu"
    may = device == "cuda" and spec.kind == "vllm" and spec.strategy != "packed"
    if spec.adapters == "merged" or (spec.adapters == "auto" and not may):
        return AdapterPlan("merged")
    subjects = {cell.cell.subject.id: cell.cell.subject for cell in cells}
    beside = can_stand_beside(spec, list(subjects.values()))
    way: AdapterWay | None = "batched"
    if spec.adapters == "auto":
        way = stored_way(store, spec)
    homes = Counter(subjects[i].checkpoint.fingerprint for i in beside)
    if way is None:
        tokens = sum(int(c.costs.sum()) for c in cells if c.cell.subject.id in beside)
        way = choose_way(device, len(beside) / max(len(homes), 1), tokens / max(len(beside), 1))
    if way == "merged":
        return AdapterPlan("merged")
    ranks = [
        max(adapter.rank, int(adapter_config(adapter.path).get("r") or 0))
        for i in beside
        if (adapter := subjects[i].adapter) is not None
    ]
    return AdapterPlan("batched", beside, max(homes.values(), default=1), max(ranks, default=1))

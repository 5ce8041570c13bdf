"""How a run applies adapters: merged into the weights, or beside them (see docs/engines.md)."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from evalcore.config.engine import AdapterWay, Device
from evalcore.engines.protocol import EngineSpec, numerics_class
from evalcore.engines.registry import merge_reason
from evalcore.engines.rounding import MOST_LOST, lost_in
from evalcore.errors import EvalcoreError, InputError
from evalcore.identity import adapter_config
from evalcore.store import ResultStore
from evalcore.types import Subject

BATCH_BELOW_TOKENS = 50_000
"""Prompt tokens asked of an adapter above which merging it costs less than applying it beside the
weights. Measured on an H100 with a model of 1B (docs/benchmarks.md): merging took 0.6 s; then
230,000 prompt tokens a second were scored packed, but 56,000 by the strategy beside adapters
(choices of several tokens, part of the contexts cached): T / 56,000 = 0.6 + T / 230,000."""
MAX_RANK = 512
"""The largest adapter vLLM has slots for."""
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
        refused: Subject id -> why its adapter cannot be applied as the others are, where that is
            part of what a score is (16-bit).
        notes: What is worth telling.
    """

    way: AdapterWay
    beside: frozenset[str] = frozenset()
    together: int = 1
    rank: int = 1
    refused: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def fitted(self, spec: EngineSpec) -> EngineSpec:
        """A spec with the way settled, and slots no more and no larger than needed."""
        if self.way == "merged":
            return replace(spec, adapters="merged")
        return replace(
            spec,
            adapters="batched",
            max_loras=min(spec.max_loras, self.together),
            max_lora_rank=self.rank,
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


def reasons_to_merge(spec: EngineSpec, tuned: Sequence[Subject]) -> dict[str, str | None]:
    """Subject id -> why vLLM cannot apply its adapter beside the weights; None where it can.

    One that fits its checkpoint in no way has a reason, too: it fails alone, in the worker.
    """
    found: dict[str, str | None] = {}
    for subject in tuned:
        try:
            found[subject.id] = merge_reason(spec, subject)
        except EvalcoreError as error:
            found[subject.id] = str(error)
    return found


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
    spec: EngineSpec,
    store: ResultStore,
    asked: Sequence[Subject],
    tokens_of: Callable[[Collection[str]], int],
) -> AdapterPlan:
    """Settles how the adapters of a grid are applied.

    In 16-bit all of them are applied in one way, as scores of different ways are not compared: what
    cannot be batched is merged with the whole grid (``auto``) or refused (``batched``). ``auto``
    batches where merging would lose more than ``MOST_LOST`` of an adapter's change.

    Args:
        spec: With ``adapters`` as asked for, and with a device.
        store: The results folder.
        asked: Subjects of the whole grid, whatever is scored already: a run that goes on decides
            the same.
        tokens_of: Prompt tokens asked of some of them, by their ids.
    """
    subjects = {subject.id: subject for subject in asked}
    tuned = [subject for subject in subjects.values() if subject.adapter is not None]
    device: Device = "cuda" if spec.device == "cuda" else "cpu"
    may = device == "cuda" and spec.kind == "vllm" and spec.strategy != "packed"
    lost = _lost(spec, tuned)
    if spec.adapters == "merged" or (spec.adapters == "auto" and not may):
        return AdapterPlan("merged", notes=_flagged(spec, lost))
    one_way = spec.dtype != "float32"
    # Where all have to go one way, slots are as large as the largest adapter.
    slots = replace(spec, max_lora_rank=MAX_RANK) if one_way else spec
    reasons = reasons_to_merge(slots, tuned)
    beside = frozenset(own for own, reason in reasons.items() if reason is None)
    way: AdapterWay | None = "batched"
    if spec.adapters == "auto":
        way = stored_way(store, spec)
    homes = Counter(subjects[i].checkpoint.fingerprint for i in beside)
    if way is None and one_way and len(beside) < len(tuned):
        way = "merged"
    if way is None and lost is not None and lost[0] > MOST_LOST:
        way = "batched"
    if way is None:
        tokens = tokens_of(beside)
        way = choose_way(device, len(beside) / max(len(homes), 1), tokens / max(len(beside), 1))
    if way == "merged":
        return AdapterPlan("merged", notes=_flagged(spec, lost))
    ranks = [
        max(adapter.rank, int(adapter_config(adapter.path).get("r") or 0))
        for i in beside
        if (adapter := subjects[i].adapter) is not None
    ]
    refused = {
        own: f"in {spec.dtype} it cannot be batched as the others are ({reason}); score it merged "
        f"(--adapters merged)"
        for own, reason in reasons.items()
        if reason is not None and one_way
    }
    return AdapterPlan(
        "batched", beside, max(homes.values(), default=1), max(ranks, default=1), refused
    )


def _lost(spec: EngineSpec, tuned: Sequence[Subject]) -> tuple[float, str] | None:
    """(largest share of an adapter's change that merging would lose, whose); None in float32."""
    if spec.kind != "vllm" or spec.dtype == "float32":
        return None
    found = []
    for subject in tuned:
        assert subject.adapter is not None
        with contextlib.suppress(EvalcoreError):  # it fails alone, in the worker
            found.append((lost_in(subject.adapter, subject.checkpoint, spec.dtype), subject.label))
    return max(found, default=None)


def _flagged(spec: EngineSpec, lost: tuple[float, str] | None) -> tuple[str, ...]:
    if lost is None or lost[0] <= MOST_LOST:
        return ()
    return (
        f"merged into {spec.dtype}, adapters lose up to {lost[0]:.0%} of their change to rounding "
        f"(most: {lost[1]}); --adapters batched or --dtype float32 keeps it",
    )

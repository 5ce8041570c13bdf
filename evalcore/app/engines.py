"""``--engine auto``: which checkpoints vLLM scores, and which engine hf has to.

Decided per checkpoint from its files and those of its adapters, before planning. A comparison stays
within one engine: a base, its adapters, and what was fully tuned from it go the same way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from evalcore.config import ScoreConfig
from evalcore.config.engine import Device
from evalcore.engines.protocol import EngineSpec
from evalcore.engines.vllm.bases import LONGEST, refused
from evalcore.engines.vllm.contract import read_installed, verdicts
from evalcore.errors import EvalcoreError
from evalcore.identity import Applied, numeric_config, weight_layout
from evalcore.identity.applying import vllm_refuses
from evalcore.types import Checkpoint, Subject


def hf_spec(spec: EngineSpec) -> EngineSpec:
    """The same for engine hf, as ``--engine hf`` gives it."""
    return replace(spec, kind="hf", adapters="merged", strategy="auto", cuda_graphs=True)


def likely_kind(config: ScoreConfig) -> str:
    """The engine that most of a run is scored with, as far as that is known before its models."""
    if config.engine.kind != "auto":
        return config.engine.kind
    return "vllm" if _nowhere(config) is None else "hf"


def slow_ones(
    config: ScoreConfig, device: Device, applied: Applied, subjects: Sequence[Subject]
) -> tuple[frozenset[str], list[str]]:
    """(fingerprints of the checkpoints that engine hf scores, a line on each reason).

    Args:
        config: Of the run; only ``auto`` asks for this.
        device: Where the engines are.
        applied: What vLLM would do with adapters.
        subjects: Of the whole run.
    """
    if config.engine.kind != "auto":
        return frozenset(), []
    checkpoints = {s.checkpoint.fingerprint: s.checkpoint for s in subjects}
    nowhere = _nowhere(config)
    if nowhere is not None:
        return frozenset(checkpoints), [f"engine hf scores everything: {nowhere}"]
    longest = config.grid.max_length or LONGEST
    reasons = {own: _base_reason(one, device, longest) for own, one in checkpoints.items()}
    for subject in subjects:
        own = subject.checkpoint.fingerprint
        if reasons[own] is None and subject.adapter is not None:
            reasons[own] = _adapter_reason(subject, applied)
    groups = _families(checkpoints)
    slow: dict[str, str] = {}
    for own in checkpoints:
        found = next(
            (why for one in sorted(groups[own]) if (why := reasons[one]) is not None), None
        )
        if found is not None:
            slow[own] = found
    return frozenset(slow), _lines(slow, checkpoints, subjects)


def _nowhere(config: ScoreConfig) -> str | None:
    """Why vLLM can score nothing; None where it may (a cluster's nodes may have their own)."""
    findings = read_installed()
    if findings:
        return verdicts(findings)["engine"] or None
    return None if config.cluster.backend == "ray" else "vllm is not installed here"


def _base_reason(checkpoint: Checkpoint, device: Device, longest: int) -> str | None:
    return refused(checkpoint.path, numeric_config(checkpoint.path), device, longest)


def _adapter_reason(subject: Subject, applied: Applied) -> str | None:
    assert subject.adapter is not None
    base, path = subject.checkpoint, subject.adapter.path
    try:
        layout, config = weight_layout(base.path), numeric_config(base.path)
        return vllm_refuses(path, layout, config, base.name, applied, base.path)
    except EvalcoreError:  # it fails alone, in the worker
        return None


def _families(checkpoints: Mapping[str, Checkpoint]) -> dict[str, set[str]]:
    """Checkpoint -> those it is compared with: parents and what was tuned from them."""
    groups = {own: {own} for own in checkpoints}
    for own, checkpoint in checkpoints.items():
        parent = groups.get(checkpoint.parent or "")
        if parent is not None and parent is not groups[own]:
            parent |= groups[own]
            for one in groups[own]:
                groups[one] = parent
    return groups


def _lines(
    slow: Mapping[str, str], checkpoints: Mapping[str, Checkpoint], subjects: Sequence[Subject]
) -> list[str]:
    """One line for each reason: whom it concerns."""
    by_reason: dict[str, list[str]] = {}
    for own, reason in slow.items():
        by_reason.setdefault(reason.partition("; engine hf")[0], []).append(own)
    lines = []
    for reason, owners in by_reason.items():
        names = [checkpoints[own].name for own in owners]
        more = f" and {len(names) - 3:,} more" if len(names) > 3 else ""
        count = sum(s.checkpoint.fingerprint in owners and s.adapter is not None for s in subjects)
        adapters = f" with {count:,} adapter{'s' if count > 1 else ''}" if count else ""
        lines.append(f"engine hf scores {', '.join(names[:3])}{more}{adapters}: {reason}")
    return lines

"""Scores cases and architectures in an engine's process: a number, or the line of a refusal."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from evalcore.engines.protocol import EngineSpec
from evalcore.engines.vllm.bases import unsupported
from evalcore.errors import EvalcoreError
from evalcore.identity import Applied, check_adapter, check_base, numeric_config
from evalcore.identity.weights import weight_layout
from evalcore.types import Subject
from tests.agreement.engine_models import subject
from tests.agreement.engine_processes import running
from tests.agreement.wild_making import batch, case_of, who

SPECS: dict[str, EngineSpec] = {
    "unmerged": EngineSpec(kind="hf", device="cpu", threads=1, max_length=512),
    "merged": EngineSpec(device="cpu", threads=1, max_length=512),
    "batched": EngineSpec(
        device="cpu", threads=1, max_length=512, adapters="batched", max_loras=2, max_lora_rank=16
    ),
    "ranks": EngineSpec(device="cpu", threads=1, max_length=512, tensor_parallel=2),
}
CELLS = {
    "unmerged": ("hf", "hf adapter"),
    "merged": ("first", "second", "merged"),
    "batched": ("batched",),
    "ranks": ("first", "second", "merged"),
}
"""Way -> what is visited of an architecture on it, in this order."""
EFFECT = 0.1  # nats that an adapter changes a score by at least, if the case is one at all


@dataclass(frozen=True)
class Found:
    """What became of a cell.

    Attributes:
        error: Largest difference to the reference in nats; None if nothing was scored.
        said: The line of a refusal; else what the load report said of an adapter.
        when: ``scored``; or refused while ``planning`` or ``loading``; ``unmade``; ``crash``.
    """

    error: float | None
    said: str
    when: str


def attempt(way: str, one: Subject, expected: np.ndarray) -> Found:
    """Plans and scores one subject as a run would.

    Args:
        way: A key of ``SPECS``.
        one: The subject.
        expected: float64 [T_continuation], of its reference.
    """
    applied = cast(Applied, "merged" if way == "ranks" else way)
    base = one.checkpoint.path
    config, layout = numeric_config(base), weight_layout(base)
    try:
        check_base(base, config, layout)
        if applied != "unmerged" and (reason := unsupported(base, config, "cpu")) is not None:
            return Found(None, reason, "planning")
        if one.adapter is not None:
            check_adapter(one.adapter.path, layout, config, base, applied, base)
    except EvalcoreError as error:
        return Found(None, str(error), "planning")
    try:
        engine: Any = running(SPECS[way])
        report = engine.load(one)
        got = engine.score(batch()).token_logprobs
    except EvalcoreError as error:
        return Found(None, str(error), "loading")
    except Exception as error:
        return Found(None, f"{type(error).__name__}: {error}".splitlines()[0], "crash")
    if applied != "unmerged" and report.proven_share < 1.0:
        alone = "started for this subject" in report.details.get("engine", "")
        said = f"{report.proven_share:.1%} proven, an engine of its own: {alone}"
        return Found(float(np.abs(got - expected).max()), said, "scored")
    said = report.details.get("adapter", "") if one.adapter is not None else ""
    return Found(float(np.abs(got - expected).max()), said, "scored")


def visit_cases(folder: Path, way: str, names: Sequence[str]) -> dict[str, Found]:
    """What becomes of each case on one engine."""
    expected = np.load(folder / "expected.npz")
    unmade = json.loads((folder / "unmade.json").read_text())
    found: dict[str, Found] = {}
    for name in sorted(names, key=lambda name: case_of(name).base):
        if name in unmade:
            found[name] = Found(None, f"PEFT does not make it: {unmade[name]}", "unmade")
            continue
        one, plain = who(folder, name), name.partition("@")[0]
        assert one.adapter is not None
        still = dataclasses.replace(one.adapter, untrained=plain == "alpha0")
        made = attempt(way, dataclasses.replace(one, adapter=still), expected[name])
        found[name] = made
        base = expected[f"base:{case_of(name).base}"]
        effect = float(np.abs(expected[name] - base).max())
        if made.error is not None and effect < EFFECT and plain != "alpha0":
            found[name] = dataclasses.replace(made, said=f"the adapter changes {effect:.1e} only")
    return found


def visit_family(folder: str, way: str) -> dict[str, Found]:
    """What becomes of an architecture's checkpoints and adapters on one engine."""
    expected = np.load(Path(folder) / "expected.npz")
    bases = {f"base-{i}": Path(folder) / f"step-{i}" for i in (1, 2)}
    which = {
        "hf": "base-1", "hf adapter": "tuned-1", "first": "base-1", "second": "base-2",
        "merged": "tuned-2", "batched": "tuned-1",
    }  # fmt: skip
    found = {}
    for cell in CELLS[way]:
        name = which[cell]
        base = bases[name.replace("tuned", "base")]
        adapter = Path(folder) / name if name.startswith("tuned") else None
        found[cell] = attempt(way, subject(base, adapter), expected[name])
    return found

"""Mixtures of experts: second checkpoints and merged adapters in a living engine, against hf."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evalcore.engines.protocol import EngineSpec
from evalcore.types import ScoreBatch, Subject
from tests.agreement.engine_models import (
    EXPERTS,
    edge_batch,
    save_adapter,
    save_model,
    subject,
)
from tests.agreement.engine_processes import (
    Child,
    assert_agrees,
    oracle,
    visit,
)

SPEC = EngineSpec(device="cpu", threads=2, max_length=512)


def make(folder: str, kind: str, batch: ScoreBatch) -> tuple[dict[str, Subject], dict[str, Any]]:
    """Two checkpoints and an adapter on attention for each, and what the oracle says of them."""
    root = Path(folder)
    bases = [save_model(root / f"step-{seed}", kind, seed, layers=2) for seed in (1, 2)]
    tuned = [
        save_adapter(root / f"tuned-{i}", base, 10 + i, targets=("q_proj", "o_proj"))
        for i, base in enumerate(bases)
    ]
    subjects = {f"base {i}": subject(base) for i, base in enumerate(bases)}
    subjects |= {f"tuned {i}": subject(bases[i], adapter) for i, adapter in enumerate(tuned)}
    answers = oracle([(who, batch, None) for who in subjects.values()])
    return subjects, dict(zip(subjects, answers, strict=True))


def check(children: tuple[Child, Child], folder: Path, kind: str, order: list[str]) -> list[Any]:
    """Load reports of visits; each agrees with the oracle, and returns bring the same numbers."""
    batch = edge_batch(3)
    subjects, expected = children[0].call(make, str(folder), kind, batch)
    who = [subjects[name] for name in order]
    visits = children[1].call(visit, SPEC, who, batch, None, True)
    seen: dict[str, Any] = {}
    for name, (_, scores, _) in zip(order, visits, strict=True):
        assert_agrees(scores, expected[name], batch)
        assert np.array_equal(seen.setdefault(name, scores.token_logprobs), scores.token_logprobs)
    return [report for report, _, _ in visits]


ORDER = ["base 0", "base 1", "tuned 1", "base 0", "tuned 0"]


@pytest.mark.slow
def test_experts_follow_swaps_and_merges(children: tuple[Child, Child], tmp_path: Path) -> None:
    reports = check(children, tmp_path, "olmoe-untied", ORDER)
    assert [report.kind for report in reports] == ["start", "swap", "merge", "swap", "merge"]


@pytest.mark.proof
@pytest.mark.parametrize("family", EXPERTS)
def test_every_family_of_experts(
    children: tuple[Child, Child], tmp_path: Path, family: str
) -> None:
    check(children, tmp_path, f"{family}-untied", [*ORDER, "tuned 1", "tuned 0", "base 1"])

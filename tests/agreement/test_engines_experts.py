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


def make_fused(folder: str, kind: str, batch: ScoreBatch) -> tuple[dict[str, Subject], Any]:
    """Two checkpoints and for each an adapter on experts that PEFT sees as one parameter."""
    root = Path(folder)
    subjects = {}
    for i in range(2):
        base = save_model(root / f"step-{i}", kind, i + 1, layers=2)
        tuned = save_adapter(
            root / f"fused-{i}", base, 20 + i, targets=("q_proj",), r=3,
            target_parameters=["experts.gate_up_proj", "experts.down_proj"],
        )  # fmt: skip
        subjects |= {f"base {i}": subject(base), f"fused {i}": subject(base, tuned)}
    answers = oracle([(who, batch, None) for who in subjects.values()])
    return subjects, dict(zip(subjects, answers, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    "family",
    [
        "mixtral",
        *(pytest.param(f, marks=pytest.mark.proof) for f in ("olmoe", "qwen3moe")),
    ],
)
def test_fused_experts_are_merged_in_a_living_engine(
    children: tuple[Child, Child], tmp_path: Path, family: str
) -> None:
    """``target_parameters``: what vLLM scores after the merge is what PEFT scores, to 1e-4."""
    batch = edge_batch(3)
    subjects, expected = children[0].call(make_fused, str(tmp_path), f"{family}-untied", batch)
    order = ["base 0", "fused 0", "fused 1", "base 0", "fused 0"]
    visits = children[1].call(visit, SPEC, [subjects[n] for n in order], batch, None, True)
    assert [report.kind for report, _, _ in visits] == ["start", "merge", "swap", "swap", "merge"]
    for name, (_, scores, _) in zip(order, visits, strict=True):
        assert_agrees(scores, expected[name], batch)
        gap = np.abs(scores.token_logprobs - expected[name][0].token_logprobs).max()
        assert gap <= 1e-4, (name, gap)
    first, other = (expected[name][0].token_logprobs for name in ("base 0", "fused 0"))
    assert np.abs(first - other).max() > 0.01, "an adapter that changes nothing would prove nothing"
    assert visits[1][0].proven_share == 1

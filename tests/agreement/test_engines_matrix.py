"""Architectures x strategies x ways of applying adapters x cold, hot and shuffled, against hf."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evalcore.engines.protocol import EngineSpec
from evalcore.engines.vllm.environment import CPU_BLOCK_SIZE
from evalcore.planning import block_limit, token_limit
from evalcore.types import ScoreBatch, Subject
from tests.agreement.engine_models import (
    NEOX_LINEAR,
    boundary_batch,
    save_adapter,
    save_model,
    shuffled,
    subject,
)
from tests.agreement.engine_processes import (
    Child,
    assert_agrees,
    oracle,
    running,
)

KINDS = (
    "llama-tied", "llama-untied", "olmo-tied", "olmo2-untied", "neox-untied", "qwen-tied",
    "mistral-sliding",
)  # fmt: skip
MERGED = EngineSpec(device="cpu", threads=2, max_length=512)
BATCHED = dataclasses.replace(MERGED, adapters="batched", max_loras=2, max_lora_rank=16)


def make(folder: str, kind: str, batch: ScoreBatch) -> tuple[dict[str, Subject], dict[str, Any]]:
    """A base and two adapters of different rank, and what the oracle says of each."""
    root = Path(folder)
    base = save_model(root / kind, kind, 1)
    targets = {"targets": NEOX_LINEAR} if kind.startswith("neox") else {}
    subjects = {
        "base": subject(base),
        "one": subject(base, save_adapter(root / "one", base, 2, **targets)),  # type: ignore[arg-type]
        "two": subject(base, save_adapter(root / "two", base, 3, r=16, use_rslora=True, **targets)),  # type: ignore[arg-type]
    }
    answers = oracle([(who, batch, None) for who in subjects.values()])
    return subjects, dict(zip(subjects, answers, strict=True))


def strategies_of(spec: EngineSpec, who: Subject) -> list[str]:
    """Loads a subject; names of the strategies its engine can use, the chosen one first."""
    from evalcore.engines.vllm.strategies import SCORERS

    engine: Any = running(spec)
    engine.load(who)
    facts, names = engine._facts, []
    for kind in SCORERS:
        scorer = kind()
        if scorer.obstacle(engine._llm, facts) is None and (
            scorer.adapters or spec.adapters != "batched"
        ):
            names.append(scorer.name)
    assert engine._scorer.name == names[0]
    return names


def score_with(
    spec: EngineSpec, strategy: str, who: list[Subject], batches: list[ScoreBatch]
) -> list[list[Any]]:
    """Results of every batch for every subject by one strategy; subjects of a batch in one call."""
    from evalcore.engines.vllm.strategies import SCORERS

    engine: Any = running(spec)
    engine._scorer = next(kind() for kind in SCORERS if kind.name == strategy)
    engine._scorer.obstacle(engine._llm, engine._facts)
    return [engine.score_many([(one, batch) for one in who]) for batch in batches]


def back(result: Any, at: np.ndarray, batch: ScoreBatch) -> Any:
    """The result of a shuffled batch in the original order."""
    values = np.empty_like(result.token_logprobs)
    values[at] = result.token_logprobs
    starts = np.searchsorted(batch.continuation_offsets, at, side="right") - 1
    firsts = np.flatnonzero(np.diff(starts, prepend=-1))
    greedy = np.empty_like(result.is_greedy)
    greedy[starts[firsts]] = result.is_greedy
    return dataclasses.replace(result, token_logprobs=values, is_greedy=greedy)


def check(
    children: tuple[Child, Child], folder: Path, kind: str, groups: int, specs: list[EngineSpec]
) -> int:
    """Number of cases (context groups scored and compared)."""
    oracle_child, engine_child = children
    batch = boundary_batch(5, groups)
    mixed, at = shuffled(6, batch)
    subjects, expected = oracle_child.call(make, str(folder), kind, batch)
    who = list(subjects.values())
    cases, largest = 0, 0.0
    for spec in specs:
        names = engine_child.call(strategies_of, spec, who[0])
        if kind.endswith("-sliding"):
            assert "packed" not in names
        elif spec is MERGED:
            assert "packed" in names
        for name in names:
            # Cold; hot: again on what the cache holds now; shuffled.
            runs = engine_child.call(score_with, spec, name, who, [batch, batch, mixed])
            runs[2] = [back(result, at, batch) for result in runs[2]]
            for results in runs:
                for which, result in zip(subjects, results, strict=True):
                    assert_agrees(result, expected[which], batch)
                    gap = np.abs(result.token_logprobs - expected[which][0].token_logprobs)
                    largest = max(largest, float(gap.max()))
                    assert result.fallbacks == 0
                    cases += groups
            check_counts(name, runs, batch, sliding=kind.endswith("-sliding"))
    print(f"largest {largest:.1e} nats in {cases} cases of {kind}")
    return cases


def check_counts(name: str, runs: list[list[Any]], batch: ScoreBatch, *, sliding: bool) -> None:
    """Computed tokens of the cold runs are at their limit."""
    for result in runs[0]:
        if name == "packed":
            assert result.computed_tokens.sum() == token_limit([batch])
        elif name == "cached" and not sliding:
            limit = block_limit([batch], CPU_BLOCK_SIZE)
            assert result.computed_tokens.sum() <= 1.02 * limit


@pytest.mark.slow
def test_sample(children: tuple[Child, Child], tmp_path: Path) -> None:
    assert check(children, tmp_path, "mistral-sliding", 25, [BATCHED]) == 25 * 2 * 3 * 3


@pytest.mark.proof
@pytest.mark.parametrize("kind", KINDS)
def test_matrix(children: tuple[Child, Child], tmp_path: Path, kind: str) -> None:
    """60 random groups x 3 subjects x 4 or 5 strategies and ways x 3 runs for each architecture."""
    assert check(children, tmp_path, kind, 60, [MERGED, BATCHED]) >= 2000

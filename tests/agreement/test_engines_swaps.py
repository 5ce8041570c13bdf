"""Two hundred random swaps held to transformers and PEFT; an engine core in its own process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evalcore.engines import create_engine
from evalcore.engines.protocol import EngineSpec
from evalcore.types import ScoreBatch, Subject
from tests.agreement.engine_models import edge_batch, save_adapter, save_model, subject
from tests.agreement.engine_processes import (
    Child,
    assert_agrees,
    import_peft,
    import_vllm,
    oracle,
)

pytestmark = pytest.mark.proof
SPEC = EngineSpec(device="cpu", threads=2, max_length=512)


def make(root: Path, kind: str) -> list[Subject]:
    """Four checkpoints and an adapter for each, of ranks 4 to 32."""
    bases = [save_model(root / f"{kind}-{seed}", kind, seed) for seed in range(4)]
    tuned = [
        subject(base, save_adapter(root / f"{kind}-adapter-{i}", base, 10 + i, r=4 << i))
        for i, base in enumerate(bases)
    ]
    return [*map(subject, bases), *tuned]


def visit_all(order: list[Subject], batch: ScoreBatch) -> list[tuple[str, bool, str, Any]]:
    """(kind of load, proven, canary, scores) of every visit, on one engine."""
    engine = create_engine(SPEC)
    answers: list[tuple[str, bool, str, Any]] = []
    for who in order:
        report = engine.load(who)
        details = dict(report.details)
        answers.append((report.kind, report.proven, details.get("canary", ""), engine.score(batch)))
    engine.close()  # its other processes, if it has any, would keep this one from ending
    return answers


@pytest.mark.parametrize("kind", ["llama-tied", "llama-untied"])
def test_a_hundred_random_swaps(tmp_path: Path, kind: str) -> None:
    subjects, batch = make(tmp_path, kind), edge_batch(3)
    order = np.random.default_rng(11).integers(0, len(subjects), 101).tolist()
    peer, engine = Child(import_peft), Child(import_vllm)
    try:
        expected = peer.call(oracle, [(who, batch, None) for who in subjects])
        answers = engine.call(visit_all, [subjects[i] for i in order], batch)
    finally:
        peer.close()
        engine.close()
    seen: dict[int, Any] = {}
    for i, (how, proven, canary, scores) in zip(order, answers, strict=True):
        assert proven
        assert_agrees(scores, expected[i], batch)
        if i in seen:  # come back: the very numbers of the first visit
            assert how == "none" or "equal" in canary, canary
            assert np.array_equal(scores.token_logprobs, seen[i])
        seen.setdefault(i, scores.token_logprobs)
    assert len(seen) == len(subjects)
    kinds = [how for how, *_ in answers]
    assert kinds[0] == "start"
    assert kinds.count("start") == 1, "one engine serves them all"


def test_the_engine_core_in_a_process_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the worker says of weights and scores comes through as it was said."""
    subjects, batch = make(tmp_path, "llama-tied")[::4], edge_batch(3)
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    peer, engine = Child(import_peft), Child(import_vllm)
    try:
        expected = peer.call(oracle, [(who, batch, None) for who in subjects])
        answers = engine.call(visit_all, subjects, batch)
    finally:
        peer.close()
        engine.close()
    for (_, proven, _, scores), wanted in zip(answers, expected, strict=True):
        assert proven
        assert_agrees(scores, wanted, batch)

"""Two ranks as two processes on the CPU: proven whole, right, and refused where rank 1 is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evalcore.engines.agreement import compare
from evalcore.engines.canary import canary_batch
from evalcore.engines.protocol import EngineSpec
from evalcore.errors import EvalcoreError
from evalcore.types import ScoreBatch, Subject
from tests.agreement.engine_models import (
    VOCAB,
    random_batch,
    save_adapter,
    save_model,
    subject,
)
from tests.agreement.engine_processes import (
    Child,
    assert_agrees,
    oracle,
    running,
)

pytestmark = pytest.mark.proof
SPEC = EngineSpec(device="cpu", threads=1, max_length=256, tensor_parallel=2)
ORDER = ("base 2", "base 1", "tuned 1")


def make(folder: str, batch: ScoreBatch) -> tuple[dict[str, Subject], dict[str, Any], np.ndarray]:
    """Two checkpoints, an adapter of the first, what the oracle says, canaries of the second."""
    root = Path(folder)
    first, second = (save_model(root / f"step-{seed}", "llama-untied", seed) for seed in (1, 2))
    subjects = {
        "base 1": subject(first),
        "base 2": subject(second),
        "tuned 1": subject(first, save_adapter(root / "tuned", first, 11)),
    }
    answers = oracle([(who, batch, None) for who in subjects.values()])
    canary = oracle([(subjects["base 2"], canary_batch(VOCAB), None)])[0][0].token_logprobs
    return subjects, dict(zip(subjects, answers, strict=True)), canary


def visits(subjects: dict[str, Subject], batch: ScoreBatch) -> list[tuple[Any, Any]]:
    """(load report, scores) of each visit, the first one on a new engine."""
    from evalcore.engines.vllm import environment

    environment.WORKER_EXTENSION = "tests.agreement.tensor_parallel.Rank1"
    engine = running(SPEC)
    return [(engine.load(subjects[name]), engine.score(batch)) for name in ORDER]


def with_fault(subjects: dict[str, Subject], mode: str) -> tuple[str, str, Any]:
    """(class of the error, its message, canaries) of a swap in which rank 1 is at fault.

    No second try: each would start a new engine.
    """
    from evalcore.engines.vllm.worker import call_all

    engine: Any = running(SPEC)
    engine.load(subjects["base 1"])
    assert call_all(engine._llm, "evalcore_fault", mode) == [0, 1]
    try:
        if mode == "silent":
            engine._llm.collective_rpc = lambda *a, **more: type(engine._llm).collective_rpc(
                engine._llm, *a, **more
            )[:1]
        engine._swap(subjects["base 2"], {}, remedy=False)
        return "", "", engine._score_canary()
    except EvalcoreError as error:
        return type(error).__name__, str(error), None
    finally:
        engine._llm.__dict__.pop("collective_rpc", None)
        engine._in_place = engine._weights = None
        call_all(engine._llm, "evalcore_fault", "")


def test_two_ranks(own_pair: tuple[Child, Child], tmp_path: Path) -> None:
    batch = random_batch(3, 12, max_context=60)
    subjects, expected, canary = own_pair[0].call(make, str(tmp_path), batch)
    reports = own_pair[1].call(visits, subjects, batch)
    for name, (report, scores) in zip(ORDER, reports, strict=True):
        gap = np.abs(scores.token_logprobs - expected[name][0].token_logprobs).max()
        print(f"{name}: {report.kind}, {report.strategy}, proven {report.proven_share}, {gap:.1e}")
        assert_agrees(scores, expected[name], batch)
        assert report.proven_share == 1.0, report.details
    assert [report.kind for report, _ in reports] == ["start", "swap", "merge"]

    for mode, kind, said in (
        ("wrong", "ProofError", "model.embed_tokens.weight (rank 1)"),
        ("error", "EngineError", "reload stopped half way (rank 1)"),
        ("silent", "EngineError", "1 of 2 ranks of the engine answered"),
    ):
        error, message, _ = own_pair[1].call(with_fault, subjects, mode)
        assert (error, said in message) == (kind, True), (mode, error, message)
    # A rank that lies about itself is believed by every proof; the witness sees it.
    error, message, values = own_pair[1].call(with_fault, subjects, "kept")
    assert error == "", message
    found = compare(values, canary, None, "float32", "cpu")
    print(f"rank 1 kept its weights: {found.gap:.2g} nats")
    assert not found.agrees
    assert found.gap > 0.1

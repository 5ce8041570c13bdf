"""One process for the oracle and one for vLLM, shared by many tests; what runs inside them.

The oracle (transformers) never runs in the process of a vLLM engine: vLLM's transformers backend
patches transformers' classes, and building such a model there afterwards raises.
"""

from __future__ import annotations

import dataclasses
import importlib
import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from evalcore.engines import create_engine
from evalcore.engines.protocol import Engine, EngineSpec
from evalcore.types import GenerateBatch, GenerationSettings, ScoreBatch, Subject
from tests.agreement.engine_models import (
    ALL_LINEAR,
    edge_batch,
    generate_contexts,
    save_adapter,
    save_model,
    subject,
)

TOLERANCE = 2e-5  # the promise is 1e-4; float32 gives about 5e-6
MARGIN = 2e-4
STOPS = GenerationSettings(24, ("e", "qu"))
_TIMEOUT_S = 600.0
_live: dict[EngineSpec, Engine] = {}  # in the engine's process: the engine that runs, if any


def share_the_cores() -> None:
    """Before torch is imported: threads that wait do not spin (models here are tiny)."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


class Child:
    """A spawned process that runs one function after the other; ``warm_up`` at once."""

    def __init__(self, warm_up: Callable[[], None]) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(1, spawn, initializer=share_the_cores)
        self._pool.submit(warm_up)

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """What ``function(*args)`` returns or raises there."""
        return self._pool.submit(function, *args).result(_TIMEOUT_S)

    def pids(self) -> list[int]:
        """Of the process, if it was started."""
        return list(self._pool._processes or {})

    def close(self) -> None:
        self._pool.shutdown()

    def kill(self) -> None:
        """Ends a process that hangs; nothing waits for it."""
        for process in list((self._pool._processes or {}).values()):
            process.kill()
        self._pool.shutdown(wait=False, cancel_futures=True)


# -- in the engine's process -----------------------------------------------------------------------


def import_vllm() -> None:
    """Imports what takes longest, in the right environment."""
    from evalcore.engines.vllm.environment import prepare

    prepare(EngineSpec(device="cpu", threads=2))
    importlib.import_module("vllm")


def stop_engines() -> None:
    """Closes what runs in this process."""
    for engine in _live.values():
        engine.close()
    _live.clear()


def running(spec: EngineSpec, *, fresh: bool = False) -> Engine:
    """The engine of this process; another one is closed first (so is this one, if ``fresh``)."""
    if fresh or spec not in _live:
        stop_engines()
        _live[spec] = create_engine(spec)
    return _live[spec]


def visit(
    spec: EngineSpec,
    order: list[Subject],
    score: ScoreBatch,
    generate: GenerateBatch | None,
    fresh: bool,
) -> list[tuple[Any, Any, Any]]:
    """(load report, score result, generate result) of each visit, on one engine."""
    engine = running(spec, fresh=fresh)
    answers = []
    for who in order:
        report = engine.load(who)
        answers.append(
            (
                dataclasses.replace(report, details=dict(report.details)),
                engine.score(score),
                engine.generate(generate) if generate is not None else None,
            )
        )
    return answers


# -- in the oracle's process -----------------------------------------------------------------------


def import_peft() -> None:
    importlib.import_module("peft")


def greedy_token(who: Subject, context: list[int]) -> int:
    """The token that comes next, by transformers alone (no adapter)."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(who.checkpoint.path, dtype=torch.float32)
    with torch.inference_mode():
        return int(model(torch.tensor([context])).logits[0, -1].argmax())


def oracle(
    cases: Sequence[tuple[Subject, ScoreBatch | None, GenerateBatch | None]],
) -> list[tuple[Any, Any, Any]]:
    """(score result, margins float64 [T_continuation], generate result) of every case, by hf.

    The margin of a token is the gap between the two largest log-probabilities at its row.
    """
    from evalcore.engines.hf import HFEngine

    engine = HFEngine(EngineSpec(kind="hf", dtype="float32", device="cpu", threads=1))
    answers = []
    for who, score, generate in cases:
        engine.load(who)
        answers.append(
            (
                engine.score(score) if score is not None else None,
                engine.margins(score) if score is not None else None,
                engine.generate(generate) if generate is not None else None,
            )
        )
    return answers


def make_subjects(folder: str, kind: str) -> dict[str, Subject]:
    """Two checkpoints of one layout, each with an adapter; a zero adapter; DoRA and a head."""
    root = Path(folder)
    first = save_model(root / "step-1", kind, 1)
    second = save_model(root / "step-2", kind, 2)
    tuned = save_adapter(root / "tuned-1", first, 11)
    rslora = save_adapter(
        root / "tuned-2",
        second,
        12,
        targets=ALL_LINEAR,
        use_rslora=True,
        alpha_pattern={"q_proj": 5},
    )
    zero = save_adapter(root / "zero", first, 13, zero=True)
    subjects = {
        "base 1": subject(first),
        "tuned 1": subject(first, tuned),
        "zero 1": subject(first, zero),
        "base 2": subject(second),
        "tuned 2": subject(second, rslora),
    }
    if kind.endswith("-untied"):
        dora = save_adapter(root / "dora", second, 14, use_dora=True)
        head = save_adapter(
            root / "head", second, 15, targets=("v_proj", "lm_head", "embed_tokens")
        )
        subjects |= {"dora 2": subject(second, dora), "head 2": subject(second, head)}
    return subjects


def make_and_ask(
    folder: str, kind: str, batch: ScoreBatch, generation: GenerateBatch
) -> tuple[dict[str, Subject], dict[str, Any]]:
    """Subjects, and the oracle's (scores, margins, generations) of each."""
    subjects = make_subjects(folder, kind)
    answers = oracle([(who, batch, generation) for who in subjects.values()])
    return subjects, dict(zip(subjects, answers, strict=True))


# -- in the test's process -------------------------------------------------------------------------


def assert_agrees(result: Any, expected: tuple[Any, Any, Any], batch: ScoreBatch) -> None:
    """Within tolerance, and the same greedy tokens wherever the margin says they are certain."""
    reference, margins, _ = expected
    gap = np.abs(result.token_logprobs - reference.token_logprobs)
    assert gap.max() < TOLERANCE, f"largest difference {gap.max()}"
    sure = np.minimum.reduceat(margins, batch.continuation_offsets[:-1]) > MARGIN
    assert (result.is_greedy == reference.is_greedy)[sure].all()
    assert sure.mean() > 0.9


class Scenario:
    """Subjects of one kind of model, and what the oracle says of them."""

    def __init__(self, folder: Path, kind: str, oracle_child: Child, engine_child: Child) -> None:
        self.batch = edge_batch(3)
        self.generation = GenerateBatch(*generate_contexts(4, 12), STOPS)
        self.engine_child, self.oracle_child = engine_child, oracle_child
        self.subjects: dict[str, Subject]
        self.subjects, self.expected = oracle_child.call(
            make_and_ask, str(folder), kind, self.batch, self.generation
        )

    def run(
        self, spec: EngineSpec, order: list[str], *, generate: bool = False, fresh: bool = False
    ) -> dict[int, Any]:
        """Visits subjects on one engine; each visit must agree with the oracle."""
        batch = self.generation if generate else None
        who = [self.subjects[n] for n in order]
        visits = self.engine_child.call(visit, spec, who, self.batch, batch, fresh)
        for name, (_, scores, generated) in zip(order, visits, strict=True):
            assert_agrees(scores, self.expected[name], self.batch)
            if generate:
                reference = self.expected[name][2]
                assert generated.texts == reference.texts
                assert generated.token_counts == reference.token_counts
                assert generated.finish_reasons == reference.finish_reasons
        return dict(enumerate(visits))

    def run_batch(self, spec: EngineSpec, names: list[str], batch: ScoreBatch) -> list[Any]:
        """The score results of another batch; each must agree with the oracle."""
        who = [self.subjects[n] for n in names]
        visits = self.engine_child.call(visit, spec, who, batch, None, False)
        answers = self.oracle_child.call(oracle, [(w, batch, None) for w in who])
        for (_, scores, _), expected in zip(visits, answers, strict=True):
            assert_agrees(scores, expected, batch)
        return [scores for _, scores, _ in visits]

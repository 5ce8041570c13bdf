"""vLLM's scores, generations, swaps and merges against the oracle, on random tiny models.

Each scenario runs once in a child process per library; the tests look at what it saw.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evalcore.engines.protocol import EngineSpec, create_engine
from evalcore.errors import EvalcoreError
from evalcore.types import GenerateBatch, GenerationSettings, ScoreBatch, Subject
from tests.agreement.test_engines_support import (
    ALL_LINEAR,
    edge_batch,
    generate_contexts,
    in_process,
    oracle,
    random_batch,
    save_adapter,
    save_model,
    subject,
)

TOLERANCE = 2e-5  # the promise is 1e-4; float32 gives about 5e-6
SPEC = EngineSpec(kind="vllm", dtype="float32", device="cpu", threads=2, max_length=512)
# Small steps: splits, sharing across steps, long groups.
SMALL = dataclasses.replace(
    SPEC, strategy="packed", max_batch_tokens=256, max_num_seqs=12, kv_cache_bytes=4 << 20
)
PLAIN = dataclasses.replace(SPEC, strategy="plain")
STOPS = GenerationSettings(24, ("e", "qu"))


def make_subjects(folder: str, kind: str) -> dict[str, Subject]:
    """Two checkpoints of one layout, each with an adapter; a zero adapter; made in a child."""
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


def visit(
    spec: EngineSpec, order: list[Subject], score: ScoreBatch, generate: GenerateBatch | None
) -> list[tuple[Any, Any, Any]]:
    """(load report, score result, generate result) of each visit, on one engine."""
    engine = create_engine(spec)
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
    engine.close()
    return answers


def swap_without_remedy(before: Subject, after: Subject, batch: ScoreBatch) -> tuple[str, Any, Any]:
    """(the proof's message, scores with a stale head, scores after a proper load)."""
    from evalcore.engines.vllm.engine import VLLMEngine

    engine = VLLMEngine(SPEC)
    engine.load(before)
    message = ""
    try:
        engine._swap(after, {}, remedy=False)
    except EvalcoreError as error:
        message = str(error)
    engine._in_place = after  # as if nobody had proven anything
    stale = engine.score(batch)
    engine._in_place = None
    engine.load(after)
    good = engine.score(batch)
    engine.close()
    return message, stale, good


def assert_agrees(result: Any, expected: tuple[Any, Any, Any], batch: ScoreBatch) -> None:
    """Within tolerance, and the same greedy tokens wherever the margin says they are certain."""
    reference, margins, _ = expected
    gap = np.abs(result.token_logprobs - reference.token_logprobs)
    assert gap.max() < TOLERANCE, f"largest difference {gap.max()}"
    sure = np.minimum.reduceat(margins, batch.continuation_offsets[:-1]) > 2e-4
    assert (result.is_greedy == reference.is_greedy)[sure].all()
    assert sure.mean() > 0.9


class Scenario:
    """Subjects of one kind of model, and what the oracle says of them."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.batch = edge_batch(3)
        self.generation = GenerateBatch(*generate_contexts(4, 12), STOPS)
        self.subjects: dict[str, Subject]
        self.subjects, self.expected = in_process(
            make_and_ask, str(folder), kind, self.batch, self.generation
        )

    def run(self, spec: EngineSpec, order: list[str], *, generate: bool = False) -> dict[int, Any]:
        batch = self.generation if generate else None
        visits = in_process(visit, spec, [self.subjects[n] for n in order], self.batch, batch)
        for name, (_, scores, generated) in zip(order, visits, strict=True):
            assert_agrees(scores, self.expected[name], self.batch)
            if generated is not None:
                reference = self.expected[name][2]
                assert generated.texts == reference.texts
                assert generated.token_counts == reference.token_counts
                assert generated.finish_reasons == reference.finish_reasons
        return dict(enumerate(visits))


@pytest.fixture(scope="module")
def scenario(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Scenario]:
    made: dict[str, Scenario] = {}

    def get(kind: str) -> Scenario:
        if kind not in made:
            made[kind] = Scenario(tmp_path_factory.mktemp(kind), kind)
        return made[kind]

    return get


def test_tied_llama_packed_swapped_merged_and_generated(
    scenario: Callable[[str], Scenario],
) -> None:
    order = ["base 1", "tuned 1", "base 1", "tuned 2", "zero 1", "base 2", "tuned 1", "tuned 1"]
    here = scenario("llama-tied")
    visits = here.run(SPEC, order, generate=True)
    kinds = [visits[i][0].kind for i in range(len(order))]
    assert kinds == ["start", "merge", "merge", "swap", "swap", "swap", "swap", "none"]
    assert all(report.proven for report, _, _ in visits.values())
    assert visits[0][0].details["strategy"] == "packed"
    assert "equal" in visits[2][0].details["canary"]
    # The same weights give the same bits, whatever was loaded between.
    for one, other in ((0, 2), (1, 6), (0, 4)):
        assert (visits[one][1].token_logprobs == visits[other][1].token_logprobs).all()
    reasons = here.expected["base 1"][2].finish_reasons
    assert {"stop", "length"} <= {*reasons, *here.expected["base 2"][2].finish_reasons}
    scores = visits[0][1]
    assert scores.fallbacks == 0
    assert (
        scores.computed_tokens.sum() < 0.4 * (scores.computed_tokens + scores.cached_tokens).sum()
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama-untied", "olmo-tied", "olmo-untied"])
def test_swaps_in_random_order(scenario: Callable[[str], Scenario], kind: str) -> None:
    here = scenario(kind)
    order = np.random.default_rng(7).choice(list(here.subjects), 10).tolist()
    visits = here.run(SPEC, [*here.subjects, *order], generate=True)
    assert all(report.proven for report, _, _ in visits.values())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama-tied", "olmo-tied"])
@pytest.mark.parametrize("spec", [SMALL, PLAIN], ids=["small steps", "plain"])
def test_other_strategies(scenario: Callable[[str], Scenario], kind: str, spec: EngineSpec) -> None:
    visits = scenario(kind).run(spec, ["base 1", "tuned 2", "base 1", "tuned 1"])
    scores = visits[0][1]
    if spec is PLAIN:
        assert scores.cached_tokens.sum() == 0
    else:  # the context of 260 tokens fits no step of 256: its two continuations
        assert scores.fallbacks == 2


@pytest.mark.slow
def test_first_subject_with_an_adapter_and_a_new_layout(
    scenario: Callable[[str], Scenario], tmp_path: Path
) -> None:
    """An adapter first: its base is loaded on the way. Another layout: a new engine."""
    here, there = scenario("llama-tied"), scenario("llama-untied")
    order = [here.subjects["tuned 1"], there.subjects["tuned 2"], here.subjects["tuned 1"]]
    visits = in_process(visit, SPEC, order, here.batch, None)
    assert [report.kind for report, _, _ in visits] == ["start", "start", "start"]
    assert_agrees(visits[0][1], here.expected["tuned 1"], here.batch)
    assert_agrees(visits[1][1], there.expected["tuned 2"], here.batch)
    assert_agrees(visits[2][1], here.expected["tuned 1"], here.batch)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama-tied", "olmo-tied"])
def test_the_trap_of_the_stale_head(scenario: Callable[[str], Scenario], kind: str) -> None:
    """When this fails, vLLM reloads tied heads by itself: ``weights.refresh_heads`` can go."""
    here = scenario(kind)
    message, stale, good = in_process(
        swap_without_remedy, here.subjects["base 1"], here.subjects["base 2"], here.batch
    )
    assert_agrees(good, here.expected["base 2"], here.batch)
    assert np.abs(stale.token_logprobs - good.token_logprobs).max() > 0.1
    assert "embed_tokens" in message, "the proof must see a stale head"


def sabotage(before: Subject, after: Subject, how: str) -> str:
    """Loads ``after`` with something wrong on the way; gives the error's text."""
    from evalcore.engines.vllm import weights
    from evalcore.engines.vllm.engine import VLLMEngine

    engine = VLLMEngine(SPEC)
    engine.load(before)
    original, merge = weights.refresh_heads, weights.Merger.__call__

    def spoil(model: Any) -> None:
        original(model)
        model.model.norm.weight.data.mul_(1.001)

    def drop(self: Any, name: str, tensor: Any, dtype: Any) -> Any:
        merge(self, name, tensor, dtype)
        return tensor

    try:
        if how == "adapter dropped":
            weights.Merger.__call__ = drop  # type: ignore[method-assign]
        elif how == "norm":
            weights.refresh_heads = spoil
        engine.load(after)
    except EvalcoreError as error:
        return f"{type(error).__name__}: {error}"
    finally:
        weights.refresh_heads, weights.Merger.__call__ = original, merge  # type: ignore[method-assign]
        engine.close()
    return ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "message"), [("norm", "norm.weight"), ("adapter dropped", "not applied")]
)
def test_wrong_weights_are_noticed(
    scenario: Callable[[str], Scenario], how: str, message: str
) -> None:
    here = scenario("llama-tied")
    text = in_process(sabotage, here.subjects["base 1"], here.subjects["tuned 1"], how)
    assert text.startswith("ProofError")
    assert message in text


def bad_then_good(good: Subject, bad: list[Subject], batch: ScoreBatch) -> tuple[list[str], Any]:
    """Errors of the bad subjects, and the good one's scores afterwards on the same engine."""
    engine = create_engine(SPEC)
    engine.load(good)
    errors = []
    for who in bad:
        try:
            engine.load(who)
            errors.append("")
        except EvalcoreError as error:
            errors.append(f"{type(error).__name__}: {error}")
    report = engine.load(good)
    assert report.kind != "start"
    try:
        engine.score(ScoreBatch.from_lists([([5, 100_000], [[1]])]))
    except EvalcoreError as error:
        errors.append(f"{type(error).__name__}: {error}")
    result = engine.score(batch)
    engine.close()
    return errors, result


@pytest.mark.slow
def test_a_bad_adapter_costs_only_itself(
    scenario: Callable[[str], Scenario], tmp_path: Path
) -> None:
    here = scenario("llama-tied")
    base = Path(here.subjects["base 1"].checkpoint.path)
    empty = tmp_path / "empty"
    empty.mkdir()
    bad = [
        subject(base, in_process(save_adapter_with_head, tmp_path / "head", base)),
        subject(base, empty),
    ]
    errors, result = in_process(bad_then_good, here.subjects["base 1"], bad, here.batch)
    assert errors[0].startswith("IncompatibleError")
    assert "shares" in errors[0]
    assert errors[1].startswith("InputError")
    assert "vocabulary" in errors[2]
    assert_agrees(result, here.expected["base 1"], here.batch)


def save_adapter_with_head(folder: Path, base: Path) -> Path:
    return save_adapter(folder, base, 1, targets=("q_proj", "lm_head"))


def many(who: Subject, batches: list[ScoreBatch]) -> list[Any]:
    engine = create_engine(dataclasses.replace(SPEC, max_num_seqs=64, max_batch_tokens=1024))
    engine.load(who)
    results = [engine.score(batch) for batch in batches]
    engine.close()
    return results


@pytest.mark.slow
def test_thousands_of_contexts_in_one_batch(scenario: Callable[[str], Scenario]) -> None:
    """More than the cache, the step and the sequence limit hold, against small batches of it."""
    who = scenario("llama-tied").subjects["tuned 1"]
    whole = random_batch(1, 3000)
    stop = int(whole.continuation_offsets[np.searchsorted(whole.continuation_context, 40)])
    part = random_batch(1, 3000)
    first = ScoreBatch.from_lists(
        [
            (
                part.context(i).tolist(),
                [
                    part.continuation(int(j)).tolist()
                    for j in np.flatnonzero(part.continuation_context == i)
                ],
            )
            for i in range(40)
        ]
    )
    one, two = in_process(many, who, [whole, first])
    assert np.abs(one.token_logprobs[:stop] - two.token_logprobs).max() < TOLERANCE
    assert np.isfinite(one.token_logprobs).all()

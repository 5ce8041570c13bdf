"""vLLM's scores, generations, swaps and merges against the oracle, on random tiny models."""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evalcore.engines.protocol import EngineSpec
from evalcore.engines.vllm.environment import CPU_BLOCK_SIZE
from evalcore.errors import EngineError, EvalcoreError
from evalcore.planning import block_limit, token_limit
from evalcore.types import GenerateBatch, GenerationSettings, ScoreBatch, Subject
from tests.agreement.engine_models import (
    POSITIONS,
    every_token_batch,
    full_batch,
    random_batch,
    save_adapter,
    subject,
)
from tests.agreement.engine_processes import (
    TOLERANCE,
    Child,
    Scenario,
    assert_agrees,
    greedy_token,
    oracle,
    running,
    visit,
)

SPEC = EngineSpec(kind="vllm", dtype="float32", device="cpu", threads=2, max_length=512)
# Sequences may be as long as the model takes.
PLAIN = dataclasses.replace(SPEC, strategy="plain", max_length=POSITIONS)
# Small steps: long branches take several, what is shared is found in earlier ones.
SMALL = dataclasses.replace(
    SPEC,
    strategy="packed",
    max_length=POSITIONS,
    max_batch_tokens=256,
    max_num_seqs=12,
    kv_cache_bytes=4 << 20,
)
CACHED = dataclasses.replace(PLAIN, strategy="cached")
SPECS = pytest.mark.parametrize(
    "spec",
    [
        pytest.param(SMALL, id="packed in small steps"),
        pytest.param(CACHED, id="cached"),
        # Every start holds the strategy it takes to this one.
        pytest.param(PLAIN, id="plain", marks=pytest.mark.proof),
    ],
)
GetScenario = Callable[[str], Scenario]


@pytest.fixture(scope="module")
def scenario(
    tmp_path_factory: pytest.TempPathFactory, children: tuple[Child, Child]
) -> GetScenario:
    made: dict[str, Scenario] = {}

    def get(kind: str) -> Scenario:
        if kind not in made:
            made[kind] = Scenario(tmp_path_factory.mktemp(kind), kind, *children)
        return made[kind]

    return get


def test_tied_llama_packed_swapped_merged_and_generated(scenario: GetScenario) -> None:
    order = ["base 1", "tuned 1", "base 1", "tuned 2", "zero 1", "base 2", "tuned 1", "tuned 1"]
    here = scenario("llama-tied")
    visits = here.run(SPEC, order, generate=True, fresh=True)
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
    every = here.run_batch(SPEC, ["tuned 1"], every_token_batch(8))[0]
    assert every.is_greedy.sum() == 2
    assert scores.computed_tokens.sum() == token_limit([here.batch])


def together(
    spec: EngineSpec, who: list[Subject], batch: ScoreBatch, generations: list[GenerateBatch]
) -> list[tuple[Any, list[Any]]]:
    engine = running(spec)
    return [engine.score_and_generate(batch, generations) for one in who if engine.load(one)]


@pytest.mark.slow
def test_scores_and_generations_share_one_tree(scenario: GetScenario) -> None:
    """Also contexts that are generated for and scored, and prompts generated for twice."""
    here = scenario("llama-tied")
    names = ["tuned 1", "base 2"]
    who = [here.subjects[n] for n in names]
    scored = GenerateBatch(
        here.batch.context_tokens, here.batch.context_offsets, GenerationSettings(3, ())
    )
    generations = [here.generation, scored, here.generation]
    answers = here.engine_child.call(together, SPEC, who, here.batch, generations)
    others = here.oracle_child.call(oracle, [(one, None, scored) for one in who])
    for name, (scores, made), (_, _, other) in zip(names, answers, others, strict=True):
        assert_agrees(scores, here.expected[name], here.batch)
        for result, reference in zip(
            made, (here.expected[name][2], other, here.expected[name][2]), strict=True
        ):
            assert result.texts == reference.texts
            assert result.finish_reasons == reference.finish_reasons
        computed = scores.computed_tokens.sum() + sum(r.computed_tokens.sum() for r in made)
        assert computed == token_limit([here.batch, *generations])


@pytest.mark.slow
def test_first_subject_with_an_adapter_and_a_new_layout(scenario: GetScenario) -> None:
    """An adapter first: its base is loaded on the way. Another layout: a new engine."""
    here, there = scenario("llama-tied"), scenario("llama-untied")
    order = [here.subjects["tuned 1"], there.subjects["tuned 2"], here.subjects["tuned 1"]]
    visits = here.engine_child.call(visit, SPEC, order, here.batch, None, True)
    assert [report.kind for report, _, _ in visits] == ["start", "start", "start"]
    assert_agrees(visits[0][1], here.expected["tuned 1"], here.batch)
    assert_agrees(visits[1][1], there.expected["tuned 2"], here.batch)
    assert_agrees(visits[2][1], here.expected["tuned 1"], here.batch)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", [pytest.param("llama-untied", marks=pytest.mark.proof), "olmo-tied"]
)
def test_other_layouts(scenario: GetScenario, kind: str) -> None:
    here = scenario(kind)
    visits = here.run(SPEC, [*here.subjects, "tuned 1", "base 2", "base 1"], generate=True)
    assert all(report.proven for report, _, _ in visits.values())


@pytest.mark.proof
@pytest.mark.parametrize("kind", ["llama-tied", "llama-untied", "olmo-tied", "olmo-untied"])
def test_swaps_in_random_order(scenario: GetScenario, kind: str) -> None:
    here = scenario(kind)
    order = np.random.default_rng(7).choice(list(here.subjects), 20).tolist()
    visits = here.run(SPEC, [*here.subjects, *order], generate=True)
    assert all(report.proven for report, _, _ in visits.values())


def items(batch: ScoreBatch, contexts: int | None = None) -> list[tuple[list[int], list[Any]]]:
    """A batch (or its first contexts) as ``ScoreBatch.from_lists`` wants it."""
    owners = batch.continuation_context
    return [
        (
            batch.context(i).tolist(),
            [batch.continuation(int(j)).tolist() for j in np.flatnonzero(owners == i)],
        )
        for i in range(contexts or batch.num_contexts)
    ]


def check_strategy(here: Scenario, spec: EngineSpec) -> None:
    visits = here.run(spec, ["base 1", "tuned 2", "base 1", "tuned 1"])
    scores = visits[0][1]
    if spec is PLAIN:
        assert scores.cached_tokens.sum() == 0
    elif spec is CACHED:
        assert scores.fallbacks == 0
        assert scores.computed_tokens.sum() <= 1.02 * block_limit([here.batch], CPU_BLOCK_SIZE)
    else:  # a context longer than a step takes several
        assert scores.fallbacks == 0
        assert scores.computed_tokens.sum() == token_limit([here.batch])


@pytest.mark.slow
@SPECS
def test_strategies(scenario: GetScenario, spec: EngineSpec) -> None:
    """Each strategy; then sequences exactly as long as the model takes, and one token more."""
    here = scenario("llama-tied")
    check_strategy(here, spec)
    for scores in here.run_batch(spec, ["base 1", "tuned 2"], every_token_batch(8)):
        assert scores.is_greedy.sum() == 2
    whole = items(full_batch(6, POSITIONS + 1))  # the last token is predicted, not read
    context = whole[0][0]
    best = here.oracle_child.call(greedy_token, here.subjects["base 1"], context)
    full = ScoreBatch.from_lists([*whole, (context, [[best]])])
    results = here.run_batch(spec, ["base 1", "tuned 2"], full)
    assert results[0].is_greedy[-1]
    for scores in results:
        assert scores.fallbacks == 0
    message = here.engine_child.call(too_long, spec, here.subjects["base 1"])
    assert message.startswith(f"InputError: a sequence of {POSITIONS + 2} tokens")
    assert f"{POSITIONS + 1}; raise" in message


def too_long(spec: EngineSpec, who: Subject) -> str:
    engine = running(spec)
    engine.load(who)
    try:
        engine.score(full_batch(1, POSITIONS + 2))
    except EvalcoreError as error:
        return f"{type(error).__name__}: {error}"
    return ""


@pytest.mark.proof
@pytest.mark.parametrize("kind", ["llama-untied", "olmo-tied"])
@SPECS
def test_strategies_on_other_layouts(scenario: GetScenario, kind: str, spec: EngineSpec) -> None:
    check_strategy(scenario(kind), spec)


# -- guards while running --------------------------------------------------------------------------


def with_uncapped_hits(spec: EngineSpec, who: Subject, batch: ScoreBatch) -> Any:
    """The batch again on a hot cache, when nothing keeps hits from going too far."""
    engine: Any = running(spec)
    engine.load(who)
    engine.score(batch)
    manager = engine._llm.llm_engine.engine_core.engine_core.scheduler.kv_cache_manager
    capped = manager.get_computed_blocks
    manager.get_computed_blocks = manager.evalcore_uncapped
    try:
        return engine.score(batch)
    finally:
        manager.get_computed_blocks = capped


def with_broken_pass(spec: EngineSpec, who: Subject, batch: ScoreBatch) -> Any:
    """The batch when one pass gives numbers that are none."""
    from evalcore.engines.vllm import packed

    engine = running(spec)
    engine.load(who)
    forward = packed._forward

    def broken(runner: Any, step: Any) -> Any:
        found = forward(runner, step)
        packed._forward = forward
        return dataclasses.replace(found, values=found.values * np.nan)

    packed._forward = broken
    try:
        return engine.score(batch)
    finally:
        packed._forward = forward


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "sabotage"), [(CACHED, with_uncapped_hits), (SMALL, with_broken_pass)]
)
def test_what_cannot_be_believed_is_scored_again(
    scenario: GetScenario, spec: EngineSpec, sabotage: Callable[..., Any]
) -> None:
    here = scenario("llama-tied")
    result = here.engine_child.call(sabotage, spec, here.subjects["base 1"], here.batch)
    assert 0 < result.fallbacks < here.batch.num_continuations
    assert_agrees(result, here.expected["base 1"], here.batch)


# -- adapters beside the weights ------------------------------------------------------------------

BATCHED = dataclasses.replace(CACHED, strategy="auto", adapters="batched", max_loras=2)


def score_many(spec: EngineSpec, who: list[Subject], batch: ScoreBatch) -> list[Any]:
    return running(spec).score_many([(one, batch) for one in who])


@pytest.mark.slow
def test_batched_adapters_and_what_is_merged_all_the_same(scenario: GetScenario) -> None:
    here = scenario("llama-untied")
    order = ["base 1", "tuned 1", "zero 1", "base 1", "tuned 1", "tuned 2", "dora 2", "tuned 2"]
    visits = here.run(BATCHED, [*order, "head 2", "base 2"], generate=True, fresh=True)
    reports = [visits[i][0] for i in range(len(visits))]
    assert [r.kind for r in reports] == [
        "start", "attach", "attach", "none", "attach", "swap", "merge", "attach", "merge", "merge",
    ]  # fmt: skip
    assert reports[0].details["strategy"] == "cached"
    assert [r.details.get("adapter", "").split(":")[0] for r in reports[1:9]] == [
        "batched", "batched", "", "batched", "batched", "merged", "batched", "merged",
    ]  # fmt: skip
    assert "DoRA" in reports[6].details["adapter"]
    # Many subjects in one call: adapters together, the rest alone.
    names = ["tuned 1", "base 2", "zero 1", "dora 2", "tuned 2", "base 1"]
    results = here.engine_child.call(
        score_many, BATCHED, [here.subjects[n] for n in names], here.batch
    )
    for name, scores in zip(names, results, strict=True):
        assert_agrees(scores, here.expected[name], here.batch)


# -- a vLLM that lacks something -------------------------------------------------------------------

ATTENTION = "vllm.v1.attention.backend:CommonAttentionMetadata"
RELOAD = "vllm.v1.worker.gpu_model_runner:GPUModelRunner.reload_weights"
PROOF = "vllm.model_executor.layers.fused_moe.routed_experts:RoutedExperts"
FREE = "vllm.distributed.parallel_state:cleanup_dist_env_and_memory"


def without(
    gone: list[str], spec: EngineSpec, who: list[Subject], batch: ScoreBatch
) -> list[tuple[Any, Any, dict[str, Any]]]:
    """(report, scores, maker) of visits on a new engine, while vLLM lacks some names."""
    places = []
    for name in gone:
        module, _, path = name.partition(":")
        *owners, last = path.split(".")
        owner = functools.reduce(getattr, owners, importlib.import_module(module))
        places.append((owner, last, getattr(owner, last)))
    engine = running(spec, fresh=True)
    try:
        for owner, last, _ in places:
            delattr(owner, last)
        return [(engine.load(one), engine.score(batch), engine.made_by()) for one in who]
    finally:
        for owner, last, value in places:
            setattr(owner, last, value)
        engine.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("gone", "lost", "strategy"),
    [([ATTENTION, RELOAD], {"packed", "reload"}, "cached"), ([PROOF], {"proof"}, "packed")],
)
def test_what_vllm_lacks_is_done_without_and_said(
    scenario: GetScenario, gone: list[str], lost: set[str], strategy: str
) -> None:
    here = scenario("llama-tied")
    names = ["base 1", "tuned 2"]
    who = [here.subjects[name] for name in names]
    visits = here.engine_child.call(without, gone, SPEC, who, here.batch)
    for name, (report, scores, maker) in zip(names, visits, strict=True):
        assert_agrees(scores, here.expected[name], here.batch)
        assert report.kind == "start"
        assert report.strategy == strategy
        assert {k for k, v in maker["capabilities"].items() if v != "there"} == lost
        assert all(f"without {capability}: " in report.details["without"] for capability in lost)
        assert report.proven == ("proof" not in lost)
    assert "started for this subject" in visits[1][0].details["engine"]


def test_a_vllm_that_lacks_the_essential_is_one_line(scenario: GetScenario) -> None:
    here = scenario("llama-tied")
    with pytest.raises(EngineError, match=r"has no cleanup_dist_env_and_memory; .*--engine hf"):
        here.engine_child.call(without, [FREE], SPEC, [here.subjects["base 1"]], here.batch)


# -- wrong weights are noticed ---------------------------------------------------------------------


def swap_without_remedy(before: Subject, after: Subject, batch: ScoreBatch) -> tuple[str, Any, Any]:
    """(the proof's message, scores with a stale head, scores after a proper load)."""
    engine: Any = running(SPEC)
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
    return message, stale, engine.score(batch)


def check_stale_head(here: Scenario) -> None:
    message, stale, good = here.engine_child.call(
        swap_without_remedy, here.subjects["base 1"], here.subjects["base 2"], here.batch
    )
    assert_agrees(good, here.expected["base 2"], here.batch)
    assert np.abs(stale.token_logprobs - good.token_logprobs).max() > 0.1
    assert "embed_tokens" in message, "the proof must see a stale head"


@pytest.mark.slow
def test_the_trap_of_the_stale_head(scenario: GetScenario) -> None:
    """When this fails, vLLM reloads tied heads by itself: ``derived.after_reload`` can go."""
    check_stale_head(scenario("llama-tied"))


@pytest.mark.proof
def test_the_trap_of_the_stale_head_in_olmo(scenario: GetScenario) -> None:
    check_stale_head(scenario("olmo-tied"))


def sabotage(before: Subject, after: Subject, how: str, batch: ScoreBatch) -> tuple[str, Any, Any]:
    """Loads ``after`` with something wrong on the way: the error, and what comes afterwards."""
    from evalcore.engines.vllm import derived, lora

    engine = running(SPEC, fresh=True)  # canaries of an earlier visit would notice, too
    engine.load(before)
    original, merge = derived.after_reload, lora.Merger.sum

    def spoil(model: Any) -> None:
        original(model)
        model.model.norm.weight.data.mul_(1.001)

    def drop(self: Any, name: str, tensor: Any) -> Any:
        merge(self, name, tensor)
        return tensor

    message, report = "", None
    try:
        if how == "adapter dropped":
            lora.Merger.sum = drop  # type: ignore[method-assign]
        elif how == "norm":
            derived.after_reload = spoil
        report = engine.load(after)
    except EvalcoreError as error:
        message = f"{type(error).__name__}: {error}"
    finally:
        derived.after_reload, lora.Merger.sum = original, merge  # type: ignore[method-assign]
    report = report or engine.load(after)
    answer = message, dataclasses.replace(report, details=dict(report.details)), engine.score(batch)
    running(SPEC, fresh=True)  # the other one does not swap any more
    return answer


@pytest.mark.slow
def test_a_merge_that_drops_the_adapter_is_refused(scenario: GetScenario) -> None:
    here = scenario("llama-tied")
    text, report, scores = here.engine_child.call(
        sabotage, here.subjects["base 1"], here.subjects["tuned 1"], "adapter dropped", here.batch
    )
    assert text.startswith("ProofError")
    assert "not what its matrices say" in text
    assert report.kind == "start", "the fault was in the merge: an engine is not to be trusted"
    assert_agrees(scores, here.expected["tuned 1"], here.batch)


@pytest.mark.slow
def test_a_swap_that_is_not_proven_is_mended_by_a_new_engine(scenario: GetScenario) -> None:
    here = scenario("llama-tied")
    text, report, scores = here.engine_child.call(
        sabotage, here.subjects["base 1"], here.subjects["tuned 1"], "norm", here.batch
    )
    assert not text
    assert report.kind == "start"
    assert "norm.weight" in report.details["engine"]
    assert report.proven_share == 1
    assert_agrees(scores, here.expected["tuned 1"], here.batch)


def partly(before: Subject, after: Subject, batch: ScoreBatch) -> tuple[str, Any, Any]:
    """A load without one shard of a fused layer: the error, scores as they are then, and mended."""
    from evalcore.engines.vllm import weights

    engine: Any = running(SPEC)
    engine.load(before)
    original = weights.Reading.tensors

    def without_a_shard(reading: weights.Reading) -> Iterator[tuple[str, Any]]:
        return (
            (name, tensor)
            for name, tensor in original(reading)
            if "layers.1.self_attn.k_proj" not in name
        )

    message = ""
    weights.Reading.tensors = without_a_shard  # type: ignore[assignment,method-assign]
    try:
        engine._swap(after, {})
    except EvalcoreError as error:
        message = f"{type(error).__name__}: {error}"
    finally:
        weights.Reading.tensors = original  # type: ignore[method-assign]
    engine._in_place = after  # as if nobody had proven anything
    wrong = engine.score(batch)
    engine._in_place = None
    engine.load(after)
    return message, wrong, engine.score(batch)


@pytest.mark.slow
def test_the_trap_of_the_partly_loaded_fused_layer(scenario: GetScenario) -> None:
    """vLLM says nothing of a missing shard and computes with what happens to be in memory."""
    here = scenario("llama-tied")
    message, wrong, good = here.engine_child.call(
        partly, here.subjects["base 1"], here.subjects["base 2"], here.batch
    )
    assert message.startswith("ProofError")
    assert "layers.1.self_attn.k_proj" in message
    gap = np.abs(wrong.token_logprobs - good.token_logprobs)
    assert not gap.max() < 0.01
    assert_agrees(good, here.expected["base 2"], here.batch)


def bad_then_good(good: Subject, bad: list[Subject], batch: ScoreBatch) -> tuple[list[str], Any]:
    """Errors of the bad subjects, and the good one's scores afterwards on the same engine."""
    engine = running(SPEC)
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
    return errors, engine.score(batch)


def save_adapter_with_head(folder: Path, base: Path) -> Path:
    return save_adapter(folder, base, 1, targets=("q_proj", "lm_head"))


@pytest.mark.slow
def test_a_bad_adapter_costs_only_itself(scenario: GetScenario, tmp_path: Path) -> None:
    here = scenario("llama-tied")
    base = Path(here.subjects["base 1"].checkpoint.path)
    empty = tmp_path / "empty"
    empty.mkdir()
    bad = [
        subject(base, here.oracle_child.call(save_adapter_with_head, tmp_path / "head", base)),
        subject(base, empty),
    ]
    errors, result = here.engine_child.call(bad_then_good, here.subjects["base 1"], bad, here.batch)
    assert errors[0].startswith("IncompatibleError")
    assert "shares" in errors[0]
    assert errors[1].startswith("InputError")
    assert "vocabulary" in errors[2]
    assert_agrees(result, here.expected["base 1"], here.batch)


# -- much ------------------------------------------------------------------------------------------


def many(spec: EngineSpec, who: Subject, batches: list[ScoreBatch]) -> list[Any]:
    engine = running(spec)
    engine.load(who)
    return [engine.score(batch) for batch in batches]


@pytest.mark.proof
def test_thousands_of_contexts_in_one_batch(scenario: GetScenario) -> None:
    """More than the cache, the step and the sequence limit hold, against the oracle's part."""
    here = scenario("llama-tied")
    whole = random_batch(1, 3000)
    part = ScoreBatch.from_lists(items(whole, 200))
    spec = dataclasses.replace(SPEC, max_num_seqs=64, max_batch_tokens=1024)
    scores, alone = here.engine_child.call(many, spec, here.subjects["tuned 1"], [whole, part])
    stop = len(part.continuation_tokens)
    assert np.isfinite(scores.token_logprobs).all()
    assert np.abs(scores.token_logprobs[:stop] - alone.token_logprobs).max() < TOLERANCE
    here.run_batch(spec, ["tuned 1"], part)


@pytest.mark.proof
@pytest.mark.parametrize(("tokens", "seqs", "cache"), [(128, 3, 2), (200, 40, 3), (1024, 256, 64)])
def test_random_batches(scenario: GetScenario, tokens: int, seqs: int, cache: int) -> None:
    """Random batches under several limits of a step and of the cache (MiB)."""
    here = scenario("llama-tied")
    spec = dataclasses.replace(
        SPEC, max_batch_tokens=tokens, max_num_seqs=seqs, kv_cache_bytes=cache << 20
    )
    for seed in range(10, 15):
        here.run_batch(spec, ["tuned 2", "base 1"], random_batch(seed, 60))

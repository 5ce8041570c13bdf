"""Ways to score on a running vLLM engine; each says what it needs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, cast

import numpy as np

from evalcore.config.engine import Strategy
from evalcore.engines.vllm.cached import cap_cache_hits, make_tails, spread
from evalcore.engines.vllm.growth import Growth, with_generations
from evalcore.engines.vllm.objects import LLM
from evalcore.engines.vllm.requests import (
    PORTION,
    Ask,
    Work,
    ask,
    first_line,
    require_finite,
    reset_cache,
)
from evalcore.engines.vllm.worker import call
from evalcore.errors import EngineError, SubjectError
from evalcore.types import FloatArray, GenerateBatch, GenerateResult, ScoreBatch, ScoreResult

_log = logging.getLogger("evalcore")


class Scorer(Protocol):
    """A way to score; made once per engine start.

    Attributes:
        name: As in ``EngineSpec.strategy``.
        adapters: Whether it can apply adapters beside the weights.
    """

    name: str
    adapters: bool

    def obstacle(self, llm: LLM, facts: Mapping[str, Any]) -> str | None:
        """Why it cannot be used on this engine; None if it can."""
        ...

    def score(self, llm: LLM, works: Sequence[Work]) -> list[ScoreResult]:
        """Scores every continuation of every batch."""
        ...


class PlainScorer:
    """One request per continuation with prompt log-probabilities, no cache reads.

    Needs nothing of the architecture. Every prompt token is computed once per continuation and goes
    through the output head: exact and slow.
    """

    name = "plain"
    adapters = True

    def obstacle(self, llm: LLM, facts: Mapping[str, Any]) -> str | None:
        return None

    def score(self, llm: LLM, works: Sequence[Work]) -> list[ScoreResult]:
        """Scores every continuation of every batch."""
        drafts = [_Draft(work) for work in works]
        rescore(llm, drafts, [range(work.batch.num_continuations) for work in works])
        return [draft.result(0) for draft in drafts]


class _Draft:
    """A result that is being filled in."""

    def __init__(self, work: Work) -> None:
        batch = self.batch = work.batch
        self.work = work
        self.values = np.full(len(batch.continuation_tokens), np.nan)
        self.greedy = np.zeros(len(batch.continuation_tokens), dtype=bool)
        self.computed = np.zeros(batch.num_contexts, dtype=np.int64)
        self.cached = np.zeros(batch.num_contexts, dtype=np.int64)

    def broken(self) -> list[int]:
        """Continuations without a finite number for each token."""
        if not len(self.values):
            return []
        fine = np.logical_and.reduceat(
            np.isfinite(self.values), self.batch.continuation_offsets[:-1]
        )
        return [int(i) for i in np.flatnonzero(~fine)]

    def result(self, fallbacks: int) -> ScoreResult:
        require_finite(self.values)
        greedy = self.greedy
        if len(greedy):
            greedy = np.logical_and.reduceat(greedy, self.batch.continuation_offsets[:-1])
        return ScoreResult(self.values, greedy, self.computed, self.cached, fallbacks)


def rescore(llm: LLM, drafts: Sequence[_Draft], chosen: Sequence[Sequence[int]]) -> None:
    """Scores continuations the plain way into drafts.

    Raises:
        EngineError: If vLLM answered about other tokens.
    """
    longest = int(llm.llm_engine.model_config.max_model_len)
    places = [(draft, i) for draft, some in zip(drafts, chosen, strict=True) for i in some]
    for begin in range(0, len(places), PORTION):
        portion = places[begin : begin + PORTION]
        asks = [_whole(draft, i, longest) for draft, i in portion]
        for (draft, i), one, answer in zip(portion, asks, ask(llm, asks), strict=True):
            if answer.fault is not None and "finite" not in answer.fault:
                raise EngineError(f"vllm answered a request without cache with {answer.fault}")
            start, stop = draft.batch.continuation_offsets[i : i + 2]
            found = [*answer.last, *answer.labels]
            assert len(found) == stop - start, one
            draft.values[start:stop] = [value for value, _ in found]
            draft.greedy[start:stop] = [best for _, best in found]
            draft.computed[draft.batch.continuation_context[i]] += answer.computed


def _whole(draft: _Draft, i: int, longest: int) -> Ask:
    """A continuation after its context, as one prompt.

    vLLM wants room for one answer: of a sequence of full length the last token is asked for as a
    label.
    """
    batch = draft.batch
    continuation = batch.continuation(i).tolist()
    tokens = [*batch.context(int(batch.continuation_context[i])).tolist(), *continuation]
    if len(tokens) < longest:
        return Ask(draft.work, tokens, len(continuation))
    return Ask(draft.work, tokens[:-1], len(continuation) - 1, (tokens[-1],))


class CachedScorer:
    """One request per distinct tail, contexts from the prefix cache (see cached).

    Needs the scheduler in this process. A request whose answer is about other tokens, came with too
    long a cache hit, or is not finite is scored again the plain way and counted.
    """

    name = "cached"
    adapters = True

    def __init__(self) -> None:
        self._block_size = 1

    def obstacle(self, llm: LLM, facts: Mapping[str, Any]) -> str | None:
        self._block_size = int(facts["block_size"])
        return facts["lacks"]["cap"] or cap_cache_hits(llm)

    def score(self, llm: LLM, works: Sequence[Work]) -> list[ScoreResult]:
        """Scores every continuation of every batch."""
        drafts = [_Draft(work) for work in works]
        tails = [make_tails(work, self._block_size) for work in works]
        asks = [one.ask(work) for work, some in zip(works, tails, strict=True) for one in some]
        answers = list(ask(llm, asks))
        begin, again = 0, []
        for draft, some in zip(drafts, tails, strict=True):
            mine = answers[begin : begin + len(some)]
            begin += len(some)
            spread(some, mine, draft.values, draft.greedy, draft.computed)
            again.append(draft.broken())
            needed = _needed(draft.batch)
            draft.cached = np.maximum(needed - draft.computed, 0)
        rescore(llm, drafts, again)
        return [draft.result(len(some)) for draft, some in zip(drafts, again, strict=True)]


def _needed(batch: ScoreBatch) -> Any:
    """int64 [N]: positions needed for each context's group if nothing was shared."""
    needed = np.zeros(batch.num_contexts, dtype=np.int64)
    owner = batch.continuation_context
    lengths = np.diff(batch.context_offsets)[owner] + np.diff(batch.continuation_offsets) - 1
    np.add.at(needed, owner, lengths)
    return needed


class PackedScorer:
    """A prefix tree in cache blocks, scored inside the worker (see packing, packed).

    Needs one full-attention cache group, no sliding window, TP = PP = 1, an idle engine. What does
    not fit the cache, and any number that is not finite, is scored again by the plain strategy and
    counted.
    """

    name = "packed"
    adapters = False

    def __init__(self) -> None:
        self.steps = 0

    def obstacle(self, llm: LLM, facts: Mapping[str, Any]) -> str | None:
        obstacle: str | None = facts["packed_obstacle"]
        return obstacle

    def score(self, llm: LLM, works: Sequence[Work]) -> list[ScoreResult]:
        """Scores every continuation of every batch."""
        return [self._score(llm, work) for work in works]

    def _score(self, llm: LLM, work: Work) -> ScoreResult:
        if not work.batch.num_continuations:
            return _Draft(work).result(0)
        return self._read(llm, work, self._run(llm, work.batch, None))

    def generate(
        self,
        llm: LLM,
        work: Work,
        generations: Sequence[GenerateBatch],
        tokenizer: Any,
        end_ids: Sequence[int],
    ) -> tuple[ScoreResult, list[GenerateResult]] | None:
        """Scores and generates in one tree; None if a generation does not fit the cache."""
        growth = Growth.of(generations, tokenizer, end_ids)
        answer = self._run(llm, with_generations(work.batch, generations), growth)
        first = work.batch.num_continuations
        if any(i >= first for i in answer["leftover"]):
            return None
        contexts = work.batch.num_contexts
        grown: Growth = answer["growth"]  # a copy, if the worker is another process
        results = grown.results(
            generations, answer["computed"][contexts:], answer["cached"][contexts:]
        )
        return self._read(llm, work, answer), results

    def _run(self, llm: LLM, batch: ScoreBatch, growth: Growth | None) -> dict[str, Any]:
        if llm.llm_engine.has_unfinished_requests():
            raise EngineError("packed passes need an idle engine, but requests are running")
        try:
            answer: dict[str, Any] = call(llm, "evalcore_run", batch, growth)
        finally:
            reset_cache(llm)  # its blocks were overwritten
        self.steps += answer["steps"]
        return answer

    def _read(self, llm: LLM, work: Work, answer: dict[str, Any]) -> ScoreResult:
        """The answer about the batch itself; what is not a number is scored again."""
        draft, batch = _Draft(work), work.batch
        tokens = len(batch.continuation_tokens)
        draft.values, draft.greedy = answer["values"][:tokens], answer["greedy"][:tokens]
        draft.computed = answer["computed"][: batch.num_contexts]
        draft.cached = answer["cached"][: batch.num_contexts]
        again = draft.broken()  # what was left over, too
        rescore(llm, [draft], [again])
        return draft.result(len(again))


# The cheapest first; the last one always works.
SCORERS: tuple[type[Scorer], ...] = (PackedScorer, CachedScorer, PlainScorer)


def choose_scorer(
    llm: LLM,
    facts: Mapping[str, Any],
    asked: Strategy,
    score_canary: Callable[[Scorer], FloatArray],
    *,
    batched: bool,
    tolerance: float,
) -> Scorer:
    """The strategy asked for, or for ``auto`` the cheapest one that can be used.

    Args:
        llm: ``vllm.LLM``.
        facts: Of the running engine (see worker).
        asked: What the user wants.
        score_canary: Scores a fixed batch cold by a strategy.
        batched: Whether adapters are applied beside the weights.
        tolerance: How far a strategy may be from the plain one there, in nats.

    Raises:
        EngineError: The strategy asked for cannot be used.
    """
    for kind in SCORERS:
        scorer = kind()
        if asked not in ("auto", scorer.name):
            continue
        obstacle = scorer.obstacle(llm, facts)
        if batched and not scorer.adapters:
            obstacle = "it cannot apply adapters beside the weights"
        if obstacle is None and scorer.name != PlainScorer.name:
            obstacle = _disagreement(scorer, score_canary, tolerance)
        if obstacle is None:
            return scorer
        if asked != "auto":
            raise EngineError(f"strategy {scorer.name} is not possible here: {obstacle}")
        _log.warning("not scoring by strategy %s: %s", scorer.name, obstacle)
    raise AssertionError("plain has no obstacle")


def settled_scorer(
    choose: Callable[[Strategy], Scorer],
    asked: Strategy,
    settle: Callable[[str], str],
    numerics: str,
) -> Scorer:
    """The strategy that all engines of a comparison score by: the first one's.

    Where the user names another, it is taken, and the rows say by what they were made.

    Args:
        choose: :func:`choose_scorer` of this engine.
        asked: What the user wants.
        settle: Gives what is settled (``""``: nothing); if nothing is, the argument from now on.
        numerics: Label of the class of the numbers, for messages.

    Raises:
        EngineError: This engine cannot score as was settled.
    """
    settled = settle("")
    if asked == "auto" and not settled:
        scorer = choose("auto")
        settled = settle(scorer.name)  # another's, if that was faster
        if settled == scorer.name:
            return scorer
    elif asked != "auto":
        scorer = choose(asked)
        settled = settle(scorer.name)
        if settled != scorer.name:
            _log.warning(
                "scoring by strategy %s as asked, where others of these results were scored by "
                "%s: differences say so (%s)", scorer.name, settled, numerics,
            )  # fmt: skip
        return scorer
    try:
        return choose(cast(Strategy, settled))
    except EngineError as error:
        raise EngineError(
            f"{error}; these results are scored by {settled} in {numerics}, and another strategy "
            "gives other numbers: --strategy names one (differences then say so), or take another "
            "results folder"
        ) from error


def _disagreement(
    scorer: Scorer, score_canary: Callable[[Scorer], FloatArray], tolerance: float
) -> str | None:
    """Why a strategy is not to be trusted on this machine; None if it agrees with plain."""
    plain = score_canary(PlainScorer())
    try:
        gap = float(np.abs(score_canary(scorer) - plain).max())
    except SubjectError:
        raise
    except Exception as error:  # kernels and metadata differ between vLLM versions
        return f"it failed ({first_line(error)})"
    return None if gap <= tolerance else f"it differs from plain by {gap:.2g} nats"

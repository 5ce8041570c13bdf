"""vLLM behind the Engine protocol: what is asked of the subject in place."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from evalcore.engines.protocol import made_by
from evalcore.engines.text import tokenizer_and_ends
from evalcore.engines.vllm.generation import GenerateWork, generate
from evalcore.engines.vllm.plans import PLANS
from evalcore.engines.vllm.requests import Work, reset_cache
from evalcore.engines.vllm.resident import Resident
from evalcore.engines.vllm.strategies import PackedScorer
from evalcore.errors import EngineError, InputError
from evalcore.types import (
    Checkpoint,
    GenerateBatch,
    GenerateResult,
    ScoreBatch,
    ScoreResult,
    Subject,
)

Batch = TypeVar("Batch", ScoreBatch, GenerateBatch)
WorkType = TypeVar("WorkType", Work, GenerateWork)
Result = TypeVar("Result", ScoreResult, GenerateResult)


class VLLMEngine(Resident):
    """Scores and generates under the loaded subject; loading is :class:`Resident`'s."""

    def score(self, batch: ScoreBatch) -> ScoreResult:
        """Log-probabilities of continuations under the loaded subject.

        Raises:
            InputError: A token id outside the vocabulary, or a sequence that is too long.
            EngineError: No subject is loaded, or the numbers are not finite.
        """
        return self._score([self._work(batch)])[0]

    def expect(self, batch: ScoreBatch) -> None:
        """Plans a batch that will probably be scored next; by a thread beside what is scored."""
        if isinstance(self._scorer, PackedScorer):
            PLANS.expect(batch)

    def _work(self, batch: ScoreBatch) -> Work:
        """A batch under the loaded subject."""
        salt = self._salt()
        owner = batch.continuation_context
        total = np.diff(batch.context_offsets)[owner] + np.diff(batch.continuation_offsets)
        self._check(batch.context_tokens, total)
        self._check(batch.continuation_tokens, total)
        return Work(batch, salt, self._lora)

    def _score(self, works: Sequence[Work]) -> list[ScoreResult]:
        begin = time.perf_counter()
        results = self._scorer.score(self._running, works)
        self._stats["score_s"] += time.perf_counter() - begin
        self._stats["steps"] = float(getattr(self._scorer, "steps", 0))
        for result in results:
            self._stats["fallbacks"] += result.fallbacks
            self._count(result)
        return results

    def score_many(self, items: Sequence[tuple[Subject, ScoreBatch]]) -> list[ScoreResult]:
        """Loads and scores several subjects; batched adapters of one checkpoint in one run.

        Raises:
            EvalcoreError: As ``load`` and ``score``.
        """
        return self._many(items, self._work, self._score)

    def generate(self, batch: GenerateBatch) -> GenerateResult:
        """Greedy continuations under the loaded subject.

        Raises:
            InputError: The checkpoint has no tokenizer, or a context is too long.
            EngineError: No subject is loaded.
        """
        return self._generate([self._generate_work(batch)])[0]

    def score_and_generate(
        self, batch: ScoreBatch, generations: Sequence[GenerateBatch]
    ) -> tuple[ScoreResult, list[GenerateResult]]:
        """Both under the loaded subject; by the packed strategy, contexts are computed once.

        Raises:
            EvalcoreError: As ``score`` and ``generate``.
        """
        works = [self._generate_work(contexts) for contexts in generations]
        together = self._generate_packed(self._work(batch), generations) if works else None
        if together is not None:
            return together
        return self.score(batch), self._generate(works) if works else []

    def _generate_packed(
        self, work: Work, generations: Sequence[GenerateBatch]
    ) -> tuple[ScoreResult, list[GenerateResult]] | None:
        """Scores and generates in one tree; None where that cannot be or does not pay."""
        # On GPUs vLLM's own loop replays CUDA graphs, which packed passes cannot.
        if not isinstance(self._scorer, PackedScorer) or self._device != "cpu":
            return None
        begin = time.perf_counter()
        answer = self._scorer.generate(self._running, work, generations, *self._text())
        self._stats["generate_s"] += time.perf_counter() - begin
        if answer is not None:
            self._stats["steps"] = float(self._scorer.steps)
            self._stats["fallbacks"] += answer[0].fallbacks
            self._count(answer[0])
            for result in answer[1]:
                self._count(result)
        return answer

    def _text(self) -> tuple[Any, tuple[int, ...]]:
        """(tokenizer, end tokens) of the loaded subject's checkpoint."""
        assert self._in_place is not None
        return tokenizer_and_ends(self._in_place.checkpoint)

    def _generate_work(self, batch: GenerateBatch) -> GenerateWork:
        """A batch under the loaded subject."""
        salt = self._salt()
        self._check(batch.context_tokens, np.diff(batch.context_offsets) + 1)
        return GenerateWork(batch, salt, self._lora)

    def _generate(self, works: Sequence[GenerateWork]) -> list[GenerateResult]:
        nothing = Work(ScoreBatch.from_lists([]), "")
        together = self._generate_packed(nothing, [work.batch for work in works])
        if together is not None:
            return together[1]
        begin = time.perf_counter()
        results = generate(self._running, works, *self._text())
        self._stats["generate_s"] += time.perf_counter() - begin
        for result in results:
            self._count(result)
        return results

    def generate_many(self, items: Sequence[tuple[Subject, GenerateBatch]]) -> list[GenerateResult]:
        """Loads several subjects and generates; batched adapters of one checkpoint in one run.

        Raises:
            EvalcoreError: As ``load`` and ``generate``.
        """
        return self._many(items, self._generate_work, self._generate)

    def _many(
        self,
        items: Sequence[tuple[Subject, Batch]],
        prepare_one: Callable[[Batch], WorkType],
        run: Callable[[list[WorkType]], list[Result]],
    ) -> list[Result]:
        """Runs items together while all their adapters can stay loaded beside the weights."""
        answers: dict[int, Result] = {}
        waiting: dict[int, WorkType] = {}

        def finish() -> None:
            answers.update(zip(waiting, run(list(waiting.values())), strict=True))
            waiting.clear()

        order = sorted(range(len(items)), key=lambda i: items[i][0].checkpoint.fingerprint)
        together: Checkpoint | None = None
        for i in order:
            subject, batch = items[i]
            # Without an adapter only alone: vLLM's kernel for CPUs (0.32) gives such rows of a
            # mixed batch the adapter of the last slot, silently.
            joins = together == subject.checkpoint and self._can_attach(subject, {})
            if waiting and not (joins and self._attach(subject, {})):
                finish()
            self.load(subject)
            together = subject.checkpoint if self._lora is not None else None
            waiting[i] = prepare_one(batch)
            if together is None:
                finish()
        if waiting:
            finish()
        return [answers[i] for i in range(len(items))]

    def _count(self, result: ScoreResult | GenerateResult) -> None:
        self._stats["computed_tokens"] += float(result.computed_tokens.sum())
        self._stats["cached_tokens"] += float(result.cached_tokens.sum())

    def _salt(self) -> str:
        """Keys the prefix cache by the weights in place, so that a stale hit cannot happen."""
        if self._in_place is None or self._llm is None:
            raise EngineError("engine vllm: load a subject before asking for scores")
        return hashlib.blake2b(self._in_place.weights.encode(), digest_size=16).hexdigest()

    def _check(self, tokens: Any, totals: Any) -> None:
        if len(tokens) and (
            int(tokens.max()) >= self._facts["vocab_size"] or int(tokens.min()) < 0
        ):
            raise InputError(
                f"token id {int(tokens.max())} is outside the model's vocabulary of "
                f"{self._facts['vocab_size']}; tokenizer and checkpoint do not fit"
            )
        if len(totals) and int(totals.max()) > self._facts["max_length"]:
            raise InputError(
                f"a sequence of {int(totals.max())} tokens is longer than the engine's "
                f"{self._facts['max_length']}; raise max_length or shorten prompts"
            )

    def forget(self) -> None:
        """Empties the prefix cache."""
        if self._llm is not None:
            reset_cache(self._llm)

    def made_by(self) -> dict[str, Any]:
        """What gives the numbers of the subject in place."""
        own = made_by(self._spec, self._device, self._report)
        own["block_size"] = int(self._facts.get("block_size", 0))
        own["attention"] = str(self._facts.get("attention", ""))
        own["capabilities"] = {
            capability: lacks or "there"
            for capability, lacks in self._facts.get("lacks", {}).items()
        }
        return own

    def stats(self) -> dict[str, float]:
        return dict(self._stats)

    def close(self) -> None:
        self._stop()

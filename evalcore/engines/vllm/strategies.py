"""Ways to score and to generate on a running vLLM engine; each declares what it needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from evalcore.engines.text import finish
from evalcore.engines.vllm.packing import sort_contexts
from evalcore.errors import EngineError, InputError
from evalcore.types import GenerateBatch, GenerateResult, ScoreBatch, ScoreResult

# generate() takes all requests in before its first step, so they come in portions.
_PORTION = 5000


class PlainScorer:
    """One request per continuation with prompt log-probabilities, no cache reads.

    Needs nothing of the architecture. Every prompt token is computed once per continuation and goes
    through the output head: exact and slow.
    """

    name = "plain"

    def score(self, llm: Any, batch: ScoreBatch, salt: str) -> ScoreResult:
        """Scores every continuation of a batch."""
        values = np.full(len(batch.continuation_tokens), np.nan)
        greedy = np.zeros(batch.num_continuations, dtype=bool)
        computed = np.zeros(batch.num_contexts, dtype=np.int64)
        self.fill(llm, batch, range(batch.num_continuations), salt, values, greedy, computed)
        _require_finite(values)
        return ScoreResult(values, greedy, computed, np.zeros_like(computed))

    def fill(
        self,
        llm: Any,
        batch: ScoreBatch,
        chosen: Sequence[int],
        salt: str,
        values: Any,
        greedy: Any,
        computed: Any,
    ) -> None:
        """Scores continuations ``chosen`` into ``values`` and ``greedy``; adds to ``computed``."""
        longest = int(llm.llm_engine.model_config.max_model_len)
        for begin in range(0, len(chosen), _PORTION):
            portion = chosen[begin : begin + _PORTION]
            sequences = [
                np.concatenate(
                    [batch.context(int(batch.continuation_context[i])), batch.continuation(i)]
                ).tolist()
                for i in portion
            ]
            # vLLM wants room for one answer: a sequence of full length leaves its last token out.
            full = [len(tokens) >= longest for tokens in sequences]
            prompts = [
                {"prompt_token_ids": tokens[:-1] if cut else tokens, "cache_salt": salt}
                for tokens, cut in zip(sequences, full, strict=True)
            ]
            parameters = [
                _prompt_logprobs(tokens[-1] if cut else None)
                for tokens, cut in zip(sequences, full, strict=True)
            ]
            outputs = _run(llm, prompts, parameters)
            for i, tokens, output in zip(portion, sequences, outputs, strict=True):
                start, stop = batch.continuation_offsets[i : i + 2]
                logprobs, best = _read_logprobs(tokens, output, int(stop - start))
                values[start:stop], greedy[i] = logprobs, all(best)
                computed[batch.continuation_context[i]] += len(output.prompt_token_ids)


def _prompt_logprobs(last: int | None) -> Any:
    """Parameters that ask for a prompt's log-probabilities, and for ``last`` as the answer's."""
    from vllm import SamplingParams

    return SamplingParams(
        max_tokens=1,
        temperature=0.0,
        prompt_logprobs=0,
        logprob_token_ids=None if last is None else [last],
        flat_logprobs=True,
        detokenize=False,
        ignore_eos=True,
        skip_reading_prefix_cache=True,
    )


def _read_logprobs(tokens: list[int], output: Any, count: int) -> tuple[list[float], list[bool]]:
    """(log-probability, is arg max) of the last ``count`` of ``tokens``.

    Raises:
        EngineError: If vLLM answered about other tokens.
    """
    asked: list[int] = []
    logprobs: list[float] = []
    best: list[bool] = []
    inside = count - (len(tokens) - len(output.prompt_token_ids))
    if inside:
        flat = output.prompt_logprobs
        asked += flat.token_ids[-inside:]
        logprobs += flat.logprobs[-inside:]
        best += [rank == 1 for rank in flat.ranks[-inside:]]
    if inside < count:  # the token asked for as the answer comes after the one vLLM chose
        answer = output.outputs[0]
        asked.append(answer.logprobs.token_ids[-1])
        logprobs.append(answer.logprobs.logprobs[-1])
        best.append(answer.token_ids[0] == tokens[-1])
    if asked != tokens[-count:]:
        raise EngineError("vllm returned log-probabilities of other tokens than asked")
    return logprobs, best


class PackedScorer:
    """Contexts shared in cache blocks, scored inside the worker (see packing, packed).

    Needs one full-attention cache group, no sliding window, PP = 1, an idle engine. What does not
    fit a step, and any number that is not finite, is scored again by the plain strategy and
    counted.
    """

    name = "packed"

    def __init__(self) -> None:
        self.steps = 0

    def score(self, llm: Any, batch: ScoreBatch, salt: str) -> ScoreResult:
        """Scores every continuation of a batch."""
        if batch.num_continuations == 0:
            return PlainScorer().score(llm, batch, salt)
        if llm.llm_engine.has_unfinished_requests():
            raise EngineError("packed scoring needs an idle engine, but requests are running")
        try:
            answer = llm.collective_rpc("evalcore_score", args=(batch,))[0]
        finally:
            reset_cache(llm)  # its blocks were overwritten
        self.steps += answer["steps"]
        values, computed = answer["values"], answer["computed"]
        offsets = batch.continuation_offsets
        greedy = np.logical_and.reduceat(answer["greedy"], offsets[:-1])
        broken = ~np.logical_and.reduceat(np.isfinite(values), offsets[:-1])
        again = sorted({*answer["leftover"], *np.flatnonzero(broken).tolist()})
        if again:
            PlainScorer().fill(llm, batch, again, salt, values, greedy, computed)
            _require_finite(values)
        return ScoreResult(values, greedy, computed, answer["cached"], fallbacks=len(again))


def generate(
    llm: Any, batch: GenerateBatch, tokenizer: Any, end_ids: Sequence[int], salt: str
) -> GenerateResult:
    """Greedy generation with the prefix cache on; neighbours in token order share prefixes.

    Args:
        llm: ``vllm.LLM``.
        batch: Contexts and when to end.
        tokenizer: The checkpoint's own; the text kept comes from it, not from the engine.
        end_ids: Tokens that end a generation.
        salt: Keys the prefix cache.
    """
    count = batch.num_contexts
    order = sort_contexts(batch)
    endings: list[Any] = [None] * count
    cached = np.zeros(count, dtype=np.int64)

    def run(chosen: Sequence[int], stops: Sequence[str]) -> list[int]:
        """Fills in ``chosen``; gives those that vLLM stopped although there is no stop string."""
        parameters = _greedy(batch.settings.max_tokens, stops, end_ids)
        wrong = []
        for begin in range(0, len(chosen), _PORTION):
            portion = chosen[begin : begin + _PORTION]
            prompts = [
                {"prompt_token_ids": batch.context(i).tolist(), "cache_salt": salt} for i in portion
            ]
            for i, output in zip(portion, _run(llm, prompts, parameters), strict=True):
                done = output.outputs[0]
                endings[i] = finish(list(done.token_ids), tokenizer, end_ids, batch.settings)
                cached[i] = output.num_cached_tokens or 0
                if done.finish_reason == "stop" and endings[i].finish_reason != "stop":
                    wrong.append(i)
        return wrong

    # vLLM (0.32) looks for stop strings in text that may begin inside the prompt, when the prompt
    # ends with half a character. Such an early end is not believed: generated again without them.
    wrong = run(order, batch.settings.stops)
    if wrong:
        run(wrong, ())
    lengths = np.diff(batch.context_offsets).astype(np.int64)
    return GenerateResult(
        [e.text for e in endings],
        [e.token_count for e in endings],
        [e.finish_reason for e in endings],
        lengths - cached,
        cached,
    )


def _greedy(max_tokens: int, stops: Sequence[str], end_ids: Sequence[int]) -> Any:
    from vllm import SamplingParams

    return SamplingParams(
        max_tokens=max_tokens,
        temperature=0.0,
        # Ends are given explicitly: the engine's idea of them is that of its first checkpoint.
        ignore_eos=True,
        stop_token_ids=list(end_ids),
        stop=list(stops),
        detokenize=bool(stops),
        include_stop_str_in_output=True,
    )


def reset_cache(llm: Any) -> None:
    """Empties the prefix cache.

    Raises:
        EngineError: If blocks are still in use.
    """
    if not llm.reset_prefix_cache():
        raise EngineError("vllm could not reset its prefix cache: requests are still running")


def _run(llm: Any, prompts: list[dict[str, Any]], parameters: Any) -> list[Any]:
    """Outputs of prompts, in their order; ``parameters`` are one for all or one for each."""
    try:
        outputs: list[Any] = llm.generate(prompts, parameters, use_tqdm=False)
    except ValueError as error:  # vLLM's word for a request it does not accept
        raise InputError(f"vllm refused a request: {str(error).strip().splitlines()[0]}") from error
    return outputs


def _require_finite(values: Any) -> None:
    if not np.isfinite(values).all():
        raise EngineError(
            f"{int((~np.isfinite(values)).sum())} log-probabilities are not finite even when "
            f"scored one by one; the weights are broken or overflow in this dtype (try float32)"
        )

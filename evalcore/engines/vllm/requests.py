"""Requests of vLLM's own interface that ask for log-probabilities, and their answers."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evalcore.cluster import pulse
from evalcore.engines.vllm import compat
from evalcore.engines.vllm.objects import LLM, LLMEngine
from evalcore.errors import EngineError, InputError
from evalcore.types import ScoreBatch

# generate() takes all requests in before its first step, so they come in portions.
PORTION = 5000
# Most ids vLLM accepts in ``logprob_token_ids``.
MOST_LABELS = 128
# ``SamplingParams.extra_args`` entry: prompt tokens a request may take from the prefix cache.
CAP_KEY = "evalcore_cap"


@dataclass(frozen=True)
class Work:
    """A batch to score under one subject.

    Attributes:
        batch: Contexts and continuations.
        salt: Keys the prefix cache by the weights in use.
        lora: vLLM's LoRARequest where the adapter is applied beside the weights.
    """

    batch: ScoreBatch
    salt: str
    lora: Any = None


@dataclass(frozen=True)
class Ask:
    """One request.

    Attributes:
        work: Whose cache salt and adapter it uses.
        tokens: The prompt.
        last: How many of its last tokens' log-probabilities are wanted.
        labels: Tokens whose log-probabilities after the prompt are wanted.
        cap: Prompt tokens that may come from the prefix cache; None: none may.
    """

    work: Work
    tokens: list[int]
    last: int
    labels: tuple[int, ...] = ()
    cap: int | None = None


@dataclass(frozen=True)
class Answer:
    """What came of an :class:`Ask`.

    Attributes:
        last: Log-probability and whether it is the arg max, of each token asked for.
        labels: The same of each label.
        computed: Prompt tokens run through the model.
        cached: Prompt tokens from the prefix cache.
        fault: Why the numbers must not be used, if so.
    """

    last: list[tuple[float, bool]]
    labels: list[tuple[float, bool]]
    computed: int
    cached: int
    fault: str | None = None


def ask(llm: LLM, asks: Sequence[Ask]) -> Iterator[Answer]:
    """Answers in the order of ``asks``."""
    for begin in range(0, len(asks), PORTION):
        portion = asks[begin : begin + PORTION]
        prompts = [{"prompt_token_ids": a.tokens, "cache_salt": a.work.salt} for a in portion]
        loras = [a.work.lora for a in portion]
        outputs = answers_of(llm, prompts, [_parameters(a) for a in portion], loras)
        for a, output in zip(portion, outputs, strict=True):
            yield _read(a, output)


def _parameters(a: Ask) -> Any:
    return compat.sampling(
        max_tokens=1,
        temperature=0.0,
        prompt_logprobs=0 if a.last else None,
        logprob_token_ids=list(a.labels) or None,
        flat_logprobs=True,
        detokenize=False,
        ignore_eos=True,
        skip_reading_prefix_cache=a.cap is None,
        extra_args=None if a.cap is None else {CAP_KEY: a.cap},
        skip_clone=True,
    )


def _read(a: Ask, output: Any) -> Answer:
    fault = None
    last: list[tuple[float, bool]] = []
    labels: list[tuple[float, bool]] = []
    cached = int(output.num_cached_tokens or 0)
    if a.last:
        flat = output.prompt_logprobs
        last = [
            (value, rank == 1)
            for value, rank in zip(flat.logprobs[-a.last :], flat.ranks[-a.last :], strict=True)
        ]
        if list(flat.token_ids[-a.last :]) != a.tokens[-a.last :]:
            fault = "log-probabilities of other tokens than asked"
    if a.labels:  # they come after the token vLLM chose
        answer = output.outputs[0]
        found = answer.logprobs
        stop = 1 + len(a.labels)
        labels = [
            (value, token == answer.token_ids[0])
            for value, token in zip(found.logprobs[1:stop], a.labels, strict=False)
        ]
        if tuple(found.token_ids[1:stop]) != a.labels:
            fault = "log-probabilities of other labels than asked"
    if cached > (a.cap or 0):
        fault = "more prompt tokens from the cache than allowed"
    elif not all(np.isfinite(value) for value, _ in (*last, *labels)):
        fault = "log-probabilities that are not finite"
    return Answer(last, labels, len(a.tokens) - cached, cached, fault)


def answers_of(
    llm: LLM, prompts: list[dict[str, Any]], parameters: Any, loras: list[Any] | None = None
) -> list[Any]:
    """Outputs of prompts, in their order; ``parameters`` are one for all or one for each."""
    adapters = loras if loras and any(lora is not None for lora in loras) else None
    _count_steps(llm.llm_engine)
    try:
        outputs: list[Any] = llm.generate(
            prompts, parameters, use_tqdm=False, lora_request=adapters
        )
    except ValueError as error:
        _abort(llm)
        # vLLM's word for a request it does not accept, but only before the first step: after an
        # error inside one it keeps what it had begun, and is not to be asked again.
        steps = {frame.name for frame in traceback.extract_tb(error.__traceback__)}
        if steps & {"_run_engine", "step"}:
            raise EngineError(f"vllm failed while it computed: {first_line(error)}") from error
        # Before one it is its word for a request it does not accept.
        raise InputError(f"vllm refused a request: {first_line(error)}") from error
    except Exception:
        _abort(llm)
        raise
    return outputs


def _count_steps(engine: LLMEngine) -> None:
    """Has every step of vLLM's engine show that the worker is alive."""
    step = engine.step
    if getattr(step, "counted", False):
        return

    def counted(*args: Any, **more: Any) -> Any:
        pulse.tick()
        return step(*args, **more)

    counted.counted = True  # type: ignore[attr-defined]
    engine.step = counted


def _abort(llm: LLM) -> None:
    """Ends what an error in a step left behind.

    What a refused request left behind vLLM ends itself, what a failed step left it does not.
    """
    with contextlib.suppress(Exception):  # the first error is the one to tell
        left = compat.unfinished(llm)
        if left:
            llm.llm_engine.abort_request(left, internal=True)


def reset_cache(llm: LLM) -> None:
    """Empties the prefix cache.

    Raises:
        EngineError: If blocks are still in use.
    """
    if not llm.reset_prefix_cache():
        raise EngineError("vllm could not reset its prefix cache: requests are still running")


def require_finite(values: Any) -> None:
    """Raises EngineError unless every number is finite."""
    if not np.isfinite(values).all():
        raise EngineError(
            f"{int((~np.isfinite(values)).sum())} log-probabilities are not finite even when "
            f"scored one by one; the weights are broken or overflow in this dtype (try float32)"
        )


def first_line(error: BaseException) -> str:
    """What an exception of another library says, for a message of one line."""
    text = str(error).strip()
    if isinstance(error, KeyError):  # a model's loader looks a tensor up by its name
        return f"the model its config.json describes has no place for {text}"
    lines = text.splitlines() or [type(error).__name__]
    reasons = [line.strip() for line in lines if line.strip().startswith("Value error, ")]
    if " validation error" in lines[0] and reasons:  # pydantic's: the first reason, not a count
        return reasons[0].removeprefix("Value error, ").partition(" [type=")[0]
    return lines[0]

"""Greedy generation through vLLM's own scheduler, many batches and adapters in one run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evalcore.engines.text import Ending, StopRule, finish
from evalcore.engines.vllm import compat
from evalcore.engines.vllm.objects import LLM
from evalcore.engines.vllm.packing import sort_contexts
from evalcore.engines.vllm.requests import PORTION, answers_of
from evalcore.types import GenerateBatch, GenerateResult, GenerationSettings


@dataclass(frozen=True)
class GenerateWork:
    """A batch to continue under one subject; as :class:`evalcore.engines.vllm.requests.Work`."""

    batch: GenerateBatch
    salt: str
    lora: Any = None


class _Draft:
    """A result that is being filled in."""

    def __init__(self, work: GenerateWork) -> None:
        self.work = work
        self.endings: list[Ending | None] = [None] * work.batch.num_contexts
        self.cached = np.zeros(work.batch.num_contexts, dtype=np.int64)

    def result(self) -> GenerateResult:
        endings = [ending for ending in self.endings if ending is not None]
        lengths = np.diff(self.work.batch.context_offsets).astype(np.int64)
        return GenerateResult(
            [e.text for e in endings],
            [e.token_count for e in endings],
            [e.finish_reason for e in endings],
            lengths - self.cached,
            self.cached,
        )


def generate(
    llm: LLM, works: Sequence[GenerateWork], tokenizer: Any, end_ids: Sequence[int]
) -> list[GenerateResult]:
    """Greedy generation with the prefix cache on; neighbours in token order share prefixes.

    Args:
        llm: ``vllm.LLM``.
        works: Contexts and when to end.
        tokenizer: The checkpoint's own; the text kept comes from it, not from the engine.
        end_ids: Tokens that end a generation.
    """
    drafts = [_Draft(work) for work in works]
    everything = [(draft, i) for draft in drafts for i in sort_contexts(draft.work.batch)]
    # vLLM (0.32) looks for stop strings in text that may begin inside the prompt, when the prompt
    # ends with half a character. Such an early end is not believed: generated again without them.
    wrong = _run(llm, everything, tokenizer, end_ids, stopping=True)
    if wrong:
        _run(llm, wrong, tokenizer, end_ids, stopping=False)
    return [draft.result() for draft in drafts]


def _run(
    llm: LLM,
    chosen: Sequence[tuple[_Draft, int]],
    tokenizer: Any,
    end_ids: Sequence[int],
    *,
    stopping: bool,
) -> list[tuple[_Draft, int]]:
    """Fills drafts in; gives those that vLLM stopped although there is no stop string."""
    wrong = []
    for begin in range(0, len(chosen), PORTION):
        portion = chosen[begin : begin + PORTION]
        prompts = [
            {
                "prompt_token_ids": draft.work.batch.context(i).tolist(),
                "cache_salt": draft.work.salt,
            }
            for draft, i in portion
        ]
        parameters = {
            draft: _greedy(draft.work.batch.settings, tokenizer, end_ids, stopping)
            for draft, _ in portion
        }
        outputs = answers_of(
            llm,
            prompts,
            [parameters[draft] for draft, _ in portion],
            [draft.work.lora for draft, _ in portion],
        )
        for (draft, i), output in zip(portion, outputs, strict=True):
            done = output.outputs[0]
            settings = draft.work.batch.settings
            ending = finish(list(done.token_ids), tokenizer, end_ids, settings)
            draft.endings[i] = ending
            draft.cached[i] = output.num_cached_tokens or 0
            if done.finish_reason == "stop" and ending.finish_reason != "stop":
                wrong.append((draft, i))
    return wrong


def _greedy(
    settings: GenerationSettings, tokenizer: Any, end_ids: Sequence[int], stopping: bool
) -> Any:
    rule = StopRule.of(tokenizer, end_ids, settings)
    stops = list(rule.strings) if stopping else []
    return compat.sampling(
        max_tokens=settings.max_tokens,
        temperature=0.0,
        # Ends are given explicitly: the engine's idea of them is that of its first checkpoint.
        ignore_eos=True,
        stop_token_ids=sorted(rule.ends),
        stop=stops,
        detokenize=bool(stops),
        include_stop_str_in_output=True,
        skip_special_tokens=not rule.marked,
    )

"""Scoring through vLLM's own scheduler with the prefix cache read: one request per distinct tail.

A request's prompt is a context with a continuation but its last token; continuations that agree in
that prompt share it. Inner tokens come from prompt log-probabilities, the last ones (all of them,
where continuations have one token) as log-probabilities of labels after the prompt. Requests go in
lexicographic order, so what one shares with those before it is in the cache, and inner tokens it
shares are read from them.

Upstream trap: with prompt log-probabilities vLLM gives rows only for computed positions, so a cache
hit must end before the row that predicts the first wanted token. vLLM (0.32) has no option for it
that works with its V1 runner; ``cap_cache_hits`` adds one to the running scheduler.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from evalcore.engines.vllm import compat
from evalcore.engines.vllm.objects import LLM
from evalcore.engines.vllm.requests import CAP_KEY, MOST_LABELS, Answer, Ask, Work
from evalcore.types import IntArray


@dataclass(eq=False)
class Tail:
    """A prompt, and what is read from its answer.

    Attributes:
        context: Context of the batch whose cost it counts for.
        prompt: int32 [n].
        labels: Distinct tokens wanted after it -> their place among them.
        reads: (place of the label, index into the batch's continuation tokens).
        inner: (position in the prompt, index into the batch's continuation tokens).
    """

    context: int
    prompt: IntArray
    labels: dict[int, int] = field(default_factory=dict)
    reads: list[tuple[int, int]] = field(default_factory=list)
    inner: list[tuple[int, int]] = field(default_factory=list)

    @property
    def first(self) -> int:
        """First position whose log-probability is wanted; the prompt's length if none is."""
        return min((at for at, _ in self.inner), default=len(self.prompt))

    def ask(self, work: Work) -> Ask:
        # The row before the first wanted position has to be computed.
        first = self.first
        return Ask(
            work, self.prompt.tolist(), len(self.prompt) - first, tuple(self.labels), first - 1
        )


class _Tails:
    """Prompts of a batch, each once (more often where it has more labels than a request takes)."""

    def __init__(self) -> None:
        self._found: dict[bytes, list[Tail]] = {}

    def label(self, context: int, prompt: IntArray, token: int, out: int) -> Tail:
        """Asks for a token after a prompt."""
        tails = self._found.setdefault(prompt.astype(">u4").tobytes(), [])
        if not tails or (token not in tails[-1].labels and len(tails[-1].labels) == MOST_LABELS):
            tails.append(Tail(context, prompt))
        tails[-1].reads.append((tails[-1].labels.setdefault(token, len(tails[-1].labels)), out))
        return tails[-1]

    def ordered(self) -> list[Tail]:
        return [tail for key in sorted(self._found) for tail in self._found[key]]


def make_tails(work: Work, block_size: int) -> list[Tail]:
    """The requests of a batch, in lexicographic order of their prompts.

    A token where a prompt parts from the one before it at the end of a block is not read from its
    row: capping the hit there would compute the block again. It becomes a label of the shared part.
    """
    batch, tails = work.batch, _Tails()
    wanted: list[tuple[Tail, int, int]] = []  # (prompt, position, index of continuation token)
    for i, owner in enumerate(batch.continuation_context.tolist()):
        context, continuation = batch.context(owner), batch.continuation(i)
        begin, length = int(batch.continuation_offsets[i]), len(context)
        prompt = np.concatenate([context, continuation[:-1]])
        tail = tails.label(owner, prompt, int(continuation[-1]), begin + len(continuation) - 1)
        wanted += [(tail, at, begin + at - length) for at in range(length, len(prompt))]
    while True:
        order = tails.ordered()
        place = {tail: k for k, tail in enumerate(order)}
        shared = [0, *(_common(a.prompt, b.prompt) for a, b in itertools.pairwise(order))]
        kept: list[tuple[Tail, int, int]] = []
        for tail, at, out in wanted:
            k = place[tail]
            while at < shared[k]:
                k -= 1
            if at == shared[k] and at % block_size == 0:
                tails.label(tail.context, tail.prompt[:at], int(tail.prompt[at]), out)
            else:
                kept.append((order[k], at, out))
        if len(kept) == len(wanted):
            break
        wanted = kept
    for tail, at, out in kept:
        tail.inner.append((at, out))
    return order


def _common(a: IntArray, b: IntArray) -> int:
    """Length of the longest common prefix of two token arrays."""
    length = min(len(a), len(b))
    differ = a[:length] != b[:length]
    at = int(differ.argmax()) if length else 0
    return at if length and differ[at] else length


def cap_cache_hits(llm: LLM) -> str | None:
    """Teaches a running engine's scheduler to respect ``CAP_KEY``; why not, if it cannot."""
    manager = compat.cache_manager(llm)
    if manager is None:
        return "the scheduler's cache cannot be reached"
    if hasattr(manager, "evalcore_uncapped"):
        return None
    original = manager.evalcore_uncapped = manager.get_computed_blocks

    def capped(request: Any, *args: Any, **options: Any) -> Any:
        answer = original(request, *args, **options)
        extra = getattr(request.sampling_params, "extra_args", None) or {}
        cap = extra.get(CAP_KEY)
        if cap is None or answer[1] <= cap:
            return answer
        blocks, hit, *_ = manager.coordinator.find_longest_cache_hit(request.block_hashes, cap)
        return (manager.create_kv_cache_blocks(blocks), hit, *answer[2:])

    manager.get_computed_blocks = capped
    return None


def spread(
    tails: Sequence[Tail], answers: Sequence[Answer], values: Any, greedy: Any, computed: Any
) -> None:
    """Answers into ``values`` and ``greedy`` [T]; what must not be used stays not a number.

    Tokens computed are added to ``computed`` [N].
    """
    for tail, answer in zip(tails, answers, strict=True):
        computed[tail.context] += answer.computed
        if answer.fault is not None:
            continue
        first = tail.first
        for place, out in tail.reads:
            values[out], greedy[out] = answer.labels[place]
        for at, out in tail.inner:
            values[out], greedy[out] = answer.last[at - first]

"""Which choice an answer is, for the ways of answering that log-probabilities alone do not tell."""

from __future__ import annotations

import math
import string
from collections.abc import Sequence

_TRIMMED = string.whitespace + string.punctuation


def constrained_choice(tokens: Sequence[Sequence[int]], logprobs: Sequence[Sequence[float]]) -> int:
    """The choice greedy decoding writes when it may only write choices; -1 if there are none.

    Step by step the most probable token is written that goes on with some choice. Where a choice
    is complete and others go on, ending has the probability left over by the tokens that go on:
    it wins if that is at least as much as the best of them. The first of equals wins, in the order
    of the choices; of identical choices the first.

    Args:
        tokens: Ids of each choice, after one context.
        logprobs: Natural log-probability of each of those tokens, given context and tokens before.
    """
    alive = list(range(len(tokens)))
    depth = 0
    while alive:
        ended = [i for i in alive if len(tokens[i]) == depth]
        going = [i for i in alive if len(tokens[i]) > depth]
        best: dict[int, float] = {}
        for i in going:
            best.setdefault(tokens[i][depth], logprobs[i][depth])
        if ended and _ends(list(best.values())):
            return ended[0]
        written = max(best, key=best.__getitem__)
        alive = [i for i in going if tokens[i][depth] == written]
        depth += 1
    return -1


def _ends(going_on: list[float]) -> bool:
    if not going_on:
        return True
    return 1.0 - sum(map(math.exp, going_on)) >= math.exp(max(going_on))


def written_choice(text: str, choices: Sequence[str]) -> int:
    """The choice a freely written text begins with; -1 if there is none.

    Case, and white space and ASCII punctuation at either end, do not count; the longest choice
    that fits is taken, and it must end where a word ends.

    Args:
        text: Generated text.
        choices: The words shown for each choice.
    """
    best, found = 0, -1
    for i, choice in enumerate(choices):
        wanted, given = _plain(choice), _plain(text)
        if not wanted:  # a choice of punctuation alone
            wanted, given = choice.strip(), text.strip()
        follows = given[len(wanted) : len(wanted) + 1]
        at_word_end = not (follows.isalnum() or follows == "_") or not wanted[-1:].isalnum()
        if wanted and given.startswith(wanted) and at_word_end and len(wanted) > best:
            best, found = len(wanted), i
    return found


def _plain(text: str) -> str:
    return text.casefold().strip(_TRIMMED)

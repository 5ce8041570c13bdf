"""Which choice an answer is, for the ways of answering that log-probabilities alone do not tell."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence

from evalcore.shown import caseless, is_visible
from evalcore.tasks.rouge import without_spaces

_SIGNS = "-\u2212\u2013."  # before a digit they are part of the number: -1, .5
_POINTS = (".", ",")


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

    Case does not count, nor does what is not visible at either end. A choice is looked for as it
    is, behind any punctuation and signs the text begins with, and without its own at either end
    (which the sign of a number is not). The longest that fits is taken; of equals the one that is
    written as it is, then the earlier in the text, then the first. It must end where a word ends
    (anywhere, in scripts without spaces between words), and a number where no other begins: ``2``
    is not in ``2.5``, ``1`` not in ``-1``.

    Args:
        text: Generated text.
        choices: The words shown for each choice.
    """
    given = caseless(text)
    lead = _word_start(given)
    best, found = (0, False, 0), -1
    for i, choice in enumerate(choices):
        whole = caseless(choice)
        plain = _plain(whole)
        for wanted in {whole, plain} - {""}:
            last = lead if plain else 0  # a sign alone is no punctuation before an answer
            for at in range(last + 1):
                rank = (len(wanted), wanted == whole, -at)
                if rank > best and _stands(given, wanted, at):
                    best, found = rank, i
    return found


def _stands(given: str, wanted: str, at: int) -> bool:
    """Whether a text has these words at a place, and they end there."""
    if not given.startswith(wanted, at):
        return False
    follows = given[at + len(wanted) :][:2]
    inside = wanted[-1].isalnum() and (follows[:1].isalnum() or follows[:1] == "_")
    if inside and not without_spaces(wanted[-1]):
        return False
    if wanted[-1].isdecimal() and follows[:1] in _POINTS and follows[1:].isdecimal():
        return False
    is_number = wanted.lstrip(_SIGNS)[:1].isdecimal()
    return not (is_number and at and given[at - 1] in _SIGNS)


def _plain(text: str) -> str:
    """Without punctuation and signs at its ends; a number keeps its sign."""
    begin, end = _word_start(text), len(text) - _word_start(text[::-1])
    if begin < len(text) and text[begin].isdecimal():
        begin = len(text[:begin].rstrip(_SIGNS))
    return text[begin:end]


def _word_start(text: str) -> int:
    """Position of the first visible character that is no punctuation (P) and no sign (S)."""
    inside = (
        at
        for at, sign in enumerate(text)
        if is_visible(sign) and unicodedata.category(sign)[0] not in "PS"
    )
    return next(inside, len(text))

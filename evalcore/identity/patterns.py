"""Whether a regular expression of an adapter ends: PEFT matches them against every module's name.

Python's matcher tries one way after the other. Two things make the ways too many: a repeat whose
turns can be divided differently (``(a+)+``, ``(a|a)*``: exponential), and many open repeats in a
row (``.*.*.*``: the power of their number). Both can be read off the expression, so nothing is run
and the answer is the same on every machine. What is refused in error can always be written more
simply: names of modules have a few dozen characters.
"""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

MAX_LENGTH = 20_000
"""Characters of a pattern (one that lists every module of a large model has some thousands)."""
MAX_STEPS = 20_000_000
"""Ways to try for one name, at worst: about a second."""
_NAME = 60  # characters of a long module's name
_NARROW = 8  # a repeat bounded by this is counted as a factor, not as open
_OTHER = 128  # stands for every character beyond ASCII
_EVERY = frozenset(range(129))

_LOCAL_FOLD = re.compile(r"\(\?[a-zA-Z]*i")
_FOLDED_BEYOND_ASCII = frozenset(map(ord, "iksIKS"))  # letters that equal one beyond ASCII

_parser = importlib.import_module("re._parser")  # what `re` itself parses with
_Item = tuple[Any, Any]
_REPEATS = ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT")


class PatternFault(Exception):
    """What is wrong with a pattern; the caller knows the file and key."""


@lru_cache(maxsize=4096)
def pattern_fault(pattern: str) -> str | None:
    """What speaks against matching ``pattern`` with module names, in a few words; None: nothing."""
    if len(pattern) > MAX_LENGTH:
        return f"has {len(pattern):,} characters, at most {MAX_LENGTH:,} are matched"
    try:
        re.compile(pattern)
        tree = _parser.parse(pattern)
        fold = bool(tree.state.flags & re.IGNORECASE or _LOCAL_FOLD.search(pattern))
        opened, factor = _cost(tree, fold)
    except PatternFault as fault:
        return str(fault)
    except RecursionError:
        return "is nested too deeply"
    except (re.error, OverflowError, ValueError) as error:
        return f"is no regular expression ({error})"
    if math.comb(_NAME + opened, opened) * factor > MAX_STEPS:
        return "could take for ever: too many repeats in a row"
    return None


def _cost(items: Iterable[_Item], fold: bool) -> tuple[int, int]:
    """(open repeats in a row, product of the other choices) of a sequence."""
    opened, factor = 0, 1
    for item in items:
        more, times = _item_cost(item, fold)
        opened, factor = opened + more, min(factor * times, MAX_STEPS + 1)
    return opened, factor


def _item_cost(item: _Item, fold: bool) -> tuple[int, int]:
    kind, value = str(item[0]), item[1]
    if kind in _REPEATS:
        least, most, body = int(value[0]), int(value[1]), value[2]
        if most <= 1:
            opened, factor = _cost(body, fold)
            return opened, factor + (least < most)
        _check_turns(body, fold)
        if least == most:
            return 0, 1
        characters = _characters(body[0], fold) if len(body) == 1 else _EVERY
        digits = characters is not None and characters <= set(range(ord("0"), ord("9") + 1))
        return (0, _NARROW) if digits or most - least <= _NARROW else (1, 1)
    if kind == "BRANCH":
        costs = [_cost(part, fold) for part in value[1]]
        open_costs = [cost for cost in costs if cost != (0, 1)]
        opened = max((one for one, _ in open_costs), default=0)
        return opened, max(1, sum(factor for _, factor in open_costs))
    if kind in ("GROUPREF", "GROUPREF_EXISTS", "GROUPREF_IGNORE"):
        raise PatternFault("refers back to a group, which can take for ever; spell it out")
    inner = _inside(kind, value)
    return (0, 1) if inner is None else _cost(inner, fold)


def _inside(kind: str, value: Any) -> Sequence[_Item] | None:
    """The items in a group or a look-ahead."""
    inner: Sequence[_Item] | None = None
    if kind == "SUBPATTERN":
        inner = value[-1]
    elif kind in ("ASSERT", "ASSERT_NOT"):
        inner = value[1]
    elif kind == "ATOMIC_GROUP":
        inner = value
    return inner


def _check_turns(body: Sequence[_Item], fold: bool) -> None:
    """Refuses a repeated body whose turns can be divided in several ways.

    Allowed: characters, alternatives that begin differently, and one inner repeat that a closing
    (or opening) character divides from the next turn, as in ``(?:\\w+\\.)*``.
    """
    items = _flat(body)
    nested = [item for item in items if str(item[0]) in _REPEATS]
    branches = [item for item in items if str(item[0]) == "BRANCH"]
    ambiguous = PatternFault("could take for ever: a repeat within a repeat")
    if not items or any(_characters(i, fold) is None for i in items if i not in nested + branches):
        raise ambiguous
    for _, (_, parts) in branches:
        seen: set[int] = set()
        for part in map(_flat, parts):
            own = _characters(part[0], fold) if part else None
            if own is None or seen & own or any(_characters(i, fold) is None for i in part):
                raise PatternFault("could take for ever: repeated alternatives that begin alike")
            seen |= own
    if not nested:
        return
    if len(nested) > 1 or branches:
        raise ambiguous
    inner = _flat(nested[0][1][2])
    repeated = _characters(inner[0], fold) if len(inner) == 1 else None
    for border in (items[0], items[-1]):
        own = _characters(border, fold)
        fixed = [_characters(i, fold) or _EVERY for i in items if i not in (nested[0], border)]
        if own and repeated is not None and not any(own & each for each in (repeated, *fixed)):
            return
    raise ambiguous


def _flat(items: Iterable[_Item]) -> list[_Item]:
    """Items with plain groups opened."""
    found: list[_Item] = []
    for item in items:
        kind, value = str(item[0]), item[1]
        found += _flat(value[-1]) if kind == "SUBPATTERN" else [item]
    return found


def _characters(item: _Item, fold: bool) -> frozenset[int] | None:
    """Characters a one-character item matches (128: any other than ASCII); None for other items."""
    kind, value = str(item[0]), item[1]
    found: set[int]
    if kind == "LITERAL":
        found = {min(value, _OTHER)}
    elif kind == "NOT_LITERAL":
        return _EVERY - {value}
    elif kind == "ANY":
        return _EVERY
    elif kind == "IN":
        found = set()
        for name, inner in value:
            found |= _of_set(str(name), inner)
        if str(value[0][0]) == "NEGATE":
            return frozenset(_EVERY - found) | {_OTHER}
    else:
        return None
    if fold:
        for code in list(found - {_OTHER}):
            found |= {ord(chr(code).lower()), ord(chr(code).upper())}
        if found & _FOLDED_BEYOND_ASCII:
            found.add(_OTHER)
        elif _OTHER in found:
            found |= _FOLDED_BEYOND_ASCII
    return frozenset(found)


def _of_set(name: str, value: Any) -> set[int]:
    if name == "LITERAL":
        return {min(value, _OTHER)}
    if name == "RANGE":
        low, high = value
        return {code for code in _EVERY if low <= code <= high} | (
            {_OTHER} if high > 127 else set()
        )
    if name == "CATEGORY":
        sign = {"DIGIT": r"\d", "SPACE": r"\s", "WORD": r"\w"}
        kind = str(value).removeprefix("CATEGORY_")
        want = kind.removeprefix("NOT_")
        if want not in sign:
            return set(_EVERY)
        held = {code for code in range(128) if re.match(sign[want], chr(code))}
        return (set(_EVERY) - held if want != kind else held) | {_OTHER}
    return set()  # NEGATE

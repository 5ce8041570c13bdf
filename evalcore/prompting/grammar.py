"""A grammar of prompt formats: the same words and fields, laid out in many ways.

The idea is FormatSpread's (Sclar et al. 2023, arXiv 2310.11324): a format is a choice of
separator, joiner, casing and enumeration, none of which should matter to what is asked. Formats
are numbered; a seed gives an order of all of them, and format ``i`` of a seed is always the same,
so that the first 20 formats of a seed are also the first 20 of its first 40.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Literal, cast

from evalcore.errors import InputError, UnknownNameError
from evalcore.types import Variant

Listing = Literal["cloze", "letters"]

_SEPARATORS = (
    ": ", ":", ":\n", " : ", ":: ", " :: ", " - ", " -- ", " = ", " > ", " ", "\n", "\t",
)  # fmt: skip
_JOINERS = (
    "\n", "\n\n", " ", "  ", "\t", " ; ", "; ", " | ", " || ", ", ", " -- ", " <sep> ",
)  # fmt: skip
_WRAPS = (("", ""), ("[", "]"), ("(", ")"), ("<", ">"), ("**", "**"), ("### ", ""))
_CASES = ("as is", "lower", "upper", "title")
# Shown in the list, and scored: the first without decoration. `position` counts from 0.
_ROMAN = "['i','ii','iii','iv','v','vi','vii','viii','ix','x','xi','xii'][{position}]"
_MARKS = (
    "letters[{position}]",
    "letters[{position}] | lower",
    "{position} + 1",
    _ROMAN,
    _ROMAN + " | upper",
)
_MARK_WRAPS = (("", ". "), ("", ") "), ("(", ") "), ("[", "] "), ("", ": "), ("", " - "))
_ITEM_JOINERS = ("\n", " ", "; ", ", ", " | ")


@dataclass(frozen=True)
class Layout:
    """What a group's prompts consist of.

    Attributes:
        fields: (descriptor, template variable) in order.
        answer: Descriptor of the answer.
        optional: Variables that may be empty; their line is then left out.
        choices: Whether there are choices that can be listed.
    """

    fields: tuple[tuple[str, str], ...]
    answer: str
    optional: frozenset[str] = frozenset()
    choices: bool = False


_NLI = (("Premise", "premise"), ("Hypothesis", "hypothesis"))
_PAIR = (("Sentence one", "sentence1"), ("Sentence two", "sentence2"))
LAYOUTS = {
    "summarization": Layout((("Document", "document"),), "Summary"),
    "question_generation": Layout((("Context", "context"), ("Answer", "answer")), "Question"),
    "question_generation_answers": Layout(
        (("Context", "context"), ("Answers", "answers")), "Question"
    ),
    "nli": Layout(_NLI, "Relation", choices=True),
    "paraphrase": Layout(_PAIR, "Paraphrase", choices=True),
    "multiple_choice": Layout(
        (("Context", "context"), ("Question", "question")), "Answer", frozenset(["context"]), True
    ),
    "completion": Layout((("Beginning", "context"),), "Best ending", choices=True),
    "boolean": Layout((("Passage", "passage"), ("Question", "question")), "Answer", choices=True),
    "instruction": Layout((("Instruction", "prompt"),), "Response"),
    "pocket_nli": Layout(_NLI, "Relation", choices=True),
    "pocket_paraphrase": Layout(_PAIR, "Paraphrase", choices=True),
    "pocket_facts": Layout((("Question", "question"),), "Answer", choices=True),
    "pocket_describe": Layout(
        (("Name", "name"), ("Craft", "craft"), ("Town", "town"), ("Pet", "pet")), "Text"
    ),
}


def count_formats(group: str, listing: Listing = "cloze") -> int:
    """How many different formats the grammar has for a group (0: it has no layout for it)."""
    if group not in LAYOUTS or (listing == "letters" and not LAYOUTS[group].choices):
        return 0
    return prod(map(len, _dimensions(LAYOUTS[group], listing)))


def formats(group: str, count: int, *, seed: int = 0, listing: Listing = "cloze") -> list[Variant]:
    """The first formats of a seed, all different, without shots or fingerprint.

    Args:
        group: Prompt group.
        count: How many.
        seed: Another seed is another order of the same formats.
        listing: ``letters`` enumerates the choices in the context and scores their marks.

    Raises:
        UnknownNameError: If the grammar has no layout for the group.
        InputError: If there are not so many formats, or no choices to list.
    """
    if group not in LAYOUTS:
        raise UnknownNameError("group of the format grammar", group, LAYOUTS)
    there = count_formats(group, listing)
    if there == 0:
        raise InputError(f"format grammar: prompts of group {group} have no choices to list")
    if not 1 <= count <= there:
        raise InputError(
            f"format grammar: group {group} has {there:,} different formats with "
            f"listing={listing}; asked for {count:,}"
        )
    return [
        _variant(group, number, place, seed, listing)
        for place, number in enumerate(_order(there, seed, count))
    ]


@lru_cache(maxsize=64)
def _order(there: int, seed: int, count: int) -> tuple[int, ...]:
    """The first numbers of a shuffle of 0 to there - 1; each depends on those before only."""
    moved: dict[int, int] = {}
    result = []
    for place in range(count):
        digest = hashlib.blake2b(f"formats\0{seed}\0{place}".encode(), digest_size=8).digest()
        other = place + int.from_bytes(digest, "big") % (there - place)
        result.append(moved.get(other, other))
        moved[other] = moved.get(place, place)
    return tuple(result)


def _dimensions(layout: Layout, listing: Listing) -> list[Sequence[object]]:
    """What is chosen independently; within each no two values give the same text."""
    words = [descriptor for descriptor, _ in layout.fields] + [layout.answer]
    words += ["Options"] if listing == "letters" else []
    cases = {tuple(_cased(word, case) for word in words): case for case in reversed(_CASES)}
    chosen: list[Sequence[object]] = [_SEPARATORS, _JOINERS, _WRAPS, sorted(cases.values())]
    if listing == "letters":
        chosen += [_MARKS, _MARK_WRAPS, _ITEM_JOINERS]
    return chosen


def _picked(number: int, dimensions: Sequence[Sequence[object]]) -> Iterator[object]:
    for dimension in dimensions:
        number, position = divmod(number, len(dimension))
        yield dimension[position]


def _cased(word: str, case: object) -> str:
    return {"lower": word.lower(), "upper": word.upper(), "title": word.title()}.get(
        str(case), word
    )


def _variant(group: str, number: int, place: int, seed: int, listing: Listing) -> Variant:
    layout = LAYOUTS[group]
    picked: list[object] = list(_picked(number, _dimensions(layout, listing)))
    separator, joiner, wrap, case = (str(picked[0]), str(picked[1]), picked[2], picked[3])
    before, after = cast(tuple[str, str], wrap)

    def described(word: str) -> str:
        return f"{before}{_cased(word, case)}{after}"

    parts = []
    for word, variable in layout.fields:
        part = f"{described(word)}{separator}{{{{ {variable} }}}}{joiner}"
        optional = variable in layout.optional
        parts.append(f"{{% if {variable} %}}{part}{{% endif %}}" if optional else part)
    target = "{{ choice }}"
    if listing == "letters":
        mark, item_joiner = str(picked[4]), str(picked[6])
        opening, closing = cast(tuple[str, str], picked[5])
        shown = mark.format(position="loop.index0")
        parts.append(
            f"{described('Options')}{separator}{{% for text in choices %}}"
            f"{opening}{{{{ {shown} }}}}{closing}{{{{ text }}}}"
            f"{{% if not loop.last %}}{item_joiner}{{% endif %}}{{% endfor %}}{joiner}"
        )
        target = "{{ " + mark.format(position="index") + " }}"
    # The answer stays on its descriptor's line: free generation ends where a line does.
    tail = separator.replace("\n", " ")
    parts.append(described(layout.answer) + tail.rstrip())
    pieces = [f"listing={listing}"] if listing != "cloze" else []
    pieces += [f"seed={seed}"] if seed else []
    return Variant(
        name=f"grammar:{','.join([*pieces, f'i={place:02d}'])}",
        group=group,
        template="".join(parts),
        target=target,
        delimiter=tail[len(tail.rstrip()) :],
        listing=listing,
    )

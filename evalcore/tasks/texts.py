"""Checks of what documents say, as far as text alone tells: answers nobody can give, or must."""

from __future__ import annotations

import ast
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from evalcore.shown import visible_start
from evalcore.tasks.finding import Finding, Level, if_any
from evalcore.types import Document, Task

SHOWN_FROM = 10
"""So many documents are needed to say that a field is always the answer."""
_NUMBER = re.compile(r"-?\d+\.0")
_BY_LENGTH = ("acc_norm", "acc_bytes", "acc_mutual_info")
_LONGEST_LIST = 10_000


def check_texts(task: Task, docs: Sequence[Document]) -> list[Finding]:
    """Fields that tell the answer, lists and numbers spelt by another program, letters in parts,
    and references behind a stop string.

    Args:
        task: The task.
        docs: Its documents.
    """
    return [*_answer_shown(task, docs), *_spellings(task, docs), *_stopped(task, docs)]


def has_equal_texts(document: Document) -> bool:
    """Whether two choices are one text but for case and blanks at the ends."""
    return len({c.strip().lower() for c in document.choices}) < len(document.choices)


def prefix_level(task: Task) -> Level:
    """How much it matters that the longer of two choices is never the more probable one."""
    if task.primary in _BY_LENGTH:
        return "note"
    return "error" if task.choices else "warning"


PREFIX_CONSEQUENCE = (
    "where its tokens begin as the other's do it is never the more probable one, and acc never "
    "chooses it; answer=constrained, listing=letters or acc_norm tell the two apart"
)


def check_prefixes(task: Task, docs: Sequence[Document]) -> list[Finding]:
    """Choices that begin as another choice of the same document is written.

    Args:
        task: The task.
        docs: Its documents.
    """
    texts = dict(task.words)
    rows = [
        doc.index
        for doc in docs
        if begins_another([t for c in doc.choices for t in texts.get(c, (c,))])
    ]
    return if_any(
        task, prefix_level(task), "prefix_choices", rows,
        f"{len(rows)} of {len(docs)} documents have a choice that begins with another one's text",
        PREFIX_CONSEQUENCE,
    )  # fmt: skip


def begins_another(texts: Sequence[str]) -> bool:
    """Whether a text is the beginning of another (equal ones are found elsewhere)."""
    ordered = sorted({text.strip() for text in texts})
    # in this order what stands between a text and one that it begins begins with it too
    return any(b.startswith(a) for a, b in pairwise(ordered))


def _right_text(document: Document) -> tuple[str, ...]:
    """What is right: the choice's text, or the references."""
    if 0 <= document.gold < len(document.choices):
        return (document.choices[document.gold],)
    return document.references


def _answer_shown(task: Task, docs: Sequence[Document]) -> list[Finding]:
    """Fields that are the right answer, in every document."""
    known = [(doc, right) for doc in docs if (right := _right_text(doc))]
    if len(known) < SHOWN_FROM or len({right for _, right in known}) == 1:
        return []
    found: list[Finding] = []
    for name in known[0][0].fields:
        if all(_tells(doc, right, name, bool(task.choices)) for doc, right in known):
            found += if_any(
                task, "error", "answer_shown", [doc.index for doc, _ in known],
                f"field {name} is the right answer in all of {len(known)} documents",
                "a prompt that shows it tells what it asks; take the field out of the task",
            )  # fmt: skip
    return found


def _tells(document: Document, right: Sequence[str], name: str, labels: bool) -> bool:
    value = document.fields.get(name)
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return False
    text = str(value).strip()
    return text in {one.strip() for one in right} or (labels and text == str(document.gold))


def _spellings(task: Task, docs: Sequence[Document]) -> list[Finding]:
    """Answers (and fields) that were written by a program for itself, in most of the documents."""
    found: list[Finding] = []
    own = not task.choices  # labels are the task file's own words
    answers = {doc.index: (*(doc.choices if own else ()), *doc.references) for doc in docs}
    fields = {doc.index: [v for v in doc.fields.values() if isinstance(v, str)] for doc in docs}
    listed = [i for i in answers if any(map(_is_list, (*answers[i], *fields[i])))]
    if 2 * len(listed) > len(docs):
        found += if_any(
            task, "warning", "list_as_text", listed,
            f"{len(listed)} of {len(docs)} documents have a list written as text (['a', 'b'])",
            "its brackets and quotes are asked and scored; write it as a list in the file",
        )  # fmt: skip
    numbers = [i for i, texts in answers.items() if texts and all(map(_NUMBER.fullmatch, texts))]
    if 2 * len(numbers) > len(docs):
        found += if_any(
            task, "warning", "numbers_as_floats", numbers,
            f"{len(numbers)} of {len(docs)} documents have whole numbers as answers, written as "
            "5.0", "an answer 5 is not 5.0; write the column as whole numbers or text",
        )  # fmt: skip
    parts = [d.index for d in docs if not all(map(_is_composed, (*d.choices, *d.references)))]
    level: Level = "warning" if 2 * len(parts) > len(docs) else "note"
    return found + if_any(
        task, level, "letters_in_parts", parts,
        f"{len(parts)} of {len(docs)} documents have answers with letters in parts (e and an "
        "accent of its own)",
        "models write them as one: the texts look alike, but their tokens differ and no exact "
        "match is had; normalise the file (NFC)",
    )  # fmt: skip


def _is_composed(text: str) -> bool:
    return text.isascii() or unicodedata.is_normalized("NFC", text)


def _is_list(text: str) -> bool:
    """Whether a text is a list of texts as Python or JSON spells it."""
    text = text.strip()
    if not (2 <= len(text) <= _LONGEST_LIST and text[0] == "[" and text[-1] == "]"):
        return False
    for read in (json.loads, ast.literal_eval):
        try:
            value: Any = read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        return isinstance(value, list) and any(isinstance(v, (str, Mapping)) for v in value)
    return re.fullmatch(r"\['[^']*'(\s+'[^']*')+\]", text, re.DOTALL) is not None  # numpy's


def _stopped(task: Task, docs: Sequence[Document]) -> list[Finding]:
    """Documents whose references all go on behind a stop string."""
    if task.output_type != "generate_until":
        return []
    stops = task.generation.stops
    rows = [
        doc.index
        for doc in docs
        if doc.references and all(goes_on(text, stops) for text in doc.references)
    ]
    level: Level = "warning" if task.primary == "exact_match" else "note"
    shown = " or ".join(map(repr, stops))
    return if_any(
        task, level, "stop_in_reference", rows,
        f"{len(rows)} of {len(docs)} documents have references that go on after {shown}",
        "an answer ends there, so that none is all of them; take the stop string out of "
        "generation.stops, or what follows it out of the file",
    )  # fmt: skip


def goes_on(text: str, stops: Sequence[str]) -> bool:
    """Whether something visible stands behind a stop string that counts (after the beginning)."""
    begun = text[visible_start(text) :]
    ends = [at for stop in stops if (at := begun.find(stop)) >= 0]
    return bool(ends) and bool(begun[min(ends) :].strip())

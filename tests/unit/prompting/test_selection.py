"""Selections of prompts by name, and the format grammar."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from evalcore.errors import InputError
from evalcore.prompting import count_formats, formats, load_variants, render
from evalcore.prompting.grammar import LAYOUTS
from evalcore.types import Document, Task, Variant


def names(selection: str, group: str = "nli", **options: Any) -> list[str]:
    return [variant.name for variant in load_variants(group, selection, **options)]


def test_sets_of_prompts() -> None:
    paraphrases = [f"p{number:02d}" for number in range(1, 13)]
    assert names("paper") == ["default", "instruct", "io"]
    assert names("paper:shots=4") == ["default:shots=4", "instruct:shots=4", "io:shots=4"]
    assert names("paraphrases") == paraphrases
    assert names("p0*") == paraphrases[:9]
    assert names("words_*,io,p0*,io") == [
        "words_truefalse", "words_verdict", "words_yesno", "io", *paraphrases[:9],
    ]  # fmt: skip
    everything = names("all")
    assert everything[:3] == ["default", "instruct", "io"]
    assert {*paraphrases, "letters", "words_yesno"} < set(everything)
    assert len(everything) == len(set(everything)) == 20


def test_names_are_canonical() -> None:
    full = "io:answer=free,space=0,chat_shots=text,balance=1,order=2,seed=3,shots=4"
    assert names(full) == ["io:shots=4,seed=3,order=2,balance=1,space=0,answer=free"]
    chat = "io:chat_shots=text,chat=1,shots=2"
    assert names(chat) == ["io:shots=2,chat=1,chat_shots=text"]
    for selection in (full, chat, "grammar:i=3,seed=1,shots=2,shots_seed=4,listing=letters"):
        (name,) = names(selection)
        assert names(name) == [name]
    without_effect = "io:space=1,answer=choices,order=5,balance=1,seed=2,chat_shots=text,chat=0"
    assert names(without_effect) == ["io"]
    assert names("io:shots=1,order=1") == ["io:shots=1"]
    assert names("io:shots_seed=2,shots=1") == ["io:shots=1,seed=2"]
    first, second = load_variants("nli", "io:answer=first_token,io:answer=first_token,space=0")
    assert (first.answer, first.delimiter) == ("first_token", " ")
    assert (second.answer, second.delimiter) == ("first_token", "")


def test_one_variant_one_fingerprint() -> None:
    selection = (
        "all,all:shots=2,all:shots=2,seed=1,all:shots=2,order=1,all:shots=2,balance=1,"
        "all:chat=1,all:shots=2,chat=1,all:shots=2,chat=1,chat_shots=text,all:answer=first_token,"
        "all:answer=free,all:space=0,all:space=0,answer=first_token,grammar:n=30"
    )
    variants = load_variants("nli", selection)
    assert len(variants) == 20 * 12 + 30
    assert len({variant.fingerprint for variant in variants}) == len(variants)


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        ("defualt", "unknown prompt of group nli 'defualt'; nearest: default"),
        ("papr", "nearest: paper"),
        ("q*", r"unknown prompt of group nli 'q\*'"),
        ("io:sots=1", "nearest: shots"),
        ("io:n=4", "only grammar has it"),
        ("io:listing=letters", "only grammar has it"),
        ("io:balance=2", "balance should be 0 or 1"),
        ("io:answer=guess", "answer should be one of choices, first_token, constrained, free"),
        ("io:chat_shots=1", "one of turns, text"),
        ("io:shots=99999999999999999999", "whole number"),
        ("io:shots=²", "whole number"),
        ("io:shots=3,order=6", "3 shots have 6 orders: order should be 0 to 5, not 6"),
        ("io:chat=1,space=1", "space=1 has no effect with the chat template"),
        ("grammar", "grammar needs n"),
        ("grammar:n=2,i=1", "not both"),
        ("grammar:n=0", "asked for 0"),
        ("grammar:n=3000", "has 2,808 different formats with listing=cloze; asked for 3,000"),
        ("grammar:i=2808", "asked for 2,809"),
    ],
)
def test_wrong_selections(selection: str, expected: str) -> None:
    with pytest.raises(InputError, match=expected) as caught:
        names(selection)
    assert "\n" not in str(caught.value)


def test_sets_a_group_does_not_have() -> None:
    with pytest.raises(InputError, match="unknown prompt of group pocket_nli 'paraphrases'"):
        names("paraphrases", "pocket_nli")
    with pytest.raises(InputError, match="group summarization have no choices to list"):
        names("grammar:n=2,listing=letters", "summarization")
    with pytest.raises(InputError, match="unknown group of the format grammar 'nil'; nearest: nli"):
        formats("nil", 1)


# --- the grammar --------------------------------------------------------------------------------


def probe(group: str) -> tuple[Task, Document]:
    """A made-up task and document with every field of a layout filled."""
    fields = {variable: f"<{variable}>" for _, variable in LAYOUTS[group].fields}
    kind = "multiple_choice" if LAYOUTS[group].choices else "generate_until"
    task = Task("probe", 1, group, kind, ("acc",), "acc")  # type: ignore[arg-type]
    choices = ("first", "second", "third") if LAYOUTS[group].choices else ()
    references = () if choices else ("reference",)
    return task, Document("0" * 32, 0, fields, choices, 0, references)


def text_of(variant: Variant) -> tuple[str, tuple[str, ...]]:
    task, document = probe(variant.group)
    text = render(task, variant, document)
    return text.context, text.continuations


NLI_SEED_1 = [
    "[premise] -- <premise>; [hypothesis] -- <hypothesis>; [relation] --",
    "<PREMISE>: <premise> || <HYPOTHESIS>: <hypothesis> || <RELATION>:",
    "<premise> > <premise> <sep> <hypothesis> > <hypothesis> <sep> <relation> >",
]
NLI_LETTERS = (
    "[premise] -- <premise>; [hypothesis] -- <hypothesis>; "
    "[options] -- A: first; B: second; C: third; [relation] --",
    (" A", " B", " C"),
)


def test_formats_are_the_same_in_every_run() -> None:
    """Written down: a change here changes what stored results of these names mean."""
    found = load_variants("nli", "grammar:n=3,seed=1")
    assert [variant.name for variant in found] == [f"grammar:seed=1,i={i:02d}" for i in range(3)]
    assert [text_of(variant)[0] for variant in found] == NLI_SEED_1
    (letters,) = load_variants("nli", "grammar:listing=letters,seed=1,i=0")
    assert text_of(letters) == NLI_LETTERS


@pytest.mark.parametrize("group", sorted(LAYOUTS))
def test_formats_are_different_and_nested(group: str) -> None:
    for listing in ("cloze", "letters") if LAYOUTS[group].choices else ("cloze",):
        forty = formats(group, 40, seed=1, listing=listing)  # type: ignore[arg-type]
        assert formats(group, 20, seed=1, listing=listing) == forty[:20]  # type: ignore[arg-type]
        assert len({text_of(variant) for variant in forty}) == 40
        other = formats(group, 40, seed=2, listing=listing)  # type: ignore[arg-type]
        assert {v.template for v in other} != {v.template for v in forty}
        for variant in forty:
            context, continuations = text_of(variant)
            assert all(f"<{name}>" in context for _, name in LAYOUTS[group].fields)
            assert "{" not in context
            assert context == context.rstrip()  # the rest is the delimiter
            assert all("\n" not in text for text in continuations)
            assert len(set(continuations)) == len(continuations)


def test_all_formats_of_a_group_are_different() -> None:
    """The count is exact: asking for all gives all, no two with one text."""
    for group in ("nli", "summarization", "paraphrase"):
        everything = formats(group, count_formats(group))
        keys = {(v.template, v.target, v.delimiter) for v in everything}
        assert len(keys) == len(everything) == count_formats(group)
        placed = {
            (v.template.replace("{{ ", "<").replace(" }}", ">"), v.delimiter) for v in everything
        }
        assert len(placed) == len(everything)


def test_listed_formats_show_the_marks_they_score() -> None:
    for variant in formats("multiple_choice", 60, seed=3, listing="letters"):
        context, continuations = text_of(variant)
        for mark, choice in zip(continuations, ("first", "second", "third"), strict=True):
            own = context.index(choice)
            assert mark.strip() in context[max(0, own - 6) : own]


def test_an_empty_field_leaves_no_line() -> None:
    task, document = probe("multiple_choice")
    bare = replace(document, fields={"context": "", "question": "Why?"})
    for variant in formats("multiple_choice", 20):
        context = render(task, variant, bare).context
        assert "ontext" not in context.lower()
        assert "Why?" in context

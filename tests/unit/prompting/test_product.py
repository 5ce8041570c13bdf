"""Every task under every one of its prompts, with and without shots, on rows of its schema."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import pytest

from evalcore.prompting import (
    check_variant,
    draw_shots,
    list_groups,
    list_prompts,
    load_variants,
    render,
    shown_role,
)
from evalcore.tasks import list_tasks, load_documents
from evalcore.types import Document, Task, Variant

DATA = Path(__file__).resolve().parents[2] / "data" / "root"
TASKS = list_tasks()
STUDY_GROUPS = sorted({task.group for task in TASKS if not task.group.startswith("pocket")})
ROWS = 3


@pytest.fixture(scope="module")
def documents() -> dict[str, tuple[list[Document], list[Document]]]:
    """Task -> some documents and its pool of shots (none for tasks that are tuned on only)."""
    loaded = {}
    for task in TASKS:
        rows = load_documents(task, shown_role(task), limit=ROWS, data_root=DATA)
        pool = (
            load_documents(task, "shots", data_root=DATA)
            if task.spec["splits"].get("shots")
            else []
        )
        loaded[task.name] = (rows, pool)
    return loaded


def own_variants(task: Task) -> list[Variant]:
    shots = bool(task.spec["splits"].get("shots"))
    return load_variants(task.group, "all,all:shots=2" if shots else "all")


def plain(text: str) -> str:
    return " ".join(text.split())


def check_pair(
    task: Task, variant: Variant, rows: Sequence[Document], pool: Sequence[Document]
) -> str:
    """Renders and checks rows; returns the text of the first."""
    check_variant(task, variant)
    shots = draw_shots(task, variant, pool, scored=rows)
    texts = [render(task, variant, document, shots) for document in rows]
    for document, text in zip(rows, texts, strict=True):
        answers = len(set(text.owners)) or len(text.continuations)
        assert answers == len(document.choices or document.references)
        assert all(target.strip() for target in text.targets)
        assert len(set(text.targets)) == len(text.targets)
        for continuation, target in zip(text.continuations, text.targets, strict=True):
            assert continuation == variant.delimiter + target
        # Braces of data may stay; a template's own never do, nor does what Python prints.
        given = " ".join(map(str, [*document.fields.values(), *document.choices]))
        for mark in ("{{", "}}", "{%", "%}", "Undefined", "['", "None"):
            assert mark not in text.context or mark in given or shots, (variant.name, mark)
        for name in used_fields(variant):
            assert plain(str(document.fields[name])) in plain(text.context)
        if shots:
            assert text.context.count(variant.separator) >= 2
    check_labels(task, variant, rows[0])
    return texts[0].context + "\0" + "\0".join(texts[0].continuations)


def used_fields(variant: Variant) -> set[str]:
    return set(re.findall(r"{{ (\w+) }}", variant.template)) - {"listing", "choices", "choice"}


def check_labels(task: Task, variant: Variant, document: Document) -> None:
    if not task.choices:
        return
    targets = render(task, variant, document).targets
    words = dict(variant.label_words)
    if variant.listing == "letters":
        assert targets == tuple("ABC"[: len(task.choices)])
    else:
        words = words or dict(task.words)
        shown = [words.get(label, label) for label in task.choices]
        texts = [[w] if isinstance(w, str) else list(w) for w in shown]
        assert targets == tuple(text for own in texts for text in own)
    assert document.choices == task.choices


def test_every_task_under_every_prompt(
    documents: dict[str, tuple[list[Document], list[Document]]],
) -> None:
    pairs = 0
    for task in TASKS:
        rows, pool = documents[task.name]
        seen: dict[str, str] = {}
        for variant in own_variants(task):
            text = check_pair(task, variant, rows, pool)
            if variant.name.startswith("literal") and not task.words:
                assert seen[text] == variant.name.replace("literal", "default")
                continue
            assert text not in seen, f"{task.name}: {variant.name} says what {seen[text]} says"
            seen[text] = variant.name
            pairs += 1
    assert pairs >= 600, pairs


def test_every_task_under_formats_of_the_grammar(
    documents: dict[str, tuple[list[Document], list[Document]]],
) -> None:
    for task in TASKS:
        rows, pool = documents[task.name]
        choices = task.output_type == "multiple_choice"
        selection = "grammar:n=8,seed=1" + (",grammar:n=8,listing=letters" if choices else "")
        texts = set()
        for variant in load_variants(task.group, selection):
            shots = draw_shots(task, variant, pool, scored=rows)
            text = render(task, variant, rows[0], shots)
            assert len(set(text.targets)) == len(text.targets) > 0
            texts.add((text.context, text.continuations))
        assert len(texts) == (16 if choices else 8)


def test_study_groups_have_what_the_study_asks() -> None:
    assert set(list_groups()) == {task.group for task in TASKS}
    wanted = {"default", "instruct", "io", *(f"p{number:02d}" for number in range(1, 13))}
    for group in STUDY_GROUPS:
        prompts = {variant.name: variant for variant in list_prompts(group)}
        assert wanted <= set(prompts), group
        assert "###" in prompts["default"].template
        if group != "instruction":
            assert not re.search(
                r"[A-Za-z]{3}", re.sub(r"{[{%].*?[}%]}", "", prompts["io"].template)
            )
    for group in ("nli", "paraphrase", "boolean", "multiple_choice", "completion"):
        assert "letters" in {variant.name for variant in list_prompts(group)}


def test_paraphrases_are_really_different_wordings() -> None:
    """Beside the fields, two instructions of a group share less than half of their words."""
    for group in STUDY_GROUPS:
        own = {
            variant.name: words(variant.template)
            for variant in list_prompts(group)
            if re.match(r"p\d+$|instruct$", variant.name)
        }
        names = sorted(own)
        for first in names:
            for second in names[: names.index(first)]:
                union = own[first] | own[second]
                if len(union) > 6:
                    shared = len(own[first] & own[second]) / len(union)
                    assert shared < 0.5, (group, first, second, shared)


def words(template: str) -> set[str]:
    return set(re.findall(r"[a-z]+", re.sub(r"{[{%].*?[}%]}", " ", template).lower()))


def test_label_words_are_of_labels_there_are() -> None:
    labels = defaultdict(set)
    for task in TASKS:
        labels[task.group] |= set(task.choices)
    counted = 0
    for group in list_groups():
        for variant in list_prompts(group):
            assert {label for label, _ in variant.label_words} <= labels[group], variant.name
            counted += bool(variant.label_words)
    assert counted >= 8


def test_rte_keeps_its_two_labels() -> None:
    rte = next(task for task in TASKS if task.name == "rte")
    assert rte.choices == ("entailment", "not_entailment")
    document = load_documents(rte, "score", limit=1, data_root=DATA)[0]
    for variant in list_prompts(rte.group):
        found = render(rte, variant, document)
        texts = 2 if variant.name in ("letters", "literal") else 3
        assert len(found.targets) == texts
        assert found.owners == (() if texts == 2 else (0, 1, 1))

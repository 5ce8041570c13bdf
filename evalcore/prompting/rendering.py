"""From a document to text: context and continuations, by sandboxed templates."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any

from evalcore.errors import InputError
from evalcore.prompting.chat import chat_text
from evalcore.prompting.faults import PromptError, PromptFault
from evalcore.prompting.templates import TemplateFault, fill, variables
from evalcore.shown import caseless
from evalcore.tasks import content_key
from evalcore.types import Document, Task, Variant

CHOICE_VARIABLES = frozenset({"choices", "letters", "listing"})
"""Variables of a template that show the choices."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """Text of one document under one variant.

    Attributes:
        context: Shots and question.
        continuations: One per choice, or per reference; the delimiter at their start (none with
            a chat template, which ends its own header).
        targets: The same without the delimiter: what lengths in characters and bytes are of.
        shots: Worked examples in the context.
        owners: The choice each continuation is a text of, ascending; empty where each choice, or
            reference, has one.
    """

    context: str
    continuations: tuple[str, ...]
    targets: tuple[str, ...]
    shots: int
    owners: tuple[int, ...] = ()


def check_variant(task: Task, variant: Variant) -> None:
    """Checks that a variant can serve a task.

    Label words are for all labels of the task or for none of its prompts: a label is never shown
    by another label's words. Keys that are labels of other tasks of the group are left aside.

    Raises:
        PromptError: Other group; a template that shows nothing of a document; label words that do
            not cover the task's labels, or are the same for two of them; listed or
            answered choices where the task has none.
    """
    where = f"prompt {variant.group}/{variant.name}"
    if variant.group != task.group:
        raise PromptError(
            PromptFault.OTHER_GROUP, f"{where} is not of group {task.group} of task {task.name}"
        )
    if task.output_type != "multiple_choice":
        for key, value, plain in (
            ("listing", variant.listing, "cloze"),
            ("answer", variant.answer, "choices"),
        ):
            if value != plain:
                raise PromptError(
                    PromptFault.NO_CHOICES,
                    f"{where}, key {key}: {value} needs choices, task {task.name} has none",
                )
    _check_shows(task, variant, where)
    if variant.label_words:
        _check_label_words(task, variant, where)


def _check_shows(task: Task, variant: Variant, where: str) -> None:
    """Whether the template shows anything of a document; names it does not know fail elsewhere."""
    used, fields = variables(variant.template), varying_fields(task)
    own = frozenset() if task.choices else CHOICE_VARIABLES
    every = {*(task.spec.get("fields") or {}), *CHOICE_VARIABLES}
    if fields and used <= every and not used & (fields | own) and not _unasked(task):
        raise PromptError(
            PromptFault.NO_FIELD,
            f"{where}, key template: shows nothing of a document, so that all of task {task.name} "
            f"are asked the same; its fields are {', '.join(sorted(fields))}",
        )


def check_unlike(task: Task, variant: Variant, documents: Sequence[Document]) -> None:
    """Whether documents that differ are asked different questions.

    Raises:
        PromptError: If all of them are asked the same, or a template is wrong.
    """
    asked = {render_question(task, variant, doc) for doc in documents}
    if len(asked) == 1 and len({content_key(doc) for doc in documents}) > 1 and not _unasked(task):
        raise PromptError(
            PromptFault.SAME_PROMPT,
            f"prompt {variant.group}/{variant.name}, key template: {len(documents)} documents of "
            f"task {task.name} are asked the same; its fields are "
            f"{', '.join(sorted(varying_fields(task)))}",
        )


def _unasked(task: Task) -> bool:
    """Whether texts may well be scored after nothing."""
    return task.output_type.startswith("loglikelihood")


def shown_fields(task: Task, variant: Variant) -> frozenset[str]:
    """Fields of a task, those that are the same in every document apart, that a prompt shows."""
    used = variables(variant.template) | variables(variant.target)
    return used & varying_fields(task)


def varying_fields(task: Task) -> frozenset[str]:
    """Fields of a task but those with the same text in every document, and lists of turns."""
    fields = task.spec.get("fields") or {}
    aside = {
        name
        for name, part in fields.items()
        if isinstance(part, Mapping)
        and (part.get("text") is not None or part.get("part") == "turns")
    }
    return frozenset(fields) - aside


def _check_label_words(task: Task, variant: Variant, where: str) -> None:
    words = dict(variant.label_words)
    where = f"{where}, key label_words"
    if not task.choices:
        raise PromptError(
            PromptFault.NO_LABELS, f"{where}: task {task.name} has no labels of its own to replace"
        )
    labels = ", ".join(task.choices)
    missing = [label for label in task.choices if label not in words]
    if len(missing) == len(task.choices):
        raise PromptError(
            PromptFault.UNKNOWN_LABEL,
            f"{where}: {', '.join(map(repr, words))}: none is a label of task {task.name} "
            f"({labels})",
        )
    if missing:
        raise PromptError(
            PromptFault.LABEL_WITHOUT_WORDS,
            f"{where}: no words for label {missing[0]!r} of task {task.name} ({labels}); give "
            "words for all of them or for none",
        )
    shown = [text for label in task.choices for text in _texts(words[label])]
    if len(set(shown)) != len(shown):
        raise PromptError(
            PromptFault.SAME_WORDS, f"{where}: two labels of task {task.name} have the same words"
        )


def _texts(words: str | tuple[str, ...]) -> tuple[str, ...]:
    return (words,) if isinstance(words, str) else tuple(words)


def choice_texts(task: Task, variant: Variant, document: Document) -> list[tuple[str, ...]]:
    """The texts each choice of a document stands for: the prompt's words, else the task's, else
    its own text."""
    words = dict(variant.label_words) or dict(task.words)
    return [_texts(words.get(choice, choice)) for choice in document.choices]


def _fill(text: str, key: str, task: Task, variant: Variant, values: dict[str, Any]) -> str:
    try:
        return fill(text, values)
    except TemplateFault as error:
        raise PromptError(
            error.fault,
            f"prompt {variant.group}/{variant.name}, key {key}: {error} (task {task.name})",
        ) from None


def _values(task: Task, variant: Variant, document: Document) -> dict[str, Any]:
    """Variables of the template: fields, and for choices their words, letters and listing."""
    if not document.choices:
        return dict(document.fields)
    shown = [" or ".join(texts) for texts in choice_texts(task, variant, document)]
    if len(shown) > len(ascii_uppercase):
        if variant.listing == "letters":
            raise PromptError(
                PromptFault.TOO_MANY_CHOICES,
                f"prompt {variant.group}/{variant.name}: task {task.name}, document "
                f"{document.index} has {len(shown)} choices, there are {len(ascii_uppercase)} "
                "letters",
            )
        return {**document.fields, "choices": shown}
    letters = list(ascii_uppercase[: len(shown)])
    lines = [f"{letter}. {text}" for letter, text in zip(letters, shown, strict=True)]
    listing = "\n".join(lines)
    return {**document.fields, "choices": shown, "letters": letters, "listing": listing}


def render_question(task: Task, variant: Variant, document: Document) -> str:
    """The question part of the context: the template filled with the document."""
    return _fill(variant.template, "template", task, variant, _values(task, variant, document))


def render_targets(
    task: Task, variant: Variant, document: Document
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The target of each text of each choice, or of each reference.

    Returns:
        The targets, choice by choice; and the choice each is of, empty where each has one text.

    Raises:
        PromptError: If a target is empty: there would be nothing to score; or two labels of the
            task have the same target: the first would be every document's answer. Equal targets of
            choices that are the rows' own are found by :func:`evalcore.prompting.check_requests`.
    """
    values = _values(task, variant, document)
    answers: list[tuple[str, ...]] = [(text,) for text in document.references]
    if task.output_type == "multiple_choice" and variant.listing == "letters":
        answers = [(letter,) for letter in values["letters"]]
    elif task.output_type == "multiple_choice":
        answers = choice_texts(task, variant, document)
    owners = tuple(number for number, texts in enumerate(answers) for _ in texts)
    targets = tuple(
        text
        if variant.target == "{{ choice }}"
        else _fill(
            variant.target, "target", task, variant, {**values, "choice": text, "index": number}
        )
        for number, texts in enumerate(answers)
        for text in texts
    )
    if any(not target for target in targets):
        raise PromptError(
            PromptFault.EMPTY_TARGET,
            f"prompt {variant.group}/{variant.name}, key target: gives empty text for a choice of "
            f"task {task.name}, document {document.index}",
        )
    if task.output_type == "multiple_choice" and task.choices:
        _check_unlike(task, variant, document, targets, owners)
    return targets, owners if len(owners) > len(answers) else ()


def _check_unlike(
    task: Task,
    variant: Variant,
    document: Document,
    targets: Sequence[str],
    owners: Sequence[int],
) -> None:
    """Refuses a target that two labels have; texts of one label may be alike.

    Free answers are not told apart by case or by what is not visible at their ends.
    """
    told_by = caseless if variant.answer == "free" else str
    first: dict[str, int] = {}
    for target, owner in zip(targets, owners, strict=True):
        other = first.setdefault(told_by(target), owner)
        if other != owner:
            raise PromptError(
                PromptFault.SAME_WORDS,
                f"prompt {variant.group}/{variant.name}, key target: labels "
                f"{document.choices[other]!r} and {document.choices[owner]!r} of task {task.name} "
                f"have the same words, {target!r} (document {document.index}): the first would "
                "always be the answer; the target has to tell them apart",
            )


def gold_target(task: Task, variant: Variant, document: Document) -> str:
    """The target of the right choice, or of the first reference.

    Of a choice that stands for several texts the document's own draw is taken, the same always.

    Raises:
        InputError: If the document has no right answer.
    """
    targets, owners = render_targets(task, variant, document)
    index = document.gold if task.output_type == "multiple_choice" else 0
    own = [i for i, owner in enumerate(owners or range(len(targets))) if owner == index]
    if not own:
        raise InputError(f"task {task.name}, document {document.index} has no right answer")
    if len(own) == 1:
        return targets[own[0]]
    drawn = int(hashlib.blake2b(document.id.encode(), digest_size=8).hexdigest(), 16)
    return targets[own[drawn % len(own)]]


def render(
    task: Task,
    variant: Variant,
    document: Document,
    shots: Sequence[Document] = (),
    tokenizer: Any = None,
    *,
    shots_prefix: str | None = None,
) -> Rendered:
    """Text of a document: context and continuations.

    Args:
        task: The task.
        variant: The prompt variant.
        document: The document asked about.
        shots: Worked examples, in order.
        tokenizer: Needed by chat variants, for its chat template.
        shots_prefix: :func:`shots_text` of ``shots``, where many documents share it.

    Raises:
        PromptError: If a template is wrong (which file, key and variable), or the chat template
            refuses the conversation.
        InputError: If a chat variant has no tokenizer or no chat template.
    """
    targets, owners = render_targets(task, variant, document)
    question = render_question(task, variant, document)
    if variant.chat and variant.chat_shots == "turns":
        turns = [
            (render_question(task, variant, shot), gold_target(task, variant, shot))
            for shot in shots
        ]
        return Rendered(
            chat_text(variant, turns, question, tokenizer), targets, targets, len(shots), owners
        )
    if shots_prefix is None:
        shots_prefix = shots_text(task, variant, shots)
    if variant.chat:
        context = chat_text(variant, [], shots_prefix + question, tokenizer)
        return Rendered(context, targets, targets, len(shots), owners)
    continuations = tuple(variant.delimiter + target for target in targets)
    return Rendered(shots_prefix + question, continuations, targets, len(shots), owners)


def shots_text(task: Task, variant: Variant, shots: Sequence[Document]) -> str:
    """Worked examples as plain text, the separator after each."""
    return "".join(
        render_question(task, variant, shot)
        + variant.delimiter
        + gold_target(task, variant, shot)
        + variant.separator
        for shot in shots
    )

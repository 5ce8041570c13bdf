"""From a document to text: context and continuations, by sandboxed Jinja templates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateError, TemplateSyntaxError, UndefinedError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from evalcore.errors import DefinitionError, InputError
from evalcore.types import Document, Task, Variant

_MAX_REPEAT = 100_000


@dataclass(frozen=True, slots=True)
class Rendered:
    """Text of one document under one variant.

    Attributes:
        context: Shots and question.
        continuations: One per choice, or per reference; the delimiter at their start (none with
            a chat template, which ends its own header).
        targets: The same without the delimiter: what lengths in characters and bytes are of.
        shots: Worked examples in the context.
    """

    context: str
    continuations: tuple[str, ...]
    targets: tuple[str, ...]
    shots: int


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox, which also refuses to multiply text or numbers beyond reason."""

    intercepted_binops = frozenset(["*", "**"])

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        numbers = isinstance(left, (int, float)) and isinstance(right, (int, float))
        large = any(isinstance(side, int) and abs(side) > _MAX_REPEAT for side in (left, right))
        if (operator == "**" and large) or (large and not numbers):
            raise TemplateError("a factor is too large")
        return super().call_binop(context, operator, left, right)


_ENVIRONMENT = _Environment(undefined=StrictUndefined, autoescape=False)


@lru_cache(maxsize=1024)
def _compile(text: str) -> Template:
    return _ENVIRONMENT.from_string(text)


def _fill(text: str, what: str, task: Task, variant: Variant, values: dict[str, Any]) -> str:
    where = f"prompt {variant.group}/{variant.name}, key {what}"
    try:
        return _compile(text).render(values)
    except UndefinedError as error:
        given = ", ".join(sorted(values))
        raise DefinitionError(f"{where}: {error.message}; task {task.name} gives {given}") from None
    except TemplateSyntaxError as error:
        raise DefinitionError(f"{where}: line {error.lineno}: {error.message}") from None
    except Exception as error:  # a template can raise whatever its expressions raise
        raise DefinitionError(f"{where}: {type(error).__name__}: {error}") from None


def check_variant(task: Task, variant: Variant) -> None:
    """Checks that a variant can serve a task.

    Raises:
        DefinitionError: If the group differs or a label word is for no label of the task.
    """
    if variant.group != task.group:
        raise DefinitionError(
            f"prompt {variant.group}/{variant.name} is not of group {task.group} of {task.name}"
        )
    if task.choices:
        for label, _ in variant.label_words:
            if label not in task.choices:
                raise DefinitionError(
                    f"prompt {variant.group}/{variant.name}, key label_words: {label!r} is not a "
                    f"label of task {task.name} ({', '.join(task.choices)})"
                )


def _values(variant: Variant, document: Document) -> tuple[dict[str, Any], tuple[str, ...]]:
    words = dict(variant.label_words)
    shown = tuple(words.get(choice, choice) for choice in document.choices)
    return {**document.fields, "choices": list(shown)}, shown


def render_question(task: Task, variant: Variant, document: Document) -> str:
    """The question part of the context: the template filled with the document."""
    return _fill(variant.template, "template", task, variant, _values(variant, document)[0])


def render_targets(task: Task, variant: Variant, document: Document) -> tuple[str, ...]:
    """The target of each choice, or of each reference.

    Raises:
        DefinitionError: If a target is empty: there would be nothing to score.
    """
    values, shown = _values(variant, document)
    answers = shown if task.output_type == "multiple_choice" else document.references
    targets = tuple(
        _fill(variant.target, "target", task, variant, {**values, "choice": answer})
        for answer in answers
    )
    if any(not target for target in targets):
        raise DefinitionError(
            f"prompt {variant.group}/{variant.name}, key target: gives empty text for a choice of "
            f"task {task.name}, document {document.index}"
        )
    return targets


def gold_target(task: Task, variant: Variant, document: Document) -> str:
    """The target of the right choice, or of the first reference.

    Raises:
        InputError: If the document has no right answer.
    """
    targets = render_targets(task, variant, document)
    index = document.gold if task.output_type == "multiple_choice" else 0
    if not 0 <= index < len(targets):
        raise InputError(f"task {task.name}, document {document.index} has no right answer")
    return targets[index]


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
        DefinitionError: If a template is wrong (which file, key and variable).
        InputError: If a chat variant has no tokenizer or no chat template.
    """
    targets = render_targets(task, variant, document)
    if variant.chat:
        context = _chat(task, variant, document, shots, tokenizer)
        return Rendered(context, targets, targets, len(shots))
    if shots_prefix is None:
        shots_prefix = shots_text(task, variant, shots)
    context = shots_prefix + render_question(task, variant, document)
    continuations = tuple(variant.delimiter + target for target in targets)
    return Rendered(context, continuations, targets, len(shots))


def shots_text(task: Task, variant: Variant, shots: Sequence[Document]) -> str:
    """Worked examples as plain text, the separator after each."""
    return "".join(
        render_question(task, variant, shot)
        + variant.delimiter
        + gold_target(task, variant, shot)
        + variant.separator
        for shot in shots
    )


def _chat(
    task: Task, variant: Variant, document: Document, shots: Sequence[Document], tokenizer: Any
) -> str:
    where = f"prompt {variant.group}/{variant.name}"
    if tokenizer is None or not getattr(tokenizer, "chat_template", None):
        raise InputError(f"{where}: chat=1 needs a tokenizer with a chat template; this has none")
    messages = [{"role": "system", "content": variant.system}] if variant.system else []
    for shot in shots:
        messages.append({"role": "user", "content": render_question(task, variant, shot)})
        messages.append({"role": "assistant", "content": gold_target(task, variant, shot)})
    messages.append({"role": "user", "content": render_question(task, variant, document)})
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # raised by the template: unknown roles, order of turns
        raise DefinitionError(f"{where}: the chat template refuses it: {error}") from None
    return str(text)

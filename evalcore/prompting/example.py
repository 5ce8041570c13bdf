"""One document as a model sees it, for people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from evalcore.errors import InputError
from evalcore.prompting.encoding import Encoder
from evalcore.prompting.rendering import check_variant, render, shots_text
from evalcore.prompting.shots import draw_shots
from evalcore.tasks import load_documents
from evalcore.types import Document, EncodingSettings, Task, Variant

_TAIL = 4


@dataclass(frozen=True, slots=True)
class Border:
    """Where context and one continuation meet, in tokens.

    Attributes:
        context_tokens: How many tokens the context has.
        continuation_tokens: How many the continuation has.
        before: The last (id, text) of the context.
        after: The first (id, text) of the continuation.
    """

    context_tokens: int
    continuation_tokens: int
    before: tuple[tuple[int, str], ...]
    after: tuple[tuple[int, str], ...]


@dataclass(frozen=True, slots=True)
class Example:
    """A rendered document.

    Attributes:
        variant: Name of the variant.
        fingerprint: Of the variant.
        document: The document.
        shots: Worked examples before it.
        shot_texts: Text of each, separator included; empty in a chat.
        contexts: What is given: one, or one per continuation.
        question: The last part of the context, after the shots (plain text prompts).
        continuations: What is scored, or the references of a generation.
        unconditional: Text scored after an empty context, if any.
        borders: With a tokenizer: one per continuation.
    """

    variant: str
    fingerprint: str
    document: Document
    shots: tuple[Document, ...]
    shot_texts: tuple[str, ...]
    contexts: tuple[str, ...]
    question: str
    continuations: tuple[str, ...]
    unconditional: tuple[str, ...] = ()
    borders: tuple[Border, ...] = ()


def example(
    task: Task,
    variant: Variant,
    tokenizer: Any = None,
    index: int = 0,
    *,
    data_root: Path | None = None,
    settings: EncodingSettings | None = None,
) -> Example:
    """Loads and renders one document of a task (of the training split, if it is for tuning only).

    Args:
        task: The task.
        variant: The prompt variant.
        tokenizer: To count tokens, and for chats.
        index: Which of the task's documents.
        data_root: Folder of local data.
        settings: How text becomes ids.

    Raises:
        InputError: If there is no such document, or a chat does not hold exactly one BOS.
        PromptError: If the variant does not fit the task.
    """
    check_variant(task, variant)
    documents = load_documents(task, shown_role(task), data_root=data_root)
    if not 0 <= index < len(documents):
        raise InputError(
            f"task {task.name} has {len(documents)} documents, 0 to {len(documents) - 1}: there is "
            f"no {index}"
        )
    pool = load_documents(task, "shots", data_root=data_root) if variant.shots else []
    shots = draw_shots(task, variant, pool, {doc.id for doc in documents}, scored=documents)
    return document_example(task, variant, documents[index], shots, tokenizer, settings)


def document_example(
    task: Task,
    variant: Variant,
    document: Document,
    shots: Sequence[Document] = (),
    tokenizer: Any = None,
    settings: EncodingSettings | None = None,
) -> Example:
    """Like :func:`example`, of a document at hand; text it brings itself is taken as it is."""
    ready = document.prebuilt
    if ready is None:
        shown = _rendered(task, variant, document, shots, tokenizer)
    else:
        shown = Example(
            variant.name, variant.fingerprint, document, (), (), ready.contexts,
            ready.contexts[0] if ready.contexts else "",
            ready.continuations or document.references, ready.unconditional,
        )  # fmt: skip
    if tokenizer is None:
        return shown
    encoder = Encoder(tokenizer, settings or EncodingSettings())
    pairs = _pairs(shown, encoder)
    if variant.chat and ready is None:
        encoder.check_one_bos(pairs[0][0], f"task {task.name}, prompt {variant.name}")
    borders = [
        Border(
            len(context),
            len(continuation),
            _named(tokenizer, context[-_TAIL:]),
            _named(tokenizer, continuation[:_TAIL]),
        )
        for context, continuation in pairs
    ]
    return replace(shown, borders=tuple(borders))


def shown_role(task: Task) -> Literal["score", "train"]:
    """The split an example is taken from: the scored one, if the task has one."""
    return "score" if task.spec["splits"].get("score") else "train"


def _rendered(
    task: Task, variant: Variant, document: Document, shots: Sequence[Document], tokenizer: Any
) -> Example:
    text = render(task, variant, document, shots, tokenizer)
    parts = () if variant.chat else tuple(shots_text(task, variant, [shot]) for shot in shots)
    return Example(
        variant.name,
        variant.fingerprint,
        document,
        tuple(shots),
        parts,
        (text.context,),
        text.context[sum(map(len, parts)) :],
        text.continuations,
    )


def _pairs(shown: Example, encoder: Encoder) -> list[tuple[list[int], list[int]]]:
    contexts = shown.contexts or ("",)
    if len(contexts) == 1:
        return encoder.encode_pairs([(contexts[0], shown.continuations)])[0]
    items = [(c, [t]) for c, t in zip(contexts, shown.continuations, strict=True)]
    return [group[0] for group in encoder.encode_pairs(items)]


def _named(tokenizer: Any, ids: Sequence[int]) -> tuple[tuple[int, str], ...]:
    return tuple((number, str(tokenizer.decode([number]))) for number in ids)

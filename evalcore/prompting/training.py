"""Text pairs for tuning, the same that are scored; and a worked example for people."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evalcore.errors import InputError
from evalcore.prompting.encoding import Encoder
from evalcore.prompting.rendering import check_variant, gold_target, render
from evalcore.prompting.shots import draw_shots
from evalcore.tasks import load_documents
from evalcore.types import Document, EncodingSettings, Task, Variant


def training_pair(
    task: Task,
    variant: Variant,
    document: Document,
    shots: Sequence[Document] = (),
    tokenizer: Any = None,
) -> tuple[str, str]:
    """Text to train on: (prompt, completion); the completion is the right answer.

    The completion begins with the delimiter, as the scored continuation does (chat: without).

    Args:
        task: The task.
        variant: The prompt variant.
        document: A document with a right answer.
        shots: Worked examples shown before.
        tokenizer: Needed by chat variants.
    """
    context = render(task, variant, document, shots, tokenizer).context
    target = gold_target(task, variant, document)
    return context, target if variant.chat else variant.delimiter + target


def example(
    task: Task,
    variant: Variant,
    tokenizer: Any = None,
    index: int = 0,
    *,
    data_root: Path | None = None,
    settings: EncodingSettings | None = None,
) -> dict[str, Any]:
    """One document as a model sees it, for ``evalcore prompts show``.

    Returns:
        ``document`` (index, id, fields), ``context``, ``continuations``, ``gold``,
        ``references``, ``shots`` (their row indices), ``fingerprint``, and with a tokenizer
        ``context_tokens`` and ``continuation_tokens`` (counts), else None.

    Raises:
        InputError: If there is no such document.
    """
    check_variant(task, variant)
    documents = load_documents(task, "score", data_root=data_root)
    if not 0 <= index < len(documents):
        raise InputError(f"task {task.name} has {len(documents)} documents, there is no {index}")
    document = documents[index]
    pool = load_documents(task, "shots", data_root=data_root) if variant.shots else []
    shots = draw_shots(task, variant, pool, {doc.id for doc in documents}, scored=documents)
    text = render(task, variant, document, shots, tokenizer)
    result: dict[str, Any] = {
        "task": task.name,
        "variant": variant.name,
        "fingerprint": variant.fingerprint,
        "document": {"index": document.index, "id": document.id, "fields": dict(document.fields)},
        "context": text.context,
        "continuations": list(text.continuations),
        "gold": document.gold,
        "references": list(document.references),
        "shots": [shot.index for shot in shots],
        "context_tokens": None,
        "continuation_tokens": None,
    }
    if tokenizer is not None:
        encoder = Encoder(tokenizer, settings or EncodingSettings())
        pairs = encoder.encode_pairs([(text.context, text.continuations)])[0]
        result["context_tokens"] = len(pairs[0][0])
        result["continuation_tokens"] = [len(continuation) for _, continuation in pairs]
    return result

"""Text pairs for tuning, the same that are scored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from evalcore.prompting.guarding import guarded
from evalcore.prompting.rendering import gold_target, render
from evalcore.types import Document, Task, Variant


def training_pair(
    task: Task,
    variant: Variant,
    document: Document,
    shots: Sequence[Document] = (),
    tokenizer: Any = None,
) -> tuple[str, str]:
    """Text to train on: (prompt, completion); the completion is the right answer.

    The completion begins with the delimiter, as the scored continuation does (chat: without).
    Control tokens that data names are marked for :func:`encode_training`.

    Args:
        task: The task.
        variant: The prompt variant.
        document: A document with a right answer.
        shots: Worked examples shown before.
        tokenizer: Needed by chat variants; knows what names a control token.
    """
    if tokenizer is not None:
        document, *shots = guarded([document, *shots], tokenizer)
    context = render(task, variant, document, shots, tokenizer).context
    target = gold_target(task, variant, document)
    return context, target if variant.chat else variant.delimiter + target

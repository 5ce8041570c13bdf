"""Identity of cells: what decides a score, and nothing about speed."""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass, fields
from typing import Any

from evalcore.identity.hashing import text_fingerprint
from evalcore.types import TEMPLATE_DATE, EncodingSettings, Subject, Task, Variant, generation_of

CELL_KEY_VERSION = 3
"""Raised when the same question to the same model would get another key (docs/identity.md)."""
STOP_RULE = 2
"""Raised when the same tokens would end in another place (:mod:`evalcore.engines.text`)."""


@dataclass(frozen=True, slots=True)
class NumericsClass:
    """Runs of one class may be compared number by number.

    Attributes:
        engine: Engine kind (``vllm``, ``hf``).
        dtype: Type of weights and activations.
        head_dtype: Type in which logits are computed.
        device: Device family (``cpu``, ``cuda``).
        adapters: How adapters are applied (``merged``, ``batched``). It counts outside float32
            only, where merging rounds the weights.
    """

    engine: str
    dtype: str
    head_dtype: str
    device: str
    adapters: str | None = None

    @property
    def label(self) -> str:
        """Text form; equal labels are the same class."""
        parts = [self.engine, self.dtype, f"head-{self.head_dtype}", self.device]
        if self.dtype != "float32" and self.adapters is not None:
            parts.append(self.adapters)
        return "/".join(parts)


# The parts of a task's definition that decide which documents there are and what they mean.
_DATA_KEYS = ("source", "splits", "fields", "choices", "gold", "references")


def data_fingerprint(task: Task) -> str:
    """32 hex digits over the words of a definition that decide its documents.

    For settings that are compared before any row is read (of a training); cells are known by
    :func:`rows_fingerprint`.
    """
    return text_fingerprint({key: task.spec.get(key) for key in _DATA_KEYS})


def rows_fingerprint(ids: Iterable[str]) -> str:
    """32 hex digits over the content of all rows there are to score, whatever their order.

    The words of a definition do not count: pinning a revision changes nothing where it gives the
    same rows.

    Args:
        ids: Ids of all documents of the split, whatever part of them a limit leaves.
    """
    return text_fingerprint(["rows", sorted(ids)])


def differences(value: Any, *, leave_out: Container[str] = ()) -> dict[str, Any]:
    """Fields of a frozen value that are not their default, by name.

    What is hashed of settings: a new field with a default changes no key that was there before.
    """
    found = {}
    for each in fields(value):
        content = getattr(value, each.name)
        default = each.default_factory() if callable(each.default_factory) else each.default
        if each.name not in leave_out and content != default:
            found[each.name] = content
    return found


def cell_key(
    subject: Subject,
    task: Task,
    variant: Variant,
    encoding: EncodingSettings,
    numerics: NumericsClass,
    *,
    data: str = "",
    shots: str | None = None,
    unconditional: bool = False,
) -> str:
    """Content identity of a cell (32 hex digits); docs/identity.md goes through its parts.

    It covers weights, tokenizer, rows, prompt variant (template, shots, chat, renderer version),
    the shots that were drawn, token settings, and the numerics class; for chats the chat template
    and the date it writes; for what is generated how and where it ends. Nothing about speed, and
    nothing that is at its default. Documents are keyed one by one as well, so that a larger limit
    adds examples to the same cell.

    Args:
        data: :func:`rows_fingerprint` of the task's rows.
        shots: Fingerprint of the worked examples in their order; None where there are none.
        unconditional: Whether choices are scored after an empty context too.
    """
    checkpoint = subject.checkpoint
    parts: dict[str, Any] = {
        "cell": CELL_KEY_VERSION,
        "checkpoint": checkpoint.fingerprint,
        "tokenizer": checkpoint.tokenizer_fingerprint,
        "task": [task.name, task.version, task.output_type],
        "data": data,
        "variant": variant.fingerprint,
        "numerics": numerics.label,
    }
    if task.words and not variant.label_words and variant.listing != "letters":
        parts["words"] = task.words
    if subject.adapter is not None:
        parts["adapter"] = subject.adapter.fingerprint
    if shots is not None:
        parts["shots"] = shots
    if unconditional:
        parts["unconditional"] = True
    if special := differences(encoding):
        parts["encoding"] = special
    if variant.chat:
        parts["template"] = checkpoint.template_fingerprint
        if checkpoint.template_dated and variant.chat_date != TEMPLATE_DATE:
            parts["date"] = variant.chat_date
    settings = generation_of(task, variant)
    if settings is not None:
        parts["generation"] = differences(settings)
        parts["ends"] = sorted(checkpoint.end_tokens or ())
        if settings.run_on:
            parts["stop_rule"] = STOP_RULE
    return text_fingerprint(parts)

"""Identity of cells: what decides a score, and nothing about speed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from evalcore.identity.hashing import DIGEST_BYTES, canonical_json, text_fingerprint
from evalcore.types import (
    TEMPLATE_DATE,
    Checkpoint,
    EncodingSettings,
    Subject,
    Task,
    Variant,
    generation_of,
)

CELL_KEY_VERSION = 3
"""Raised when the same question to the same model would get another key (docs/identity.md)."""
STOP_RULE = 3
"""Raised when the same tokens would end in another place (:mod:`evalcore.engines.text`,
:mod:`evalcore.scoring.generating`)."""
ANSWER_RULE = 3
"""Raised when the same free text would be another choice (:mod:`evalcore.scoring.answers`)."""


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
    maker = KeyMaker(task, variant, encoding, data=data, shots=shots, unconditional=unconditional)
    parts = maker.parts | maker.parts_of(subject.checkpoint, numerics)
    if subject.adapter is not None:
        parts["adapter"] = subject.adapter.fingerprint
    return text_fingerprint(parts)


class KeyMaker:
    """Keys of many cells that ask the same: what they have in common is written once.

    ``key(stem(checkpoint, numerics), adapter)`` is :func:`cell_key`, byte by byte.

    Attributes:
        parts: Of the key, whoever is asked.
    """

    def __init__(
        self,
        task: Task,
        variant: Variant,
        encoding: EncodingSettings,
        *,
        data: str = "",
        shots: str | None = None,
        unconditional: bool = False,
    ) -> None:
        settings = generation_of(task, variant)
        self._chat, self._ends = variant.chat, settings is not None
        self._date = variant.chat_date if variant.chat_date != TEMPLATE_DATE else None
        self.parts: dict[str, Any] = {
            "cell": CELL_KEY_VERSION,
            "task": [task.name, task.version, task.output_type],
            "data": data,
            "variant": variant.fingerprint,
        }
        if task.words and not variant.label_words and variant.listing != "letters":
            self.parts["words"] = task.words
        if shots is not None:
            self.parts["shots"] = shots
        if unconditional:
            self.parts["unconditional"] = True
        if special := differences(encoding):
            self.parts["encoding"] = special
        if settings is not None:
            self.parts["generation"] = differences(settings)
            if settings.run_on:
                self.parts["stop_rule"] = STOP_RULE
        if variant.answer == "free":
            self.parts["answer_rule"] = ANSWER_RULE
        self._written: dict[str, str] | None = None

    def parts_of(self, checkpoint: Checkpoint, numerics: NumericsClass) -> dict[str, Any]:
        """Parts of the key that a model decides, its adapter apart."""
        parts: dict[str, Any] = {
            "checkpoint": checkpoint.fingerprint,
            "tokenizer": checkpoint.tokenizer_fingerprint,
            "numerics": numerics.label,
        }
        if self._chat:
            parts["template"] = checkpoint.template_fingerprint
            if checkpoint.template_dated and self._date is not None:
                parts["date"] = self._date
        if self._ends:
            parts["ends"] = sorted(checkpoint.end_tokens or ())
        return parts

    def stem(self, checkpoint: Checkpoint, numerics: NumericsClass) -> str:
        """What the keys of a checkpoint and of all its adapters have in common, as it is hashed."""
        if self._written is None:
            self._written = _written(self.parts)
        written = self._written | _written(self.parts_of(checkpoint, numerics))
        return ",".join([written[name] for name in sorted(written)])

    @staticmethod
    def key(stem: str, adapter: str | None) -> str:
        """A cell's key; ``adapter``: its fingerprint."""
        # "adapter" is the first of all names in canonical order.
        text = f"{{{stem}}}" if adapter is None else f'{{"adapter":{_quoted(adapter)},{stem}}}'
        data = text.encode("utf-8", "surrogatepass")
        return hashlib.blake2b(data, digest_size=DIGEST_BYTES).hexdigest()


def _written(parts: Mapping[str, Any]) -> dict[str, str]:
    return {name: f'"{name}":{_text(value)}' for name, value in parts.items()}


def _text(value: Any) -> str:
    return _quoted(value) if isinstance(value, str) else canonical_json(value)


_quoted = json.JSONEncoder(ensure_ascii=False).encode

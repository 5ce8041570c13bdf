"""Control tokens that stand in data as text: never learned as control tokens.

Web pages, code and scraped conversations hold ``</s>``, ``<|endoftext|>`` and the like. A tokenizer
reads them as the control tokens they name, and a model that is tuned on them learns to end in the
middle. In training they are encoded as the letters they are. In scoring they are encoded as
lm-evaluation-harness encodes them, which is as control tokens, and counted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from evalcore.identity import special_tokens
from evalcore.types import Document

MARK = "\ufdd0"
"""Stands before a control token's text that came from data; no character, so in no data."""


def guarded(documents: Sequence[Document], tokenizer: Any) -> list[Document]:
    """Documents with a mark before each text in them that names a control token."""
    pattern = _pattern(special_tokens(tokenizer))
    if pattern is None:
        return list(documents)
    return [_guard(document, pattern) if holds(document, pattern) else document
            for document in documents]  # fmt: skip


def control_pattern(texts: Sequence[str]) -> re.Pattern[str] | None:
    """Finds the texts of control tokens, longer ones first; None if there are none."""
    return _pattern(dict.fromkeys(texts, 0))


def holds(document: Document, pattern: re.Pattern[str]) -> bool:
    """Whether a document's text names a control token."""
    made = document.prebuilt
    parts: list[Any] = [list(document.fields.values()), document.choices, document.references]
    parts += [made.contexts, made.continuations] if made is not None else []
    return any(pattern.search(text) for text in _texts(parts))


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [text for each in value for text in _texts(each)]
    return []


def _pattern(tokens: Mapping[str, int]) -> re.Pattern[str] | None:
    texts = sorted(filter(None, tokens), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, texts))) if texts else None


def _guard(document: Document, pattern: re.Pattern[str]) -> Document:
    def mark(value: Any) -> Any:
        if isinstance(value, str):
            return pattern.sub(lambda found: MARK + found.group(), value)
        if isinstance(value, Mapping):
            return {key: mark(each) for key, each in value.items()}
        return [mark(each) for each in value] if isinstance(value, (list, tuple)) else value

    return replace(
        document,
        fields=mark(document.fields),
        choices=tuple(mark(document.choices)),
        references=tuple(mark(document.references)),
    )


class GuardedTokenizer:
    """A tokenizer that encodes what follows a mark as letters.

    A text whose only control tokens are marked is encoded whole, with control tokens off; one that
    holds others too (of a chat template) is encoded in parts.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        pattern = _pattern(special_tokens(tokenizer))
        self._any = pattern.pattern if pattern is not None else "(?!)"
        self._marked = re.compile(f"{MARK}({self._any})")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(self, texts: Sequence[str], **options: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [self._encode(text, options) for text in texts]}

    def _encode(self, text: str, options: Mapping[str, Any]) -> list[int]:
        parts = self._marked.split(text)  # others and marked take turns
        if len(parts) == 1:
            return list(self._tokenizer(text, **options)["input_ids"])
        if not any(re.search(self._any, part) for part in parts[::2]):
            whole = "".join(parts)
            return list(self._tokenizer(whole, split_special_tokens=True, **options)["input_ids"])
        ids: list[int] = []
        for i, part in enumerate(parts):
            if part:
                more = {"split_special_tokens": True} if i % 2 else {}
                ids += self._tokenizer(part, **more, **options)["input_ids"]
        return ids

"""One row as token ids: encoded as scored, and made to fit where it is too long."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from evalcore.errors import DataError
from evalcore.prompting import (
    Encoder,
    MergedBorderError,
    encode_turns,
    training_turns,
    turns_field,
)
from evalcore.types import Document, EncodingSettings, Task, Variant

SETTINGS = EncodingSettings()  # ids do not depend on its length limit
TRIES = 12
"""Cuts of a document before its prompt is cut instead; the second or third nearly always fits."""


class EmptyCompletionError(DataError):
    """A row has nothing to learn."""


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """Ids of one row.

    Attributes:
        prompt: Up to the first answer.
        completion: From there on: the answer with its end token; of a conversation all of it.
        borders: Within ``completion``, two for each later question: from where to where nothing
            is learned.
    """

    prompt: list[int]
    completion: list[int]
    borders: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)

    @property
    def answers_end(self) -> tuple[int, ...]:
        """Where each answer ends in ``completion``."""
        return (*self.borders[::2], len(self.completion))

    def cut_after(self, answers: int) -> EncodedRow:
        """Its first so many answers."""
        end = self.answers_end[answers - 1]
        return EncodedRow(self.prompt, self.completion[:end], self.borders[: 2 * (answers - 1)])


@dataclass(frozen=True)
class RowEncoder:
    """Turns documents of one task under one variant into rows.

    Attributes:
        task: The task.
        variant: The prompt variant.
        shots: Worked examples shown before.
        tokenizer: Of the base.
        max_length: Longest row, in tokens.
        overlong: What becomes of longer ones: ``leave_out`` or ``truncate``.
    """

    task: Task
    variant: Variant
    shots: Sequence[Document]
    tokenizer: Any
    max_length: int
    overlong: str

    def texts(self, document: Document) -> list[tuple[str, str]]:
        """(what stands before it, answer) of each answer.

        Raises:
            EmptyCompletionError: If an answer is empty.
        """
        turns = training_turns(self.task, self.variant, document, self.shots, self.tokenizer)
        if any(not answer.strip() for _, answer in turns):
            raise EmptyCompletionError(
                f"task {self.task.name}, train split, row {document.index}: the completion is "
                f"empty; remove the row or mend the variant {self.variant.name!r}"
            )
        return turns

    def encode(self, document: Document) -> EncodedRow:
        """Ids of a document, whatever their number."""
        return self.encoded(self.texts(document))

    def encoded(self, turns: Sequence[tuple[str, str]]) -> EncodedRow:
        """Ids of texts (see :meth:`texts`)."""
        return EncodedRow(*encode_turns(self.tokenizer, turns, SETTINGS, chat=self.variant.chat))

    def fitted(self, document: Document, counts: Counter[str]) -> EncodedRow | None:
        """Ids that fit; None if the row is to be left out. Counts what it does.

        ``truncate`` never cuts an answer, nor the words of the prompt: a conversation loses its
        last exchanges; else the longest text that the prompt shows loses its end. Where that is
        not enough (worked examples that fill the length), the prompt is cut after its first tokens
        (BOS). An answer that shares a token with the end of its prompt is not learned.
        """
        try:
            return self._fitted(document, counts)
        except MergedBorderError:
            counts["merged_border"] += 1
            return None

    def _fitted(self, document: Document, counts: Counter[str]) -> EncodedRow | None:
        row = self.encode(document)
        if len(row) <= self.max_length:
            return row
        first = row.cut_after(1)
        if self.overlong == "leave_out" or len(first.completion) >= self.max_length:
            counts["too_long"] += 1
            return None
        counts["truncated"] += 1
        fitting = [n for n, end in enumerate(row.answers_end, 1)
                   if len(row.prompt) + end <= self.max_length]  # fmt: skip
        if fitting:
            return row.cut_after(fitting[-1])
        return self._shortened(document, first)

    def _shortened(self, document: Document, row: EncodedRow) -> EncodedRow:
        idle: set[str] = set()  # texts that the prompt does not show: cutting them is for nothing
        tries = 0
        while tries < TRIES and (text := self._longest(document, idle)):
            tokens = len(self.tokenizer(text, add_special_tokens=False)["input_ids"])
            over = len(row) - self.max_length
            shorter = _replaced(document, text, _cut(text, 1 - (over + 1) / max(tokens, 1)))
            cut = self._first_answer(shorter)
            if len(cut) >= len(row):
                if len(self._first_answer(_replaced(document, text, text[:1]))) >= len(row):
                    idle.add(text)
                    continue
                shorter = _replaced(document, text, _cut(text, 0.5))  # its end is not shown
                cut = self._first_answer(shorter)
            tries += 1
            document, row = shorter, cut
            if len(row) <= self.max_length:
                return row
        prefix = Encoder(self.tokenizer, SETTINGS, by_pieces=False).prefix
        begin = len(prefix) if row.prompt[: len(prefix)] == prefix else 0
        room = self.max_length - len(row.completion)
        start = row.prompt[:begin] if room > begin else []
        rest = row.prompt[len(row.prompt) - (room - len(start)) :]
        return replace(row, prompt=[*start, *rest])

    def _first_answer(self, document: Document) -> EncodedRow:
        return self.encode(document).cut_after(1)

    def _longest(self, document: Document, idle: Collection[str]) -> str:
        """The longest text that the document brings, those left aside that the prompt has not."""
        name = turns_field(self.task)
        texts = _texts(document.fields if name is None else document.fields[name])
        return max((text for text in texts if text not in idle), key=len, default="")


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        if value.get("role") == "assistant":
            return []
        return [text for one in value.values() for text in _texts(one)]
    return [text for one in value for text in _texts(one)] if isinstance(value, list) else []


def _cut(text: str, share: float) -> str:
    """The beginning of a text, up to the end of a word; never all of it."""
    kept = text[: min(len(text) - 1, max(0, int(len(text) * share)))]
    words = kept.rsplit(None, 1)
    return words[0] if len(words) == 2 and len(words[1]) < 40 else kept.rstrip()


def _replaced(document: Document, text: str, kept: str) -> Document:
    def other(value: Any) -> Any:
        if value == text:
            return kept
        if isinstance(value, dict):
            return {key: other(one) for key, one in value.items()}
        return [other(one) for one in value] if isinstance(value, list) else value

    return replace(document, fields={key: other(one) for key, one in document.fields.items()})

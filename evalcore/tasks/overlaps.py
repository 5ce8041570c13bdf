"""Scored rows inside rows that are learned: by word n-grams, and by equal texts in any order.

Words are runs of letters and digits of any script in one case, NFKC; in scripts without spaces
(Chinese, Japanese, Thai, ...) every character is one. Punctuation, quotes, ``_``, spaces and the
names and order of fields do not count; fields that are the same in every row (``text:``) are left
out. Where texts are compared as a whole, signs beside digits count (``12 + 3``), and a text without
words is itself (see :mod:`evalcore.tasks.wording`).

A training row holds a scored document if one of these is so:

- *grams*: of each of the document's fields of 8 words or more, at least 7 of 10 word 8-grams stand
  in the row, where these fields are most of the document's input (6 words of 10);
- *question and answer*: its longest field has 4 to 7 words, is most of the input and stands in the
  row as it is, and so does the right answer;
- *texts*: all fields of both are equal, in any order.

The first 2,000 characters of a scored field are compared. Other wordings are not found.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from evalcore.identity import text_fingerprint
from evalcore.tasks.wording import same_key, words
from evalcore.types import Document, Task

KEY_VERSION = 2
"""Raised when equal texts get other keys: keys of two versions cannot be compared."""
N = 8
SHARE = 0.7
SHORTEST = 4
_MOST_OF = 0.6
_CHARACTERS = 2000
_BASE = np.uint64(0x9E3779B97F4A7C15)


def field_texts(task: Task, document: Document) -> list[str]:
    """What a document asks: its field values as text, without constant ones."""
    spec = task.spec.get("fields") or {}
    found = []
    for name, value in document.fields.items():
        part = spec.get(name)
        if isinstance(part, Mapping) and part.get("text") is not None:
            continue
        text = _as_text(value)
        if text.strip():
            found.append(text)
    return found


def texts_key(task: Task, document: Document) -> str:
    """Equal where the fields say the same (see ``same_key``), in any order of fields.

    ``KEY_VERSION``, a colon and 16 hex digits: keys stand in records of tuned models.
    """
    return _key([same_key(text) for text in field_texts(task, document)])


def _key(texts: Sequence[str]) -> str:
    # a conversation stands twice in a document, as text and as turns: equal texts count once
    return f"{KEY_VERSION}:{text_fingerprint(sorted(set(texts)))[:16]}"


def _alike(texts: Sequence[Sequence[str]]) -> int:
    return hash(frozenset(" ".join(text) for text in texts))


def answer_text(document: Document) -> str:
    """The right answer: the gold choice, or the first reference."""
    if 0 <= document.gold < len(document.choices):
        return document.choices[document.gold]
    return document.references[0] if document.references else ""


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return _as_text(value.get("content", ""))
    if isinstance(value, (list, tuple)):
        return " ".join(_as_text(one) for one in value)
    return str(value)


@dataclass(frozen=True, slots=True)
class Compared:
    """How the documents of a scored task were compared.

    Attributes:
        task: The task.
        documents: Its documents.
        by_grams: Of these, by word 8-grams of their fields.
        by_question: By question and answer; all others by equal texts alone.
    """

    task: str
    documents: int
    by_grams: int
    by_question: int


@dataclass
class ScoredRows:
    """What may not be learned, indexed.

    Attributes:
        compared: One entry per task.
    """

    compared: list[Compared] = field(default_factory=list)
    _vocabulary: dict[str, int] = field(default_factory=dict)
    _keys: dict[str, set[int]] = field(default_factory=dict)
    _alike: set[int] = field(default_factory=set)  # of the words alone
    _documents: list[tuple[int, int]] = field(default_factory=list)  # (task, texts indexed) of each
    _texts: list[tuple[int, int]] = field(default_factory=list)  # (document, grams) of each text
    _answers: dict[int, str] = field(default_factory=dict)
    _grams: dict[int, list[tuple[np.ndarray, int]]] = field(default_factory=dict)
    _index: dict[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)

    def add(self, task: Task, documents: Sequence[Document]) -> None:
        """Adds the scored documents of a task."""
        owner = len(self.compared)
        grams = questions = 0
        for document in documents:
            fields = field_texts(task, document)
            self._keys.setdefault(texts_key(task, document), set()).add(owner)
            self._alike.add(_alike([words(text) for text in fields]))
            texts = [words(text[:_CHARACTERS]) for text in fields]
            most = _MOST_OF * sum(map(len, texts))
            long = [text for text in texts if len(text) >= N]
            longest = max(texts, key=len, default=[])
            if long and sum(map(len, long)) >= most:
                grams += 1
                self._remember(owner, long)
            elif SHORTEST <= len(longest) < N and len(longest) >= most:
                answer = " ".join(words(answer_text(document)))
                if answer:
                    questions += 1
                    self._answers[len(self._documents)] = answer
                    self._remember(owner, [longest])
        self.compared.append(Compared(task.name, len(documents), grams, questions))
        self._index.clear()

    def _remember(self, owner: int, texts: list[list[str]]) -> None:
        for text in texts:
            size = min(N, len(text))
            grams = np.unique(_rolled(self._numbered(text), size))
            self._grams.setdefault(size, []).append((grams, len(self._texts)))
            self._texts.append((len(self._documents), len(grams)))
        self._documents.append((owner, len(texts)))

    def _numbered(self, text: list[str]) -> np.ndarray:
        known = self._vocabulary
        return np.asarray([known.setdefault(word, len(known) + 1) for word in text], np.uint64)

    def found_in(self, task: Task, document: Document) -> set[str]:
        """Names of the tasks of which a row to be learned holds a scored document."""
        fields = field_texts(task, document)
        texts = [words(text) for text in fields]
        owners: set[int] = set()
        if _alike(texts) in self._alike:  # equal texts have equal words; the key costs more
            owners |= self._keys.get(texts_key(task, document), set())
        tokens = [word for text in texts for word in text]
        tokens += words(answer_text(document))
        ids = np.asarray([self._vocabulary.get(word, 0) for word in tokens], dtype=np.uint64)
        whole: Counter[int] = Counter()
        for size in self._grams:
            for number, count in self._held(ids, size):
                document_number, grams = self._texts[number]
                whole[document_number] += count >= SHARE * grams
        row = f" {' '.join(tokens)} " if whole else ""
        for number, held in whole.items():
            owner, wanted = self._documents[number]
            if held == wanted and self._answered(number, row):
                owners.add(owner)
        return {self.compared[owner].task for owner in owners}

    def _answered(self, number: int, row: str) -> bool:
        """Whether the right answer of a short question stands in a row too."""
        answer = self._answers.get(number)
        return answer is None or f" {answer} " in row

    def _held(self, ids: np.ndarray, size: int) -> list[tuple[int, int]]:
        """(text, how many of its grams of a size stand in a row)."""
        if len(ids) < size:
            return []
        values, texts = self._sorted(size)
        grams = np.unique(_rolled(ids, size))
        first = np.searchsorted(values, grams, side="left")
        hit = values[np.minimum(first, len(values) - 1)] == grams
        if not hit.any():
            return []
        last = np.searchsorted(values, grams[hit], side="right")
        held = np.concatenate(
            [texts[begin:end] for begin, end in zip(first[hit], last, strict=True)]
        )
        numbers, counts = np.unique(held, return_counts=True)
        return [(int(n), int(c)) for n, c in zip(numbers, counts, strict=True)]

    def _sorted(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """All grams of a size in order, with the texts they stand in."""
        if size not in self._index:
            parts = self._grams[size]
            values = np.concatenate([grams for grams, _ in parts])
            texts = np.repeat([number for _, number in parts], [len(grams) for grams, _ in parts])
            order = np.argsort(values, kind="stable")
            self._index[size] = values[order], texts[order]
        return self._index[size]


def _rolled(ids: np.ndarray, size: int) -> np.ndarray:
    """uint64 hashes of the runs of ``size`` word numbers (wrapping arithmetic, mixed)."""
    count = len(ids) - size + 1
    found = np.zeros(max(0, count), dtype=np.uint64)
    for offset in range(size):
        found = found * _BASE + ids[offset : offset + count]
        found ^= found >> np.uint64(29)
    return found

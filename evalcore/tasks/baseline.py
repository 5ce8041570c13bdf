"""What a model that knows nothing scores: each task's floor."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

from evalcore.tasks.rouge import ROUGE_TYPES, Reading, rouge_kind, rouge_scorer
from evalcore.tasks.sample import sample_rank
from evalcore.types import Document, Task

_ACCURACIES = {"acc", "acc_norm", "acc_bytes", "acc_mutual_info"}
_CANDIDATES, _CHOSEN_ON, _TESTED_ON = 32, 60, 240


def trivial_baseline(task: Task, docs: Sequence[Document]) -> float:
    """Score of the best answer that ignores the question, in units of the primary metric.

    The task's ``baseline`` says which (``auto`` takes the one that fits):

    - ``majority``: the share of the most frequent label (accuracies);
    - ``uniform``: the mean of 1 / choices (accuracies, gold probability);
    - ``constant``: a reference as everybody's answer, chosen on other documents than it is tested
      on: documents are dealt into two halves by a hash of their ids, the best answer of one half is
      scored on the other, both ways round. Exact match: the most frequent reference. ROUGE (words
      as the metric reads them): the best of 32 candidates on 60 documents, tested on up to 240.

    NaN for ``none``, for metrics without a floor, and where the kind does not fit the metric.
    """
    kind = task.spec.get("baseline", "auto")
    if not docs or kind == "none":
        return math.nan
    primary = task.primary.lower().removesuffix("_raw")
    if task.output_type == "multiple_choice":
        if kind == "auto":
            kind = "majority" if task.choices and primary in _ACCURACIES else "uniform"
        if kind == "majority" and primary in _ACCURACIES:
            return max(Counter(doc.gold for doc in docs).values()) / len(docs)
        if kind == "uniform" and primary in {*_ACCURACIES, "gold_prob"}:
            return sum(1.0 / max(1, len(doc.choices)) for doc in docs) / len(docs)
        return math.nan
    if kind not in ("auto", "constant"):
        return math.nan
    floor = _floor_of(primary)
    return math.nan if floor is None else _across_halves(docs, floor)


@lru_cache(maxsize=16)
def floor_by_document(
    metric: str, ids: tuple[str, ...], references: tuple[tuple[str, ...], ...]
) -> tuple[float, ...] | None:
    """What the trivial answer scores on each document of a generation task.

    The mean is that of :func:`trivial_baseline` where that tests on all documents.

    Args:
        metric: Name of a metric with values per document.
        ids: Ids of the documents.
        references: Their references.

    Returns:
        One value per document; None for metrics without such a floor, or a single document.
    """
    floor = _floor_of(metric.lower().removesuffix("_raw"))
    if floor is None or not all(references):
        return None
    documents = [
        Document(own, i, {}, references=texts)
        for i, (own, texts) in enumerate(zip(ids, references, strict=True))
    ]
    halves = _halves(documents)
    if not halves[1]:
        return None
    found = [math.nan] * len(documents)
    for own, other in (halves, halves[::-1]):
        answer = floor.choose(other)
        for document in own:
            found[document.index] = floor.score(answer, [document])
    return tuple(found)


class _Floor(Protocol):
    def choose(self, docs: Sequence[Document]) -> str: ...

    def score(self, answer: str, docs: Sequence[Document]) -> float: ...


def _floor_of(primary: str) -> _Floor | None:
    rouge = rouge_kind(primary)  # the raw metrics are about the same references
    if rouge is not None:
        return _RougeFloor(*rouge)
    return _MatchFloor() if primary == "exact_match" else None


def _halves(docs: Sequence[Document]) -> tuple[list[Document], list[Document]]:
    """Documents dealt into two halves by a hash of their ids.

    An answer chosen among the references it is then compared with meets itself there, and the best
    of many is best by luck as well: it is chosen on the other half.
    """
    ordered = sorted(docs, key=lambda doc: sample_rank(doc.id))
    return ordered[::2], ordered[1::2]


def _across_halves(docs: Sequence[Document], floor: _Floor) -> float:
    """Mean over documents of the answer chosen without them; NaN where a half is empty."""
    halves = _halves(docs)
    if not halves[1]:
        return math.nan
    scores = [
        (floor.score(floor.choose(other), own), len(own)) for own, other in (halves, halves[::-1])
    ]
    return sum(score * count for score, count in scores) / len(docs)


class _MatchFloor:
    def choose(self, docs: Sequence[Document]) -> str:
        counts = Counter(text for doc in docs for text in {r.strip() for r in doc.references})
        return max(sorted(counts), key=counts.__getitem__)

    def score(self, answer: str, docs: Sequence[Document]) -> float:
        return sum(answer in {r.strip() for r in doc.references} for doc in docs) / len(docs)


class _RougeFloor:
    def __init__(self, kind: str, reading: Reading) -> None:
        self._kind = ROUGE_TYPES[kind]
        self._scorer = rouge_scorer((kind,), reading)

    def choose(self, docs: Sequence[Document]) -> str:
        sample = docs[:_CHOSEN_ON]
        candidates = list(dict.fromkeys(doc.references[0] for doc in sample))[:_CANDIDATES]
        return max(candidates, key=lambda answer: self.score(answer, sample))

    def score(self, answer: str, docs: Sequence[Document]) -> float:
        tested = docs[:_TESTED_ON]
        return sum(self._one(answer, doc) for doc in tested) / len(tested)

    def _one(self, answer: str, doc: Document) -> float:
        scored = (self._scorer.score(reference, answer) for reference in doc.references)
        return max(float(one[self._kind].fmeasure) for one in scored)

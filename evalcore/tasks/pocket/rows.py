"""Makes the rows of every pocket data set, split by split, without a text twice."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

from evalcore.errors import UnknownNameError
from evalcore.tasks.pocket.world import (
    FAMOUS,
    RELATIONS,
    famous_facts,
    make_inference,
    make_pair,
    random_record,
)

Row = dict[str, Any]
SPLIT_SIZES: Mapping[str, int] = {"test": 400, "shots": 24, "train": 2000}
"""Rows per split of the data sets that are drawn; ``facts`` is enumerated (see FACT_SPLITS)."""
FACT_SPLITS: Mapping[str, slice] = {
    "test": slice(0, 26),
    "shots": slice(26, 28),
    "train": slice(28, 36),
}
"""People of the chronicle asked about in each split of ``facts``."""
FACT_ROWS_PER_QUESTION: Mapping[str, int] = {"test": 1, "shots": 1, "train": 14}
NLI_LABELS = ("entailment", "neutral", "contradiction")
PARAPHRASE_LABELS = ("yes", "no")

POCKET_DATASETS: dict[str, dict[str, Any]] = {
    "nli": {
        "columns": ("premise", "hypothesis", "label"),
        "labels": NLI_LABELS,
        "description": "Does the second sentence follow from the first? A verb decides.",
    },
    "nli_ood": {
        "columns": ("premise", "hypothesis", "label"),
        "labels": NLI_LABELS,
        "description": "The same question with other verbs, in another sentence pattern.",
    },
    "paraphrase": {
        "columns": ("sentence1", "sentence2", "label"),
        "labels": PARAPHRASE_LABELS,
        "description": "Do two sentences say the same?",
    },
    "facts": {
        "columns": ("question", "choices", "answer"),
        "labels": (),
        "description": "Multiple choice about what stands in the pre-training text.",
    },
    "describe": {
        "columns": ("name", "craft", "town", "pet", "sentence"),
        "labels": (),
        "description": "Write the sentence that a small record stands for.",
    },
}


def pocket_rows(dataset: str, split: str) -> list[Row]:
    """Rows of one split, the same on every machine and in every run.

    Args:
        dataset: A key of :data:`POCKET_DATASETS`.
        split: ``train``, ``shots`` or ``test``.

    Returns:
        A new list of dictionaries (the caller may change them); ``label`` and ``answer`` are
        integer indices. Any prefix is nearly balanced over the labels.

    Raises:
        UnknownNameError: For a data set or split that is not defined.
    """
    if dataset not in POCKET_DATASETS:
        raise UnknownNameError("pocket data set", dataset, POCKET_DATASETS)
    if split not in SPLIT_SIZES:
        raise UnknownNameError(f"split of pocket data set {dataset!r}", split, SPLIT_SIZES)
    return copy.deepcopy(_all_splits(dataset)[split])


@cache
def _all_splits(dataset: str) -> dict[str, list[Row]]:
    if dataset == "facts":
        return {split: list(_fact_rows(split)) for split in SPLIT_SIZES}
    makers: dict[str, tuple[int, Callable[[random.Random, int], Row]]] = {
        "nli": (3, _nli_row),
        "nli_ood": (3, _nli_ood_row),
        "paraphrase": (2, _paraphrase_row),
        "describe": (1, _describe_row),
    }
    num_labels, make = makers[dataset]
    seen: set[tuple[str, ...]] = set()
    splits: dict[str, list[Row]] = {}
    for split, size in SPLIT_SIZES.items():
        rng = random.Random(f"pocket {dataset} {split}")
        splits[split] = []
        for label in balanced_labels(rng, num_labels, size):
            row = make(rng, label)
            while _text(row) in seen:
                row = make(rng, label)
            seen.add(_text(row))
            splits[split].append(row)
    return splits


def balanced_labels(rng: random.Random, num_labels: int, size: int) -> list[int]:
    """Labels in random order, every block of ``4 * num_labels`` exactly balanced."""
    labels: list[int] = []
    while len(labels) < size:
        block = list(range(num_labels)) * 4
        rng.shuffle(block)
        labels += block
    return labels[:size]


def _text(row: Row) -> tuple[str, ...]:
    return tuple(value for value in row.values() if isinstance(value, str))


def _nli_row(rng: random.Random, label: int) -> Row:
    made = make_inference(rng, label)
    return {"premise": made.premise, "hypothesis": made.hypothesis, "label": label}


def _nli_ood_row(rng: random.Random, label: int) -> Row:
    made = make_inference(rng, label, ood=True)
    return {"premise": made.premise, "hypothesis": made.hypothesis, "label": label}


def _paraphrase_row(rng: random.Random, label: int) -> Row:
    first, second = make_pair(rng, same=label == 0)
    return {"sentence1": first, "sentence2": second, "label": label}


def _describe_row(rng: random.Random, label: int) -> Row:
    record = random_record(rng)
    return {**record.fields(), "sentence": record.sentence()}


def _fact_rows(split: str) -> Iterator[Row]:
    """Every fact about the split's people, in both question forms, in random order."""
    facts = famous_facts()
    rng = random.Random(f"pocket facts {split}")
    asked = [
        (name, relation, question)
        for name in FAMOUS[FACT_SPLITS[split]]
        for relation in RELATIONS
        for question in relation.questions
        for _ in range(FACT_ROWS_PER_QUESTION[split])
    ]
    rng.shuffle(asked)
    answers = balanced_labels(rng, 4, len(asked))
    seen: set[tuple[str, ...]] = set()
    for (name, relation, question), answer in zip(asked, answers, strict=True):
        truth = facts[name, relation.kind]
        wrong = [value for value in relation.values if value != truth]
        text = question.format(name=name)
        while True:
            choices = rng.sample(wrong, 3)
            choices.insert(answer, truth)
            if (text, *choices) not in seen:
                break
        seen.add((text, *choices))
        yield {"question": text, "choices": choices, "answer": answer}

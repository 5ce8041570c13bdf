"""Rows of the built-in pocket tasks: stable, balanced, disjoint, and not answerable by a trick."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Any

import pytest

from evalcore.errors import UnknownNameError
from evalcore.tasks.pocket import POCKET_DATASETS, pocket_rows
from evalcore.tasks.pocket.rows import _all_splits
from evalcore.tasks.pocket.world import CHANGING_ADVERBS, HARMLESS_ADVERBS

SPLITS = ("test", "shots", "train")
LABELLED = ("nli", "nli_ood", "paraphrase")
Row = dict[str, Any]


def texts(row: Row) -> str:
    return json.dumps({k: v for k, v in row.items() if k not in ("label", "answer")})


@pytest.mark.parametrize("dataset", POCKET_DATASETS)
def test_same_rows_every_time(dataset: str) -> None:
    first = {split: pocket_rows(dataset, split) for split in SPLITS}
    _all_splits.cache_clear()
    assert first == {split: pocket_rows(dataset, split) for split in SPLITS}


GOLDEN = {
    "nli": "9e0de94180a9f618",
    "nli_ood": "c8b1a087e9298811",
    "paraphrase": "3814272f7dee10a3",
    "facts": "221348b15ed059c7",
    "describe": "3484d121889ac41b",
}


@pytest.mark.parametrize("dataset", POCKET_DATASETS)
def test_rows_change_only_with_a_new_task_version(dataset: str) -> None:
    """Stored results name documents by content: whoever changes rows raises the task's version."""
    blob = json.dumps([pocket_rows(dataset, split) for split in SPLITS], sort_keys=True)
    assert hashlib.sha256(blob.encode()).hexdigest()[:16] == GOLDEN[dataset]


def test_callers_cannot_spoil_the_rows() -> None:
    pocket_rows("facts", "test")[0]["choices"].clear()
    assert len(pocket_rows("facts", "test")[0]["choices"]) == 4


@pytest.mark.parametrize("dataset", POCKET_DATASETS)
def test_splits_are_large_enough_and_share_no_text(dataset: str) -> None:
    rows = {split: pocket_rows(dataset, split) for split in SPLITS}
    assert len(rows["test"]) >= 260
    assert len(rows["shots"]) >= 16
    assert len(rows["train"]) >= 1000
    seen = [texts(row) for split in SPLITS for row in rows[split]]
    assert len(seen) == len(set(seen))


def test_facts_asked_about_in_one_split_are_asked_in_no_other() -> None:
    questions = [{row["question"] for row in pocket_rows("facts", split)} for split in SPLITS]
    assert not (questions[0] & questions[1])
    assert not (questions[0] & questions[2])
    assert not questions[1] & questions[2]


@pytest.mark.parametrize(
    ("dataset", "column"), [*((d, "label") for d in LABELLED), ("facts", "answer")]
)
@pytest.mark.parametrize("limit", [48, None])
def test_labels_are_balanced_in_any_prefix(dataset: str, column: str, limit: int | None) -> None:
    counts = Counter(row[column] for row in pocket_rows(dataset, "test")[:limit])
    assert max(counts.values()) - min(counts.values()) <= 4
    labels = [row[column] for row in pocket_rows(dataset, "test")]
    assert labels != sorted(labels)


def trick_accuracy(dataset: str, look: Callable[[Row], Hashable]) -> float:
    """Accuracy on test of the best lookup table over one feature, learned on train."""
    table: dict[Hashable, Counter[int]] = {}
    for row in pocket_rows(dataset, "train"):
        table.setdefault(look(row), Counter())[row["label"]] += 1
    test = pocket_rows(dataset, "test")
    right = 0
    for row in test:
        counts = table.get(look(row))
        right += bool(counts) and counts.most_common(1)[0][0] == row["label"]  # type: ignore[union-attr]
    return right / len(test)


@pytest.mark.parametrize("dataset", ["nli", "nli_ood"])
def test_a_hypothesis_alone_does_not_tell_the_label(dataset: str) -> None:
    """The premise's verb decides (veridicality); nothing else may."""

    def words(row: Row) -> Hashable:
        return row["hypothesis"]

    assert trick_accuracy(dataset, words) < 1 / 3 + 0.1
    assert trick_accuracy(dataset, lambda row: len(row["premise"])) < 1 / 3 + 0.15


def test_verbs_of_nli_decide_and_are_not_those_of_nli_ood() -> None:
    def verb(row: Row) -> Hashable:
        return row["premise"].split()[1]

    assert trick_accuracy("nli", verb) == 1.0
    seen = {verb(row) for row in pocket_rows("nli", "train")}
    kept = {row["premise"].split()[-1].strip(".") for row in pocket_rows("nli_ood", "test")}
    assert len(seen) == 15
    assert len(kept) == 9
    assert not seen & kept


@pytest.mark.parametrize("column", ["sentence1", "sentence2"])
def test_one_sentence_of_a_pair_tells_three_in_four_labels_at_most(column: str) -> None:
    """A changing adverb stands in either; whoever reads one sentence misses half of them."""

    def adverbs(row: Row) -> Hashable:
        return frozenset(row[column].split()) & frozenset(HARMLESS_ADVERBS + CHANGING_ADVERBS)

    assert 0.6 < trick_accuracy("paraphrase", adverbs) < 0.8
    assert trick_accuracy("paraphrase", lambda row: len(row[column].split())) < 0.6


@pytest.mark.parametrize("dataset", LABELLED)
def test_lengths_together_do_not_tell_the_label(dataset: str) -> None:
    first, second = POCKET_DATASETS[dataset]["columns"][:2]
    chance = 1 / len(POCKET_DATASETS[dataset]["labels"])

    def words(row: Row) -> Hashable:
        return len(row[first].split()), len(row[second].split())

    assert trick_accuracy(dataset, words) < chance + 0.1


def test_fact_choices_are_fair() -> None:
    rows = pocket_rows("facts", "test")
    longest = sum(
        max(range(4), key=lambda i: len(row["choices"][i])) == row["answer"] for row in rows
    )
    assert longest / len(rows) < 0.35
    answers = Counter(row["choices"][row["answer"]] for row in rows)
    assert answers.most_common(1)[0][1] / len(rows) < 0.1
    for row in rows:
        assert len(set(row["choices"])) == 4
        assert all(len(choice.split()) >= 3 for choice in row["choices"])


def test_describe_sentence_holds_every_field() -> None:
    for row in pocket_rows("describe", "test"):
        assert all(row[key] in row["sentence"] for key in ("name", "craft", "town", "pet"))


def test_unknown_names_say_what_there_is() -> None:
    with pytest.raises(UnknownNameError, match="nearest: nli"):
        pocket_rows("nlii", "test")
    with pytest.raises(UnknownNameError, match="test"):
        pocket_rows("nli", "tset")

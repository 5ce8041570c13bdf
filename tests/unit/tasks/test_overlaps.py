"""Scored rows inside rows that are learned, in every script."""

from __future__ import annotations

import unicodedata

import pytest

from evalcore.tasks import ScoredRows, texts_key
from evalcore.tasks.model import TaskDefinition
from evalcore.tasks.registry import task_from_definition
from evalcore.types import Document

TASK = task_from_definition(
    TaskDefinition.model_validate(
        {
            "name": "toy", "version": 1, "group": "toys", "output_type": "generate_until",
            "source": {"path": "toy"}, "splits": {"score": "test"}, "fields": {"text": "sentence"},
            "references": {"column": "said"}, "metrics": ["exact_match"],
            "primary": "exact_match",
        }
    )
)  # fmt: skip
CHINESE = "哪一种因素最可能使人发烧"
JAPANESE = "東京は日本の首都ですか"
THAI = "กรุงเทพเป็นเมืองหลวง"
FRENCH = "L'\u00e9l\u00e8ve a \u00e9t\u00e9 re\u00e7u \u00e0 l'\u00e9cole apr\u00e8s No\u00ebl"


def document(text: str, answer: str = "yes") -> Document:
    return Document("0" * 32, 0, {"text": text}, (), -1, (answer,))


def held(scored: str, row: str) -> bool:
    index = ScoredRows()
    index.add(TASK, [document(scored)])
    return index.found_in(TASK, document(row)) == {"toy"}


@pytest.mark.parametrize("text", [CHINESE, JAPANESE, THAI], ids=["chinese", "japanese", "thai"])
def test_questions_without_spaces_are_found_inside_rows(text: str) -> None:
    assert held(text + "\uff1f", f"\u8bf7\u56de\u7b54\uff1a{text}\u3002\u8c22\u8c22")
    assert not held(text, text[::-1])


def test_composed_letters_and_emphasis_do_not_hide_a_row() -> None:
    assert held(FRENCH, "Dis: " + unicodedata.normalize("NFD", FRENCH) + " ?")
    plain = "which factor will most likely cause a person to develop a fever"
    assert held(plain, "Q: " + " ".join(f"_{word}_" for word in plain.split()))


def test_sums_and_emoji_are_the_texts_they_are() -> None:
    for one, other in (("12 + 3", "12 * 3"), ("\U0001f600\U0001f600", "\U0001f621")):
        assert held(one, one)
        assert not held(one, other)
        assert texts_key(TASK, document(one)) != texts_key(TASK, document(other))


def test_keys_change_only_with_a_new_version() -> None:
    """They stand in the records of tuned models."""
    assert texts_key(TASK, document("What is -3 + 5?")) == "2:e0d365e1a2a2ca01"

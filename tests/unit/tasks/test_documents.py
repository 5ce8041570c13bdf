"""Which documents ask the same."""

from __future__ import annotations

import pytest

from evalcore.tasks import asked_key
from evalcore.types import Document


def asked(*texts: str) -> str:
    fields = {f"field_{i}": text for i, text in enumerate(texts)}
    return asked_key(Document("0" * 32, 0, fields, (), -1, ()))


@pytest.mark.parametrize(
    ("shot", "scored"),
    [
        ("a1\u3002", "a1"),
        ("\u201ca2\u201d", "a2"),
        ("a3\u200b", "a3"),
        ("cafe\u0301", "Caf\u00e9."),
    ],
)
def test_punctuation_of_every_script_hides_no_shot(shot: str, scored: str) -> None:
    assert asked(shot, "b") == asked("b", scored)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("-3", "5"), ("3", "5")),
        (("12 + 3",), ("12 * 3",)),
        (("\U0001f600",), ("\U0001f621",)),
        (("5%",), ("5",)),
    ],
)
def test_signs_of_numbers_are_kept(one: tuple[str, ...], other: tuple[str, ...]) -> None:
    assert asked(*one) != asked(*other)

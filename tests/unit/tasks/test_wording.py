"""When two texts are the same one, for the checks of rows that leak."""

from __future__ import annotations

import time

import pytest

from evalcore.tasks.wording import same_key, stripped, words

UNLIKE = [
    ("12 + 3", "12 * 3"), ("12+3", "12*3"), ("12 \u2212 3", "12 + 3"), ("-3", "3"), ("5%", "5"),
    ("-3 5", "3 -5"), ("1.5", "1:5"), ("$5", "\u20ac5"), ("3 - 4", "3 4"), ("2**3", "2*3"),
    ("\U0001f600\U0001f600", "\U0001f621"), ("?", "!"), ("x = 3", "x > 3"),
    ("What is 12 + 3?", "What is 12 * 3?"),
]  # fmt: skip
ALIKE = [
    ("It was 1999.", "it was 1999"), ("_word_ 3", "word 3"), ("COVID-19", "covid 19"),
    ("\u201c3\u201d", "3"), ("**12** a", "12 a"), ("caf\u00e9", "cafe\u0301"), ("5-year", "5 year"),
    ("3\u20134", "3-4"), ("12+3", "12 + 3"), ("so\u00adft", "soft"), ("\uff11\uff0b2", "1 + 2"),
    ("\U0001f600", " \U0001f600 "),
]  # fmt: skip


@pytest.mark.parametrize(("one", "other"), UNLIKE)
def test_signs_beside_digits_and_texts_without_words_count(one: str, other: str) -> None:
    assert same_key(one) != same_key(other)


@pytest.mark.parametrize(("one", "other"), ALIKE)
def test_punctuation_forms_and_spaces_do_not(one: str, other: str) -> None:
    assert same_key(one) == same_key(other)
    assert same_key(one, words(one)) == same_key(one)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("A1\u3002", "a1"), ("\u201ca2\u201d", "a2"), ("a3\u200b", "a3"), ("-3", "-3"),
     ("\u22123", "-3"),
     ("- 3", "3"), ("5 %.", "5 %"), ("(x)", "x"), ("...", "..."), ("cafe\u0301!", "caf\u00e9"),
     ("\U0001f600", "\U0001f600"), ("", "")],
)  # fmt: skip
def test_punctuation_of_every_script_is_taken_off_ends(text: str, expected: str) -> None:
    assert stripped(text) == expected


@pytest.mark.parametrize(
    "text", ["-" * 200_000, "3" + " " * 200_000, "- " * 100_000, "1," * 100_000]
)
def test_long_runs_take_linear_time(text: str) -> None:
    begin = time.process_time()
    same_key(text)
    stripped(text)
    assert time.process_time() - begin < 2.0

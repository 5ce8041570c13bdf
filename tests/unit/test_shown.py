"""What a person sees of a text, character by character."""

from __future__ import annotations

import sys
import unicodedata

import pytest

from evalcore.shown import caseless, is_visible, listed, natural, visible_part, visible_start


def test_white_space_is_never_visible_and_words_always_are() -> None:
    signs = list(map(chr, range(sys.maxunicode + 1)))
    assert not any(is_visible(sign) for sign in signs if sign.isspace())
    assert all(is_visible(sign) for sign in signs if unicodedata.category(sign)[0] in "LNPS")


@pytest.mark.parametrize(
    ("text", "start", "part"),
    [
        ("hello", 0, "hello"),
        ("\u200f\n a \u200b", 3, "a"),
        ("\x00\ufe0f\U000e0100", 3, ""),
        ("", 0, ""),
        ("\ufeff\u00ada\u200db\ufe0f", 2, "a\u200db"),
    ],
)
def test_the_visible_part(text: str, start: int, part: str) -> None:
    assert visible_start(text) == start
    assert visible_part(text) == part
    assert caseless(text.upper()) == part.casefold()


def test_numbers_in_names_count() -> None:
    names = ["sft/checkpoint-10", "sft/checkpoint-100", "sft/checkpoint-5", "10", "a", "5", ""]
    assert sorted(names, key=natural) == [
        "", "5", "10", "a", "sft/checkpoint-5", "sft/checkpoint-10", "sft/checkpoint-100",
    ]  # fmt: skip
    assert sorted(["9" * 5000, "8" * 5000], key=natural) == ["8" * 5000, "9" * 5000]


def test_a_list_that_is_cut_says_so() -> None:
    assert listed(["a", "b", "c"], 3) == "a, b, c"
    assert listed(["a", "b", "c", "d"], 2) == "a, b, and 2 more"

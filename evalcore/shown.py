"""Text from outside as it may be shown to a person."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

# Controls (tab and line end apart), marks that turn the direction of writing, other line ends,
# halves of pairs: a terminal or a reader would do something else than show them.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]"
)
_SELECTORS = frozenset("\u180b\u180c\u180d\u180f").union(  # of how the sign before is drawn
    map(chr, [*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)])
)


def printable(text: str) -> str:
    """Text as it may be shown: what a terminal would obey is written as an escape (``\\x1b``)."""
    return _UNSEEN.sub(lambda sign: ascii(sign[0])[1:-1], text)


def one_line(text: str) -> str:
    """Text on one line, as it may be shown: names may hold line ends."""
    return printable(text).replace("\n", "\\n")


def listed(names: Sequence[str], most: int) -> str:
    """Names joined by commas; of more than ``most`` the first, and how many more there are."""
    more = f", and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def natural(name: str) -> tuple[str | int, ...]:
    """A key to sort names by in which numbers count: ``checkpoint-5`` before ``checkpoint-10``."""
    parts = re.split(r"([0-9]{1,18})", name)
    return tuple(int(part) if at % 2 else part for at, part in enumerate(parts))


def is_visible(sign: str) -> bool:
    """Whether a character writes something: no space, line end, control, mark of direction or
    joining (Unicode categories Z, Cc, Cf), or variation selector."""
    category = unicodedata.category(sign)
    return not (category[0] == "Z" or category in ("Cc", "Cf") or sign in _SELECTORS)


def visible_start(text: str) -> int:
    """Position of the first visible character; the length of the text if there is none."""
    return next((at for at, sign in enumerate(text) if is_visible(sign)), len(text))


def visible_part(text: str) -> str:
    """The text from its first visible character to its last."""
    return text[visible_start(text) : len(text) - visible_start(text[::-1])]


def caseless(text: str) -> str:
    """The visible part of a text, whatever its case: what tells free answers apart."""
    return visible_part(text).casefold()

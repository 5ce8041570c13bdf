"""Text from outside as it may be shown to a person."""

from __future__ import annotations

import re

# Controls (tab and line end apart), marks that turn the direction of writing, other line ends,
# halves of pairs: a terminal or a reader would do something else than show them.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]"
)


def printable(text: str) -> str:
    """Text as it may be shown: what a terminal would obey is written as an escape (``\\x1b``)."""
    return _UNSEEN.sub(lambda sign: ascii(sign[0])[1:-1], text)


def one_line(text: str) -> str:
    """Text on one line, as it may be shown: names may hold line ends."""
    return printable(text).replace("\n", "\\n")

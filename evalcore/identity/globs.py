r"""Globs over names of models, and ``GLOB=VALUE`` entries of the command line.

A name may hold signs of its own (``run[1]``, ``lr=1e-4,seed=2``): after a backslash a sign stands
for itself (``run\[1]``, ``lr=1e-4\,seed=2``), and a glob that is a name, letter by letter, fits it.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable

from evalcore.shown import one_line


def split_at(text: str, sign: str) -> list[str]:
    """Parts of a text between the signs that stand after no backslash; they keep backslashes."""
    parts = [""]
    for piece in re.findall(r"\\.|\\$|[^\\]", text, re.DOTALL):
        if piece == sign:
            parts.append("")
        else:
            parts[-1] += piece
    return parts


def plain(text: str) -> str:
    """A text without the backslashes that make signs stand for themselves."""
    return re.sub(r"\\(.)", r"\1", text, flags=re.DOTALL)


def fits(glob: str, names: Iterable[str]) -> bool:
    """Whether a glob, as it was written, fits one of the names of a model."""
    pattern = re.sub(
        r"\\(.)", lambda m: f"[{m[1]}]" if m[1] in "*?[" else m[1], glob, flags=re.DOTALL
    )
    letters = (glob, plain(glob))
    return any(name in letters or fnmatch.fnmatchcase(name, pattern) for name in names)


def typed(glob: str) -> str:
    """A glob or an entry in quotes, as it was typed: its backslashes are single."""
    return f"'{one_line(glob)}'"

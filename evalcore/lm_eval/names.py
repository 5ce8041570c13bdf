"""How a selection of tasks names those of lm-eval."""

from __future__ import annotations

from evalcore.errors import InputError

PREFIX = "lm-eval:"


def is_lm_eval(name: str) -> bool:
    """Whether a task selection's piece asks for a task of lm-eval."""
    return name.strip().startswith(PREFIX)


def split_selection(selection: str) -> tuple[str, list[str]]:
    """(rest of a task selection, names after ``lm-eval:``)."""
    pieces = [piece.strip() for piece in selection.split(",") if piece.strip()]
    theirs = [piece.removeprefix(PREFIX).strip() for piece in pieces if is_lm_eval(piece)]
    if any(not name for name in theirs):
        raise InputError(f"tasks {selection!r}: {PREFIX} needs a name behind it")
    return ",".join(piece for piece in pieces if not is_lm_eval(piece)), theirs

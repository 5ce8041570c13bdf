"""Reading selections of prompts such as ``default,instruct:shots=4,seed=1,grammar:n=40``."""

from __future__ import annotations

from evalcore.errors import InputError, UnknownNameError
from evalcore.types import AXES

Options = dict[str, int | str]

_SWITCHES = ("balance", "chat", "space")
_WORDS = {"chat_shots": ("turns", "text"), "listing": ("cloze", "letters"), **AXES}
KEYS = (
    "shots", "seed", "shots_seed", "order", "balance", "chat", "chat_shots", "space", *AXES,
)  # fmt: skip
GRAMMAR_KEYS = ("n", "i", "listing")
"""Keys of ``grammar`` alone; its ``seed`` is the grammar's, ``shots_seed`` that of the shots."""
_EXPECTED = "expected NAME[:shots=K,seed=S,chat=1],... , paper, paraphrases, all or grammar:n=N"


def parse_selection(selection: str) -> list[tuple[str, Options]]:
    """Splits a selection into (name, options).

    Raises:
        InputError: If it is empty, or a value is not one of its key's.
        UnknownNameError: If a key is not known.
    """
    result: list[tuple[str, Options]] = []
    for piece in (part.strip() for part in selection.split(",")):
        if not piece:
            continue
        name, colon, option = piece.partition(":")
        if not colon and "=" in piece:
            name, option = "", piece
        if name:
            result.append((name.strip(), {}))
        elif not result:
            raise InputError(f"prompts {selection!r}: {piece!r} follows no prompt name")
        if option or colon:
            owner, options = result[-1]
            key, value = _option(option.strip(), owner, selection)
            options[key] = value
    if not result:
        raise InputError(f"no prompts given: {_EXPECTED}")
    return result


def _option(text: str, owner: str, selection: str) -> tuple[str, int | str]:
    key, _, value = (part.strip() for part in text.partition("="))
    known = (*KEYS, *GRAMMAR_KEYS) if owner == "grammar" else KEYS
    if key not in known:
        hint = "only grammar has it" if key in GRAMMAR_KEYS else ""
        raise UnknownNameError(f"key in prompts {selection!r}", key, known, hint)
    if key in _WORDS:
        if value not in _WORDS[key]:
            raise InputError(
                f"prompts {selection!r}: {key} should be one of {', '.join(_WORDS[key])}, "
                f"not {value!r}"
            )
        return key, value
    # 9 digits are more than any of these needs; int() of thousands would take long.
    if not (value.isascii() and value.isdecimal() and len(value) <= 9):
        expected = "0 or 1" if key in _SWITCHES else "a whole number"
        raise InputError(f"prompts {selection!r}: {key} should be {expected}, not {value!r}")
    number = int(value)
    if key in _SWITCHES and number > 1:
        raise InputError(f"prompts {selection!r}: {key} should be 0 or 1, not {value!r}")
    return key, number

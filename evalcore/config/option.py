"""What is known of one field of a configuration: its only definition.

The command line's option, the key of a study file with its JSON schema, the check of a value given
from Python and the page of the documentation are all made from an :class:`Option`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from evalcore.errors import InputError

Read = Literal["", "limit", "shard", "duration", "source", "yes-no", "share", "percent", "size"]
PathMust = Literal["exist", "be a folder", "not be a folder"]


@dataclass(frozen=True)
class Option:
    """One field, as it is said, read and checked.

    Attributes:
        help: What it does, in which unit, and what its default means.
        section: Title of the help below which it stands.
        words: Its spellings on the command line; none: it is not said there by itself.
        name: Its name where fields of all parts stand side by side (the command line's parameters,
            ``evalcore.score``, study files).
        metavar: What stands for its value in the help.
        low, high: Bounds of a number, both allowed.
        above: A number must be greater than this.
        read: How the command line reads it, where its type does not say it.
        path_must: What a path given on the command line must be.
        takes_away: On the command line it is a flag that says no (``--no-bases``).
        study: Its key in a study file's ``evaluation`` block; empty: none.
        check: Raises an InputError for a value that is wrong in another way.
        default: Without it given.
        hint: Its annotation.
        type: Of its values, None and ``tuple`` taken off.
        choices: Words it may be; empty: no list.
        repeats: Whether it is a tuple of values.
    """

    help: str
    section: str
    words: tuple[str, ...] = ()
    name: str = ""
    metavar: str | None = None
    low: float | None = None
    high: float | None = None
    above: float | None = None
    read: Read = ""
    path_must: tuple[PathMust, ...] = ()
    takes_away: bool = False
    study: str = ""
    check: Callable[[Any], object] | None = None
    default: Any = None
    hint: Any = None
    type: Any = str
    choices: tuple[str, ...] = ()
    repeats: bool = False

    @property
    def spelled(self) -> str:
        """For a message: as it is said on the command line, else its name."""
        return self.words[-1] if self.words else self.name


def option(default: Any, help: str, *words: str, section: str = "", **more: Any) -> Any:
    """A field of a configuration.

    Args:
        default: Its value where nobody gives one.
        help: What it does.
        *words: Its spellings on the command line.
        section: Where it stands in the help, if not where the others of its class do.
        **more: Further attributes of :class:`Option`.
    """
    about = {"help": help, "words": words, "section": section, **more}
    return field(default=default, metadata={"option": about})


@cache
def options_of(part: type) -> Mapping[str, Option]:
    """Field name -> what is known of it, in the order of the fields.

    Args:
        part: A class with fields made by :func:`option` and a class variable ``SECTION``.
    """
    hints = get_type_hints(part)
    found: dict[str, Option] = {}
    for own in fields(part):
        if "option" not in own.metadata:
            continue
        about = dict(own.metadata["option"])
        kind, choices, repeats = _type(hints[own.name])
        found[own.name] = Option(
            **{
                **about,
                "name": about.get("name") or own.name,
                "section": about["section"] or part.SECTION,  # type: ignore[attr-defined]
                "default": None if own.default is MISSING else own.default,
                "hint": hints[own.name],
                "type": kind,
                "choices": choices,
                "repeats": repeats,
            }
        )
    return found


def _type(hint: Any) -> tuple[Any, tuple[str, ...], bool]:
    """(type, choices, whether it repeats) of an annotation."""
    if get_origin(hint) is tuple:
        inner = get_args(hint)
        return (inner[0], (), True) if inner[-1] is ... else (tuple, (), False)
    if get_origin(hint) is Literal:
        return str, tuple(get_args(hint)), False
    if get_origin(hint) in (Union, UnionType):
        kinds = [one for one in get_args(hint) if one is not type(None)]
        words = tuple(word for kind in kinds for word in get_args(kind) if isinstance(word, str))
        return (str, words, False) if words else _type(kinds[0])
    return hint, (), False


def check_part(part: Any) -> None:
    """Checks every field of a configuration's part that is not at its default.

    Raises:
        InputError: A value is none the field can have.
    """
    kind: type = type(part)
    for name, about in options_of(kind).items():
        value = getattr(part, name)
        if value is not None and value != about.default:
            check_value(about, value)


def check_value(about: Option, value: Any) -> None:
    """Checks one value of a field; None is for the caller to judge.

    Raises:
        InputError: It is none the field can have.
    """
    if about.choices:
        if value not in about.choices:
            *first, last = about.choices
            raise InputError(f"{about.spelled} {value!r}: expected {', '.join(first)} or {last}")
    elif about.repeats:
        if isinstance(value, str) or not isinstance(value, tuple | list):
            raise InputError(f"{about.spelled} {value!r}: expected a tuple of values")
    elif about.type is bool:
        if not isinstance(value, bool):
            raise InputError(f"{about.spelled} {value!r}: expected True or False")
    elif about.type in (int, float) and not about.check:
        _check_number(about, value)
    elif about.type is Path and not isinstance(value, Path):
        raise InputError(f"{about.spelled} {value!r}: expected a Path")
    if about.check is not None:
        about.check(value)


def _check_number(about: Option, value: Any) -> None:
    whole = about.type is int
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        kind = "a whole number" if whole else "a number"
        raise InputError(f"{about.spelled} {value!r}: expected {kind}")
    fits = math.isfinite(value) and not (
        (about.low is not None and value < about.low)
        or (about.high is not None and value > about.high)
        or (about.above is not None and value <= about.above)
    )
    if not fits:
        raise InputError(f"{about.spelled} {value}: expected {_range(about)}")


def _range(about: Option) -> str:
    bounds = []
    if about.above is not None:
        bounds.append(f"more than {about.above:,}")
    if about.low is not None:
        bounds.append(f"at least {about.low:,}")
    if about.high is not None:
        bounds.append(f"at most {about.high:,}")
    return " and ".join(bounds) or "a finite number"

"""From one row to the parts of a document: fields, choices, gold, references. Pure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any

from evalcore.tasks.faults import DataFault, TaskDataError
from evalcore.tasks.turns import conversation, written

Row = Mapping[str, Any]
MISSING: Any = object()
EACH = "({letter}) {text}"
"""How each of several joined texts is written, where a task does not say."""
_TITLE = re.compile(r"([.!?]?) \[title\]")
_BRACKETS = re.compile(r"\[[^\]]*\]")
_RUNS_OF_SPACES = re.compile(r" {2,}")
_WHOLE = re.compile(r"-?[0-9]{1,18}\.0+")  # a whole number as some tables write it
_TRUTH = ("false", "true")
_MEANING = {"true": True, "yes": True, "false": False, "no": False}


def value_at(row: Row, column: str) -> Any:
    """Value of a column; ``MISSING`` if there is none; NaN, a missing number, is None.

    ``a.b`` looks into a nested column: a mapping, or every mapping of a list; ``a.0`` takes an
    entry of a list. A column whose own name has a dot comes first.
    """
    if column in row:
        return _without_nan(row[column])
    value: Any = row
    for part in column.split("."):
        value = _step(value, part)
        if value is MISSING:
            return MISSING
    return _without_nan(value)


def _without_nan(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and value != value else value


def _step(value: Any, part: str) -> Any:
    if isinstance(value, Mapping):
        return value.get(part, MISSING)
    if isinstance(value, (list, tuple)):
        if part.isdecimal():
            return value[int(part)] if int(part) < len(value) else None
        inner = [_step(item, part) for item in value]
        return MISSING if any(item is MISSING for item in inner) else inner
    return MISSING


def field_value(spec: str | Mapping[str, Any], row: Row, where: str) -> Any:
    """Value of a template variable; None or MISSING if the row has none."""
    if isinstance(spec, str):
        return value_at(row, spec)
    if spec.get("text") is not None:
        return spec["text"]
    if spec.get("messages"):
        return conversation(value_at(row, spec["messages"]), spec.get("part", "prompt"))
    if spec.get("join"):
        return joined(spec["join"], row)
    if spec.get("columns"):
        texts = [value_at(row, column) for column in spec["columns"]]
        index = gold_index(spec["gold"], row, [str(text) for text in texts], where)
        return None if index is None or index < 0 else texts[index]
    value = value_at(row, spec["column"])
    return cleaned(value, spec.get("clean")) if isinstance(value, str) else value


def joined(spec: Mapping[str, Any], row: Row) -> str | None:
    """Texts of several columns (or lists) as one; None if the row lacks one, or has none at all."""
    texts: list[str] = []
    for column in spec["columns"]:
        value = value_at(row, column)
        found = value if isinstance(value, list) else [value]
        if not found or any(one is None or one is MISSING for one in found):
            return None
        texts += [written(one, column).strip() for one in found]
    each, between = spec.get("each", EACH), spec.get("between", " ")
    return str(between).join(
        each.format(letter=_letter(i), number=i + 1, text=text) for i, text in enumerate(texts)
    )


def _letter(index: int) -> str:
    """A to Z, then AA, AB, ..."""
    rest, own = divmod(index, len(ascii_uppercase))
    return (_letter(rest - 1) if rest else "") + ascii_uppercase[own]


def cleaned(text: str, how: str | None) -> str:
    """``headings``: " [title]" becomes a full stop (none is doubled), other [brackets] go, runs of
    spaces shrink, spaces at both ends go."""
    if how != "headings":
        return text
    text = _BRACKETS.sub("", _TITLE.sub(lambda m: f"{m[1] or '.'} ", text))
    return _RUNS_OF_SPACES.sub(" ", text).strip()


def choice_texts(spec: Mapping[str, Any] | None, row: Row, key: str = "") -> tuple[str, ...] | None:
    """Texts of the choices; None if the row does not have them; () if the task has none.

    Args:
        spec: The ``choices`` part of a task.
        row: The row.
        key: What the order of shuffled choices is drawn from: the row's own text.
    """
    if spec is None:
        return ()
    if spec.get("labels"):
        return tuple(spec["labels"])
    columns = spec.get("columns") or [spec["column"]]
    if spec.get("column"):
        values = value_at(row, spec["column"])
        if not isinstance(values, (list, tuple)):
            return None
    else:
        values = [value_at(row, column) for column in columns]
    if len(values) < 2 or any(value is None or value is MISSING for value in values):
        return None
    texts = [
        cleaned(written(value, columns[min(i, len(columns) - 1)]), spec.get("clean"))
        for i, value in enumerate(values)
    ]
    if spec.get("order") == "shuffled":
        texts.sort(key=lambda text: hashlib.sha256(f"{key}\x1f{text}".encode()).digest())
    return tuple(texts)


def gold_index(
    spec: Mapping[str, Any] | None,
    row: Row,
    choices: Sequence[str],
    where: str,
    *,
    shuffled: bool = False,
    fixed: bool = False,
) -> int | None:
    """Index of the right choice; -1 if the value is outside the set; None if it is missing.

    Args:
        spec: The ``gold`` part of a task.
        row: The row.
        choices: Texts of its choices, in the order in which they are scored.
        where: Of the row, for messages.
        shuffled: Whether that order is not the data's: then only a text can name a choice.
        fixed: Whether the choices are the task's labels, the same for every row.

    Raises:
        TaskDataError: If the value is of a kind that can be no answer.
    """
    if spec is None:
        return -1
    value = value_at(row, spec["column"])
    if value is None or value is MISSING:
        return None
    if spec.get("above") is not None:
        index = _above(value, float(spec["above"]), where)
    elif spec.get("map"):
        index = _mapped(spec["map"], _key(value))
    elif spec.get("among"):
        keys = value_at(row, spec["among"])
        listed = [_key(k) for k in keys] if isinstance(keys, (list, tuple)) else []
        # a key that is listed twice, or keys that are not one to a choice, name no choice
        known = listed.count(_key(value)) == 1 and len(listed) == len(choices)
        index = listed.index(_key(value)) if known else -1
    else:
        reading = "text" if shuffled else spec.get("reading")
        index = _direct(value, choices, reading, fixed, where)
    return index if 0 <= index < len(choices) else -1


def _key(value: Any) -> str:
    """``1``, ``1.0`` and ``" 1 "`` are one key: files of one data set differ in such things."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = str(value).strip()
    return text.partition(".")[0] if _WHOLE.fullmatch(text) else text


def _mapped(indices: Mapping[str, int], key: str) -> int:
    """Truth values are written True by some tools and true by others."""
    spellings = (key, key.lower(), key.capitalize()) if key.lower() in _TRUTH else (key,)
    return next((indices[each] for each in spellings if each in indices), -1)


def _above(value: Any, threshold: float, where: str) -> int:
    """1 above the threshold, 0 up to it; -1 for a negative number, which hides a label."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TaskDataError(
            DataFault.GOLD_KIND, f"{where}: gold should be a number, not {value!r}; see gold.above"
        ) from None
    return -1 if number < 0 <= threshold else int(number > threshold)


def _direct(
    value: Any, choices: Sequence[str], reading: str | None, fixed: bool, where: str
) -> int:
    """Index of a choice that a value names by its number, its text, or by being true or false.

    Raises:
        TaskDataError: It names none, or two: what was meant is not guessed.
    """
    text = _text_index(value, choices)
    if reading == "text":
        if text is None and not isinstance(value, str):
            raise _no_gold(where, value, f"the text of one of {len(choices)} choices")
        return -1 if text is None else text
    if text is None and len(choices) == 2 and str(value).strip().lower() in _TRUTH:
        return _truth(str(value).strip().lower() == "true", choices, where)
    number = _number(value)
    if number is None and not isinstance(value, str):
        raise _no_gold(where, value, f"an index or a label of {len(choices)} choices")
    if reading == "index" or number is None:
        found = number if reading == "index" else text
        return -1 if found is None else found
    # A number in a column of numbers is an index, unless the task's own labels are numbers.
    doubtful = text is not None and (fixed or isinstance(value, str))
    if doubtful and text != number and number < len(choices):
        raise TaskDataError(
            DataFault.GOLD_KIND,
            f"{where}: gold {value!r} is the number of choice {choices[number]!r} and the text of "
            f"another; say which it is (gold.reading: index or text)",
        )
    return text if doubtful and text is not None else number


def _text_index(value: Any, choices: Sequence[str]) -> int | None:
    """Of the choice that is written as a value is."""
    written = (value, value.strip()) if isinstance(value, str) else (_key(value),)
    return next((list(choices).index(text) for text in written if text in choices), None)


def _number(value: Any) -> int | None:
    """A value that may be an index, as one."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    if isinstance(value, str):
        key = _key(value)
        return int(key) if key.isdecimal() else None
    return int(value) if float(value).is_integer() else None


def _truth(value: bool, choices: Sequence[str], where: str) -> int:
    """Index of the choice that says whether something is so.

    Raises:
        TaskDataError: If the choices are not true and false, or yes and no, in some order.
    """
    meant = [_MEANING.get(choice.strip().casefold()) for choice in choices]
    if sorted(map(str, meant)) != ["False", "True"]:
        raise TaskDataError(
            DataFault.GOLD_KIND,
            f"{where}: gold is {str(value).lower()}, and which of {', '.join(map(repr, choices))} "
            f"that means cannot be told; say it (gold.map: {{true: 1, false: 0}})",
        )
    return meant.index(value)


def _no_gold(where: str, value: Any, expected: str) -> TaskDataError:
    return TaskDataError(DataFault.GOLD_KIND, f"{where}: gold should be {expected}, not {value!r}")


def reference_texts(spec: Mapping[str, Any] | None, row: Row) -> tuple[str, ...] | None:
    """Reference texts; None if the row has none; () if the task has none."""
    if spec is None:
        return ()
    if spec.get("messages"):
        value = conversation(value_at(row, spec["messages"]), "answer")
    else:
        value = value_at(row, spec["column"])
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    there = (written(v, str(spec.get("column"))) for v in values if v not in (None, MISSING))
    return tuple(text for text in there if text.strip()) or None


def columns_named(spec: Mapping[str, Any]) -> dict[str, str]:
    """Every column a task's definition names, by the key that names it."""
    wanted: dict[str, str] = {}
    parts: dict[str, Any] = {f"fields.{name}": part for name, part in spec["fields"].items()}
    parts.update({key: spec.get(key) for key in ("choices", "gold", "references")})
    for key, part in parts.items():
        if isinstance(part, str):
            wanted[key] = part
            continue
        gold = (part or {}).get("gold") or {}
        for name in ("column", "messages", "among"):
            for inside in (part or {}, gold):
                if inside.get(name):
                    wanted[f"{key}.{name}" if inside is not gold else f"{key}.gold.{name}"] = (
                        inside[name]
                    )
        joined_columns = ((part or {}).get("join") or {}).get("columns") or ()
        for number, column in enumerate((part or {}).get("columns") or ()):
            wanted[f"{key}.columns.{number}"] = column
        for number, column in enumerate(joined_columns):
            wanted[f"{key}.join.columns.{number}"] = column
    return wanted

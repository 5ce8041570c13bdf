"""Reads study files: every mistake is one line with file, key, what was expected, and a code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from evalcore.reading import read_text
from evalcore.tasks.reading import MAX_YAML_BYTES, DuplicateKeyError, load_yaml
from finetune.faults import StudyError, StudyFault
from finetune.grids import expand_grid
from finetune.study import Study, TuningSpec

MAX_ERRORS_SHOWN = 8
Mistake = tuple[StudyFault, str]


def load_study(path: str | Path) -> Study:
    """Reads and checks a study file.

    Raises:
        InputError: If it cannot be read.
        StudyError: If it is not YAML or not what the schema says; one line per mistake.
    """
    file = Path(path)
    return parse_study(read_text(file, "study", MAX_YAML_BYTES), file)


def parse_study(text: str, file: Path) -> Study:
    """Checks the text of a study file; ``file`` is named in errors (see :func:`load_study`)."""
    try:
        raw = load_yaml(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or "broken"
        twice = isinstance(error, DuplicateKeyError)
        code = StudyFault.KEY_TWICE if twice else StudyFault.BROKEN_YAML
        raise StudyError(file, [(code, f"{line}: not valid YAML: {problem}")]) from None
    if not isinstance(raw, dict):
        expected = "expected keys (name, checkpoints, tunings, ...) at the top"
        raise StudyError(file, [(StudyFault.NOT_A_MAPPING, expected)])
    try:
        study = Study.model_validate(raw)
    except ValidationError as error:
        raise StudyError(file, _shown(_messages(error))) from None
    study._file = file
    mistakes = _cross_check(study)
    if mistakes:
        raise StudyError(file, _shown(mistakes))
    return study


def study_schema() -> dict[str, Any]:
    """JSON schema of a study file (published as ``schema/study.schema.json``)."""
    schema = Study.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return schema


def _cross_check(study: Study) -> list[Mistake]:
    """What a schema cannot say: names that refer to one another, merged methods."""
    mistakes: list[Mistake] = []
    seen: set[str] = set()
    known: set[str] = set()
    for i, tuning in enumerate(study.tunings):
        known.add(tuning.name)
        for one in _expanded(study, i, tuning, mistakes):
            known.add(one.name)
            if one.name in seen:
                text = f"tunings.{i}.name: {one.name!r} is used twice; names must differ"
                mistakes.append((StudyFault.NAME_TWICE, text))
            seen.add(one.name)
    for i, control in enumerate(study.controls):
        for name in control.of:
            if name not in known:
                there = ", ".join(sorted(known))
                text = f"controls.{i}.of: no tuning is named {name!r}; there are: {there}"
                mistakes.append((StudyFault.UNKNOWN_TUNING, text))
    return list(dict.fromkeys(mistakes))


def _expanded(
    study: Study, i: int, tuning: TuningSpec, mistakes: list[Mistake]
) -> list[TuningSpec]:
    """Grid points whose method holds together; what is wrong with the others is noted."""
    where = f"tunings.{i}"
    for j, (task, rows, _) in enumerate(tuning.parts):
        if rows == 0:
            text = f"{where}.mix.{j}: no row of examples is left for {task}; raise examples"
            mistakes.append((StudyFault.WRONG_VALUE, text))
    known = [rows for _, rows, _ in tuning.parts if rows is not None]
    all_known = len(known) == len(tuning.parts)
    if tuning.select is not None and all_known and tuning.select.held_out >= sum(known):
        text = f"{where}.select.held_out: leaves none of {sum(known)} rows to train on"
        mistakes.append((StudyFault.WRONG_VALUE, text))
    good = []
    try:
        points = expand_grid(tuning)
    except ValidationError as error:
        bad = [text for _, text in _messages(error, prefix=f"{where}.grid")]
        mistakes += [(StudyFault.BAD_GRID, text) for text in bad]
        return []
    for one in points:
        try:
            study.method_of(one)
            good.append(one)
        except ValidationError as error:
            mistakes += _messages(error, prefix=f"{where}.method")
    return good


def _shown(mistakes: list[Mistake]) -> list[Mistake]:
    rest = len(mistakes) - MAX_ERRORS_SHOWN
    if rest <= 0:
        return mistakes
    code, last = mistakes[MAX_ERRORS_SHOWN - 1]
    return [*mistakes[: MAX_ERRORS_SHOWN - 1], (code, f"{last} (and {rest} more)")]


def _messages(error: ValidationError, prefix: str = "") -> list[Mistake]:
    lines: dict[Mistake, None] = {}
    for item in error.errors(include_url=False):
        # Union members appear in a location as their type's name; people look for keys.
        parts = [str(part) for part in item["loc"] if not _is_union_tag(part)]
        key = ".".join([prefix, *parts] if prefix else parts)
        code, message = _code_and_message(item, key)
        lines[code, f"{key}: {message}" if key else message] = None
    return list(lines)


def _code_and_message(item: Any, key: str) -> Mistake:
    if item["type"] == "extra_forbidden":
        return StudyFault.UNKNOWN_KEY, "unknown key"
    message = item["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    if item["type"] == "missing":
        if key.endswith(".select.held_out"):
            text = "field required: rows to choose the learning rate on (a share, or a number)"
            return StudyFault.SELECT_WITHOUT_HELD_OUT, text
        return StudyFault.MISSING_KEY, message
    if not isinstance(item["input"], (dict, list)):
        message += f", not {item['input']!r}"
    known = set(StudyFault)
    return StudyFault(item["type"]) if item["type"] in known else StudyFault.WRONG_VALUE, message


def _is_union_tag(part: str | int) -> bool:
    tags = ("str", "int", "float", "bool", "StepRange")
    return isinstance(part, str) and ("[" in part or part in tags)

"""What a model was tuned on, where no record says it: options, a file beside it, or its name.

Sources in the order in which they are believed, field by field: the provenance record,
``--tuned-on``, ``labels.yaml`` or ``labels.csv`` beside the adapters, ``--name-pattern``, and the
folders a trainer writes (``my-run/checkpoint-500``).
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml

from evalcore.errors import InputError, UnknownNameError
from evalcore.identity.globs import fits, plain, split_at, typed
from evalcore.identity.sources import step_of
from evalcore.reading import BoundedLoader, read_json, read_text
from evalcore.shown import one_line

LABEL_FILES = ("labels.yaml", "labels.yml", "labels.csv")
_CHECKPOINT = re.compile(r"^checkpoint-([0-9]{1,18})$")
CONTROLS = ("format_only", "shuffled_labels")
"""Kinds of controls: models tuned as others are, on what they cannot learn the task from."""
_FORM = "expected GLOB=TASK[,seed=N,control=KIND,tuning=NAME,method=NAME,step=N,tuning_step=N]"


@dataclass(frozen=True, slots=True)
class Labels:
    """What is known of how a model was tuned; None: not known.

    Attributes:
        tuned_on: Task it learned, or the ``tuned_by`` of that task.
        tuning: What tables call the tuning; where it is not given, ``tuned_on``.
        seed: Training seed.
        control: Kind of control it is (``shuffled_labels``).
        method: ``lora``, ``full``, or what the user calls it.
        step: Pre-training step of its checkpoint.
        tuning_step: Step of the tuning it was saved at.
    """

    tuned_on: str | None = None
    tuning: str | None = None
    seed: int | None = None
    control: str | None = None
    method: str | None = None
    step: int | None = None
    tuning_step: int | None = None

    @classmethod
    def of(cls, values: Mapping[str, Any], where: str) -> Labels:
        """Checks values as they were written.

        Raises:
            InputError: An unknown key, or a value of the wrong kind; ``where`` starts the message.
        """
        known = [f.name for f in fields(cls)]
        found: dict[str, Any] = {}
        for key, value in values.items():
            if key not in known:
                raise UnknownNameError("label", str(key), known, where)
            found[key] = _value(key, value, where)
        if found.get("tuned_on") and not found.get("tuning"):
            found["tuning"] = found["tuned_on"]
        return cls(**found)

    def over(self, other: Labels) -> Labels:
        """These, and the other's where these know nothing."""
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(other, **{k: v for k, v in own.items() if v is not None})

    @property
    def empty(self) -> bool:
        return self == Labels()


def _value(key: str, value: Any, where: str) -> Any:
    if value is None or value == "":
        return None
    if key in ("seed", "step", "tuning_step"):
        number = step_of(str(value)) if key != "seed" and isinstance(value, str) else value
        if isinstance(number, str) and re.fullmatch("[0-9]{1,19}", number):
            number = int(number)
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < 2**63:
            said = repr(value[:40] if isinstance(value, str) else value)
            raise InputError(f"{where}: {key} should be a whole number, not {said}")
        return number
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        raise InputError(f"{where}: {key} should be a short text, not {value!r}")
    text = str(value).strip()
    if not text.isprintable() or len(text) > 200:
        raise InputError(f"{where}: {key} should be a short text, not {text[:40]!r}")
    if key == "control" and text and text not in CONTROLS:
        hint = f"expected {', '.join(CONTROLS)}, or control=- (in a file: nothing) for none"
        raise UnknownNameError("kind of control", text, CONTROLS, f"{where}: {hint}")
    return text or None


@dataclass(frozen=True, slots=True)
class Rule:
    """Labels of the models whose name matches a glob; ``where`` says who asked for it.

    Attributes:
        clears: Labels to take away (written ``KEY=-``).
    """

    glob: str
    labels: Labels
    where: str
    clears: tuple[str, ...] = ()

    def matches(self, names: Iterable[str]) -> bool:
        return fits(self.glob, names)


def parse_tuned_on(entry: str, option: str = "--tuned-on") -> Rule:
    """``GLOB=TASK[,seed=..,control=..]`` as a rule; signs of names after a backslash (see globs).

    Raises:
        InputError: It is not of that form.
    """
    head, *pairs = split_at(entry, ",")
    *globs, task = split_at(head, "=")
    glob = "=".join(globs)
    where = f"{option} {typed(entry)}"
    if not (glob and task):
        raise InputError(f"{where}: {_FORM}")
    values: dict[str, Any] = {"tuned_on": plain(task)}
    keys = [f.name for f in fields(Labels)]
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key and equals and value):
            hint = "; a comma of a name is written \\," if glob else ""
            raise InputError(f"{where}: {typed(pair)} is not KEY=VALUE; {_FORM}{hint}")
        values[key.strip()] = plain(value.strip())
    clears = tuple(k for k, v in values.items() if v == "-" and k in keys)
    kept = {k: v for k, v in values.items() if k not in clears}
    return Rule(glob, Labels.of(kept, where), where, clears)


def read_labels(file: Path) -> list[Rule]:
    """Rules of a labels file; later lines win over earlier ones.

    YAML maps a glob to the task it was tuned on or to labels
    (``nli-*: {tuned_on: pocket_nli, seed: 1}``); CSV has a column ``path`` with globs and a
    column per label.

    Raises:
        InputError: It cannot be read or says something else.
    """
    text = read_text(file, "labels").removeprefix("\ufeff")
    rows = _csv_rows(file, text) if file.suffix == ".csv" else _yaml_rows(file, text)
    return [Rule(glob, Labels.of(values, where), where) for glob, values, where in rows]


def _yaml_rows(file: Path, text: str) -> list[tuple[str, Mapping[str, Any], str]]:
    try:
        node = yaml.compose(text, Loader=BoundedLoader)
        data = yaml.load(text, Loader=BoundedLoader)
    except (yaml.YAMLError, RecursionError, ValueError, TypeError) as error:
        raise InputError(f"labels: {file} is not YAML ({str(error).splitlines()[0]})") from None
    if not isinstance(data, Mapping) or not isinstance(node, yaml.MappingNode):
        raise InputError(f"{file}: expected lines such as 'nli-*: {{tuned_on: TASK, seed: 1}}'")
    keys = [key.value for key, _ in node.value]
    for key in keys:
        if keys.count(key) > 1:  # YAML would keep the last in silence
            raise InputError(f"{file}: {key!r} stands there twice")
    rows = []
    for glob, values in data.items():
        where = f"{file}, {glob!r}"
        if isinstance(values, str):
            values = {"tuned_on": values}
        if not isinstance(glob, str) or not isinstance(values, Mapping):
            raise InputError(f"{where}: expected GLOB: TASK or GLOB: {{tuned_on: TASK, ...}}")
        rows.append((glob, values, where))
    return rows


def _csv_rows(file: Path, text: str) -> list[tuple[str, Mapping[str, Any], str]]:
    try:
        return _rows_of_csv(file, text)
    except csv.Error as error:
        raise InputError(f"labels: {file} is not CSV ({error}); expected short fields") from None


def _rows_of_csv(file: Path, text: str) -> list[tuple[str, Mapping[str, Any], str]]:
    reader = csv.DictReader(io.StringIO(text), skipinitialspace=True)
    if "path" not in (reader.fieldnames or ()):
        raise InputError(f"{file}: no column 'path' (a glob over adapters) in its first line")
    rows: list[tuple[str, Mapping[str, Any], str]] = []
    for row in reader:
        where = f"{file}, line {reader.line_num}"
        extra = row.pop(None, None)
        glob = row.pop("path")
        if extra or not glob:
            raise InputError(f"{where}: {'too many values' if extra else 'no path'}")
        rows.append((glob, row, where))
    return rows


@dataclass(frozen=True)
class NamePattern:
    """Labels inside names: ``{step}/{tuning}-seed{seed}`` read from the end of a path.

    ``*`` stands for anything between slashes.
    """

    text: str
    regex: re.Pattern[str]

    @classmethod
    def parse(cls, text: str) -> NamePattern:
        """Raises:
        InputError: It names no label, an unknown one, or one twice.
        """
        where = f"--name-pattern {text!r}"
        known = [f.name for f in fields(Labels)]
        keys = re.findall(r"\{([^{}]*)\}", text)
        if not keys or not re.fullmatch(r"(?:[^{}]|\{[^{}]*\})*", text):
            names = ", ".join(f"{{{name}}}" for name in known)
            raise InputError(f"{where}: name at least one of {names}, each in braces")
        for key in keys:
            if key not in known:
                raise UnknownNameError("label", key, known, where)
            if keys.count(key) > 1:
                raise InputError(f"{where}: {{{key}}} stands there twice")
        regex = ""
        for literal, key in re.findall(r"([^{}]*)(?:\{([^{}]*)\})?", text):
            regex += "[^/]*".join(re.escape(part) for part in literal.split("*"))
            regex += f"(?P<{key}>[^/]+?)" if key else ""
        return cls(text, re.compile(f"(?:^|/){regex}$"))

    def labels(self, path: str) -> Labels | None:
        """The labels in a path; None if it does not fit."""
        found = self.regex.search(path)
        if found is None:
            return None
        return Labels.of(found.groupdict(), f"--name-pattern {self.text!r}, {path}")


def trainer_labels(path: Path) -> Labels:
    """What the folders of a Hugging Face trainer say: run and step of ``my-run/checkpoint-500``.

    The model a run ends with lies in ``my-run`` itself; its step is that of its last checkpoint's
    plan (``max_steps`` in trainer_state.json), if there is one.
    """
    step = _CHECKPOINT.match(path.name)
    if step:
        return Labels(tuning=one_line(path.parent.name) or None, tuning_step=int(step[1]))
    steps = sorted(
        (int(m[1]), item) for item in _folders(path) if (m := _CHECKPOINT.match(item.name))
    )
    if not steps:
        return Labels()
    planned = _planned_steps(steps[-1][1])
    return Labels(tuning=one_line(path.name) or None, tuning_step=planned)


def _folders(path: Path) -> list[Path]:
    try:
        return [item for item in path.iterdir() if item.is_dir()]
    except OSError:
        return []


def _planned_steps(checkpoint: Path) -> int | None:
    try:
        planned = read_json(checkpoint / "trainer_state.json", "trainer state").get("max_steps")
    except InputError:
        return None  # a courtesy: nothing depends on it
    return planned if isinstance(planned, int) and planned > 0 else None


def path_names(path: Path, roots: Sequence[Path] = ()) -> list[str]:
    """Names a glob may mean a model by: its path, and its ends from below the folders searched."""
    names = [path.as_posix(), *("/".join(path.parts[-i:]) for i in (1, 2, 3))]
    for root in roots:
        if path.is_relative_to(root):
            parts = (root.name, *path.relative_to(root).parts)
            names += ["/".join(parts[i:]) for i in range(len(parts))]
    cwd = Path.cwd()
    if path.is_relative_to(cwd):
        names.append(path.relative_to(cwd).as_posix())
    return list(dict.fromkeys([*names, *map(one_line, names)]))

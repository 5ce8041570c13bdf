"""From names to lm-eval's task objects, by lm-eval's own loader."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evalcore.errors import DefinitionError, InputError, UnknownNameError
from evalcore.identity import text_fingerprint
from evalcore.lm_eval import harness
from evalcore.lm_eval.trust import refuse_code, with_includes

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


@dataclass(frozen=True)
class LoadedTask:
    """A task of lm-eval.

    Attributes:
        name: lm-eval's name of it.
        own: lm-eval's object.
        fingerprint: 32 hex digits over its configuration and the source of its functions.
        sandboxed: Whether its templates run in a sandbox (it comes from outside lm-eval).
        random_state: Where random numbers stood once it was loaded.
    """

    name: str
    own: Any
    fingerprint: str
    sandboxed: bool
    random_state: Any = field(default=None, repr=False)


@dataclass(frozen=True)
class Loaded:
    """What some names stand for.

    Attributes:
        tasks: By name, in order, each once.
        groups: lm-eval's groups among the names and below them.
    """

    tasks: Mapping[str, LoadedTask] = field(default_factory=dict)
    groups: Mapping[str, Any] = field(default_factory=dict)


def load(
    names: Sequence[str],
    include_path: Sequence[Path] = (),
    *,
    allow_code: bool = False,
    data_root: Path | None = None,
) -> Loaded:
    """Loads tasks, groups and tags (or YAML files) of lm-eval with their data.

    Args:
        names: Names without ``lm-eval:``.
        include_path: Folders with more task files; they come before lm-eval's own.
        allow_code: Whether files outside lm-eval may name code.
        data_root: Folder whose ``<repo>/<config>/<split>.*`` stand for hub data sets.

    Raises:
        UnknownNameError: With the nearest names.
        InputError: lm-eval is missing, or a file names code and ``allow_code`` is not given.
        DefinitionError: A task file is broken.
        DataError: A data set is not to be had.
    """
    root = harness.require()
    known = harness.known_names()
    tasks: dict[str, LoadedTask] = {}
    groups: dict[str, Any] = {}
    for folder in include_path:
        if not Path(folder).is_dir():
            raise InputError(f"--include-path {folder}: no such folder")
    index = _Index(include_path)
    for name in names:
        with harness.quiet():
            manager, entry = index.find(name)
            files = with_includes(_files(manager, entry))
            if not allow_code:
                refuse_code(files, root, known)
            foreign = any(not file.is_relative_to(root) for file in files)
            with ExitStack() as stack:
                stack.enter_context(harness.one_line(f"lm-eval task {name}"))
                end = stack.enter_context(harness.seeded())
                stack.enter_context(harness.data_from(data_root))
                stack.enter_context(harness.sandboxed(foreign and not allow_code))
                found = manager.load([name])
        groups |= found.get("groups", {})
        for own_name, own in found["tasks"].items():
            _check(own_name, own, allow_code)
            fenced = foreign and not allow_code
            made = LoadedTask(own_name, own, _fingerprint(own), fenced, end[0])
            tasks.setdefault(own_name, made)
    return Loaded(tasks, groups)


class _Index:
    """lm-eval's index of tasks; making it runs nothing of a task's own.

    lm-eval's own thousands take seconds to read: they are, once, only where the given folders do
    not hold all that is named.
    """

    def __init__(self, include_path: Sequence[Path]) -> None:
        self._folders: list[str | Path] = [Path(folder) for folder in include_path]
        self._managers: dict[bool, Any] = {}

    def _manager(self, everything: bool) -> Any:
        from lm_eval.tasks import TaskManager

        if everything not in self._managers:
            self._managers[everything] = TaskManager(
                include_path=self._folders or None, include_defaults=everything
            )
        return self._managers[everything]

    def find(self, name: str) -> tuple[Any, Any]:
        """(task manager, index entry) of a name or of a task file."""
        is_file = name.endswith((".yaml", ".yml"))
        entry = self._file(name) if is_file else None
        if is_file or self._folders:
            own = self._manager(False)
            entry = entry or own.task_index.get(name)
            if entry is not None and not _below(own, entry)[1]:
                return own, entry
        if entry is None:
            _say_what_is_broken(self._folders)
        manager = self._manager(True)
        entry = entry if is_file else manager.task_index.get(name)
        if entry is None:
            known = manager.all_tasks
            raise UnknownNameError("lm-eval task", name, known, "tasks, groups and tags count")
        return manager, entry

    def _file(self, name: str) -> Any:
        from lm_eval.tasks._index import TaskIndex

        with_includes([Path(name)])  # says what is wrong with it
        with harness.one_line(f"lm-eval task file {name}"):
            entry = TaskIndex.entry_from_path(Path(name))
        if entry is None:
            raise DefinitionError(f"lm-eval task file {name}: key task or group is missing")
        return entry


def _say_what_is_broken(folders: Sequence[str | Path]) -> None:
    """lm-eval passes over broken files in silence; a name not found may be in one."""
    for folder in folders:
        for file in sorted(Path(folder).glob("**/*.yaml")):
            with_includes([file])


def _config(manager: Any, entry: Any) -> Mapping[str, Any]:
    if entry.cfg is not None:
        return dict(entry.cfg)
    from lm_eval.tasks._yaml_loader import load_yaml

    return load_yaml(entry.yaml_path, resolve_func=False) if entry.yaml_path else {}


def _members(config: Mapping[str, Any]) -> list[str]:
    """Names a group refers to, those in groups written out inside it included."""
    names: list[str] = []
    listed = config.get("task")
    for item in listed if isinstance(listed, list) else []:
        if isinstance(item, str):
            names.append(item)
        elif isinstance(item, dict) and "group" in item:
            names += [str(item["group"]), *_members(item)]
        elif isinstance(item, dict) and "task" in item and isinstance(item["task"], str):
            names.append(item["task"])
    return names


def _below(manager: Any, entry: Any) -> tuple[list[Any], list[str]]:
    """(entries an entry stands for, itself first; names that are not in the index)."""
    found: dict[int, Any] = {}
    missing: list[str] = []
    todo = [entry]
    while todo:
        one = todo.pop(0)
        if id(one) in found:
            continue
        found[id(one)] = one
        kind = one.kind.name
        names = sorted(one.tags) if kind == "TAG" else []
        if kind == "GROUP":
            names = _members(_config(manager, one))
        for name in names:
            below = manager.task_index.get(name)
            if below is None:
                missing.append(name)
            else:
                todo.append(below)
    return list(found.values()), missing


def _files(manager: Any, entry: Any) -> list[Path]:
    entries, _ = _below(manager, entry)
    return [Path(one.yaml_path) for one in entries if one.yaml_path is not None]


def _check(name: str, own: Any, allow_code: bool) -> None:
    """Refuses what evalcore cannot score as lm-eval would."""
    where = f"lm-eval task {name}"
    if getattr(own, "MULTIMODAL", False):
        raise InputError(f"{where}: asks about images or sound; evalcore scores text only")
    if getattr(own, "UNSAFE_CODE", False) and not allow_code:
        raise InputError(
            f"{where}: runs what a model writes (unsafe_code); give --allow-code to let it"
        )


def _fingerprint(own: Any) -> str:
    config = dict(own.dump_config())
    config.pop("metadata", None)  # holds the file's place
    return text_fingerprint(
        {
            "version": str(own.VERSION),
            "config": _stable(config),
            "code": sorted(set(_sources(own.config.__dict__))),
            "class": "" if type(own).__name__ == "ConfigurableTask" else _source_of(type(own)),
        }
    )


def _stable(value: Any) -> Any:
    """The configuration without addresses in memory."""
    if isinstance(value, Mapping):
        return {str(key): _stable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_stable(item) for item in value]
    if isinstance(value, (bool, int, float)) or value is None:
        return value
    return _ADDRESS.sub("", str(value))


def _sources(value: Any) -> list[str]:
    """Text of the modules in which a configuration's functions are written."""
    if isinstance(value, Mapping):
        return [text for item in value.values() for text in _sources(item)]
    if isinstance(value, (list, tuple)):
        return [text for item in value for text in _sources(item)]
    if hasattr(value, "__dataclass_fields__"):
        return _sources(vars(value))
    return [_source_of(value)] if callable(value) else []


def _source_of(thing: Any) -> str:
    try:
        file = inspect.getsourcefile(inspect.unwrap(getattr(thing, "func", thing)))
        return Path(file).read_text("utf-8") if file else ""
    except (OSError, TypeError, ValueError):
        return ""

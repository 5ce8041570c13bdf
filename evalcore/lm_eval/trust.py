"""What a task file would run, found without running it.

Files inside the installed lm-eval distribution are trusted. Any other file is read here as a bare
YAML tree - no tag is resolved, nothing is imported - and whatever in it would make Python code of
somebody else's run is named.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from evalcore.errors import DefinitionError, InputError

_STANDARD = "tag:yaml.org,2002:"
_PLAIN_TAGS = {
    _STANDARD + name
    for name in ("map", "seq", "str", "int", "float", "bool", "null", "timestamp", "merge",
                 "binary", "set", "omap", "pairs", "value")
}  # fmt: skip
# Builders of `datasets` that only parse; others (pandas, webdataset, ...) may unpickle.
PLAIN_BUILDERS = {"json", "csv", "parquet", "arrow", "text"}
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True, slots=True)
class Danger:
    """Code that a file would run.

    Attributes:
        file: The task file.
        key: Dotted place in it.
        what: What stands there.
    """

    file: Path
    key: str
    what: str


@dataclass(frozen=True, slots=True)
class Known:
    """Names that stand for code of lm-eval's own.

    Attributes:
        metrics: Registered metrics; any other name is fetched and run by another library.
        filters: Registered filters.
        builders: All builders of `datasets` that take files.
    """

    metrics: Collection[str]
    filters: Collection[str]
    builders: Collection[str]


def with_includes(files: Iterable[Path]) -> list[Path]:
    """The files and everything they include, by lm-eval's rule (relative to the including file).

    Raises:
        DefinitionError: If a file is missing or is not YAML.
    """
    found: dict[Path, None] = {}
    todo = [Path(file).expanduser().resolve() for file in files]
    while todo:
        file = todo.pop(0)
        if file in found:
            continue
        found[file] = None
        tree = _tree(file)
        for key, value in _pairs(tree):
            if key == "include":
                items = value.value if isinstance(value, yaml.SequenceNode) else [value]
                todo += [(file.parent / item.value).resolve() for item in items if _text(item)]
    return list(found)


def refuse_code(files: Iterable[Path], trusted: Path, known: Known) -> None:
    """Refuses files outside ``trusted`` that would run code.

    Raises:
        InputError: Names the first such place, what is there and the option that allows it.
        DefinitionError: If a file is missing or is not YAML.
    """
    for file in with_includes(files):
        if file.is_relative_to(trusted):
            continue
        for danger in dangers(file, known):
            raise InputError(
                f"{danger.file}: key {danger.key}: {danger.what} runs code that is not part of "
                f"lm-eval; nothing of it was run; read it, then give --allow-code to run it"
            )


def dangers(file: Path, known: Known) -> Iterator[Danger]:
    """Every place of one file that would run code."""
    tree = _tree(file)
    for key, node in _walk(tree, ""):
        if node.tag not in _PLAIN_TAGS:
            name = node.tag.removeprefix("tag:yaml.org,2002:")
            yield Danger(file, key or "(whole file)", f"{_shown(name)} {_shown(node.value)}")
    for place, entry in _entries(tree, ""):
        yield from (Danger(file, place + key, what) for key, what in _entry(entry, file, known))


def _entries(node: Any, place: str) -> Iterator[tuple[str, Any]]:
    """A task or group mapping and all mappings of its ``task`` lists, with their places."""
    yield place, node
    for key, value in _pairs(node):
        if key in ("task", "task_list") and isinstance(value, yaml.SequenceNode):
            for number, item in enumerate(value.value):
                if isinstance(item, yaml.MappingNode):
                    yield from _entries(item, f"{place}{key}[{number}].")


def _entry(node: Any, file: Path, known: Known) -> Iterator[tuple[str, str]]:
    for key, value in _pairs(node):
        text = _text(value)
        if key == "class":
            yield key, f"class {_shown(text or '')}"
        elif key == "unsafe_code" and (text or "").lower() not in ("false", "no", "off", ""):
            yield key, f"unsafe_code: {text}"
        elif key == "dataset_path" and text:
            yield from ((key, what) for what in _data(text, file, known))
        elif key == "dataset_kwargs":
            yield from (
                (f"{key}.trust_remote_code", "a data set's own code")
                for name, own in _pairs(value)
                if name == "trust_remote_code" and (_text(own) or "").lower() == "true"
            )
        elif key == "use_prompt" and text and not text.startswith("qa-basic:"):
            yield key, f"prompt {_shown(text)}"
        elif key == "metric_list":
            yield from _named(value, key, "metric", known.metrics)
        elif key == "filter_list" and isinstance(value, yaml.SequenceNode):
            for number, one in enumerate(value.value):
                for name, steps in _pairs(one):
                    if name == "filter":
                        at = f"{key}[{number}].filter"
                        yield from _named(steps, at, "function", known.filters)


def _named(node: Any, place: str, field: str, names: Collection[str]) -> Iterator[tuple[str, str]]:
    if not isinstance(node, yaml.SequenceNode):
        return
    for number, item in enumerate(node.value):
        for key, value in _pairs(item):
            text = _text(value)
            if key == field and text is not None and text not in names:
                yield f"{place}[{number}].{key}", f"{field} {_shown(text)}, not one of lm-eval's,"
            if key == "hf_evaluate" and (text or "").lower() in ("true", "yes", "on"):
                yield f"{place}[{number}].{key}", "a metric of another library"


def _data(path: str, file: Path, known: Known) -> Iterator[str]:
    """Data sets that come with code: loading scripts, and builders that unpickle."""
    name = path.rstrip("/").split("/")[-1]
    folders = [Path(path).expanduser(), file.parent / path]
    if path.endswith(".py"):
        yield f"loading script {_shown(path)}"
    elif any((folder / f"{name}.py").is_file() for folder in folders):
        yield f"loading script {_shown(f'{path}/{name}.py')}"
    elif path in known.builders and path not in PLAIN_BUILDERS:
        yield f"builder {_shown(path)}"


def _tree(file: Path) -> Any:
    try:
        tree = yaml.compose(file.read_bytes(), Loader=_Loader)
    except OSError as error:
        raise DefinitionError(f"lm-eval task file {file}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise DefinitionError(f"lm-eval task file {file}: not YAML: {_line(error)}") from None
    if not isinstance(tree, yaml.MappingNode):
        raise DefinitionError(f"lm-eval task file {file}: expected keys and values")
    return tree


def _walk(root: Any, place: str) -> Iterator[tuple[str, Any]]:
    """Every node once (aliases may form circles), keys included, with its dotted place."""
    seen: set[int] = set()
    todo = [(place, root)]
    while todo:
        at, node = todo.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        yield at, node
        below: list[tuple[str, Any]] = []
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                name = key.value if isinstance(key, yaml.ScalarNode) else "?"
                below += [(f"{at}.{name}" if at else name, part) for part in (key, value)]
        elif isinstance(node, yaml.SequenceNode):
            below = [(f"{at}[{number}]", item) for number, item in enumerate(node.value)]
        todo += reversed(below)


def _pairs(node: Any) -> Iterator[tuple[str, Any]]:
    """Keys and values of a mapping, those merged in with ``<<`` too."""
    todo, seen = [node], set()
    while todo:
        mapping = todo.pop()
        if not isinstance(mapping, yaml.MappingNode) or id(mapping) in seen:
            continue
        seen.add(id(mapping))
        for key, value in mapping.value:
            if key.tag == _STANDARD + "merge":
                todo += value.value if isinstance(value, yaml.SequenceNode) else [value]
            elif isinstance(key, yaml.ScalarNode):
                yield key.value, value


def _text(node: Any) -> str | None:
    return node.value if isinstance(node, yaml.ScalarNode) else None


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else "..."
    return text if len(text) <= 80 else text[:77] + "..."


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]

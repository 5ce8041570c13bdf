"""Reading YAML files that come from outside: safely, each key once, errors in one line."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from functools import lru_cache, wraps
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from evalcore.errors import InputError
from evalcore.reading import BoundedLoader, read_bytes
from evalcore.tasks.faults import FileFault, TaskError, TaskFault

Read = TypeVar("Read")
MAX_YAML_BYTES = 1_000_000
MAX_NODES = 50_000
"""Values a file may stand for (the largest definitions have some hundreds)."""
_MERGE_TAG = "tag:yaml.org,2002:merge"
_LONGEST_SHOWN = 60
_UNION_TAGS = {"str", "int", "float", "FieldSource"}


class DuplicateKeyError(yaml.constructor.ConstructorError):
    """A mapping holds a key twice."""


class BombError(yaml.constructor.ConstructorError):
    """Aliases and merges that stand for more than a file should say."""


class UniqueKeyLoader(BoundedLoader):
    """Safe loader that refuses a key given twice (YAML keeps the last one in silence).

    A few lines of aliases of aliases can stand for more values than there is memory; what they
    stand for is counted before anything is built of it.
    """

    def get_single_data(self) -> Any:
        node = self.get_single_node()
        if node is None:
            return None
        _check_expansion(node)
        return self.construct_document(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in getattr(node, "value", ()):
            key = getattr(key_node, "value", None)
            if not isinstance(key, str) or key_node.tag == _MERGE_TAG:
                continue
            if key in seen:
                raise DuplicateKeyError(
                    None, None, f"key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def _check_expansion(root: yaml.Node) -> None:
    """Counts the nodes a document stands for when each alias is written out.

    Raises:
        BombError: If there are too many, or an alias stands within what it names.
    """
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()
    todo = [(root, False)]
    while todo:
        node, left = todo.pop()
        children = _children(node)
        if left:
            open_nodes.discard(id(node))
            size = sizes[id(node)] = 1 + sum(sizes[id(child)] for child in children)
            if size > MAX_NODES:
                raise BombError(
                    None, None, f"stands for more than {MAX_NODES:,} values", node.start_mark
                )
        elif id(node) in open_nodes:
            raise BombError(None, None, "an alias stands within what it names", node.start_mark)
        elif id(node) not in sizes:
            open_nodes.add(id(node))
            todo.append((node, True))
            todo += [(child, False) for child in children]


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def once_per_state(most: int) -> Callable[[Callable[[Path], Read]], Callable[[Path], Read]]:
    """Lets a reader read a file once for each of its states (time, size): runs ask again and again.

    Args:
        most: Results kept.
    """

    def wrap(read: Callable[[Path], Read]) -> Callable[[Path], Read]:
        @lru_cache(maxsize=most)
        def kept(path: Path, mtime_ns: int, size: int) -> Read:
            return read(path)

        @wraps(read)
        def reader(path: Path) -> Read:
            try:
                about = path.stat()
            except OSError:
                return read(path)  # says what is wrong with it
            return kept(path, about.st_mtime_ns, about.st_size)

        return reader

    return wrap


def read_yaml(path: Path, what: str) -> dict[str, Any]:
    """Reads a YAML mapping with the safe loader.

    Args:
        path: The file.
        what: What it is called in errors (``task file``).

    Raises:
        TaskError: If the file is missing or is not one YAML mapping; one line with its place.
    """
    try:
        text = read_bytes(path, what, MAX_YAML_BYTES).decode("utf-8")
    except InputError as error:
        raise TaskError(FileFault.UNREADABLE, str(error)) from None
    except UnicodeDecodeError:
        raise TaskError(
            FileFault.NOT_UTF8, f"{what} {path}: is not UTF-8 text; save it as UTF-8"
        ) from None
    return parse_yaml(text, path, what)


def load_yaml(text: str) -> Any:
    """The value of a YAML text.

    Raises:
        yaml.YAMLError: If it is no YAML, of another kind than plain values, too deep or too much.
    """
    try:
        return yaml.load(text, Loader=UniqueKeyLoader)
    except RecursionError:
        raise yaml.constructor.ConstructorError(None, None, "nested too deeply") from None
    except (ValueError, TypeError, AttributeError) as error:
        # odd dates, unhashable keys: PyYAML lets these through as they are
        raise yaml.constructor.ConstructorError(None, None, str(error)) from None


def parse_yaml(text: str, path: Path, what: str) -> dict[str, Any]:
    """Like :func:`read_yaml`, for text already read; ``path`` is named in errors."""
    try:
        data = load_yaml(text)
    except yaml.YAMLError as error:
        raise _yaml_error(error, path, what) from None
    if not isinstance(data, dict):
        raise TaskError(
            FileFault.NOT_A_MAPPING,
            f"{what} {path}: expected key: value lines, found {_kind(data)}",
        )
    return data


def _yaml_error(error: yaml.YAMLError, path: Path, what: str) -> TaskError:
    mark = getattr(error, "problem_mark", None)
    place = f"{what} {path}" + (f": line {mark.line + 1}, column {mark.column + 1}" if mark else "")
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    if isinstance(error, DuplicateKeyError):
        return TaskError(FileFault.KEY_TWICE, f"{place}: {problem}; remove one of the two")
    if "constructor for the tag" in problem:
        tag = problem.rpartition("tag ")[2]
        return TaskError(
            FileFault.YAML_TAG,
            f"{place}: broken YAML: tag {tag} is not allowed; write plain values",
        )
    return TaskError(
        FileFault.BROKEN_YAML,
        f"{place}: broken YAML ({problem}); check quotes and indentation there",
    )


def validation_line(
    error: ValidationError, what: str, path: Path, model: type[BaseModel] | None = None
) -> str:
    """One line of a pydantic error: file, key, what was expected, what to do."""
    first = _first(error)
    key = ".".join(str(part) for part in first["loc"] if not _is_union_tag(part)) or "(whole file)"
    kind = first["type"]
    if kind == "extra_forbidden":
        expected = "is not a known key" + _nearest_key(first["loc"], model)
    elif kind == "missing":
        expected = "is missing; add it"
    else:
        message = first["msg"].removeprefix("Value error, ")
        given = first.get("input")
        shown = ""
        if isinstance(given, (str, int, float, bool)) and kind not in _own_codes():
            text = repr(given)
            shown = f", not {text[:_LONGEST_SHOWN]}{'...' * (len(text) > _LONGEST_SHOWN)}"
        expected = message[0].lower() + message[1:] + shown
    more = len(error.errors()) - 1
    line = f"{what} {path}: key {key}: {expected}" + (f" (and {more} more)" if more else "")
    return " ".join(line.split())


def definition_error(
    error: ValidationError, what: str, path: Path, model: type[BaseModel] | None = None
) -> TaskError:
    """The typed error of a pydantic one; ``model`` lets an unknown key name its neighbour."""
    kind = _first(error)["type"]
    fault: FileFault | TaskFault
    if kind in _own_codes():
        fault = TaskFault(kind)
    elif kind == "extra_forbidden":
        fault = FileFault.UNKNOWN_KEY
    elif kind == "missing":
        fault = FileFault.MISSING_KEY
    elif kind.endswith(("_type", "_parsing", "_attributes_type")) or kind == "recursion_loop":
        fault = FileFault.WRONG_TYPE
    else:
        fault = FileFault.WRONG_VALUE
    return TaskError(fault, validation_line(error, what, path, model))


def _first(error: ValidationError) -> Any:
    """The error to show: a misspelt key before the key it leaves missing, our own words before
    pydantic's complaints about the other branches of a union, what is wrong inside a mapping before
    the complaint that it is none of those branches."""
    found = error.errors(include_url=False)

    def order(one: Any) -> int:
        if one["type"] == "extra_forbidden":
            return 0
        if one["type"] in _own_codes():
            return 1
        return 3 if one["type"] == "string_type" and isinstance(one["input"], dict) else 2

    return min(found, key=order)


def _own_codes() -> frozenset[str]:
    return frozenset(TaskFault)


def _is_union_tag(part: object) -> bool:
    """pydantic names the branch of a union in the place of an error; people do not want it."""
    return part in _UNION_TAGS or (isinstance(part, str) and part.startswith("function-"))


def _nearest_key(loc: tuple[int | str, ...], model: type[BaseModel] | None) -> str:
    if model is None:
        return "; remove it"
    for part in loc[:-1]:
        inner = model.model_fields.get(str(part)) if model else None
        model = next(_models(inner.annotation), model) if inner is not None else model
    near = difflib.get_close_matches(str(loc[-1]), model.model_fields, n=1, cutoff=0.6)
    known = near[0] if near else ", ".join(model.model_fields)
    return f"; did you mean {known}?" if near else f"; known: {known}"


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)


def _kind(data: Any) -> str:
    return "nothing" if data is None else f"a {type(data).__name__}"

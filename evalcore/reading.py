"""Reading small files that came from outside: regular files only, bounded size, depth and count.

A pipe where a JSON file should be never answers, a link to a device never ends, and a few kilobytes
of brackets end a recursive parser. Whatever a path leads to, reading it here ends soon with its
contents or with one line.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any

import yaml

from evalcore.errors import EvalcoreError, InputError

MAX_CONFIG_BYTES = 16_000_000
"""Bytes of a configuration; the largest known list every module's name in under a million."""
MAX_TABLE_BYTES = 160_000_000
"""Bytes of a vocabulary or an index of weights."""
MAX_DEPTH = 100
"""Levels of nesting; what is hashed and compared afterwards is walked recursively."""
MAX_VALUES = 12_000_000
"""Values of one JSON text, which bounds the memory they take."""

MAX_NUMBER_CHARACTERS = 100
"""Characters of a number in YAML, whose bases (60 too) would make thousands of digits of more."""

POINTER = b"version https://git-lfs.github.com/spec/"
"""How the small text begins that ``git clone`` leaves in the place of a file kept in Git LFS."""


def pointer(path: Path) -> InputError:
    """The error of a file that is such a text."""
    return InputError(
        f"{path} is a pointer of Git LFS, not the file itself; git lfs pull fetches that"
    )


def is_there(path: Path) -> bool:
    """Whether anything has this name, be it nothing that can be read: then reading it says so.

    A file that may be left out is left out where this is false; a pipe or a link to nothing in its
    place is no reason to go on without it.
    """
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a NUL in the path
        return False
    except OSError as error:
        return error.errno != errno.ENAMETOOLONG
    return True


def read_bytes(path: Path, what: str, most: int = MAX_CONFIG_BYTES) -> bytes:
    """Contents of a regular file.

    Args:
        path: The file; links are followed.
        what: What it is, named first in errors (``adapter``).
        most: Bytes it may have.

    Raises:
        InputError: If it is missing, no regular file, too large or unreadable.
    """
    with _opened(path, what) as file:
        data = file.read(most + 1)
        if data.startswith(POINTER):
            raise pointer(path)
    if len(data) > most:
        raise _too_large(path, what, most)
    return data


def file_sum(path: Path, what: str, most: int = MAX_CONFIG_BYTES) -> str:
    """sha256 of what :func:`read_bytes` gives, a piece at a time; processors have it built in.

    Raises:
        InputError: As there.
    """
    with _opened(path, what) as file:
        if os.fstat(file.fileno()).st_size > most:
            raise _too_large(path, what, most)
        if file.read(len(POINTER)) == POINTER:
            raise pointer(path)
        file.seek(0)
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _opened(path: Path, what: str) -> Iterator[BufferedReader]:
    """A regular file, open; whatever the system has against it or its bytes is an InputError."""
    try:
        # A pipe would be waited for, and a terminal could become ours.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            about = os.fstat(descriptor)
            if not stat.S_ISREG(about.st_mode):
                raise _not_regular(path, what, about.st_mode)
            yield file
    except FileNotFoundError:
        raise InputError(f"{what}: {path} is {_absent(path)}") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        if getattr(error, "errno", None) == errno.ENXIO:  # what opening a socket is told
            regular_size(path, what)
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{what}: {path} cannot be read ({reason})") from None


def _too_large(path: Path, what: str, most: int) -> InputError:
    return InputError(f"{what}: {path} is too large: expected at most {most:,} bytes")


def regular_size(path: Path, what: str) -> int:
    """Bytes of a regular file.

    Raises:
        InputError: If it is missing or no regular file.
    """
    try:
        about = path.stat()
    except FileNotFoundError:
        raise InputError(f"{what}: {path} is {_absent(path)}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{what}: {path} cannot be read ({reason})") from None
    if not stat.S_ISREG(about.st_mode):
        raise _not_regular(path, what, about.st_mode)
    return about.st_size


def read_text(path: Path, what: str, most: int = MAX_CONFIG_BYTES) -> str:
    """UTF-8 text of a regular file (see :func:`read_bytes`)."""
    try:
        return read_bytes(path, what, most).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{what}: {path} is not UTF-8 text (byte {error.start}); save it as UTF-8"
        ) from None


def read_json(path: Path, what: str, most: int = MAX_CONFIG_BYTES) -> dict[str, Any]:
    """Reads a JSON object (see :func:`read_bytes`, :func:`parse_json`).

    Raises:
        InputError: If it is missing, unreadable, too deep or not an object.
    """
    data = parse_json(read_bytes(path, what, most), f"{what}: {path}")
    if not isinstance(data, dict):
        raise InputError(f"{what}: {path} should hold a JSON object, not {_json_kind(data)}")
    return data


def parse_json(data: bytes, where: str) -> Any:
    """The value of a JSON text of bounded depth and number of values.

    Args:
        data: UTF-8 text.
        where: What is read, named first in errors.

    Raises:
        InputError: If it is no JSON, too deep, has too many values or text that is no Unicode.
    """
    values = sum(data.count(sign) for sign in (b",", b"[", b"{"))
    if values > MAX_VALUES:
        raise InputError(f"{where} holds too much: expected at most {MAX_VALUES:,} values")
    try:
        value = json.loads(data.decode("utf-8"))
        if rb"\ud" in data.lower():  # half of a pair is text that can be neither written nor hashed
            json.dumps(value, ensure_ascii=False).encode()
        check_depth(value, where)
    except EvalcoreError:
        raise
    except RecursionError:
        raise InputError(f"{where} is nested too deeply (more than {MAX_DEPTH} levels)") from None
    except ValueError as error:
        reason = "half of a surrogate pair" if isinstance(error, UnicodeEncodeError) else error
        raise InputError(f"{where} is not readable JSON ({reason})") from None
    return value


def check_depth(value: Any, where: str, most: int = MAX_DEPTH) -> None:
    """Refuses lists and mappings nested deeper than ``most``, level by level, without recursion.

    Raises:
        InputError: If it is deeper.
    """
    level = [value]
    for _ in range(most + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, (list, dict))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (list, dict))
        ]
        if not level:
            return
    raise InputError(f"{where} is nested too deeply (more than {most} levels)")


class BoundedLoader(yaml.SafeLoader):
    """Safe loader of YAML whose whole numbers fit 64 bits: larger ones fit no table and no hash."""

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        _check_length(node)
        number = int(super().construct_yaml_int(node))
        if not -(2**63) <= number < 2**63:
            raise yaml.constructor.ConstructorError(
                None, None, "a whole number is too large: expected 64 bits", node.start_mark
            )
        return number

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        _check_length(node)
        return float(super().construct_yaml_float(node))


BoundedLoader.add_constructor("tag:yaml.org,2002:int", BoundedLoader.construct_yaml_int)
BoundedLoader.add_constructor("tag:yaml.org,2002:float", BoundedLoader.construct_yaml_float)


def _check_length(node: yaml.ScalarNode) -> None:
    if len(str(node.value)) > MAX_NUMBER_CHARACTERS:
        raise yaml.constructor.ConstructorError(
            None, None, f"a number has more than {MAX_NUMBER_CHARACTERS} characters",
            node.start_mark,
        )  # fmt: skip


def _absent(path: Path) -> str:
    return "a link to nothing; copy what it leads to there" if path.is_symlink() else "missing"


def _not_regular(path: Path, what: str, mode: int) -> InputError:
    kinds = [
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISFIFO, "a pipe"),
        (stat.S_ISCHR, "a device"),
        (stat.S_ISBLK, "a device"),
        (stat.S_ISSOCK, "a socket"),
    ]
    kind = next((name for holds, name in kinds if holds(mode)), "no file")
    return InputError(
        f"{what}: {path} is {kind}, expected a regular file; put the file itself there"
    )


def _json_kind(value: Any) -> str:
    names = {list: "a list", str: "text", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")

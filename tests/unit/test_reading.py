"""Whatever a path leads to, reading it ends soon with its contents or with one line."""

from __future__ import annotations

import hashlib
import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from evalcore.errors import InputError
from evalcore.reading import (
    MAX_DEPTH,
    POINTER,
    file_sum,
    parse_json,
    read_bytes,
    read_json,
    read_text,
    regular_size,
)


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "good").write_text('{"a": [1, "\\ud83d\\ude00"]}')
    assert read_json(tmp_path / "good", "thing") == {"a": [1, "😀"]}
    (tmp_path / "link").symlink_to("good")
    content = (tmp_path / "good").read_bytes()
    assert read_bytes(tmp_path / "link", "thing") == content
    assert file_sum(tmp_path / "link", "thing") == hashlib.sha256(content).hexdigest()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
    for name, reason in {
        "pipe": "is a pipe, expected a regular file", "device": "is a device",
        "folder": "folder is a folder|Is a directory", "loop": "cannot be read",
        "socket": "is a socket", "none": "is missing", "a\0b": "cannot be read",
    }.items():  # fmt: skip
        for read in (read_bytes, file_sum, regular_size):
            with pytest.raises(InputError, match=rf"^thing: .*({reason})") as caught:
                read(tmp_path / name, "thing")
            assert "\n" not in str(caught.value)


def test_size_and_encoding_are_bounded(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x" * 11)
    assert read_text(file, "thing", 11) == "x" * 11
    with pytest.raises(InputError, match="too large: expected at most 10 bytes"):
        read_text(file, "thing", 10)
    with open(file, "wb") as sparse:
        sparse.truncate(1 << 40)
    for read in (read_bytes, file_sum):
        with pytest.raises(InputError, match="too large"):
            read(file, "thing")
    file.write_bytes(POINTER + b"v1")
    for read in (read_bytes, file_sum):
        with pytest.raises(InputError, match="Git LFS"):
            read(file, "thing")
    file.write_bytes(b"ab\xff")
    with pytest.raises(InputError, match=r"not UTF-8 text \(byte 2\)"):
        read_text(file, "thing")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 5000 + "1" + "}" * 5000, "nested too deeply"),
        ("[" * (MAX_DEPTH + 2) + "]" * (MAX_DEPTH + 2), "nested too deeply"),
        ('{"a": "\\ud800"}', "surrogate"),
        ('{"\\uDFFF": 1}', "surrogate"),
        ("9" * 5000, "not readable JSON"),
        ("{'a': 1}", "not readable JSON"),
        ("", "not readable JSON"),
        ("[" + "0," * 12_000_001 + "0]", "too much"),
    ],
    ids=["lists", "objects", "just", "half", "half key", "digits", "quotes", "empty", "many"],
)
def test_json_is_bounded(text: str, reason: str) -> None:
    with pytest.raises(InputError, match=f"^here .*{reason}") as caught:
        parse_json(text.encode(), "here")
    assert "\n" not in str(caught.value)


def test_depth_up_to_the_limit_is_read(tmp_path: Path) -> None:
    deep: Any = 1
    for _ in range(MAX_DEPTH):
        deep = [deep]
    assert parse_json(json.dumps(deep).encode(), "here") == deep
    (tmp_path / "list").write_text("[1]")
    with pytest.raises(InputError, match="should hold a JSON object, not a list"):
        read_json(tmp_path / "list", "thing")

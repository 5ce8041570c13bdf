"""Facts that are remembered: made once, checked, and made again where the file is another."""

from __future__ import annotations

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from evalcore.errors import InputError
from evalcore.identity.cache import FileMemo, cached_fact, cached_file_fact


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EVALCORE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "fingerprints"


def settled(path: Path, text: str, age_s: float = 60.0) -> Path:
    path.write_text(text)
    os.utime(path, (time.time() - age_s,) * 2)
    return path


def test_of_many_that_miss_a_fact_one_computes_it(folder: Path) -> None:
    made: list[int] = []

    def compute() -> list[int]:
        time.sleep(0.2)
        made.append(1)
        return [1, 2]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: cached_fact("k", "state", compute), range(8)))
    assert found == [[1, 2]] * 8
    assert len(made) == 1
    assert not list(folder.glob("*.lock"))


def test_one_that_fails_leaves_the_next_its_turn(folder: Path) -> None:
    def fails() -> Any:
        raise InputError("broken")

    with pytest.raises(InputError, match="broken"):
        cached_fact("k", "state", fails)
    assert cached_fact("k", "state", lambda: 7) == 7


@pytest.mark.parametrize("damage", ["value", "cut", "kind", "empty"])
def test_a_damaged_entry_is_made_again(folder: Path, damage: str) -> None:
    assert cached_fact("k", "state", lambda: {"a": [1]}) == {"a": [1]}
    (entry,) = folder.glob("*.json")
    text = entry.read_text()
    entry.write_text(
        {
            "value": text.replace("[1]", "[2]"), "cut": text[:-5], "kind": "[1]", "empty": ""
        }[damage]
    )  # fmt: skip
    assert cached_fact("k", "state", lambda: {"a": [3]}) == {"a": [3]}
    assert cached_fact("k", "state", lambda: {"a": [4]}) == {"a": [3]}


def test_an_entry_of_an_earlier_version_counts(folder: Path) -> None:
    cached_fact("k", "state", lambda: 1)
    (entry,) = folder.glob("*.json")
    entry.write_text(json.dumps({"state": "state", "value": 5}))
    assert cached_fact("k", "state", lambda: 1) == 5


def test_a_file_is_another_once_it_changed(folder: Path, tmp_path: Path) -> None:
    file = settled(tmp_path / "f", "one")
    read: FileMemo[list[str]] = FileMemo(lambda path: [path.read_text()], list)
    for _ in range(2):
        assert read.of(file) == ["one"]
        assert cached_file_fact(file, "text", lambda path: path.read_text()) == "one"
    read.of(file).append("changed by whoever asked")
    assert read.of(file) == ["one"]
    settled(file, "two", age_s=30.0)
    assert read.of(file) == ["two"]
    assert cached_file_fact(file, "text", lambda path: path.read_text()) == "two"
    file.write_text("six")  # so young that its time may not tell it from the next
    assert read.of(file) == ["six"]
    file.write_text("ten")
    assert read.of(file) == ["ten"]

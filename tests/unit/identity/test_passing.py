"""The node's cache under a budget: who holds what, and what has to go."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from evalcore.errors import NodeError
from evalcore.identity import passing
from evalcore.identity.hub import HubFile, HubRepository
from evalcore.identity.passing import Item, NodeCache
from evalcore.identity.places import HubPlace

SIZE = 100


def item(name: str) -> Item:
    place = HubPlace(f"org/{name}", "0" * 40)
    return Item(place, {"config.json": HubFile(None, SIZE)})


@pytest.fixture
def fetches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each was fetched; files come out of nowhere."""
    monkeypatch.setenv("EVALCORE_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(passing, "WAIT_S", 0.01)
    count: Counter[str] = Counter()

    def fetch(self: object, commit: str, names: Sequence[str], into: Path) -> None:
        name = self.name.removeprefix("org/")  # type: ignore[attr-defined]
        count[name] += 1
        folder = item(name).folder_in(into)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_bytes(b"x" * SIZE)

    monkeypatch.setattr("evalcore.identity.hub.HubRepository.fetch", fetch)
    return count


def held(tmp_path: Path) -> set[str]:
    """What is on the disk."""
    every = (tmp_path / "own" / "passing").glob("*/models--org--*")
    return {folder.name.removeprefix("models--org--") for folder in every}


def test_the_longest_unused_goes_first(fetches: Counter[str], tmp_path: Path) -> None:
    cache = NodeCache(3 * SIZE)
    for name in "abcabd":
        cache.take([item(name)])
    assert fetches == {"a": 1, "b": 1, "c": 1, "d": 1}
    assert held(tmp_path) == {"a", "b", "d"}


def test_what_another_process_holds_stays(fetches: Counter[str], tmp_path: Path) -> None:
    mine, theirs = NodeCache(2 * SIZE), NodeCache(2 * SIZE)
    theirs.take([item("a")])
    for name in "bcd":
        mine.take([item(name)])
    assert held(tmp_path) == {"a", "d"}
    assert not mine.ahead([item("e")])
    theirs.release()
    assert mine.ahead([item("e")])
    assert held(tmp_path) == {"d", "e"}
    mine.take([item("d")])  # more of the same: what comes next stays
    mine.take([item("e")])
    assert fetches["e"] == 1


def test_whoever_waits_holds_nothing(fetches: Counter[str], tmp_path: Path) -> None:
    """Each has a checkpoint and wants an adapter; there is room for one of both."""
    first, second = NodeCache(3 * SIZE), NodeCache(3 * SIZE)
    second.take([item("base2")])
    first.take([item("base1")])
    first.take([item("base1"), item("adapter1")])
    waited = 0

    def tick() -> None:
        nonlocal waited
        waited += 1
        if waited == 3:
            first.release()

    second._tick = tick
    second.take([item("base2"), item("adapter2")])
    assert waited == 3
    assert {"base2", "adapter2"} <= held(tmp_path)


def test_what_a_killed_process_held_is_free(fetches: Counter[str], tmp_path: Path) -> None:
    code = """
import sys; from evalcore.identity.passing import NodeCache
from tests.unit.identity.test_passing import SIZE, item
cache = NodeCache(SIZE); cache._reserved([item("a")]); print("held", flush=True); sys.stdin.read()
"""
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    cache = NodeCache(SIZE)
    assert not cache.ahead([item("b")])
    child.kill()
    child.wait()
    assert cache.ahead([item("b")])
    assert held(tmp_path) == {"b"}


def test_a_damaged_note_of_a_size(fetches: Counter[str], tmp_path: Path) -> None:
    cache = NodeCache(2 * SIZE)
    cache.take([item("a")])
    (note,) = (tmp_path / "own" / "passing").glob("*.json")
    assert json.loads(note.read_text()) == {"bytes": SIZE}
    note.write_text("{")
    cache.take([item("b")])
    cache.take([item("c")])
    assert held(tmp_path) == {"b", "c"}


def test_more_than_the_budget(fetches: Counter[str]) -> None:
    with pytest.raises(NodeError, match="take 200 bytes, more than --disk-budget 100 bytes"):
        NodeCache(SIZE).take([item("a"), item("b")])


def test_without_a_budget_files_go_to_the_hubs_cache(
    fetches: Counter[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch: Callable[..., object] = HubRepository.fetch
    to: list[Path | None] = []

    def into_hub(self: object, commit: str, names: Sequence[str], into: Path | None) -> None:
        to.append(into)
        fetch(self, commit, names, tmp_path / "hf" / "hub")

    monkeypatch.setattr("evalcore.identity.hub.HubRepository.fetch", into_hub)
    for _ in range(2):
        NodeCache(None).take([item("a")])
    assert to == [None]
    assert NodeCache(SIZE).take([item("a")])  # it is there, and counts for nothing
    assert fetches == {"a": 1}
    assert not held(tmp_path)

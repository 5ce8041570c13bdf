"""What the first engine chose stays, whoever comes at the same time or later."""

from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from evalcore.errors import ResultsError
from evalcore.store import ResultStore
from evalcore.store.merge import merge

KIND = "k" * 32


def test_the_first_choice_stays(tmp_path: Path) -> None:
    store = ResultStore(tmp_path / "r")
    assert store.settle(KIND) == ""
    assert store.settle(KIND, "packed") == "packed"
    assert store.settle(KIND, "cached") == "packed" == ResultStore(store.path).settle(KIND)
    assert store.settle("o" * 32, "cached") == "cached"
    assert store.verify().sound


@pytest.mark.parametrize("links", [True, False])
def test_many_choose_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    if not links:

        def refuse(*_: Any) -> None:
            raise PermissionError(errno.EPERM, "no links here")

        monkeypatch.setattr(os, "link", refuse)
    stores = [ResultStore(tmp_path / "r") for _ in range(8)]
    if not links:
        stores[0].settle(KIND, "s0")  # which of several is kept is left to the file system
    with ThreadPoolExecutor(8) as pool:
        said = list(pool.map(lambda i: stores[i].settle(KIND, f"s{i}"), range(8)))
    assert set(said) == {stores[0].settle(KIND)}
    assert [path.name[0] for path in (tmp_path / "r" / "settled").iterdir()] == ["k"]


def test_a_damaged_record_is_no_new_choice(tmp_path: Path) -> None:
    store = ResultStore(tmp_path / "r")
    store.settle(KIND, "packed")
    (path,) = (store.path / "settled").iterdir()
    path.write_bytes(path.read_bytes().replace(b"packed", b"cached"))
    with pytest.raises(ResultsError, match="evalcore verify"):
        store.settle(KIND, "plain")
    assert [damage.file for damage in store.verify().damaged] == [f"settled/{path.name}"]
    assert store.settle(KIND, "plain") == "plain"


def test_merged_folders_keep_what_the_first_settled(tmp_path: Path) -> None:
    for name in ("packed", "cached"):
        ResultStore(tmp_path / name).settle(KIND, name)
    merge([tmp_path / "packed", tmp_path / "cached"], tmp_path / "all")
    assert ResultStore(tmp_path / "all").settle(KIND) == "packed"

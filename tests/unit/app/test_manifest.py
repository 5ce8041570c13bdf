"""Parts of an array job cut the same grid, whenever each of them starts."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from evalcore.app.manifest import agreed, grid_name
from evalcore.errors import InputError, ResultsError
from evalcore.store import access
from evalcore.types import Checkpoint, Subject


def subjects(*names: str) -> list[Subject]:
    return [Subject(Checkpoint(name, f"/{name}", f"{name:0>32}", "1" * 32)) for name in names]


def test_the_first_part_settles_it(tmp_path: Path) -> None:
    first, gone = agreed(tmp_path, subjects("a", "b"), "7")
    assert ([s.checkpoint.name for s in first], gone) == (["a", "b"], [])
    later, gone = agreed(tmp_path, subjects("c", "b", "a"), "7")
    assert ([s.checkpoint.name for s in later], gone) == (["a", "b"], [])
    other, _ = agreed(tmp_path, subjects("c", "b", "a"), "8")
    assert len(other) == 3
    fewer, gone = agreed(tmp_path, subjects("b"), "7")
    assert [s.checkpoint.name for s in fewer] == ["b"]
    assert gone == [subjects("a")[0].id]
    assert sorted(path.name for path in (tmp_path / "grids").iterdir()) == [
        "7.checked.json",
        "8.checked.json",
    ]


def test_a_damaged_list_is_one_line(tmp_path: Path) -> None:
    agreed(tmp_path, subjects("a"), "7")
    (tmp_path / "grids" / "7.checked.json").write_text("[1")
    with pytest.raises(ResultsError, match=r"grids/7\.checked\.json"):
        agreed(tmp_path, subjects("a"), "7")


def test_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EVALCORE_GRID", raising=False)
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)
    assert grid_name() is None
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "4711")
    assert grid_name() == "4711"
    monkeypatch.setenv("EVALCORE_GRID", "../x")
    with pytest.raises(InputError, match="EVALCORE_GRID"):
        grid_name()


def test_a_list_that_cannot_be_read_now_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agreed(tmp_path, subjects("a"), "7")
    path = tmp_path / "grids" / "7.checked.json"
    before = path.read_bytes()

    def refuse(asked: Path) -> dict[str, object]:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(asked))

    monkeypatch.setattr(access, "_PAUSES_S", ())
    monkeypatch.setattr("evalcore.app.manifest.read_json", refuse)
    with pytest.raises(ResultsError, match=r"7\.checked\.json cannot be read \(Input/output error"):
        agreed(tmp_path, subjects("b"), "7")
    assert path.read_bytes() == before


def test_a_file_system_without_links_is_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", link)
    for names in (("a", "b"), ("c",)):
        found, gone = agreed(tmp_path, subjects(*names), "7")
    assert (found, len(gone)) == ([], 2)


def test_a_list_that_cannot_be_there_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "grids").write_text("a file")
    with pytest.raises(ResultsError, match=r"cannot be read \(Not a directory\)"):
        agreed(tmp_path, subjects("a"), "7")

"""What cannot be read is not damaged: tried again, then refused, and never moved."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench import bitflips
from evalcore import checked
from evalcore.errors import ResultsError
from evalcore.lm_eval import outcomes
from evalcore.store import ResultStore, access, read_progress

KINDS = ["segments", "cells .arrow", "cells .json", "runs", "makers", "documents", "requests",
         "clusters"]  # fmt: skip
Fail = Callable[[Path, int, int], None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "results"
    bitflips.build(path, rows=40, cells=20)
    return path


@pytest.fixture
def fail(monkeypatch: pytest.MonkeyPatch) -> Fail:
    """``fail(path, number, times)``: looking at a file fails with this errno, so many times."""
    monkeypatch.setattr(access, "_PAUSES_S", (0.0, 0.0))

    def fail(path: Path, number: int, times: int) -> None:
        left = [times]

        def failing(asked: Any) -> os.stat_result:
            if str(asked) == str(path) and left[0]:
                left[0] -= 1
                raise OSError(number, os.strerror(number), str(path))
            return os.stat(asked)

        monkeypatch.setattr(checked, "os", SimpleNamespace(stat=failing, path=os.path))

    return fail


def a_file(results: Path, kind: str) -> Path:
    room, _, suffix = kind.partition(" ")
    found = [p for p in (results / room).rglob("*") if p.is_file() and p.name.endswith(suffix)]
    return found[0]


def files(results: Path) -> set[Path]:
    return {path for path in results.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", KINDS)
def test_verify_moves_nothing_that_cannot_be_read(
    folder: Path, tmp_path: Path, fail: Fail, kind: str
) -> None:
    results = Path(shutil.copytree(folder, tmp_path / "results"))
    path, before = a_file(results, kind), files(results)
    for number in (errno.EACCES, errno.EMFILE, errno.ESTALE, errno.EIO):
        fail(path, number, 99)
        with pytest.raises(ResultsError, match=f"{path.name} cannot be read") as refused:
            ResultStore(results).verify()
        assert os.strerror(number) in str(refused.value)
        assert files(results) == before
    fail(path, errno.EIO, 1)  # once: tried again
    assert ResultStore(results).verify().sound
    assert files(results) == before


def test_rows_that_cannot_be_read_are_refused_and_not_lost(
    folder: Path, tmp_path: Path, fail: Fail, caplog: pytest.LogCaptureFixture
) -> None:
    results = Path(shutil.copytree(folder, tmp_path / "results"))
    path, before = a_file(results, "segments"), files(results)
    rows = ResultStore(results).examples().num_rows
    actions: list[Callable[[ResultStore], object]] = [
        ResultStore.coverage, ResultStore.examples, ResultStore.compact,
    ]  # fmt: skip
    for action in actions:
        fail(path, errno.EACCES, 99)
        with pytest.raises(ResultsError, match="cannot be read"):
            action(ResultStore(results))
    fail(path, errno.EIO, 1)
    assert ResultStore(results).examples().num_rows == rows
    assert files(results) == before
    assert "damaged" not in caplog.text


def test_cells_that_cannot_be_read_are_refused(folder: Path, tmp_path: Path, fail: Fail) -> None:
    results = Path(shutil.copytree(folder, tmp_path / "results"))
    fail(a_file(results, "cells .arrow"), errno.EIO, 99)
    with pytest.raises(ResultsError, match="cannot be read"):
        ResultStore(results).cells()


def test_reduced_files_that_cannot_be_read_stay(folder: Path, tmp_path: Path, fail: Fail) -> None:
    results = Path(shutil.copytree(folder, tmp_path / "results"))
    path = a_file(results, "reduced")
    fail(path, errno.EIO, 99)
    store = ResultStore(results)
    store.reductions.cells()
    store.reductions.estimates()
    assert path.is_file()


def test_a_folder_that_cannot_be_listed_is_not_empty(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = Path(shutil.copytree(folder, tmp_path / "results"))
    monkeypatch.setattr(access, "_PAUSES_S", ())
    store = ResultStore(results)

    def refuse(path: object) -> list[str]:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("evalcore.store.segments.os.listdir", refuse)
    with pytest.raises(ResultsError, match=r"segments cannot be read \(Permission denied\)"):
        store.coverage()


@pytest.mark.parametrize("room", ["makers", "cells", "documents", "runs", "clusters"])
def test_no_folder_that_cannot_be_listed_is_empty(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: str
) -> None:
    results = Path(shutil.copytree(folder, tmp_path / "results"))
    monkeypatch.setattr(access, "_PAUSES_S", ())

    def refuse(path: Path) -> list[str]:
        if path.name == room:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return os.listdir(path)

    monkeypatch.setattr(access, "os", SimpleNamespace(listdir=refuse))
    store = ResultStore(results)
    read = {"makers": store.makers, "cells": store.cells, "documents": store.documents,
            "runs": store.runs.list, "clusters": store.clusters}  # fmt: skip
    with pytest.raises(ResultsError, match=rf"{room} cannot be read \(Permission denied\)"):
        read[room]()


def test_a_progress_file_that_cannot_be_read_is_told_so(
    folder: Path, tmp_path: Path, fail: Fail
) -> None:
    results = Path(shutil.copytree(folder, tmp_path / "results"))
    path = a_file(results, "progress")
    fail(path, errno.EIO, 99)
    (why,) = read_progress(results).damaged.values()
    assert f"{path.name} cannot be read (Input/output error)" in why
    assert path.is_file()


def test_metrics_of_others_that_cannot_be_read_are_refused(tmp_path: Path, fail: Fail) -> None:
    path = tmp_path / "outside" / f"{'0' * 32}.checked.json"
    path.parent.mkdir()
    checked.write_json(path, {"cell": "0" * 32})
    assert len(outcomes.read_outcomes(tmp_path)) == 1
    fail(path, errno.EIO, 99)
    with pytest.raises(ResultsError, match=r"cannot be read \(Input/output error"):
        outcomes.read_outcomes(tmp_path)

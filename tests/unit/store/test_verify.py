"""What lies in a results folder and is no file: named, set aside, never waited for."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench import bitflips
from evalcore.app.settling import set_aside
from evalcore.app.status import status
from evalcore.cli import main
from evalcore.store import ResultStore, aside_lines, verify_folder

KINDS = ["segments", "cells .arrow", "cells .json", "runs", "makers", "documents", "requests",
         "clusters", "progress", "reduced .arrow"]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "results"
    bitflips.build(path, rows=40, cells=20)
    return path


@pytest.fixture(autouse=True)
def _in_time() -> Iterator[None]:
    """A pipe that is waited for fails the test, and does not hold up all others."""

    def late(number: int, frame: Any) -> None:
        raise AssertionError("it is waited for")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def put(path: Path, how: str) -> None:
    path.unlink()
    if how == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(path.name if how == "loop" else "nowhere")


@pytest.mark.parametrize(
    ("kind", "how"),
    [*((kind, "pipe") for kind in KINDS), ("segments", "loop"), ("cells .json", "link to nothing")],
)
def test_what_is_no_file_is_set_aside(folder: Path, tmp_path: Path, kind: str, how: str) -> None:
    results = Path(shutil.copytree(folder, tmp_path / "results"))
    room, _, suffix = kind.partition(" ")
    files = [p for p in (results / room).rglob("*") if p.is_file() and p.name.endswith(suffix)]
    put(files[0], how)
    seen = bitflips.look(results)
    name = str(files[0].relative_to(results))
    assert seen["verify"] == [name]
    (damage,) = ResultStore(results).verify().damaged or [None]  # type: ignore[list-item]
    if room == "reduced":  # the report has made it again already
        assert damage is None
    else:
        assert damage.file == name
        assert damage.set_aside
    assert ResultStore(results).verify().sound


@pytest.mark.parametrize("how", ["pipe", "loop", "link to nothing"])
def test_settings_that_are_no_file_are_written_anew(folder: Path, tmp_path: Path, how: str) -> None:
    results = Path(shutil.copytree(folder, tmp_path / "results"))
    put(results / "store.json", how)
    assert [d.file for d in verify_folder(results, set_aside=True).damaged] == ["store.json"]
    assert bitflips.look(results)["verify"] == []


def test_a_name_that_is_not_utf8_is_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["evalcore", "scores", str(folder), "-o", "\udcff.csv"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        r"evalcore: \udcff.csv: this name is not UTF-8; give another"
    )


def test_what_was_set_aside_is_told_until_it_is_removed(folder: Path, tmp_path: Path) -> None:
    """Whoever set it aside may have been killed before it said so."""
    results = Path(shutil.copytree(folder, tmp_path / "results"))
    assert not aside_lines(results)
    (path,) = list((results / "runs").iterdir())[:1]
    path.write_bytes(path.read_bytes()[:20])
    verify_folder(results, set_aside=True)
    (line,) = aside_lines(results)
    assert line.startswith(f"1 damaged file was set aside (runs/{path.name}): what that held is")
    assert line in ResultStore(results, read_only=True).left_out()
    assert line in set_aside(ResultStore(results))
    told = status(results)
    assert line in told.lines()
    assert told.as_record()["set_aside"] == [line]
    shutil.rmtree(results / "damaged")
    assert line not in ResultStore(results, read_only=True).left_out()

"""Checked files: a flipped bit is found before a parser sees it, and costs its own rows only."""

from __future__ import annotations

import errno
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.ipc as ipc
import pytest

from bench import bitflips
from evalcore import checked, files
from evalcore.checked import (
    DamagedFile,
    read_end,
    read_json,
    read_table,
    write_batches,
    write_json,
    write_table,
)
from evalcore.store import ResultStore
from evalcore.store.segments import list_segments


def toy_table(rows: int) -> pa.Table:
    names = pa.array([f"n{i % 3}" for i in range(rows)]).dictionary_encode()
    return pa.table(
        {"name": names, "value": list(range(rows)), "list": [[i] * 3 for i in range(rows)]}
    )


def test_a_checked_file_is_an_arrow_file(tmp_path: Path) -> None:
    path = tmp_path / "t.checked.arrow"
    table = toy_table(100)
    write_table(path, table, metadata={b"key": b"value"}, rows_per_batch=30)
    assert ipc.open_file(str(path)).read_all() == table
    assert ipc.open_file(str(path)).metadata == {b"key": b"value"}
    assert read_table(path) == table
    end = read_end(path)
    assert end.metadata == {b"key": b"value"}
    assert [part.rows for part in end.parts] == [30, 30, 30, 10, 0]
    assert read_table(path, ["value"]).column_names == ["value"]


@pytest.mark.parametrize("batches", [1, 4_000, 4_200, 9_000])
def test_the_end_of_a_file_of_many_parts(tmp_path: Path, batches: int) -> None:
    """Checksums longer than what is read at once, behind a footer that is longer too."""
    path, (batch,) = tmp_path / "t.checked.arrow", toy_table(2).to_batches()
    note = b"x" * 100_000
    write_batches(path, batch.schema, [batch] * batches, metadata={b"note": note})
    end = read_end(path)
    assert end.num_batches == batches
    assert end.metadata == {b"note": note}


def test_every_bit_counts(tmp_path: Path) -> None:
    """All bits of a small file, each flipped by itself; the slow way to say "every byte"."""
    path = tmp_path / "t.checked.arrow"
    write_table(path, pa.table({"a": [1]}))
    data = bytearray(path.read_bytes())
    for bit in range(8 * len(data)):
        data[bit // 8] ^= 1 << bit % 8
        with pytest.raises(DamagedFile):
            read_whole(bytes(data))
        data[bit // 8] ^= 1 << bit % 8
    read_whole(bytes(data))
    for cut in range(len(data)):
        with pytest.raises(DamagedFile):
            read_whole(bytes(data[:cut]))
    with pytest.raises(DamagedFile):
        read_whole(bytes(data) + b"\0" * 8)
    path = tmp_path / "r.checked.json"
    write_json(path, {"a": [1, {"é": "x"}], "checksum of mine": 1})
    data = bytearray(path.read_bytes())
    for bit in range(8 * len(data)):
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        with pytest.raises(DamagedFile):
            read_json(path)
        data[bit // 8] ^= 1 << bit % 8


def read_whole(data: bytes) -> None:
    if checked.parse_whole(data).damaged(data):
        raise DamagedFile("parts")


def test_json_stays_json(tmp_path: Path) -> None:
    path = tmp_path / "r.checked.json"
    record = {"text": 'a "quoted"\nline \udc80', "path": tmp_path, "list": [], "none": None}
    write_json(path, record)
    plain = json.loads(path.read_text())
    assert len(plain.pop("checksum")) == 32
    assert plain == read_json(path) == record | {"path": str(tmp_path)}


def test_a_file_system_without_fsync_of_folders_is_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync
    answers = [errno.EINVAL, errno.ENOTSUP, errno.EIO]

    def fsync(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            number = answers.pop(0)
            raise OSError(number, os.strerror(number))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    for text in (b"one", b"two"):
        files.write_atomically(tmp_path / "x", lambda sink, text=text: sink.write(text))  # type: ignore[misc]
        assert (tmp_path / "x").read_bytes() == text
    with pytest.raises(OSError, match="Input/output"):
        files.write_atomically(tmp_path / "x", lambda sink: sink.write(b"there"))


# In a results folder ------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ResultStore:
    monkeypatch.setattr(
        checked.write_table, "__kwdefaults__", {"metadata": None, "rows_per_batch": 5}
    )
    store = ResultStore(tmp_path / "results")
    store.write_cells([{"cell": cell, "task": "t"} for cell in "ab"])
    with store.open_writer("w") as writer:
        for cell in "ab":
            writer.add([{"cell": cell, "doc_id": str(i), "text": "x" * i} for i in range(10)])
    store.runs.append({"examples": 20})
    return store


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    path.write_bytes(data)


def test_a_damaged_batch_costs_its_own_rows(store: ResultStore) -> None:
    (path,) = list_segments(store.segments_folder)
    part = read_end(path).parts[2]
    flip(path, part.start + part.num_bytes // 2)
    table = store.examples(["cell", "doc_id"])
    assert table.num_rows == 15
    assert store.read().num_rows == 15
    assert "5 of 20 rows are damaged" in store.damage[f"segments/{path.name}"]
    assert store.coverage().num_examples == 20  # footers only: verify tells more

    report = store.verify()
    (damage,) = report.damaged
    assert (damage.num_rows, damage.rows, damage.cells) == (5, ((10, 15),), ("b",))
    assert damage.set_aside
    assert not report.sound
    assert "rows 10-14" in report.lines()[0]
    assert (store.path / "damaged" / "segments" / path.name).is_file()
    again = ResultStore(store.path)
    assert again.coverage().num_examples == 15  # the next run scores the others
    assert again.examples(["cell", "doc_id"]).to_pylist() == table.to_pylist()
    assert again.verify().sound
    assert not again.damage


def test_looking_changes_nothing(store: ResultStore) -> None:
    (path,) = list_segments(store.segments_folder)
    flip(path, 700)
    before = {file: file.read_bytes() for file in store.path.rglob("*") if file.is_file()}
    for report in (
        store.verify(set_aside=False),
        ResultStore(store.path, read_only=True).verify(),
    ):
        assert not report.sound
        assert not report.damaged[0].set_aside
    assert {file: file.read_bytes() for file in store.path.rglob("*") if file.is_file()} == before


def test_damaged_doubles_are_read_from_the_other_segment(store: ResultStore) -> None:
    with store.open_writer("later") as writer:
        writer.add([{"cell": "a", "doc_id": str(i), "text": "later"} for i in range(10)])
    path, _ = list_segments(store.segments_folder)
    part = read_end(path).parts[1]
    flip(path, part.start + part.num_bytes // 2)
    texts = store.examples(["doc_id", "text"], cells=["a"]).to_pylist()
    assert {row["doc_id"]: row["text"] == "later" for row in texts} == {
        str(i): i >= 5 for i in range(10)
    }


@pytest.mark.parametrize("folder", ["cells", "runs", "store.json"])
def test_other_damaged_files_are_set_aside(store: ResultStore, folder: str) -> None:
    at = store.path / folder
    path = at if at.is_file() else next(at.iterdir())
    flip(path, path.stat().st_size // 2)
    if folder == "store.json":
        with pytest.raises(Exception, match=r"store\.json is damaged"):
            ResultStore(store.path)
        opened = store
    else:
        opened = ResultStore(store.path)
        opened.cells()
        assert len(opened.runs.list()) == (folder != "runs")
    (damage,) = opened.verify().damaged
    assert damage.file == str(path.relative_to(store.path))
    assert damage.set_aside
    store = ResultStore(store.path)
    assert store.verify().sound
    assert store.cells().num_rows == (0 if folder == "cells" else 2)
    store.write_cells([{"cell": cell, "task": "t"} for cell in "ab"])
    assert store.cells().num_rows == 2


def test_random_damage_is_found_or_without_effect(store: ResultStore) -> None:
    """The short form of bench/bitflips.py: single bits and zeroed stretches anywhere."""
    rng = random.Random(0)
    rows = sorted(store.read().to_pylist(), key=str)
    for path in sorted(p for p in store.path.rglob("*.checked.*") if p.is_file()):
        data = path.read_bytes()
        for round_ in range(12):
            broken = bytearray(data)
            at = rng.randrange(len(data))
            if round_ % 3 == 2:
                broken[at : at + 64] = bytes(len(broken[at : at + 64]))
            else:
                broken[at] ^= 1 << rng.randrange(8)
            path.write_bytes(broken)
            read = ResultStore(store.path, read_only=True)
            found = sorted(read.read().to_pylist(), key=str)
            if path.parent == read.runs.folder:
                assert not read.runs.list()
            elif broken != data:
                assert read.damage
                assert len(found) <= len(rows)
            else:
                assert found == rows
        path.write_bytes(data)


@pytest.mark.slow
def test_flipped_bits_through_resume_report_and_export(tmp_path: Path) -> None:
    counts = bitflips.run((4, 4, 6), 1, tmp_path / "results")
    assert list(counts) == ["segments", "cells", "other"]
    assert all(set(own) <= {"found", "no effect"} for own in counts.values()), counts


_CUT = """
import os, sys
from pathlib import Path
import numpy as np
import pyarrow as pa
from evalcore.checked import CheckedBatches, DamagedFile, write_batches
from evalcore.prompting import read_requests
from evalcore.tasks.rows import open_file

folder, kind = Path(sys.argv[1]), sys.argv[2]
table = pa.table({"a": np.arange(200_000)})
path = folder / ("x.arrow" if kind == "data" else "x.checked.arrow")
if kind == "data":
    with pa.ipc.new_file(path, table.schema) as sink:
        sink.write_table(table)
else:
    write_batches(path, table.schema, table.to_batches(), compression=None)
opened = {"requests": read_requests, "batches": CheckedBatches, "data": open_file}[kind](path)
os.truncate(path, 0)
if kind == "requests":
    assert opened.equals(table)
elif kind == "batches":
    assert opened.read(0).num_rows == table.num_rows
else:
    assert opened.take([199_999]) == [{"a": 199_999}]
"""


@pytest.mark.parametrize("kind", ["requests", "batches", "data"])
def test_a_file_cut_short_under_its_reader_kills_nobody(tmp_path: Path, kind: str) -> None:
    done = subprocess.run([sys.executable, "-c", _CUT, str(tmp_path), kind], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


def test_no_file_is_memory_mapped() -> None:
    maps = ("memory_map", "mmap.mmap", "np.memmap")
    for file in (Path(__file__).parents[2] / "evalcore").rglob("*.py"):
        assert not any(word in file.read_text() for word in maps), file

"""Writing, resuming, reading, compacting and exporting a results folder."""

from __future__ import annotations

import csv
import json
import logging
import math
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
import pyarrow.ipc as ipc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evalcore.errors import IncompatibleError, InputError
from evalcore.exports.tables import to_csv, to_parquet
from evalcore.files import utc_stamp
from evalcore.store import (
    CELL_SCHEMA,
    EXAMPLE_SCHEMA,
    Coverage,
    ResultStore,
)
from evalcore.store.coverage import SegmentCoverage
from evalcore.store.segments import list_segments, read_info
from tests.toys.stored import key, make_cell, make_row


def pairs_of(table: pa.Table) -> list[tuple[str, str]]:
    return list(zip(table["cell"].to_pylist(), table["doc_id"].to_pylist(), strict=True))


def as_dict(coverage: Coverage) -> dict[str, frozenset[str]]:
    return {cell: coverage[cell] for cell in coverage}


@pytest.fixture
def store(tmp_path: Path) -> ResultStore:
    return ResultStore(tmp_path / "results")


# Writing and coverage -----------------------------------------------------------------------------


def test_rows_come_back_and_coverage_names_them(store: ResultStore) -> None:
    writer = store.open_writer("gpu 0/a")
    rows = [make_row(key("a"), key(str(i)), i) for i in range(5)]
    rows.append(make_row("b", "odd id", -1, text="héllo\n", gen_tokens=3, finish_reason="stop"))
    writer.add(rows)
    assert len(store.coverage()) == 0  # nothing counts before the commit
    path = writer.flush()
    assert path is not None
    assert path.name.endswith(".arrow")
    assert "gpu_0_a" in path.name
    assert writer.flush() is None

    coverage = store.coverage()
    assert as_dict(coverage) == {
        key("a"): frozenset(key(str(i)) for i in range(5)),
        "b": frozenset({"odd id"}),
    }
    assert coverage.num_examples == 6
    assert coverage.count("never seen") == 0
    assert "never seen" not in coverage
    table = store.examples()
    assert table.schema.equals(EXAMPLE_SCHEMA)
    expected = [dict.fromkeys(EXAMPLE_SCHEMA.names) | row for row in rows]
    assert table.to_pylist() == expected


def test_an_empty_store_reads_as_empty_tables(store: ResultStore) -> None:
    assert store.examples().num_rows == 0
    assert store.cells().schema.equals(CELL_SCHEMA)
    assert "checkpoint" in store.read().column_names
    assert store.compact().segments_before == 0
    again = ResultStore(store.path, read_only=True)
    assert again.read(columns=["doc_id", "task"]).num_rows == 0


def test_a_commit_is_due_by_size_and_by_age_and_only_flush_commits(store: ResultStore) -> None:
    small = store.open_writer("w", flush_bytes=2000)
    assert not small.due()
    for i in range(40):
        small.add([make_row("c", str(i))])
    assert small.due()
    assert len(store.coverage()) == 0
    small.flush()
    assert not small.due()
    assert store.coverage().count("c") == 40
    old = store.open_writer("w", flush_age_s=100.0)
    old.add([make_row("d", "1")])
    assert not old.due()
    assert old.due(ahead_s=100.0)
    old.flush()
    old.add([make_row("d", "2")], age_s=101.0)
    assert old.due()


def test_tables_with_other_layouts_are_conformed(store: ResultStore) -> None:
    with store.open_writer("w") as writer:
        writer.add(pa.table({"doc_id": ["x"], "cell": ["c"], "prediction": pa.array([7])}))
        batch = pa.record_batch({"cell": pa.array(["c"]).dictionary_encode(), "doc_id": ["y"]})
        writer.add(batch)
    assert store.examples(["prediction", "doc_id"]).to_pylist() == [
        {"prediction": 7, "doc_id": "x"},
        {"prediction": None, "doc_id": "y"},
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"cell": "c"}, "'doc_id' has an empty value"),
        ({"cell": "c", "doc_id": "d", "score": 1}, "unknown column 'score'"),
        ({"cell": "c", "doc_id": "d", "gold": "one"}, "'gold' does not fit"),
        ({"cell": "c", "doc_id": "d", "gold": 2**40}, "'gold' does not fit"),
    ],
)
def test_rows_that_do_not_fit_are_refused(store: ResultStore, row: dict, message: str) -> None:
    writer = store.open_writer("w")
    with pytest.raises(IncompatibleError, match=message):
        writer.add([row])
    assert writer.num_rows == 0


IDS = st.sampled_from(["a", "b", key("1"), key("2"), key("3"), "é", ""]) | st.text(max_size=3)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(IDS, IDS), max_size=20), st.booleans())
def test_coverage_statement_round_trips(pairs: list, only_hex: bool) -> None:
    if only_hex:
        pairs = [(cell, key(doc_id)) for cell, doc_id in pairs]
    cells = pa.chunked_array([[c for c, _ in pairs]], pa.string()).dictionary_encode()
    docs = pa.chunked_array([[d for _, d in pairs]], pa.string())
    statement = SegmentCoverage.of_rows(cells, docs)
    coverage = Coverage([SegmentCoverage.decode(statement.encode())])
    expected: dict[str, set[str]] = {}
    for cell, doc_id in pairs:
        expected.setdefault(cell, set()).add(doc_id)
    assert as_dict(coverage) == expected
    wanted = [*dict.fromkeys(d for _, d in pairs), "unknown document"]
    codes = coverage.encode(wanted)
    for cell in [*expected, "unknown cell"]:
        mask = [doc_id in expected.get(cell, ()) for doc_id in wanted]
        assert coverage.mask(cell, codes).tolist() == mask


def test_the_statement_is_small_when_cells_share_documents() -> None:
    docs = [key(str(i)) for i in range(2000)]
    cells = [key(f"cell {i}") for i in range(100)]
    statement = SegmentCoverage.of_rows(
        pa.chunked_array([[cell for cell in cells for _ in docs]]), pa.chunked_array([docs * 100])
    )
    assert len(statement.sets) == 1
    assert len(statement.encode()) < 1.5 * 16 * (2000 + 2 * 100)


def test_coverage_reads_only_the_footer(store: ResultStore) -> None:
    rng = np.random.default_rng(0)
    with store.open_writer("w") as writer:
        rows = [make_row("c", str(i), choice_logprobs=rng.normal(size=200)) for i in range(500)]
        writer.add(rows)
    (path,) = list_segments(store.segments_folder)
    data = bytearray(path.read_bytes())
    start, stop = 4000, len(data) - 20_000
    assert stop > start
    data[start:stop] = bytes(stop - start)
    path.write_bytes(data)
    assert store.coverage().count("c") == 500
    assert store.examples().num_rows == 0
    ((name, said),) = store.damage.items()
    assert name == f"segments/{path.name}"
    assert "500 of 500 rows are damaged" in said
    assert "evalcore verify" in said


# Hostile folders ----------------------------------------------------------------------------------


def test_torn_and_foreign_files_never_stop_a_resume(
    store: ResultStore, caplog: pytest.LogCaptureFixture
) -> None:
    for i in range(2):
        with store.open_writer("w") as writer:
            writer.add([make_row("c", f"{i}.{k}") for k in range(20)])
    whole, torn = list_segments(store.segments_folder)
    data = torn.read_bytes()
    rng = random.Random(0)
    cuts = {0, 1, 7, 8, len(data) - 1, *(rng.randrange(len(data)) for _ in range(60))}
    for cut in sorted(cuts):
        torn.write_bytes(data[:cut])
        assert store.coverage().num_examples == 20
        assert store.examples().num_rows == 20
    warnings = [record for record in caplog.records if torn.name in record.getMessage()]
    assert len(warnings) == 1
    assert warnings[0].levelno == logging.WARNING

    (store.segments_folder / "notes.txt").write_text("mine")
    (store.segments_folder / "noise.arrow").write_bytes(rng.randbytes(5000))
    with ipc.new_file(str(store.segments_folder / "foreign.arrow"), pa.schema([])):
        pass
    (store.segments_folder / ".x.arrow.1234.tmp").write_bytes(data)
    (store.segments_folder / ".hidden.arrow").write_bytes(b"")
    assert store.coverage().num_examples == 20
    assert store.examples().num_rows == 20
    assert "foreign.arrow" in caplog.text
    assert "hidden" not in caplog.text
    assert whole.exists()


def test_flipped_bytes_never_crash_the_reader(store: ResultStore) -> None:
    with store.open_writer("w") as writer:
        writer.add([make_row(key("c"), key(str(k))) for k in range(30)])
    (path,) = list_segments(store.segments_folder)
    data = path.read_bytes()
    rng = random.Random(1)
    for _ in range(40):
        broken = bytearray(data)
        broken[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(broken)
        read = ResultStore(store.path, read_only=True)
        assert read.coverage().num_examples + read.examples().num_rows < 60
        assert read.damage


def test_old_temporary_files_are_cleaned(store: ResultStore) -> None:
    old = store.segments_folder / ".old.arrow.1.tmp"
    young = store.segments_folder / ".young.arrow.2.tmp"
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 25 * 3600,) * 2)
    ResultStore(store.path)
    assert not old.exists()
    assert young.exists()


def test_what_a_killed_process_of_this_machine_left_is_cleaned_at_once(store: ResultStore) -> None:
    code = """
import sys, time
from pathlib import Path
from evalcore.files import write_atomically

def write(sink):
    print("writing", flush=True)
    time.sleep(60)

write_atomically(Path(sys.argv[1]), write)
"""
    (store.path / "documents" / "task").mkdir(parents=True, exist_ok=True)
    path = store.path / "documents" / "task" / "x.arrow"
    command = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        (left,) = path.parent.glob(".x.arrow.*.tmp")
        elsewhere = left.with_name(left.name.replace(left.name.split(".")[-3][:12], "0" * 12))
        elsewhere.write_bytes(b"of another machine")
        ResultStore(store.path)
        assert left.exists(), "its writer lives"
        writer.kill()
    with pytest.MonkeyPatch.context() as patch:  # a clock that jumped is nobody's age
        later = time.time() + 1e7
        patch.setattr("time.time", lambda: later)
        ResultStore(store.path)
    assert not left.exists()
    assert elsewhere.exists()


def test_results_of_another_schema_are_refused(store: ResultStore) -> None:
    settings_file = store.path / "store.json"
    content = json.loads(settings_file.read_text())
    for change in ({"schema_version": 99}, {"format": "other"}):
        settings_file.write_text(json.dumps(content | change))
        for read_only in (True, False):
            with pytest.raises(IncompatibleError, match="another results folder") as caught:
                ResultStore(store.path, read_only=read_only)
            assert "\n" not in str(caught.value)
    settings_file.write_text("{")
    with pytest.raises(IncompatibleError, match="not evalcore's"):
        ResultStore(store.path)
    settings_file.write_text("[" * 200_000)
    with pytest.raises(IncompatibleError, match="not JSON"):
        ResultStore(store.path)


@pytest.mark.parametrize("kind", ["below a file", "/dev/null/x", "/proc/results"])
def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path, kind: str) -> None:
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "results" if kind == "below a file" else Path(kind)
    with pytest.raises(InputError, match="cannot be written") as caught:
        ResultStore(path)
    assert "\n" not in str(caught.value)


def test_reading_creates_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no results in"):
        ResultStore(tmp_path / "nothing", read_only=True)
    assert not (tmp_path / "nothing").exists()


def test_a_failed_commit_keeps_the_rows(store: ResultStore) -> None:
    writer = store.open_writer("w")
    writer.add([make_row("c", "1")])
    moved = store.segments_folder.rename(store.path / "away")
    with pytest.raises(InputError, match="cannot write results"):
        writer.flush()
    moved.rename(store.segments_folder)
    assert writer.flush() is not None
    assert store.coverage().num_examples == 1


# Several writers, doubles -------------------------------------------------------------------------


def test_writers_of_the_same_name_do_not_collide(store: ResultStore) -> None:
    writers = [ResultStore(store.path).open_writer("w") for _ in range(4)]
    for i in range(5):
        for k, writer in enumerate(writers):
            writer.add([make_row("c", f"{i}.{k}")])
            writer.flush()
    assert len(list_segments(store.segments_folder)) == 20
    assert store.coverage().num_examples == 20


def test_names_sort_by_time(store: ResultStore) -> None:
    writer = store.open_writer("w")
    paths = []
    for i in range(5):
        writer.add([make_row("c", str(i))])
        paths.append(writer.flush())
    assert list_segments(store.segments_folder) == paths
    assert utc_stamp(1_700_000_000_000_999_000) < utc_stamp(1_700_000_000_001_000_000)
    assert utc_stamp(1_700_000_000_999_999_000) < utc_stamp(1_700_000_001_000_000_000)


SEGMENTS = st.lists(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.sampled_from("123"), st.integers(0, 9)), max_size=6
    ),
    max_size=5,
)


@settings(max_examples=30, deadline=None)
@given(SEGMENTS, st.sampled_from([1, 6000, 10**9]))
def test_first_row_wins_before_and_after_compaction(
    tmp_path_factory: pytest.TempPathFactory, segments: list, target: int
) -> None:
    store = ResultStore(tmp_path_factory.mktemp("results"))
    expected: dict[tuple[str, str], int] = {}
    for rows in segments:
        with store.open_writer("w") as writer:
            writer.add([make_row(cell, doc_id, value) for cell, doc_id, value in rows])
        for cell, doc_id, value in rows:
            expected.setdefault((cell, doc_id), value)

    def winners() -> dict[tuple[str, str], int]:
        table = store.examples(["cell", "doc_id", "prediction"])
        assert table.num_rows == len(expected)
        return dict(zip(pairs_of(table), table["prediction"].to_pylist(), strict=True))

    assert winners() == expected
    covered = as_dict(store.coverage())
    report = store.compact(target_bytes=target)
    assert report.rows == len(expected)
    assert report.doubles_removed == sum(map(len, segments)) - len(expected)
    assert report.segments_after == len(list_segments(store.segments_folder))
    assert winners() == expected
    assert as_dict(store.coverage()) == covered
    infos = [read_info(path) for path in list_segments(store.segments_folder)]
    assert sum(info.num_rows for info in infos) == len(expected)


def test_a_compaction_killed_anywhere_is_harmless(
    store: ResultStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(4):
        with store.open_writer("w") as writer:
            writer.add([make_row("c", str(k), 10 * i + k) for k in range(i, i + 3)])
    before = sorted(store.examples().to_pylist(), key=lambda row: row["doc_id"])
    unlink = Path.unlink
    for survive in range(4):
        left = [survive]

        def dying(path: Path, missing_ok: bool = False, left: list[int] = left) -> None:
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            unlink(path, missing_ok=missing_ok)

        monkeypatch.setattr(Path, "unlink", dying)
        with pytest.raises(KeyboardInterrupt):
            store.compact()
        monkeypatch.undo()
        assert sorted(store.examples().to_pylist(), key=lambda row: row["doc_id"]) == before
        with store.open_writer("w") as writer:  # something to merge again
            writer.add([make_row("c", str(k), 90) for k in range(6)])
    assert store.compact().segments_after == 1
    assert sorted(store.examples().to_pylist(), key=lambda row: row["doc_id"]) == before


# Reading ------------------------------------------------------------------------------------------


def test_cells_are_written_once_and_the_newest_record_wins(store: ResultStore) -> None:
    rows = [make_cell("a"), make_cell("b", baseline=math.nan)]
    assert store.write_cells(rows) is not None
    assert store.write_cells(rows[::-1]) is None
    assert store.write_cells([]) is None
    time.sleep(0.001)
    store.write_cells([make_cell("b", checkpoint="renamed"), make_cell("c")])
    assert len(list(store.cells_folder.iterdir())) == 2
    table = store.cells()
    assert table["cell"].to_pylist() == ["a", "b", "c"]
    assert table["checkpoint"].to_pylist() == ["step-1", "renamed", "step-1"]
    store.write_cells([make_cell("b")])  # and back
    assert store.cells()["checkpoint"].to_pylist() == ["step-1"] * 3
    with pytest.raises(IncompatibleError, match="unknown column 'colour'"):
        store.write_cells([make_cell("a", colour="red")])


def test_run_records(store: ResultStore) -> None:
    store.runs.append({"examples": 3, "where": Path("x")})
    path = store.runs.append({"examples": 4})
    (store.runs.folder / "0-torn.json").write_text("{")
    assert [record["examples"] for record in store.runs.list()] == [3, 4]
    assert path.parent == store.path / "runs"


# Other tools --------------------------------------------------------------------------------------


@pytest.fixture
def filled(store: ResultStore) -> ResultStore:
    store.write_cells([make_cell("a"), make_cell("b")])
    for part in range(2):
        with store.open_writer("w") as writer:
            writer.add([make_row(cell, f"{part}.{i}", i) for cell in "ab" for i in range(3)])
    return store


def test_pyarrow_dataset_reads_segments(filled: ResultStore) -> None:
    (filled.segments_folder / ".half.arrow.1.tmp").write_bytes(b"half")
    dataset = pyarrow.dataset.dataset(filled.segments_folder, format="ipc")
    assert dataset.count_rows() == 12
    assert dataset.to_table(filter=pc.field("prediction") == 1).num_rows == 4


def test_polars_reads_segments(filled: ResultStore) -> None:
    polars = pytest.importorskip("polars")
    frame = polars.read_ipc(filled.segments_folder / "*.arrow")
    assert frame.shape == (12, len(EXAMPLE_SCHEMA))
    counts = frame.group_by("cell").len().sort("cell")
    assert counts.rows() == [("a", 6), ("b", 6)]
    joined = polars.from_arrow(filled.read())
    assert joined.filter(polars.col("task") == "nli").height == 12


def test_duckdb_reads_through_pyarrow(filled: ResultStore) -> None:
    duckdb = pytest.importorskip("duckdb")
    results = filled.read()
    assert results.num_rows == 12
    query = "select cell, task, count(*), avg(list_max(choice_logprobs)) from results group by all"
    rows = sorted(duckdb.sql(query).fetchall())
    assert rows == [("a", "nli", 6, -0.25), ("b", "nli", 6, -0.25)]
    segments = pyarrow.dataset.dataset(filled.segments_folder, format="ipc")
    assert segments.count_rows() == 12
    assert duckdb.sql("select count(*) from segments").fetchall() == [(12,)]


@pytest.mark.slow
def test_datasets_reads_segments(filled: ResultStore, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    files = [str(path) for path in list_segments(filled.segments_folder)]
    loaded = datasets.load_dataset(
        "arrow", data_files=files, split="train", cache_dir=str(tmp_path / "cache")
    )
    assert len(loaded) == 12
    assert loaded[0]["cell"] == "a"
    assert loaded[0]["choice_logprobs"] == [-1.5, -0.25]


def test_export_to_parquet(filled: ResultStore, tmp_path: Path) -> None:
    path = tmp_path / "results.parquet"
    assert to_parquet(filled, path, lambda table: table) == 12
    assert pq.read_table(path).to_pylist() == filled.read().to_pylist()
    with pytest.raises(InputError, match="cannot write"):
        to_parquet(filled, tmp_path / "no folder" / "x.parquet")


def test_export_to_csv(store: ResultStore, tmp_path: Path) -> None:
    store.write_cells([make_cell("a", metrics=["acc", 'with "quotes", and comma'])])
    values = [-1.25e-30, 3.0, math.inf, -math.inf, 0.1]
    rows = [
        make_row("a", "1", choice_logprobs=values, text='line\nbreak, "q"', flags=["overflow"]),
        make_row("a", "2", choice_logprobs=[], is_greedy=None, references=["é", 'a "b"\n']),
    ]
    with store.open_writer("w") as writer:
        writer.add(rows)
    path = tmp_path / "results.csv"
    assert to_csv(store, path) == 2
    with open(path, newline="", encoding="utf-8") as source:
        first, second = csv.DictReader(source)
    assert json.loads(first["choice_logprobs"]) == values
    assert json.loads(first["is_greedy"]) == [False, True]
    assert json.loads(first["metrics"]) == ["acc", 'with "quotes", and comma']
    assert json.loads(first["flags"]) == ["overflow"]
    assert first["text"] == 'line\nbreak, "q"'
    assert second["is_greedy"] == ""
    assert second["text"] == ""
    assert json.loads(second["choice_logprobs"]) == []
    assert json.loads(second["references"]) == ["é", 'a "b"\n']

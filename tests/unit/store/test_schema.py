"""Results of earlier schemas are opened, reported on and extended; newer ones are named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from evalcore.analysis import analyse
from evalcore.app import export, report
from evalcore.errors import IncompatibleError
from evalcore.store import CELL_SCHEMA, EXAMPLE_SCHEMA, SCHEMA_VERSION, ResultStore
from evalcore.store.migration import MIGRATIONS, OLDEST_VERSION
from evalcore.store.segments import list_segments, read_info

GOLDEN = Path(__file__).resolve().parents[2] / "data" / "results"
EARLIER = [GOLDEN / f"schema-{version}" for version in range(OLDEST_VERSION, SCHEMA_VERSION)]
CELLS, DOCS = 8, 6


@pytest.fixture(params=EARLIER, ids=lambda path: path.name)
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return Path(shutil.copytree(request.param, tmp_path / "results"))


def test_every_version_has_a_golden_folder_and_a_migration() -> None:
    assert all((folder / "store.json").is_file() for folder in EARLIER)
    assert set(MIGRATIONS) <= set(range(OLDEST_VERSION, SCHEMA_VERSION))


def test_an_old_folder_is_read_as_if_it_were_new(
    old: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = {path: path.read_bytes() for path in old.rglob("*") if path.is_file()}
    store = ResultStore(old, read_only=True)
    examples, cells = store.examples(), store.cells()
    assert examples.schema.equals(EXAMPLE_SCHEMA)
    assert cells.schema.equals(CELL_SCHEMA)
    assert (examples.num_rows, cells.num_rows) == (CELLS * DOCS, CELLS)
    assert set(cells["adapter"].to_pylist()) == {"(base)", "runs/a"}
    assert all(cells["recorded"].to_pylist())
    assert examples["made_by"].null_count == CELLS * DOCS
    assert set(store.cell_states().values()) == {"current"}
    assert store.read()["maker"].null_count == CELLS * DOCS
    assert "2 of 2 segments are from before there were checksums" in caplog.text
    assert not store.damage
    assert {path: path.read_bytes() for path in old.rglob("*") if path.is_file()} == before


def test_an_old_folder_is_reported_on(old: Path, tmp_path: Path) -> None:
    made = report(old, tmp_path / "report", title="old")
    assert "+0.167" in made.table
    gains = analyse(ResultStore(old).read()).gains
    assert {gain.subject.adapter for gain in gains} == {"runs/a"}


def test_an_old_folder_is_extended(old: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = ResultStore(old)
    rows = store.cells(every=True).to_pylist()
    assert json.loads((old / "store.json").read_text())["schema_version"] == SCHEMA_VERSION
    had = store.coverage()
    with store.open_writer("w") as writer:
        maker = store.write_maker({"engine": "hf"})
        writer.add([{"cell": row["cell"], "doc_id": "new", "made_by": maker} for row in rows])
    assert store.coverage().num_examples == had.num_examples + CELLS
    table = store.examples(["cell", "doc_id", "made_by"])
    assert table.num_rows == CELLS * (DOCS + 1)
    assert set(table["made_by"].to_pylist()) == {None, maker}
    # The same description a second time is nothing new; a corrected one is.
    assert store.write_cells([row | {"recorded": None} for row in rows]) is None
    store.write_cells([row | {"step": 7} for row in rows])
    assert set(store.cells()["step"].to_pylist()) == {7}
    assert not all(read_info(path).checked for path in list_segments(store.segments_folder))
    assert store.compact().rows == CELLS * (DOCS + 1)
    assert all(read_info(path).checked for path in list_segments(store.segments_folder))
    caplog.clear()
    assert sort(ResultStore(old).examples(table.column_names)) == sort(table)
    assert not caplog.records
    assert ResultStore(old).runs.list()[0]["command"] == "score"


def sort(table: pa.Table) -> list[dict]:
    return sorted(table.to_pylist(), key=lambda row: (row["cell"], row["doc_id"]))


def test_a_newer_schema_is_named_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from evalcore.store import cells, segments, settings

    newer = SCHEMA_VERSION + 1
    for module in (settings, segments, cells):
        monkeypatch.setattr(module, "SCHEMA_VERSION", newer)
    monkeypatch.setattr(settings, "check_version", lambda version, where: version)
    store = ResultStore(tmp_path)
    with store.open_writer("w") as writer:
        writer.add([{"cell": "c", "doc_id": "d"}])
    store.write_cells([{"cell": "c"}])
    monkeypatch.undo()
    actions: list[Callable[[], object]] = [
        lambda: ResultStore(tmp_path),
        lambda: ResultStore(tmp_path, read_only=True),
    ]
    for action in actions:
        with pytest.raises(IncompatibleError, match="a newer evalcore") as caught:
            action()
        assert f"schema {newer}" in str(caught.value)
    # An older evalcore made store.json, a newer one added files beside it.
    settings.write_settings(tmp_path)
    store = ResultStore(tmp_path)
    for action in (store.coverage, store.cells, store.read):
        with pytest.raises(IncompatibleError, match="a newer evalcore") as caught:
            action()
        assert "\n" not in str(caught.value)


def test_exports_have_a_score_and_names_in_every_row(old: Path, tmp_path: Path) -> None:
    polars = pytest.importorskip("polars")
    assert export(old, tmp_path / "x.parquet", "parquet").count == CELLS * DOCS
    assert export(old, tmp_path / "x.csv", "csv").count == CELLS * DOCS
    for name, form in (("y.csv", "csv"), ("y", "parquet")):
        made = export(old, tmp_path / name)
        assert (made.count, made.format) == (CELLS * DOCS, form)
    assert (tmp_path / "y.csv").read_bytes() == (tmp_path / "x.csv").read_bytes()
    assert (tmp_path / "y").read_bytes()[:4] == b"PAR1"
    frame = polars.read_parquet(tmp_path / "x.parquet")
    names = ["adapter", "task", "variant"]
    means = {
        row[:3]: row[3] for row in frame.group_by(names).agg(polars.col("score").mean()).rows()
    }
    assert len(means) == CELLS
    assert means["(base)", "toy_choice", "default"] == pytest.approx(1 / 2)
    assert means["runs/a", "toy_text", "instruct"] == pytest.approx(2 / 3)
    assert set(frame["score_metric"]) == {"acc", "exact_match"}
    again = polars.read_csv(tmp_path / "x.csv")
    assert again["score"].to_list() == frame["score"].to_list()
    assert again["adapter"].null_count() == 0


def test_text_is_counted_in_64_bits() -> None:
    """More than 2 GiB of a column's text cannot be taken or joined with 32-bit offsets."""
    short = {"finish_reason", "flags"}
    for column in EXAMPLE_SCHEMA:
        kind = column.type
        while pa.types.is_list(kind):
            kind = kind.value_type
        assert not pa.types.is_string(kind) or column.name in short, column.name

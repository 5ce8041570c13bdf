"""Columns, filters, joins with cells, and a compaction beside a reader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from evalcore.errors import InputError, UnknownNameError
from evalcore.store import ResultStore
from tests.toys.stored import make_cell, make_row


@pytest.fixture
def store(tmp_path: Path) -> ResultStore:
    return ResultStore(tmp_path / "results")


def test_columns_filters_and_cells(store: ResultStore) -> None:
    for cell in "abc":
        with store.open_writer("w") as writer:
            writer.add([make_row(cell, str(i), i) for i in range(4)])
    table = store.examples(["prediction"], pc.field("doc_id") == "2")
    assert table.to_pydict() == {"prediction": [2, 2, 2]}
    table = store.examples(["cell", "prediction"], pc.field("cell") == "b")
    assert table.to_pydict() == {"cell": ["b"] * 4, "prediction": [0, 1, 2, 3]}
    only = store.examples(cells=["c"])
    assert only["cell"].to_pylist() == ["c"] * 4
    assert only["doc_id"].to_pylist() == ["0", "1", "2", "3"]
    assert store.examples(cells=[]).num_rows == 0
    with pytest.raises(UnknownNameError, match="prediction"):
        store.examples(["predicton"])
    with pytest.raises(InputError, match="does not fit"):
        store.examples(["gold"], pc.field("no such") == 1)


def test_join_with_cells(store: ResultStore, caplog: pytest.LogCaptureFixture) -> None:
    store.write_cells([make_cell("b", step=400, shots=4), make_cell("a", baseline=0.5, seed=7)])
    with store.open_writer("w") as writer:
        writer.add([make_row(cell, str(i), i) for i in range(3) for cell in "ab"])
    table = store.read()
    assert table.num_rows == 6
    by_cell = {row["cell"]: row for row in table.to_pylist()}
    assert by_cell["b"]["step"] == 400
    assert by_cell["b"]["shots"] == 2
    assert by_cell["b"]["cell_shots"] == 4
    assert by_cell["b"]["metrics"] == ["acc"]
    assert by_cell["a"]["baseline"] == 0.5
    assert by_cell["a"]["step"] is None
    table = store.read(["task", "prediction"], (pc.field("step") == 400) & (pc.field("gold") == 1))
    assert table.to_pydict() == {"task": ["nli"] * 3, "prediction": [0, 1, 2]}
    assert store.read(filter=pc.field("task").isin(["nli"])).num_rows == 6
    assert store.read(cells=["a"]).num_rows == 3
    assert not caplog.records
    with store.open_writer("w") as writer:
        writer.add([make_row("orphan", "1")])
    assert store.read(["cell", "task"], cells=["orphan"])["task"].to_pylist() == [None]
    assert "no constants of 1 cells" in caplog.text


def test_a_reader_survives_a_compaction_beside_it(
    store: ResultStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(3):
        with store.open_writer("w") as writer:
            writer.add([make_row("c", str(i))])
    from evalcore.store import views

    real = views.read_examples  # type: ignore[attr-defined]
    calls: list[Any] = []

    def slow(*args: Any) -> pa.Table:
        if not calls:
            calls.append(ResultStore(store.path).compact())
        return real(*args)

    monkeypatch.setattr(views, "read_examples", slow)
    assert store.examples().num_rows == 3
    assert calls[0].segments_after == 1

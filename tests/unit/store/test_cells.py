"""Which definition of a cell is current, corrections, makers, documents, merging, commands."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from evalcore.app import scores as score_rows
from evalcore.cli.results import cells as cells_command
from evalcore.cli.results import compact, merge, verify
from evalcore.errors import InputError, ResultsError, UnknownNameError
from evalcore.files import utc_stamp
from evalcore.store import ResultStore
from evalcore.store import merge as merge_folders
from tests.toys.small_cells import DAY, make_cell, score


@pytest.fixture
def store(tmp_path: Path) -> ResultStore:
    return ResultStore(tmp_path / "results")


def used(store: ResultStore) -> set[str]:
    return set(ResultStore(store.path).read(["cell"])["cell"].to_pylist())


def test_a_mended_prompt_supersedes_visibly(
    store: ResultStore, caplog: pytest.LogCaptureFixture
) -> None:
    store.write_cells([make_cell("old"), make_cell("other", variant="instruct")])
    score(store, "old")
    score(store, "other")
    store.write_cells([make_cell("new"), make_cell("other", variant="instruct")])
    # Planned, not scored yet: the old rows still count.
    assert used(store) == {"old", "other"}
    score(store, "new", docs=1)
    assert store.cell_states() == {"old": "superseded", "new": "current", "other": "current"}
    assert used(store) == {"new", "other"}
    assert set(store.examples(["cell"])["cell"].to_pylist()) == {"new", "other"}
    assert {row for part in store.iterate(["cell"]) for row in part["cell"].to_pylist()} == {
        "new", "other",
    }  # fmt: skip
    assert store.cells()["cell"].to_pylist() == ["new", "other"]
    assert store.cells(every=True).num_rows == 3
    assert "1 cells are superseded" in caplog.text
    assert "1 cells are superseded" in store.left_out()[0]
    # Nothing is lost: it is covered, and read where it is asked for by key.
    assert store.coverage().count("old") == 3
    assert store.read(cells=["old"]).num_rows == 3

    store.write_cells([make_cell("old")])  # the mend is taken back
    assert used(store) == {"old", "other"}
    # One run asks for both (two tokenizers of the same weights): both are shown.
    store.write_cells([make_cell("new"), make_cell("old")])
    assert used(store) == {"old", "new", "other"}
    assert store.write_cells([make_cell("old"), make_cell("new")]) is None


def test_a_correction_is_no_new_definition(store: ResultStore) -> None:
    store.write_cells([make_cell("old")])
    store.write_cells([make_cell("new")])
    for cell in ("old", "new"):
        score(store, cell)
    rows = store.cells(every=True).to_pylist()
    store.write_cells([row | {"tuning": "mended"} for row in rows])
    assert store.cells(every=True)["tuning"].to_pylist() == ["mended"] * 2
    assert used(store) == {"new"}
    assert store.write_cells([make_cell("new", tuning="mended")]) is None


def test_a_clock_that_steps_back_makes_nothing_old(
    store: ResultStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    from evalcore.store import cells

    for cell in ("first", "second", "third"):
        store.write_cells([make_cell(cell)])
        score(store, cell)
        assert used(store) == {cell}
        monkeypatch.setattr(cells, "utc_stamp", lambda *ns: utc_stamp(*ns) if ns else DAY)
    store.drop_cells(["third"])
    store.drop_cells(["third"], restore=True)
    assert used(store) == {"third"}


def test_dropped_cells_come_back(store: ResultStore, caplog: pytest.LogCaptureFixture) -> None:
    store.write_cells([make_cell("a"), make_cell("b", variant="v")])
    score(store, "a")
    score(store, "b")
    assert store.drop_cells(["a"]) == 1
    assert store.drop_cells(["a"]) == 0
    assert used(store) == {"b"}
    store.write_cells([make_cell("a", step=3)])
    assert "dropped and stay so" in caplog.text
    assert used(store) == {"b"}
    assert store.drop_cells(["a", "b"], restore=True) == 1
    assert used(store) == {"a", "b"}
    with pytest.raises(UnknownNameError, match="nothing"):
        store.drop_cells(["nothing"])


def test_what_made_a_row_stands_beside_it(store: ResultStore) -> None:
    store.write_cells([make_cell("a")])
    one = store.write_maker({"versions": {"vllm": "0.26"}, "strategy": "packed", "path": Path("x")})
    two = store.write_maker({"versions": {"vllm": "0.32"}, "strategy": "packed", "path": Path("x")})
    assert (
        store.write_maker({"path": "x", "strategy": "packed", "versions": {"vllm": "0.26"}}) == one
    )
    assert one != two
    score(store, "a", docs=2, made_by=one)
    with store.open_writer("w") as writer:
        writer.add([{"cell": "a", "doc_id": "later", "made_by": two}])
        writer.add([{"cell": "a", "doc_id": "unknown"}])
    rows = {row["doc_id"]: row for row in store.read().to_pylist()}
    assert rows["d0"]["maker"] == 'path=x, strategy=packed, versions={"vllm": "0.26"}'
    assert "0.32" in rows["later"]["maker"]
    assert rows["unknown"]["maker"] is None
    assert store.makers()[two]["versions"] == {"vllm": "0.32"}
    assert store.read(["maker", "doc_id"]).column_names == ["maker", "doc_id"]
    assert len(list((store.path / "makers").iterdir())) == 2


def test_documents_are_kept_once(store: ResultStore) -> None:
    rows = [
        {"doc_id": f"d{i}", "doc_index": i, "fields": "{}", "choices": ["a", "b"], "gold": i % 2}
        for i in range(4)
    ]
    assert store.write_documents("a/b: c", "x", rows[:2]) is not None
    assert store.write_documents("a/b: c", "x", rows[:2]) is None
    store.write_documents("a/b: c", "x", rows)
    store.write_documents("a/b: c", "y", rows[:1])
    table = store.documents("a/b: c", "x")
    assert table["doc_id"].to_pylist() == [row["doc_id"] for row in rows]
    assert store.documents().num_rows == 5
    assert store.documents("other").num_rows == 0


def test_folders_are_merged(store: ResultStore, tmp_path: Path) -> None:
    other = ResultStore(tmp_path / "other")
    store.write_cells([make_cell("a")])
    score(store, "a", text="first")
    other.write_cells([make_cell("a"), make_cell("b", variant="v", step=4)])
    score(other, "a", docs=5, text="second", made_by=other.write_maker({"x": 1}))
    score(other, "b")
    golden = Path(__file__).resolve().parents[2] / "data" / "results" / "schema-2"
    report = merge_folders([store.path, other.path, golden], tmp_path / "merged")
    merged = ResultStore(tmp_path / "merged")
    assert (report.rows, report.doubled) == (8 + 48, 3)
    texts = merged.read(["text", "cell", "doc_id"], cells=["a"]).to_pylist()
    assert sorted((row["doc_id"], row["text"]) for row in texts) == [
        *((f"d{i}", "first") for i in range(3)), ("d3", "second"), ("d4", "second"),
    ]  # fmt: skip
    assert merged.verify().sound
    assert list(merged.makers().values()) == [{"x": 1}]
    assert merge_folders([store.path, other.path], tmp_path / "merged").files == 0
    with pytest.raises(InputError, match="both a part and the output"):
        merge_folders([store.path], store.path)
    broken = Path(shutil.copytree(other.path, tmp_path / "broken"))
    path = next((broken / "segments").iterdir())
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ResultsError, match="nothing was merged"):
        merge_folders([broken], tmp_path / "new")


def test_rows_that_nothing_describes_are_said(store: ResultStore) -> None:
    assert store.undescribed() is None
    assert score_rows(store) == []
    score(store, "lost")
    with pytest.raises(InputError, match="1 cells have rows but no description"):
        score_rows(store)
    assert "1 cells have rows but no description" in run(cells_command, store.path, "list")[1]
    store.write_cells([make_cell("lost")])
    assert ResultStore(store.path).undescribed() is None


def run(command: Any, *args: Any) -> tuple[int, str]:
    result = CliRunner().invoke(command, [str(a) for a in args], standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return result.return_value, result.output


def test_commands(store: ResultStore, tmp_path: Path) -> None:
    store.write_cells([make_cell("old", variant_fingerprint="1")])
    score(store, "old")
    store.write_cells([make_cell("new", variant_fingerprint="2"), make_cell("b", task="rte")])
    score(store, "new")
    score(store, "b")
    status, out = run(cells_command, store.path, "list")
    assert status == 0
    assert "superseded old" in out
    assert "another variant_fingerprint" in out
    assert "3 cells: 2 current, 1 superseded, 0 dropped" in out
    assert "current    b" in run(cells_command, store.path, "list", "--all")[1]
    assert "1 cells dropped" in run(cells_command, store.path, "drop", "--task", "rt*")[1]
    assert used(store) == {"new"}
    assert "1 cells restored" in run(cells_command, store.path, "restore", "b")[1]
    assert used(store) == {"new", "b"}
    with pytest.raises(InputError, match="which cells"):
        run(cells_command, store.path, "drop")
    with pytest.raises(InputError, match="begins with zzz"):
        run(cells_command, store.path, "drop", "zzz")
    assert "3 segments -> 1; 9 rows, 0 doubles removed" in run(compact, store.path)[1]
    assert run(verify, store.path)[0] == 0
    (path,) = store.segments_folder.iterdir()
    data = bytearray(path.read_bytes())
    data[400] ^= 1
    path.write_bytes(data)
    status, out = run(verify, store.path, "--check-only")
    assert status == 1
    assert "rows 0-8 lost of 3 cells (" in out
    assert path.exists()
    status, out = run(compact, store.path)
    assert status == 1
    assert "rows 0-8 lost of 3 cells (" in out
    assert run(verify, store.path)[0] == 0
    out = run(merge, store.path, "-o", tmp_path / "copy")[1]
    assert "0 rows in" in out
    (store.path / "store.json").write_text("{}")
    assert run(verify, store.path)[0] == 1
    assert run(verify, store.path)[0] == 0
    with pytest.raises(InputError, match="no results there"):
        run(verify, tmp_path)

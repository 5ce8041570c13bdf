"""Reports of reduced cells: the same numbers as from all rows at once, read from before."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from evalcore.analysis import ScoreBook, analyse, score_rows, scores_table
from evalcore.analysis.reduction import arrays_of
from evalcore.analysis.scores import metric_table
from evalcore.app import open_results, report
from evalcore.app.inputs import clusters_of
from evalcore.app.reduction import keep_estimates, read_book
from evalcore.errors import EvalcoreError
from evalcore.report.csvs import write_tables
from evalcore.store import ResultStore, merge
from evalcore.tasks import load_documents
from evalcore.tasks.registry import read_task
from tests.toys.filled import fill
from tests.toys.tables import cell_rows, study_table, subject_columns, task_columns, to_table

Files = dict[str, list[str]]


def ragged(documents: int = 12, steps: int = 400) -> pa.Table:
    table = study_table(documents=documents)
    tasks = pa.array(["pocket_nli", "pocket_facts", "pocket_titles"])
    some = pc.and_(pc.less(table["step"], steps), pc.is_in(table["task"].cast("string"), tasks))
    table = table.filter(some)
    return table.filter(pa.array(np.random.default_rng(0).random(table.num_rows) < 0.85))


def tables_of(book: ScoreBook, out: Path) -> Files:
    """Every table of a report of a book: rows in any order, numbers to nine digits."""
    out.mkdir(parents=True)
    files = {}
    for path in write_tables(analyse(book), metric_table(book), out):
        with path.open(newline="") as file:
            files[path.name] = list(csv.DictReader(file))
    files["task"] = scores_table(score_rows(book), "task").to_pylist()
    files["prompt"] = scores_table(score_rows(book, "prompt"), "prompt").to_pylist()
    return {
        name: sorted(repr(sorted((k, plain(v)) for k, v in row.items())) for row in rows)
        for name, rows in files.items()
    }


def plain(value: Any) -> Any:
    try:
        return f"{round(float(value), 10) + 0.0:.8g}"
    except (TypeError, ValueError):
        return " ".join(sorted(value.split())) if isinstance(value, str) else value


def rows_at_once(store: ResultStore, out: Path) -> Files:
    """The slow, obviously right way: everything in one table in memory."""
    return tables_of(ScoreBook.from_table(store.read(), scores=True), out)


def reduced(store: ResultStore, out: Path) -> Files:
    book = read_book(store)
    files = tables_of(book, out)
    keep_estimates(store, book)
    return files


def no_reading(*_: Any, **__: Any) -> None:
    raise AssertionError("segments were read again")


def test_reduced_tables_are_those_of_all_rows_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = fill(tmp_path / "results", ragged())
    slow = rows_at_once(store, tmp_path / "slow")
    assert reduced(store, tmp_path / "first") == slow
    assert len(slow["gains.csv"]) > 20
    # A later report reads no example, and no array either: all its estimates are known.
    monkeypatch.setattr(ResultStore, "read_whole", no_reading)
    again = open_results(tmp_path / "results")
    monkeypatch.setattr(type(again.reductions), "read", no_reading)
    assert reduced(again, tmp_path / "later") == slow


def test_new_rows_a_deleted_and_a_damaged_file_are_all_noticed(tmp_path: Path) -> None:
    table = ragged(6, steps=200)
    some = pa.array(np.random.default_rng(3).random(table.num_rows) < 0.5)
    store = fill(tmp_path / "results", table.filter(some))
    folder = tmp_path / "results" / "reduced"
    before = reduced(store, tmp_path / "some")
    assert before == rows_at_once(store, tmp_path / "some-slow")
    store = fill(tmp_path / "results", table)
    after = reduced(store, tmp_path / "all")
    assert after == rows_at_once(store, tmp_path / "all-slow") != before
    names = {path.name for path in folder.iterdir()}

    def spoil(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 4
        path.write_bytes(bytes(data))

    changes: list[Callable[[Path], None]] = [Path.unlink, spoil]
    for number, change in enumerate(changes):
        for path in sorted(folder.iterdir()):
            change(path)
            store = open_results(tmp_path / "results")
            assert reduced(store, tmp_path / f"{number}-{path.name}") == after
    assert {path.name for path in folder.iterdir()} != names
    shutil.rmtree(folder)
    folder.write_text("not a folder: nothing can be kept")
    assert reduced(open_results(tmp_path / "results"), tmp_path / "unkept") == after


def test_what_no_cell_needs_any_more_is_removed(tmp_path: Path) -> None:
    store = fill(tmp_path / "results", ragged(6, steps=200), parts=4)
    first = reduced(store, tmp_path / "one")
    held = set((tmp_path / "results" / "reduced").glob("cells-*"))
    store.compact()
    assert reduced(open_results(tmp_path / "results"), tmp_path / "two") == first
    assert not held & set((tmp_path / "results" / "reduced").glob("cells-*"))


def test_damaged_examples_are_left_out_and_their_reduction_is_not_kept(tmp_path: Path) -> None:
    store = fill(tmp_path / "results", ragged(6, steps=200), parts=2)
    segment = next((tmp_path / "results" / "segments").glob("*.arrow"))
    data = bytearray(segment.read_bytes())
    data[len(data) // 3] ^= 1
    segment.write_bytes(bytes(data))
    store = open_results(tmp_path / "results")
    assert reduced(store, tmp_path / "one") == rows_at_once(store, tmp_path / "slow")
    assert any("damaged" in line for line in store.damage.values())
    assert not list((tmp_path / "results" / "reduced").glob("cells-*"))


@pytest.mark.slow
def test_several_processes_give_what_one_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = task_columns("titles", output_type="generate_until")
    rows: Iterable[dict[str, Any]] = (
        row
        for step in (100, 200)
        for variant in ("default", "io")
        for row in cell_rows(subject_columns(step), task, variant,
                             np.random.default_rng(step).random(15))
    )  # fmt: skip
    store = fill(tmp_path / "results", to_table(list(rows)), parts=1)
    monkeypatch.setattr("evalcore.app.reduction.TEXTS_FOR_WORKERS", 10)
    monkeypatch.setattr("evalcore.app.reduction.cores", lambda: 2)
    several = reduced(store, tmp_path / "several")
    assert len(list((tmp_path / "results" / "reduced").glob("cells-*"))) > 1
    assert several == rows_at_once(store, tmp_path / "slow")


@pytest.mark.parametrize("values", [[0.0, 1.0, 1.0], [1.0]])
def test_a_cell_against_a_dictionary(tmp_path: Path, values: list[float]) -> None:
    task = task_columns("nli")
    rows = cell_rows(subject_columns(100), task, "default", np.array(values))
    book = read_book(fill(tmp_path / "results", to_table(rows), parts=1))
    (cell,) = (c for cells in book.cells.values() for c in cells.values())
    known: dict[str, float] = {}
    for row in rows:
        known.setdefault(row["doc_id"], float(row["prediction"] == row["gold"]))
    got = dict(zip([book.documents[d] for d in cell.docs], cell.values.tolist(), strict=True))
    assert got == known
    assert (cell.n, cell.facts.mean) == (len(known), pytest.approx(np.mean(list(known.values()))))
    golds = {row["doc_id"]: row["gold"] for row in rows}
    assert [golds[book.documents[d]] for d in cell.docs] == cell.golds.tolist()


def test_documents_that_hang_together_count_as_one(tmp_path: Path) -> None:
    task = task_columns("nli")
    rng = np.random.default_rng(8)
    right = {step: np.repeat(rng.random(12) < 0.5, 5).astype(int) for step in (100, 200)}
    right[200][:9] = 1
    rows = [r for step, own in right.items()
            for r in cell_rows(subject_columns(step), task, "default", own)]  # fmt: skip
    store = fill(tmp_path / "results", to_table(rows), parts=2)
    alone = {r.subject.step: r.score for r in score_rows(read_book(store))}
    keep_estimates(store, read_book(store))
    ids = [row["doc_id"] for row in rows[:60]]
    store.write_clusters("nli", {name: f"passage {i // 5}" for i, name in enumerate(ids)})
    book = read_book(open_results(tmp_path / "results"))
    for row in score_rows(book):
        values = right[row.subject.step or 0].astype(float)
        # By hand: what each passage adds to the mean, squared and added up.
        moves = (values - values.mean()).reshape(12, 5).sum(axis=1) / 60
        error = float(np.sqrt((moves**2).sum() * 12 / 11))
        assert row.score.stderr == pytest.approx(error)
        assert row.score.value == alone[row.subject.step].value
        assert row.score.stderr > 1.5 * alone[row.subject.step].stderr
        assert row.score.n == 12
        assert "60 documents hang together in 12" in row.notes
    other = tmp_path / "merged"
    merge([tmp_path / "results"], other)
    assert ResultStore(other).clusters() == store.clusters()


def test_a_task_says_in_what_its_documents_hang_together(tmp_path: Path) -> None:
    text = """
name: mine
version: 1
group: nli
output_type: multiple_choice
source: {path: mine}
splits: {score: test}
fields: {premise: premise, hypothesis: hypothesis}
choices: {labels: ["yes", "no"]}
gold: {column: label}
metrics: [acc]
primary: acc
"""
    (tmp_path / "mine").mkdir()
    lines = [
        json.dumps({"premise": p, "hypothesis": h, "label": 0})
        for p, h in (("A b.", "1"), ("a  B.", "2"), ("C", "1"))
    ]
    (tmp_path / "mine" / "test.jsonl").write_text("\n".join(lines))
    (tmp_path / "plain.yaml").write_text(text)
    (tmp_path / "grouped.yaml").write_text(text + "cluster: premise\n")
    plain_task, task = (read_task(tmp_path / f"{n}.yaml") for n in ("plain", "grouped"))
    assert task.fingerprint == plain_task.fingerprint
    documents = load_documents(task, "score", data_root=tmp_path)
    first, second, third = clusters_of(task.spec["cluster"], documents).values()
    assert first == second != third
    (tmp_path / "wrong.yaml").write_text(text + "cluster: passage\n")
    with pytest.raises(EvalcoreError, match="cluster: 'passage' is none of the fields premise"):
        read_task(tmp_path / "wrong.yaml")


def test_a_later_report_reads_no_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens, documents and flips come from what the first one kept, and are the same."""
    store = fill(tmp_path / "results", ragged())
    first = report(store.path, tmp_path / "first", title="t")
    monkeypatch.setattr("evalcore.store.segments._parse", no_reading)
    monkeypatch.setattr("evalcore.analysis.reduction.arrays_of", once := Counter())
    later = report(store.path, tmp_path / "later", title="t")
    cells = len(store.reductions.cells())
    assert once["read"] < cells / 2, "only those that choose the documents"
    same = [path.read_text().replace("first", "later") for path in (first.page, later.page)]
    assert same[0] == same[1]


class Counter(dict[str, int]):
    """Counts its calls."""

    def __init__(self) -> None:
        super().__init__(read=0)

    def __call__(self, *given: Any) -> Any:
        self["read"] += 1
        return arrays_of(*given)


def test_rows_of_a_few_documents_are_those_of_all_rows(tmp_path: Path) -> None:
    store = fill(tmp_path / "results", ragged())
    table = store.read(["cell", "doc_id", "task", "gold"])
    cells = sorted(set(table["cell"].to_pylist()))[::2]
    docs = sorted(set(table["doc_id"].to_pylist()))[::3]
    some = pc.and_(
        pc.is_in(table["cell"].cast("string"), pa.array(cells)),
        pc.is_in(table["doc_id"].cast("string"), pa.array(docs)),
    )
    found = store.of_documents(["cell", "doc_id", "task", "gold"], cells, docs)
    assert sorted(map(repr, found.to_pylist())) == sorted(map(repr, table.filter(some).to_pylist()))
    assert found.num_rows > 50
    path = sorted((store.path / "segments").glob("*.arrow"))[0]
    path.write_bytes(path.read_bytes()[:200] + b"?" + path.read_bytes()[201:])
    left = ResultStore(store.path, read_only=True)
    found = left.of_documents(["cell", "doc_id", "task", "gold"], cells, docs)
    assert left.damage
    again = left.read(["cell", "doc_id", "task", "gold"])
    assert set(map(repr, found.to_pylist())) <= set(map(repr, again.to_pylist()))

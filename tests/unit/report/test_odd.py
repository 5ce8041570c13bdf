"""Odd results: the page, the tables and every export of them are made, or one line says why not."""

from __future__ import annotations

import csv
import json
import re
import threading
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest

from evalcore.app.report import report
from evalcore.errors import EvalcoreError
from evalcore.exports import export
from evalcore.exports.series import series_of
from evalcore.report import html
from evalcore.report.packing import unpack
from evalcore.store import CELL_SCHEMA, EXAMPLE_SCHEMA, ResultStore
from tests.toys.odd_studies import BIDI, NAMES, ODD, ZERO, Rows, grid, renamed, write
from tests.toys.tables import cell_rows, subject_columns, task_columns, to_table


@pytest.fixture
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are drawn in one test; their specifications are the page's."""
    monkeypatch.setattr(html, "write_pictures", lambda *_: [])


def page_of(store: ResultStore, out: Path) -> tuple[str, dict[str, Any], dict[str, Rows]]:
    made = report(store.path, out, title="odd")
    text = made.page.read_text()
    found = re.search(r'id="data">(.*?)</script>', text)
    assert found is not None
    head, rows = unpack(found[1])
    return text, head, rows


@pytest.mark.parametrize("name", ODD)
@pytest.mark.usefixtures("without_pictures")
def test_the_page_has_every_cell(name: str, tmp_path: Path) -> None:
    rows = ODD[name]()
    store = write(tmp_path / "results", rows)
    text, head, data = page_of(store, tmp_path / "out")
    body = text[: text.index('<script type="application/gzip"')]
    assert BIDI not in body
    assert ZERO not in body
    assert "<img" not in body
    shown = {row["cell"] for row in data["scores"] if row["level"] == "prompt"}
    scored = {row["cell"][:10] for row in rows}
    assert shown == scored, "every cell is in the table of scores"
    for row in data["scores"]:
        assert row["parent"] == -1 or data["scores"][int(row["parent"])]["level"] == "mean"
    for figure in head["figures"]:
        assert re.fullmatch(r"[A-Za-z0-9._-]{1,120}", figure["id"])
    assert len({f["id"] for f in head["figures"]}) == len(head["figures"])
    names = [s["name"] for s in head["subjects"]]
    assert len(set(names)) == len(names), "models are told apart"
    with (tmp_path / "out" / "scores.csv").open(newline="", encoding="utf-8") as file:
        assert not [v for line in csv.reader(file) for v in line if v.startswith("=")]


@pytest.mark.parametrize("name", ODD)
def test_exports_have_every_row(name: str, tmp_path: Path) -> None:
    rows = ODD[name]()
    store = write(tmp_path / "results", rows)
    for form in ("csv", "jsonl", "duckdb", "parquet"):
        assert export(store, tmp_path / f"x.{form}").count == len(rows)
    lines = (tmp_path / "x.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    read = [json.loads(line) for line in lines]
    assert {r["checkpoint"] for r in read} == {r["checkpoint"] for r in rows}
    with duckdb.connect(str(tmp_path / "x.duckdb"), read_only=True) as database:
        (found,) = database.execute("SELECT count(DISTINCT task) FROM examples").fetchone()  # type: ignore[misc]
    assert found == len({r["task"] for r in rows})
    out = tmp_path / "lm-eval"
    export(store, out, "lm-eval")
    assert all(out.resolve() in file.resolve().parents for file in out.rglob("*"))
    folders = {file.parent for file in out.rglob("results_*.json")}
    assert len(folders) == len({r["subject"] for r in rows}), "a folder per model"
    samples = sum(len(f.read_text("utf-8").split("\n")) - 1 for f in out.rglob("samples_*.jsonl"))
    assert samples == len(rows)
    points = [p for s in series_of(store) for p in s.points]
    assert len(points) == len({r["subject"] for r in rows})


def test_pictures_of_odd_names(tmp_path: Path) -> None:
    rows = renamed("task")
    for row in rows:
        row["checkpoint"] = f"{NAMES[0]}{BIDI}{row['step']}"
    _, head, _ = page_of(write(tmp_path / "results", rows, documents=True), tmp_path / "out")
    for figure in head["figures"]:
        svg = (tmp_path / "out" / f"{figure['id']}.svg").read_text(encoding="utf-8")
        assert "<img" not in svg
        assert BIDI not in svg


@pytest.mark.usefixtures("without_pictures")
def test_lines_go_through_checkpoints_of_one_and_of_several_seeds(tmp_path: Path) -> None:
    nli, right = task_columns("nli", tuned_by="nli"), np.array([True, False, True])
    rows: Rows = []
    for step, seeds in ((100, (0,)), (200, (0, 1))):
        tuned = [subject_columns(step, "nli", seed=seed) for seed in seeds]
        for subject in [subject_columns(step), *tuned]:
            for prompt in ("plain", "other"):
                rows += cell_rows(subject, nli, prompt, right)
    _, _, data = page_of(write(tmp_path / "results", rows), tmp_path / "out")
    mine = [row for row in data["scores"] if row["tuning"] == "nli"]
    means = [row for row in mine if row["level"] == "mean"]
    assert [row["seed"] for row in means] == ["0", "2 seeds"]
    assert {row["strand"] for row in means} == {""}, "one line"
    assert {row["strand"] for row in mine if row["level"] == "seed"} == {"0", "1"}
    prompts = [row for row in mine if row["level"] == "prompt"]
    assert len(prompts) == 6
    assert all(row["drawn"] for row in prompts), "single seeds are in the maps of prompts"


def test_nothing_is_one_line(tmp_path: Path) -> None:
    empty = ResultStore(tmp_path / "empty")
    unscored = ResultStore(tmp_path / "unscored")
    (row, *_) = to_table(grid()).to_pylist()
    unscored.write_cells([{k: row[k] for k in CELL_SCHEMA.names if k in row} | {"shots": 0}])
    for store in (empty, unscored):
        with pytest.raises(EvalcoreError) as caught:
            report(store.path, tmp_path / "out", title="nothing")
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out" / "report.html").exists()


@pytest.mark.usefixtures("without_pictures")
def test_a_folder_that_is_written_meanwhile(tmp_path: Path) -> None:
    rows = grid((100, 200, 300))
    first = [r for r in rows if r["step"] == 100]
    store = write(tmp_path / "results", first)
    table = to_table([r for r in rows if r["step"] > 100])
    known = {row["cell"]: row for row in table.to_pylist()}

    def work() -> None:
        for cell, about in known.items():
            other = ResultStore(tmp_path / "results")
            other.write_cells(
                [{k: about[k] for k in CELL_SCHEMA.names if k in about} | {"shots": 0}]
            )
            with other.open_writer(f"w{cell[:6]}") as writer:
                import pyarrow.compute as pc

                own = table.filter(pc.equal(table["cell"], cell))
                writer.add(own.select(EXAMPLE_SCHEMA.names))

    writer = threading.Thread(target=work)
    writer.start()
    counts = []
    while True:
        going = writer.is_alive()
        _, _, data = page_of(store, tmp_path / "out")
        counts.append(sum(row["level"] == "prompt" for row in data["scores"]))
        if not going:
            break
    writer.join()
    assert counts == sorted(counts)
    assert counts[-1] == len({r["cell"] for r in rows})

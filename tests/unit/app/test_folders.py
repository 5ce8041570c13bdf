"""Several results folders in one report."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from evalcore.app.folders import Folders, folder_names
from evalcore.app.report import open_results
from evalcore.cli import cli
from evalcore.errors import InputError, UnknownNameError
from evalcore.report.packing import unpack
from evalcore.store import EXAMPLE_SCHEMA, ResultStore
from tests.toys.tables import stored_study


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, int]:
    """A whole study in two folders that share some cells; how many they share."""
    root = tmp_path_factory.mktemp("folders")
    whole = stored_study(root / "whole", documents=6)
    cells = [r for r in whole.cells().to_pylist() if r["task"] in ("pocket_nli", "pocket_pairs")]
    late = [r for r in cells if r["step"] >= 800]
    early = [r for r in cells if r["step"] <= 800]
    for name, own in (("late/results", late), ("early/results", early)):
        store = ResultStore(root / name)
        store.write_cells(own)
        writer = store.open_writer("one")
        rows = whole.examples(cells=[r["cell"] for r in own])
        writer.add(rows.select(EXAMPLE_SCHEMA.names))
        writer.flush()
    shared = {r["cell"] for r in late} & {r["cell"] for r in early}
    return root / "early/results", root / "late/results", len(shared)


def test_each_cell_is_of_one_folder(folders: tuple[Path, Path, int]) -> None:
    early, late, shared = folders
    names = folder_names([early, late])
    assert names == ["early/results", "late/results"]
    read = Folders(dict(zip(names, map(open_results, (early, late)), strict=True)))
    book = read.book(None, ())
    count = {name: list(read.owners.values()).count(name) for name in names}
    alone = open_results(late).cells().num_rows
    assert count["late/results"] == alone - shared, "the first folder gives what both have"
    assert sum(count.values()) == len(read.owners) == len(book.read)
    flags = [f for f in book.flags if f.kind == "doubled"]
    assert sum(f.count for f in flags) == shared > 0
    assert "those of early/results are shown; their scores differ by 0.0000" in flags[0].text
    for cell in book.read:
        assert cell.about["folder"] == read.owners[cell.facts.cell]
    documents = {i for s in read.stores.values() for i in s.examples()["doc_id"].to_pylist()}
    rows = read.of_documents(["cell", "doc_id"], set(read.owners), documents)
    assert rows.num_rows == book.num_rows
    with pytest.raises(UnknownNameError):
        read.requests("nobody")


def test_the_page_says_the_folder(folders: tuple[Path, Path, int], tmp_path: Path) -> None:
    early, late, _ = folders
    command = ["report", str(early), str(late), "--tasks", "pocket_nli"]
    done = CliRunner().invoke(cli, command)
    assert done.exit_code != 0
    assert isinstance(done.exception, InputError) or "-o FOLDER" in done.output
    done = CliRunner().invoke(cli, [*command, "-o", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Results of early/results, late/results." in page
    assert "cells stand in early/results and in late/results" in page
    head, data = unpack(re.search(r'id="data">(.*?)</script>', page)[1])  # type: ignore[index]
    assert head["facets"][-1] == "folder"
    seen = {row["checkpoint"]: row["folders"] for row in data["scores"]}
    assert seen["step-00100"] == ["early/results"]
    assert seen["step-00800"] == ["early/results"]
    assert seen["step-01600"] == ["late/results"]
    (table,) = (t for t in head["tables"] if t["id"] == "contrasts")
    at = next(n for n, r in enumerate(table["rows"]) if "step-01600" in r and "step-00100" in r)
    assert head["lists"][-1][table["facets"][at][-1]] == ["early/results", "late/results"]


def test_a_folder_given_twice(folders: tuple[Path, Path, int]) -> None:
    with pytest.raises(InputError, match="given twice"):
        folder_names([folders[0], folders[0]])

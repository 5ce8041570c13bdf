"""Rows of each cell, by one sort."""

from __future__ import annotations

import random

import pyarrow as pa
import pyarrow.compute as pc

from evalcore.store.reading import split_by_cell


def test_rows_of_each_cell_are_those_of_a_filter() -> None:
    drawn = random.Random(4)
    chunks = []
    for start in range(0, 120, 40):
        cells = [drawn.choice("abcdef") for _ in range(40)]
        chunks.append(pa.table({"cell": pa.array(cells).dictionary_encode(),
                                "row": list(range(start, start + 40))}))  # fmt: skip
    table = pa.concat_tables(chunks)
    found = split_by_cell(table)
    names = table["cell"].cast(pa.string())
    assert set(found) == set(names.to_pylist())
    for cell, rows in found.items():
        assert rows["row"].to_pylist() == table.filter(pc.equal(names, cell))["row"].to_pylist()
    assert split_by_cell(table.slice(0, 0)) == {}

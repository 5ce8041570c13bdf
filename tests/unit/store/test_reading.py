"""Rows of each cell, by one sort."""

from __future__ import annotations

import random

import pyarrow as pa
import pyarrow.compute as pc

from evalcore.store.reading import split_by_cell, together


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


def test_small_tables_are_put_together_in_their_order() -> None:
    drawn = random.Random(8)
    sizes = [drawn.randint(1, 9) for _ in range(40)] + [30, 2, 50, 1]
    tables, start = [], 0
    for size in sizes:
        names = [drawn.choice("abc") for _ in range(size)]
        tables.append(pa.table({"cell": pa.array(names).dictionary_encode(),
                                "row": list(range(start, start + size))}))  # fmt: skip
        start += size
    found = list(together(iter(tables), 20))
    assert pa.concat_tables(found).cast(tables[0].schema).to_pylist() == [
        row for table in tables for row in table.to_pylist()
    ]
    assert all(part.num_rows <= 20 or part.num_rows in (30, 50) for part in found)
    assert len(found) < len(tables) / 2
    assert list(together(iter(()), 20)) == []

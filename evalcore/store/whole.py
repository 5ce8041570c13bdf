"""Whole cells, a bounded number of rows at a time, and which segments hold which cell.

A cell's rows may lie in any number of segments; footers say in which.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from evalcore.store.reading import (
    KEY_COLUMNS,
    OnDamage,
    first_rows,
    in_cells,
    of_cells,
    read_examples,
)
from evalcore.store.schema import EXAMPLE_SCHEMA
from evalcore.store.segments import read_info, read_rows
from evalcore.store.survey import Survey

ROWS_AT_ONCE = 1 << 19


@dataclass(frozen=True)
class CellPlaces:
    """Where rows lie.

    Attributes:
        segments: Paths, in the order in which the first of equal rows wins.
        of_cell: Cell -> numbers of the segments that hold rows of it, ascending.
        rows: Cell -> rows, those counted twice that two segments hold.
    """

    segments: tuple[Path, ...]
    of_cell: Mapping[str, tuple[int, ...]]
    rows: Mapping[str, int]

    def names(self, cell: str) -> list[str]:
        """Names of the segments that hold a cell. A segment never changes, so they say what."""
        return [self.segments[i].name for i in self.of_cell.get(cell, ())]

    def batches(self, cells: Collection[str], rows: int = ROWS_AT_ONCE) -> list[list[str]]:
        """Cells that lie in the same segments together, about ``rows`` rows in a batch."""
        found: list[list[str]] = []
        size = 0
        for cell in sorted(cells, key=lambda c: (self.of_cell.get(c, ()), c)):
            if not found or size >= rows:
                found.append([])
                size = 0
            found[-1].append(cell)
            size += self.rows.get(cell, 0)
        return found


def find_cells(survey: Survey) -> CellPlaces:
    """Places of all cells that segments hold."""
    of_cell: dict[str, tuple[int, ...]] = {}
    rows: dict[str, int] = {}
    for cell, entries in survey.by_cell():
        of_cell[cell] = tuple(survey.owners[entries].tolist())
        rows[cell] = int(survey.set_sizes[survey.entry_set[entries]].sum())
    return CellPlaces(tuple(survey.folder / name for name in survey.names), of_cell, rows)


def read_whole(
    places: CellPlaces,
    cells: Sequence[str],
    columns: Sequence[str] | None = None,
    on_damage: OnDamage | None = None,
) -> pa.Table:
    """All rows of some cells without doubles (as ``reading.read_examples`` gives them).

    Raises:
        FileNotFoundError: A compaction took a segment away.
    """
    numbers = sorted({n for cell in cells for n in places.of_cell.get(cell, ())})
    paths = [places.segments[n] for n in numbers]
    folder = paths[0].parent if paths else Path()
    survey = Survey.of(folder, map(read_info, paths))
    return read_examples(survey, columns, None, in_cells(cells), on_damage)


def read_documents(
    survey: Survey,
    cells: Collection[str],
    doc_ids: Collection[str],
    columns: Sequence[str],
    on_damage: OnDamage | None = None,
) -> pa.Table:
    """Rows of a few documents under some cells, without doubles.

    Doubles are settled among these few rows: what segments state of all their documents, which
    grows with the rows, is not looked at.

    Raises:
        FileNotFoundError: A compaction took a segment away.
    """
    names = list(dict.fromkeys([*KEY_COLUMNS, *columns]))
    schema = pa.schema([EXAMPLE_SCHEMA.field(name) for name in names])
    wanted, docs = in_cells(cells), pa.array(sorted(doc_ids), schema.field("doc_id").type)
    tables = [schema.empty_table()]
    for number in survey.holding(wanted):
        part = read_rows(segment := survey.segment(number), names)
        if part.reason is not None and on_damage is not None:
            on_damage(segment, part)
        rows = part.table.filter(pc.is_in(part.table.column("doc_id"), value_set=docs))
        tables.append(of_cells(rows, wanted))
    found = pa.concat_tables(tables).unify_dictionaries()
    found = found.filter(pa.array(first_rows(found.column("cell"), found.column("doc_id"))))
    return found.select(list(columns))

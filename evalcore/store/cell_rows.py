"""Rows of the cells table for many cells: what they have in common is held once.

A grid has as many cells as subjects times questions, and a column hangs on one of the two in most
cases: then its distinct values are worked out once, and a row has the number of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from evalcore.store.schema import CELL_COLUMNS, CELL_SCHEMA, CellFacts, Part

Codes = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class CellRows:
    """Rows of :data:`~evalcore.store.schema.CELL_SCHEMA`, column by column.

    Attributes:
        num_rows: How many.
        columns: Name -> (values, int64 [rows] number of each row's value; None: one for each row).
    """

    num_rows: int
    columns: Mapping[str, tuple[pa.Array, Codes | None]] = field(repr=False)

    @classmethod
    def of_table(cls, table: pa.Table) -> CellRows:
        """Of rows that stand in a table already."""
        plain = {name: table[name].combine_chunks() for name in table.column_names}
        return cls(
            table.num_rows,
            {
                name: (pa.array([], column.type) if not table.num_rows else _whole(column), None)
                for name, column in plain.items()
            },
        )

    @classmethod
    def of_cells(
        cls,
        given: Mapping[str, pa.Array],
        codes: Mapping[Part, Codes],
        facts: Callable[[int], CellFacts],
    ) -> CellRows:
        """Of the cells of a grid; equal to ``cell_row`` of each cell's facts.

        Args:
            given: Columns that are known already, one value for each cell.
            codes: int64 [cells] for ``subject``, ``question`` and ``pair``: cells with equal
                numbers have equal parts.
            facts: Gives the facts of a cell.
        """
        count = len(next(iter(given.values())))
        own: dict[Part, tuple[list[CellFacts], Codes]] = {}
        for part, numbers in codes.items():
            _, firsts, dense = np.unique(numbers, return_index=True, return_inverse=True)
            own[part] = ([facts(i) for i in firsts.tolist()], dense)
        columns: dict[str, tuple[pa.Array, Codes | None]] = {}
        for column in CELL_COLUMNS:
            if column.name in given:
                columns[column.name] = (given[column.name], None)
            elif column.part == "cell":
                values = [column.value(facts(i)) for i in range(count)]
                columns[column.name] = (pa.array(values, column.type), None)
            else:
                distinct, dense = own[column.part]
                values = [column.value(each) for each in distinct]
                columns[column.name] = (pa.array(values, column.type), dense)
        return cls(count, columns)

    def column(self, name: str) -> pa.Array:
        """A column with a value for each row."""
        values, codes = self.columns[name]
        return values if codes is None else values.take(pa.array(codes))

    def take(self, rows: Codes) -> pa.Table:
        """Some rows as a table."""
        arrays = []
        for name in CELL_SCHEMA.names:
            values, codes = self.columns[name]
            arrays.append(values.take(pa.array(rows if codes is None else codes[rows])))
        return pa.Table.from_arrays(arrays, schema=CELL_SCHEMA)

    def to_pylist(self, names: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """All rows; ``names``: these columns of them."""
        names = CELL_SCHEMA.names if names is None else list(names)
        table = pa.table({name: self.column(name) for name in names})
        rows: list[dict[str, Any]] = table.to_pylist()
        return rows


def _whole(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if isinstance(column, pa.ChunkedArray) else column

"""Reading segments as one table: the first row of each (cell, document) wins, vectorised."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from evalcore.errors import InputError, UnknownNameError
from evalcore.store.coverage import codes_of
from evalcore.store.schema import CELL_SCHEMA, EXAMPLE_SCHEMA, joined_name
from evalcore.store.segments import read_rows

KEY_COLUMNS = ("cell", "doc_id")


def read_examples(
    paths: Sequence[Path],
    columns: Sequence[str] | None = None,
    filter: pc.Expression | None = None,
    cells: Collection[str] | None = None,
) -> pa.Table:
    """Rows of all segments without doubles.

    Args:
        paths: Segments in the order in which the first of equal rows wins.
        columns: Columns wanted, in this order; None for all.
        filter: Arrow expression on example columns, applied after doubles are gone.
        cells: Only rows of these cells; None for all.

    Raises:
        UnknownNameError: A column that does not exist.
        DataError: A segment's rows are damaged.
    """
    wanted = EXAMPLE_SCHEMA.names if columns is None else list(columns)
    for name in wanted:
        if name not in EXAMPLE_SCHEMA.names:
            raise UnknownNameError("example column", name, EXAMPLE_SCHEMA.names)
    # Arrow does not tell which fields an expression uses, but its text names them all.
    text = str(filter) if filter is not None else ""
    needed = [
        name
        for name in EXAMPLE_SCHEMA.names
        if name in wanted or name in KEY_COLUMNS or (text and name in text)
    ]
    tables = [read_rows(path, needed) for path in paths]
    if cells is not None:
        tables = [_of_cells(table, cells) for table in tables]
    schema = pa.schema([EXAMPLE_SCHEMA.field(name) for name in needed])
    table = pa.concat_tables([schema.empty_table(), *tables]).unify_dictionaries()
    keep = first_rows(table.column("cell"), table.column("doc_id"))
    if not keep.all():
        table = table.filter(pa.array(keep))
    if filter is not None:
        try:
            table = table.filter(filter)
        except pa.ArrowException as error:
            raise InputError(
                f"filter {text!r} does not fit the example columns: {error}"
            ) from error
    return table.select(wanted)


def first_rows(cells: pa.ChunkedArray, doc_ids: pa.ChunkedArray) -> npt.NDArray[np.bool_]:
    """Marks the first row of each (cell, document); bool [rows]."""
    _, cell_codes = codes_of(cells)
    doc_names, doc_codes = codes_of(doc_ids)
    keep = np.zeros(len(cell_codes), dtype=np.bool_)
    _, first = np.unique(cell_codes * max(len(doc_names), 1) + doc_codes, return_index=True)
    keep[first] = True
    return keep


def join_cells(examples: pa.Table, cells: pa.Table) -> pa.Table:
    """Adds the cell columns to each example (Arrow's own join refuses list columns).

    Text columns come dictionary-encoded, so that constants cost four bytes a row. Examples whose
    cell is not in ``cells`` get nulls.
    """
    names, codes = codes_of(examples.column("cell"))
    row_of_cell = {cell: row for row, cell in enumerate(cells.column("cell").to_pylist())}
    rows = np.array([row_of_cell.get(name, -1) for name in names] or [-1], dtype=np.int32)
    taken = rows[codes] if len(codes) else np.zeros(0, dtype=np.int32)
    indices = pa.array(taken, mask=taken < 0)
    for field in CELL_SCHEMA:
        if field.name == "cell":
            continue
        column = cells.column(field.name).combine_chunks()
        if pa.types.is_string(field.type):
            encoded = column.dictionary_encode()
            values = pa.DictionaryArray.from_arrays(
                encoded.indices.take(indices), encoded.dictionary
            )
        else:
            values = column.take(indices)
        examples = examples.append_column(joined_name(field.name), values)
    return examples


def _of_cells(table: pa.Table, cells: Collection[str]) -> pa.Table:
    names, codes = codes_of(table.column("cell"))
    wanted = np.array([name in cells for name in names], dtype=np.bool_)
    mask = wanted[codes] if len(codes) else np.zeros(0, dtype=np.bool_)
    return table if mask.all() else table.filter(pa.array(mask))

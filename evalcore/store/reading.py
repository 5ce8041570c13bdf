"""Reading segments: the first row of each (cell, document) wins, segment by segment.

What earlier segments hold is known from their footers, so doubles are settled with one segment in
memory, and most segments need no look at their rows at all.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from evalcore.errors import InputError, UnknownNameError
from evalcore.store.coverage import Coverage, SegmentCoverage, codes_of
from evalcore.store.schema import CELL_SCHEMA, EXAMPLE_SCHEMA, MAKER_COLUMN, joined_name
from evalcore.store.segments import Segment, SegmentRows, read_rows
from evalcore.store.survey import Survey

KEY_COLUMNS = ("cell", "doc_id")
OnDamage = Callable[[Segment, SegmentRows], None]
"""Told of a segment of which rows are damaged; they are left out."""


def iterate_examples(
    survey: Survey,
    columns: Sequence[str] | None = None,
    filter: pc.Expression | None = None,
    cells: Callable[[str], bool] | None = None,
    on_damage: OnDamage | None = None,
) -> Iterator[pa.Table]:
    """Rows without doubles, one table per segment that has any.

    Args:
        survey: The segments, in the order in which the first of equal rows wins.
        columns: Columns wanted, in this order; None for all.
        filter: Arrow expression on example columns, applied after doubles are gone.
        cells: Whether rows of a cell are wanted; None for all. Segments without any are not opened.
        on_damage: Told of damaged rows.

    Raises:
        UnknownNameError: A column that does not exist.
        InputError: The filter does not fit.
        FileNotFoundError: A compaction took a segment away.
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
    for _, table in distinct_rows(survey, needed, cells, on_damage):
        yield _filtered(table, filter).select(wanted)
    if filter is not None:  # a filter that does not fit is an error also where there are no rows
        _filtered(pa.schema([EXAMPLE_SCHEMA.field(name) for name in needed]).empty_table(), filter)


def distinct_rows(
    survey: Survey,
    columns: Sequence[str],
    cells: Callable[[str], bool] | None = None,
    on_damage: OnDamage | None = None,
) -> Iterator[tuple[Segment, pa.Table]]:
    """Each segment that has any with those of its rows that no earlier segment or row has.

    ``columns`` must include :data:`KEY_COLUMNS`.
    """
    if cells is not None:
        survey = survey.select(survey.holding(cells))
    doubled = survey.doubled()
    seen = Coverage()
    for number in range(len(survey)):
        info = survey.segment(number)
        part = read_rows(info, columns)
        table, stated = part.table, int(survey.num_pairs[number])
        sound = part.reason is None
        if not sound and on_damage is not None:
            on_damage(info, part)
        if number in doubled or not sound or table.num_rows != stated:
            table = table.filter(pa.array(_new_rows(table, seen)))
        if doubled:
            # Of a damaged segment only what could be read counts as seen.
            seen.add(survey.stated(number) if sound else _coverage_of(part.table))
        if cells is not None:
            table = of_cells(table, cells)
        if table.num_rows:
            yield info, table


def read_examples(
    survey: Survey,
    columns: Sequence[str] | None = None,
    filter: pc.Expression | None = None,
    cells: Callable[[str], bool] | None = None,
    on_damage: OnDamage | None = None,
) -> pa.Table:
    """All of :func:`iterate_examples` as one table."""
    tables = list(iterate_examples(survey, columns, filter, cells, on_damage))
    wanted = EXAMPLE_SCHEMA.names if columns is None else list(columns)
    schema = pa.schema([EXAMPLE_SCHEMA.field(name) for name in wanted])
    return pa.concat_tables([schema.empty_table(), *tables]).unify_dictionaries()


def together(tables: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """The same rows in the same order, small tables put together up to some ``rows`` rows."""
    waiting: list[pa.Table] = []
    count = 0
    for table in tables:
        if waiting and count + table.num_rows > rows:
            yield pa.concat_tables(waiting).unify_dictionaries()
            waiting, count = [], 0
        waiting.append(table)
        count += table.num_rows
    if waiting:
        yield pa.concat_tables(waiting).unify_dictionaries()


def split_by_cell(table: pa.Table) -> dict[str, pa.Table]:
    """Rows of each cell there is, in their order: one sort, whatever the number of cells."""
    names, codes = codes_of(table.column("cell"))
    order = np.argsort(codes, kind="stable")
    ordered = table.take(pa.array(order))
    found, starts = np.unique(codes[order], return_index=True)
    stops = [*starts[1:].tolist(), len(order)]
    return {
        names[code]: ordered.slice(start, stop - start)
        for code, start, stop in zip(found.tolist(), starts.tolist(), stops, strict=False)
    }


def first_rows(cells: pa.ChunkedArray, doc_ids: pa.ChunkedArray) -> npt.NDArray[np.bool_]:
    """Marks the first row of each (cell, document); bool [rows]."""
    _, cell_codes = codes_of(cells)
    doc_names, doc_codes = codes_of(doc_ids)
    keep = np.zeros(len(cell_codes), dtype=np.bool_)
    _, first = np.unique(cell_codes * max(len(doc_names), 1) + doc_codes, return_index=True)
    keep[first] = True
    return keep


def _coverage_of(table: pa.Table) -> SegmentCoverage:
    return SegmentCoverage.of_rows(table.column("cell"), table.column("doc_id"))


def _new_rows(table: pa.Table, seen: Coverage) -> npt.NDArray[np.bool_]:
    """First row of each (cell, document) that ``seen`` does not have; bool [rows]."""
    cells, doc_ids = table.column("cell"), table.column("doc_id")
    keep = first_rows(cells, doc_ids)
    cell_names, cell_codes = codes_of(cells)
    doc_names, doc_codes = codes_of(doc_ids)
    known = seen.encode(doc_names)
    for code in np.unique(cell_codes):
        if (name := cell_names[code]) in seen:
            rows = np.flatnonzero(cell_codes == code)
            keep[rows] &= ~seen.mask(name, known[doc_codes[rows]])
    return keep


def join_cells(examples: pa.Table, cells: pa.Table) -> pa.Table:
    """Adds the cell columns to each example (Arrow's own join refuses list columns).

    Text columns come dictionary-encoded, so that constants cost four bytes a row. Examples whose
    cell is not in ``cells`` get nulls. Columns of ``cells`` that are left out are not joined.
    """
    names, codes = codes_of(examples.column("cell"))
    row_of_cell = {cell: row for row, cell in enumerate(cells.column("cell").to_pylist())}
    rows = np.array([row_of_cell.get(name, -1) for name in names] or [-1], dtype=np.int32)
    taken = rows[codes] if len(codes) else np.zeros(0, dtype=np.int32)
    indices = pa.array(taken, mask=taken < 0)
    for field in cells.schema:
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


def _filtered(table: pa.Table, filter: pc.Expression | None) -> pa.Table:
    if filter is None:
        return table
    try:
        return table.filter(filter)
    except pa.ArrowException as error:
        raise InputError(f"filter {filter} does not fit the example columns: {error}") from error


def of_cells(table: pa.Table, wanted: Callable[[str], bool]) -> pa.Table:
    names, codes = codes_of(table.column("cell"))
    chosen = np.array([wanted(name) for name in names], dtype=np.bool_)
    mask = chosen[codes] if len(codes) else np.zeros(0, dtype=np.bool_)
    return table if mask.all() else table.filter(pa.array(mask))


def in_cells(cells: Collection[str]) -> Callable[[str], bool]:
    """Whether a cell is one of these."""
    return frozenset(cells).__contains__


def maker_column(made_by: pa.ChunkedArray, texts: Mapping[str, str]) -> pa.ChunkedArray:
    """The text behind each id of column ``made_by``; an id without a record stands for itself."""
    chunks = []
    for chunk in made_by.chunks:
        names = [texts.get(id_, id_) for id_ in chunk.dictionary.to_pylist()]
        named = pa.array(names, pa.string())
        chunks.append(pa.DictionaryArray.from_arrays(chunk.indices, named))
    return pa.chunked_array(chunks, made_by.type)


def example_columns(
    columns: Sequence[str] | None, filter: pc.Expression | None
) -> list[str] | None:
    """Columns of the examples that a view of the joined table takes; None for all."""
    if columns is None:
        return None
    from_cells = {joined_name(name) for name in CELL_SCHEMA.names} - {"cell"}
    text = str(filter) if filter is not None else ""
    names = dict.fromkeys([*columns, *EXAMPLE_SCHEMA.names])
    own = [
        name
        for name in names
        if name not in from_cells | {MAKER_COLUMN}
        and (name in columns or name == "cell" or name in text)
    ]
    asks_maker = MAKER_COLUMN in columns or MAKER_COLUMN in text
    return [*own, "made_by"] if asks_maker and "made_by" not in own else own

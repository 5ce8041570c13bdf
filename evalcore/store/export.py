"""The joined table as one file for other tools."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc

from evalcore.errors import InputError
from evalcore.files import write_atomically
from evalcore.store.results import ResultStore
from evalcore.store.spreadsheet import text_column

_ROWS_PER_SLICE = 65_536


def to_parquet(store: ResultStore, path: str | Path) -> int:
    """Writes examples joined with their cells as one parquet file (zstd).

    Returns:
        Number of rows.

    Raises:
        InputError: ``path`` cannot be written.
    """
    import pyarrow.parquet as pq  # only this export needs it

    table = store.read()
    _write(Path(path), lambda sink: pq.write_table(table, sink, compression="zstd"))
    return table.num_rows


def to_csv(store: ResultStore, path: str | Path) -> int:
    """Writes the same table as CSV; lists become JSON text, nulls are empty.

    Texts a spreadsheet would run as formulas get an apostrophe in front (``store.spreadsheet``).

    Returns:
        Number of rows.

    Raises:
        InputError: ``path`` cannot be written.
    """
    table = store.read()
    _write(Path(path), lambda sink: _write_csv(table, sink))
    return table.num_rows


def _write_csv(table: pa.Table, sink: IO[bytes]) -> None:
    import pyarrow.csv as csv  # only this export needs it

    plain = pa.schema([pa.field(field.name, _csv_type(field.type)) for field in table.schema])
    with csv.CSVWriter(sink, plain) as writer:
        for start in range(0, table.num_rows, _ROWS_PER_SLICE):
            part = table.slice(start, _ROWS_PER_SLICE).combine_chunks()
            columns = [text_column(_csv_column(column.combine_chunks())) for column in part.columns]
            writer.write_table(pa.Table.from_arrays(columns, schema=plain))


def _csv_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return kind.value_type
    return pa.string() if pa.types.is_list(kind) else kind


def _csv_column(column: pa.Array) -> pa.Array:
    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.nulls(0, column.type)
    if pa.types.is_list(column.type):
        return json_lists(column)
    return column.cast(_csv_type(column.type))


def json_lists(column: pa.Array) -> pa.Array:
    """Each list of a list column as JSON text (``NaN`` and ``Infinity`` as Python's json has them).

    Args:
        column: Lists of text, numbers or truth values.

    Returns:
        Strings; null where the list is null.
    """
    values = column.flatten()
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        encoded = values.dictionary_encode()
        quoted = [json.dumps(value) for value in encoded.dictionary.to_pylist()]
        texts = pa.array(quoted, type=pa.string()).take(encoded.indices)
    else:
        texts = values.cast(pa.string())
        if pa.types.is_floating(values.type):
            texts = pc.replace_substring(texts, "inf", "Infinity")
            texts = pc.replace_substring(texts, "nan", "NaN")
    lengths = pc.fill_null(pc.list_value_length(column), 0)
    ends = pc.cumulative_sum(lengths)
    offsets = pa.concat_arrays([pa.array([0], ends.type), ends])
    lists = pa.ListArray.from_arrays(offsets, texts.fill_null("null"))
    joined = pc.binary_join_element_wise("[", pc.binary_join(lists, ", "), "]", "")
    return pc.if_else(column.is_valid(), joined, pa.scalar(None, pa.string()))


def _write(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    try:
        write_atomically(path, write)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error

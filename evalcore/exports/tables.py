"""The joined table as one file: parquet, CSV, JSON lines, a DuckDB database."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc

from evalcore.errors import InputError
from evalcore.exports.score_column import with_scores
from evalcore.files import write_atomically
from evalcore.store import ResultStore
from evalcore.store.schema import EXAMPLE_SCHEMA
from evalcore.store.spreadsheet import text_column

AddColumns = Callable[[pa.Table], pa.Table]
"""Adds columns to a part of the joined table; to an empty part too, for their types."""


def to_parquet(store: ResultStore, path: str | Path, add: AddColumns = with_scores) -> int:
    """Writes examples joined with their cells as one parquet file (zstd), segment by segment.

    Args:
        store: The results.
        path: File to write.
        add: Adds columns.

    Returns:
        Number of rows.

    Raises:
        InputError: ``path`` cannot be written.
        ResultsError: The results were compacted meanwhile.
    """
    import pyarrow.parquet as pq  # only this export needs it

    schema, parts = _parts(store, add)

    def write(sink: IO[bytes]) -> int:
        rows = 0
        with pq.ParquetWriter(sink, schema, compression="zstd") as writer:
            for part in parts:
                writer.write_table(part)
                rows += part.num_rows
        return rows

    return _write(Path(path), write)


def to_csv(store: ResultStore, path: str | Path, add: AddColumns = with_scores) -> int:
    """Writes the same table as CSV; lists become JSON text, nulls are empty.

    Texts a spreadsheet would run as formulas get an apostrophe in front (``store.spreadsheet``).
    Arguments, result and errors are those of :func:`to_parquet`.
    """
    schema, parts = _parts(store, add)
    return _write(Path(path), lambda sink: write_csv(schema, parts, sink))


def to_jsonl(store: ResultStore, path: str | Path, add: AddColumns = with_scores) -> int:
    """Writes the same table as one JSON object per line and row, UTF-8; nulls stay ``null``.

    ``NaN`` and infinities, which JSON lacks, become ``null``. Arguments, result and errors are
    those of :func:`to_parquet`.
    """
    _, parts = _parts(store, add)

    def write(sink: IO[bytes]) -> int:
        rows = 0
        for part in parts:
            for batch in part.to_batches(max_chunksize=4096):
                lines = (json.dumps(finite(row), ensure_ascii=False) for row in batch.to_pylist())
                sink.write("".join(f"{line}\n" for line in lines).encode("utf-8", "replace"))
                rows += batch.num_rows
        return rows

    return _write(Path(path), write)


def to_duckdb(store: ResultStore, path: str | Path, add: AddColumns = with_scores) -> int:
    """Writes a DuckDB database: table ``examples`` (as above), ``cells`` and ``documents``.

    Raises:
        InputError: duckdb is not installed, or ``path`` exists or cannot be written.
    """
    try:
        import duckdb
    except ModuleNotFoundError as error:
        raise InputError("export duckdb: duckdb is not installed; pip install duckdb") from error
    path = Path(path)
    if path.exists():
        raise InputError(f"{path}: exists; a database is not written over: name another file")
    schema, parts = _parts(store, add)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with duckdb.connect(str(beside)) as database:
            reader = pa.RecordBatchReader.from_batches(
                _without_dictionaries(schema), _plain_batches(schema, parts)
            )
            database.register("given", reader)
            database.execute("CREATE TABLE examples AS SELECT * FROM given")
            database.unregister("given")
            for name, table in (("cells", store.cells()), ("documents", store.documents())):
                database.register("given", table)
                database.execute(f"CREATE TABLE {name} AS SELECT * FROM given")
                database.unregister("given")
            ((rows,),) = database.execute("SELECT count(*) FROM examples").fetchall()
        os.replace(beside, path)
    except (OSError, duckdb.Error) as error:
        raise InputError(f"cannot write {path}: {str(error).splitlines()[0]}") from error
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
    return int(rows)


def finite(value: Any) -> Any:
    """The value with ``None`` for what JSON cannot say."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [finite(each) for each in value]
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    return value


def _without_dictionaries(schema: pa.Schema) -> pa.Schema:
    return pa.schema(
        [
            f.with_type(f.type.value_type) if pa.types.is_dictionary(f.type) else f
            for f in schema
        ]
    )  # fmt: skip


def _plain_batches(schema: pa.Schema, parts: Iterable[pa.Table]) -> Iterator[pa.RecordBatch]:
    plain = _without_dictionaries(schema)
    for part in parts:
        yield from part.cast(plain).to_batches()


def write_csv(schema: pa.Schema, parts: Iterable[pa.Table], sink: IO[bytes]) -> int:
    """Writes tables of one schema as :func:`to_csv` does; gives the number of rows."""
    import pyarrow.csv as csv  # only this export needs it

    plain = pa.schema([pa.field(field.name, _csv_type(field.type)) for field in schema])
    rows = 0
    with csv.CSVWriter(sink, plain) as writer:
        for part in parts:
            columns = [text_column(_csv_column(column.combine_chunks())) for column in part.columns]
            writer.write_table(pa.Table.from_arrays(columns, schema=plain))
            rows += part.num_rows
    return rows


def _parts(store: ResultStore, add: AddColumns) -> tuple[pa.Schema, Iterator[pa.Table]]:
    """The joined table's schema, and its parts in that schema."""
    schema = add(store.joined(EXAMPLE_SCHEMA.empty_table())).schema
    return schema, (add(part).select(schema.names).cast(schema) for part in store.iterate())


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


def _write(path: Path, write: Callable[[IO[bytes]], int]) -> int:
    rows = 0

    def counted(sink: IO[bytes]) -> None:
        nonlocal rows
        rows = write(sink)

    try:
        write_atomically(path, counted)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    return rows

"""Rows of a split, read by number: a few thousand of hundreds of thousands never all become Python.

Parquet is read one row group at a time, Arrow files are mapped, of JSON lines only the places of
the lines are kept. Other formats are read whole.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import itertools
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from evalcore.errors import InputError
from evalcore.reading import check_depth, regular_size
from evalcore.tasks.columns import Row
from evalcore.tasks.faults import DataFault, TaskDataError

_MAX_LINE = 1 << 28


class Rows(Protocol):
    """Rows by number, from 0 in file order."""

    def __len__(self) -> int: ...

    def take(self, numbers: Sequence[int]) -> list[Row]:
        """The rows of these numbers, in this order."""
        ...


class ListRows:
    """Rows that are in memory already."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def take(self, numbers: Sequence[int]) -> list[Row]:
        return [self._rows[number] for number in numbers]


class RangeRows:
    """A cut of other rows: ``train[start:stop]``."""

    def __init__(self, rows: Rows, start: int, stop: int | None) -> None:
        self._rows = rows
        self._start = min(start, len(rows))
        self._stop = len(rows) if stop is None else max(self._start, min(stop, len(rows)))

    def __len__(self) -> int:
        return self._stop - self._start

    def take(self, numbers: Sequence[int]) -> list[Row]:
        return self._rows.take([self._start + number for number in numbers])


class JoinedRows:
    """Parts one after the other (files of a split, row groups of a file), opened when asked."""

    def __init__(self, counts: Sequence[int], open_part: Callable[[int], Rows]) -> None:
        self._ends = np.cumsum(counts, dtype=np.int64)
        self._open = open_part

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def take(self, numbers: Sequence[int]) -> list[Row]:
        wanted = np.asarray(numbers, dtype=np.int64)
        parts = np.searchsorted(self._ends, wanted, side="right")
        found: list[Any] = [None] * len(wanted)
        for part in np.unique(parts):
            where = np.flatnonzero(parts == part)
            start = int(self._ends[part - 1]) if part else 0
            rows = self._open(int(part)).take([int(n) - start for n in wanted[where]])
            for place, row in zip(where, rows, strict=True):
                found[place] = row
        return found


class TableRows:
    """Rows of an Arrow table."""

    def __init__(self, table: Any) -> None:
        self._table = table

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def take(self, numbers: Sequence[int]) -> list[Row]:
        import pyarrow as pa

        # one batch at a time: joining the chunks of a text column may pass 2 GiB of offsets
        batches = self._table.to_batches()
        if len(batches) > 1:
            counts = [batch.num_rows for batch in batches]
            parts = [TableRows(pa.Table.from_batches([batch])) for batch in batches]
            return JoinedRows(counts, parts.__getitem__).take(numbers)
        rows: list[Row] = self._table.take(pa.array(numbers, pa.int64())).to_pylist()
        return rows


class JsonLines:
    """Objects of a file with one on each line; blank lines do not count."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lines: list[int] = []
        places: list[int] = []
        place = 0
        with reading(file), file.open("rb") as content:
            for number, line in enumerate(iter(lambda: content.readline(_MAX_LINE + 1), b""), 1):
                if len(line) > _MAX_LINE:
                    raise ValueError(f"line {number}: is longer than {_MAX_LINE:,} bytes")
                if not line.isspace():
                    places.append(place)
                    self._lines.append(number)
                place += len(line)
        self._places = np.asarray(places, dtype=np.int64)
        if places:
            self.take([len(places) - 1])  # a file that was cut short shows it there

    def __len__(self) -> int:
        return len(self._places)

    def take(self, numbers: Sequence[int]) -> list[Row]:
        found: list[Row] = []
        if not len(numbers):
            return found
        with reading(self._file), self._file.open("rb") as content:
            for number in numbers:
                content.seek(int(self._places[number]))
                found.append(_json_row(content.readline(_MAX_LINE + 1), self._lines[number]))
            check_depth(found, f"data: {self._file}")
        return found


@contextlib.contextmanager
def reading(file: Path) -> Iterator[None]:
    """Whatever a data file does to its reader is one line.

    Raises:
        TaskDataError: If the file is broken.
    """
    import pyarrow as pa

    try:
        yield
        return
    except TaskDataError:
        raise
    except (OSError, EOFError, zlib.error, csv.Error, pa.ArrowException, ValueError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
    except InputError as error:
        reason = str(error)
    except (RecursionError, MemoryError, OverflowError) as error:
        # nested beyond what is read, or sizes no memory has; the library says so in its own ways
        reason = f"it is nested too deeply or too large ({type(error).__name__})"
    raise TaskDataError(DataFault.BROKEN_FILE, f"data file {file} is broken: {reason}")


def open_files(files: Sequence[Path]) -> Rows:
    """Rows of the files of a split, one file after the other.

    Raises:
        TaskDataError: If a file is broken, as far as that can be seen without reading all of it.
    """
    parts = [open_file(file) for file in files]
    return parts[0] if len(parts) == 1 else JoinedRows([len(p) for p in parts], parts.__getitem__)


def read_rows(file: Path) -> list[Row]:
    """All rows of a file; errors as of :func:`open_files`."""
    rows = open_file(file)
    return rows.take(range(len(rows)))


def open_file(file: Path) -> Rows:
    """Rows of one parquet, jsonl, json, csv or arrow file; cells of csv are text as written.

    Raises:
        TaskDataError: As :func:`open_files`.
    """
    with reading(file):
        regular_size(file, "data")
        if file.name.endswith(".jsonl"):
            return JsonLines(file)
        if file.name.endswith((".jsonl.gz", ".json")):
            return ListRows(_whole_json(file))
        if file.suffix == ".parquet":
            return _parquet(file)
        return TableRows(_csv(file) if file.suffix == ".csv" else _arrow(file))


def _parquet(file: Path) -> Rows:
    import pyarrow.parquet as pq

    with pq.ParquetFile(file) as opened:
        about = opened.metadata
        counts = [about.row_group(i).num_rows for i in range(about.num_row_groups)]

    def group(number: int) -> Rows:
        with reading(file), pq.ParquetFile(file) as again:
            table = again.read_row_group(number)
            table.validate(full=True)  # the format's reader takes any bytes for text
            return TableRows(table)

    return JoinedRows(counts, group)


def names_of_labels(file: Path) -> dict[str, tuple[str, ...]]:
    """Column -> names of its label ids, where ``datasets`` wrote them into the file's schema."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with reading(file):
        if file.suffix == ".parquet":
            schema = pq.read_schema(file)
        elif file.suffix == ".arrow":
            schema = _arrow_schema(file)
        else:
            return {}
    assert isinstance(schema, pa.Schema)
    try:
        said = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = said["info"]["features"]
        return {
            str(column): tuple(map(str, about["names"]))
            for column, about in features.items()
            if isinstance(about, dict) and isinstance(about.get("names"), list)
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}  # metadata of another writer


def _arrow(file: Path) -> Any:
    import pyarrow as pa

    # Read, not mapped: whoever cuts off a mapped file kills its readers.
    with pa.OSFile(str(file)) as source:
        try:
            table = pa.ipc.open_file(source).read_all()
        except pa.ArrowInvalid:
            source.seek(0)
            table = pa.ipc.open_stream(source).read_all()
    table.validate(full=True)  # the format's reader believes lengths and offsets
    return table


def _arrow_schema(file: Path) -> Any:
    import pyarrow as pa

    with pa.OSFile(str(file)) as source:
        try:
            return pa.ipc.open_file(source).schema
        except pa.ArrowInvalid:
            source.seek(0)
            return pa.ipc.open_stream(source).schema


def _whole_json(file: Path) -> list[Row]:
    if file.suffix == ".gz":
        with gzip.open(file, "rb") as lines:
            numbered = enumerate(iter(lambda: lines.readline(_MAX_LINE + 1), b""), 1)
            rows = [_json_row(line, number) for number, line in numbered if not line.isspace()]
    else:
        rows = json.loads(file.read_text("utf-8"))
        if not isinstance(rows, list) or any(not isinstance(row, dict) for row in rows):
            raise ValueError("expected one JSON object per row")
    check_depth(rows, f"data: {file}")
    return rows


def _json_row(line: bytes, number: int) -> Row:
    if len(line) > _MAX_LINE:
        raise ValueError(f"line {number}: is longer than {_MAX_LINE:,} bytes")
    try:
        row = json.loads(line.decode("utf-8"))
        if b"\\ud" in line or b"\\uD" in line:  # half of a pair is text no tokenizer takes
            json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"line {number}: half of a surrogate pair (\\ud800 to \\udfff) is no text"
        ) from None
    except ValueError as error:
        raise ValueError(f"line {number}: {error}") from None
    if not isinstance(row, dict):
        raise ValueError(f"line {number}: expected one JSON object per row")
    return row


def _csv(file: Path) -> Any:
    """Every cell as text: a type guessed by column would turn 1.50 into 1.5 and 00701 into 701.

    Only an empty cell without quotes is missing; NA, null and nan are text like any other.
    """
    import pyarrow as pa
    import pyarrow.csv

    with open(file, encoding="utf-8-sig", newline="") as lines:
        # The first record by a plain reader, bounded: names of columns are short.
        head = "".join(itertools.islice(iter(lambda: lines.read(65_536), ""), 16))
    names = next(csv.reader(io.StringIO(head, newline="")), [])
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"column {twice[0]!r} is given twice")
    return pyarrow.csv.read_csv(
        file,
        parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()),
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
            null_values=[""],
        ),
    )

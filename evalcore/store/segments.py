"""Segments: the files in which examples are committed.

A segment is an Arrow IPC *file* (zstd, one schema, dictionaries unified) that may span cells, with
checksums (see ``evalcore.checked``). Its footer states its coverage, so a resume reads footers
only. It appears under its final name whole or not at all, hence a segment that is listed is
committed, and there is no second ledger.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc as ipc

from evalcore.checked import (
    ARROW_SUFFIX,
    CheckedArrow,
    DamagedFile,
    is_checked,
    parse_whole,
    read_end,
    require_regular,
    write_table,
)
from evalcore.errors import IncompatibleError, ResultsError
from evalcore.files import utc_stamp
from evalcore.store.access import patiently, read_bytes
from evalcore.store.coverage import SegmentCoverage
from evalcore.store.migration import check_version
from evalcore.store.schema import EXAMPLE_SCHEMA, SCHEMA_VERSION, conform

log = logging.getLogger("evalcore")

SEGMENT_SUFFIX = ".arrow"
FLUSH_BYTES = 64 * 1024 * 1024
FLUSH_AGE_S = 60.0
_SMALL_BYTES = 1 << 20
"""Files up to this size are unpacked by one thread: handing out their columns costs more."""
_VERSION_KEY = b"evalcore.schema_version"
_ROWS_KEY = b"evalcore.rows"
_COVERAGE_KEY = b"evalcore.coverage"


@dataclass(frozen=True)
class Segment:
    """A segment's file."""

    path: Path
    num_rows: int
    num_bytes: int

    @property
    def checked(self) -> bool:
        """Whether it has checksums (segments of schema 2 have none)."""
        return is_checked(self.path)


@dataclass(frozen=True)
class SegmentInfo(Segment):
    """What a segment's footer says."""

    coverage: SegmentCoverage


@dataclass(frozen=True)
class SegmentRows:
    """What could be read of a segment.

    Attributes:
        table: Its sound rows.
        lost: [start, stop) of rows that are damaged.
        reason: Why, if any are.
    """

    table: pa.Table
    lost: tuple[tuple[int, int], ...] = ()
    reason: str | None = None

    @property
    def num_lost(self) -> int:
        return sum(stop - start for start, stop in self.lost)


class UnreadableSegment(Exception):
    """The file is not a whole segment of ours; the reason is the message."""


class SegmentWriter:
    """Collects rows of one worker and commits them as segments.

    Not for several threads. Rows count as done only once :meth:`flush` has returned the path; it
    alone commits, so that who calls it knows what is committed. Use as a context manager: a normal
    end flushes.
    """

    def __init__(
        self,
        folder: Path,
        worker_name: str,
        *,
        flush_bytes: int = FLUSH_BYTES,
        flush_age_s: float = FLUSH_AGE_S,
    ) -> None:
        self._folder = folder
        self._worker = _file_name_part(worker_name)
        self._flush_bytes = flush_bytes
        self._flush_age_s = flush_age_s
        self._tables: list[pa.Table] = []
        self._num_bytes = 0
        self._oldest_s = 0.0
        self._last_ns = 0

    @property
    def num_rows(self) -> int:
        """Rows taken but not yet committed."""
        return sum(table.num_rows for table in self._tables)

    def add(
        self, rows: pa.Table | pa.RecordBatch | list[dict[str, Any]], *, age_s: float = 0.0
    ) -> None:
        """Takes rows of :data:`EXAMPLE_SCHEMA`; commits nothing (see :meth:`due`).

        Args:
            rows: All of them are taken, or none.
            age_s: Seconds since work on them began.

        Raises:
            IncompatibleError: The rows do not fit the schema; none of them was taken.
        """
        table = conform(rows, EXAMPLE_SCHEMA, "rows for a segment")
        if table.num_rows:
            if not self._tables:
                self._oldest_s = time.monotonic() - age_s
            self._tables.append(table)
            self._num_bytes += table.nbytes

    def due(self, ahead_s: float = 0.0) -> bool:
        """Whether rows wait that are large enough to be committed, or old enough in so long."""
        if not self._tables:
            return False
        aged = time.monotonic() + ahead_s - self._oldest_s >= self._flush_age_s
        return aged or self._num_bytes >= self._flush_bytes

    def flush(self) -> Path | None:
        """Commits all rows taken so far, durably.

        Returns:
            Path of the new segment; None if there was nothing to commit.

        Raises:
            ResultsError: The segment cannot be written; the rows are kept for another try.
        """
        if not self._tables:
            return None
        # A clock that steps back must not reorder the segments of one writer.
        self._last_ns = max(time.time_ns(), self._last_ns + 1000)
        name = f"{utc_stamp(self._last_ns)}-{self._worker}-{secrets.token_hex(6)}{ARROW_SUFFIX}"
        path = write_segment(self._folder / name, pa.concat_tables(self._tables))
        self._tables, self._num_bytes = [], 0
        return path

    def close(self) -> Path | None:
        """Same as :meth:`flush`; the writer can be used again."""
        return self.flush()

    def __enter__(self) -> SegmentWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()


def write_segment(path: Path, table: pa.Table) -> Path:
    """Commits ``table`` (of :data:`EXAMPLE_SCHEMA`) as one segment named ``path``.

    Raises:
        ResultsError: The file system refused.
    """
    table = table.unify_dictionaries().combine_chunks()
    coverage = SegmentCoverage.of_rows(table.column("cell"), table.column("doc_id"))
    metadata = {
        _VERSION_KEY: str(SCHEMA_VERSION).encode(),
        _ROWS_KEY: str(table.num_rows).encode(),
        _COVERAGE_KEY: coverage.encode(),
    }
    try:
        write_table(path, table, metadata=metadata)
    except OSError as error:
        raise ResultsError(
            f"cannot write results to {path.parent}: {error.strerror or error}; "
            "make room or give another folder, then run again: committed rows are kept"
        ) from error
    return path


def merged_name(oldest: Path) -> str:
    """Name of a segment that takes another's place: it sorts where the other did.

    ``<time>+<random>``: "+" sorts before the "-" that follows the time in writers' names.
    """
    stamp = oldest.name.split("Z", 1)[0]
    return f"{stamp}Z+{secrets.token_hex(6)}{ARROW_SUFFIX}"


def list_segments(folder: Path) -> list[Path]:
    """Paths of committed segments, in the order in which the first of equal rows wins.

    Raises:
        ResultsError: The folder cannot be read: what is committed cannot be told.
    """
    try:
        names = patiently(folder, lambda folder: os.listdir(folder))
    except FileNotFoundError:
        return []
    return [
        folder / name
        for name in sorted(names)
        if name.endswith(SEGMENT_SUFFIX) and not name.startswith(".")
    ]


def read_info(path: Path) -> SegmentInfo:
    """Reads and checks a segment's footer, and nothing else of the file.

    Raises:
        UnreadableSegment: Damaged, torn, or not written by evalcore.
        IncompatibleError: Of a newer schema.
        FileNotFoundError: Gone (a compaction replaced it).
        ResultsError: It cannot be read; that is not damage.
    """
    metadata, num_bytes = _footer(path)
    with _stated():
        coverage = SegmentCoverage.decode(metadata[_COVERAGE_KEY])
        num_rows = int(metadata[_ROWS_KEY])
    return SegmentInfo(path, num_rows, num_bytes, coverage)


def _footer(path: Path) -> tuple[Mapping[bytes, bytes], int]:
    """(metadata of a segment's checked footer, bytes of the file)."""
    try:
        metadata, num_bytes = patiently(path, _stated_metadata)
    except DamagedFile as error:
        raise UnreadableSegment(f"damaged: {error}") from error
    except pa.ArrowException as error:
        raise UnreadableSegment(f"not a whole Arrow file ({_first_line(error)})") from error
    if _VERSION_KEY not in metadata or _COVERAGE_KEY not in metadata:
        raise UnreadableSegment("not written by evalcore (its footer states no coverage)")
    with _stated():
        check_version(int(metadata[_VERSION_KEY]), str(path))
    return metadata, num_bytes


def _stated_metadata(path: Path) -> tuple[Mapping[bytes, bytes], int]:
    require_regular(path)
    num_bytes = path.stat().st_size
    if is_checked(path):
        return read_end(path).metadata, num_bytes
    with pa.OSFile(str(path)) as source:
        return ipc.open_file(source).metadata or {}, num_bytes


@contextlib.contextmanager
def _stated() -> Iterator[None]:
    """Whatever goes wrong with reading what a footer states: the segment is not readable."""
    try:
        yield
    except IncompatibleError:
        raise
    except (ValueError, KeyError, TypeError, IndexError, RecursionError, pa.ArrowException,
            OSError, MemoryError) as error:  # fmt: skip
        raise UnreadableSegment(f"its coverage is damaged ({_first_line(error)})") from error


def read_rows(info: Segment, columns: Sequence[str] | None = None) -> SegmentRows:
    """Reads a segment's rows, each byte checked before it is parsed.

    Args:
        info: The segment.
        columns: Columns wanted, in this order; None for all.

    Returns:
        The sound rows; where some are not, which and why.

    Raises:
        FileNotFoundError: Gone (a compaction replaced it).
        ResultsError: It cannot be read; that is not damage.
    """
    names = EXAMPLE_SCHEMA.names if columns is None else list(columns)
    schema = pa.schema([EXAMPLE_SCHEMA.field(name) for name in names])
    try:
        data = read_bytes(info.path)
        lost: list[tuple[int, int]] = []
        sound = None
        if info.checked:
            end = parse_whole(data)
            sound, lost = _sound_batches(end, end.damaged(data))
        table = _parse(data, names, sound)
        table = conform(table, schema, str(info.path))
    except FileNotFoundError:
        raise
    except DamagedFile as error:
        return SegmentRows(schema.empty_table(), ((0, info.num_rows),), str(error))
    except (pa.ArrowException, OSError, KeyError, ValueError, IncompatibleError) as error:
        return SegmentRows(schema.empty_table(), ((0, info.num_rows),), _first_line(error))
    return SegmentRows(table, tuple(lost), "they fail their checksum" if lost else None)


def _sound_batches(
    end: CheckedArrow, damaged: Sequence[int]
) -> tuple[list[int], list[tuple[int, int]]]:
    """(numbers of the batches that can be read, [start, stop) of the rows of the others)."""
    bad = set(damaged)
    sound, lost, row = [], [], 0
    for number, part in enumerate(end.parts[: end.num_batches]):
        # The first part holds the dictionaries of all.
        if number in bad or 0 in bad:
            lost.append((row, row + part.rows))
        else:
            sound.append(number)
        row += part.rows
    return sound, lost


def _parse(data: bytes, names: Sequence[str], batches: Sequence[int] | None) -> pa.Table:
    """The named columns there are, of the given batches (None: of all)."""
    source = pa.BufferReader(data)
    if batches is not None and not batches:
        return pa.table({})
    schema = ipc.open_file(source).schema
    fields = sorted(i for name in names if (i := schema.get_field_index(name)) >= 0)
    options = ipc.IpcReadOptions(included_fields=fields, use_threads=len(data) > _SMALL_BYTES)
    reader = ipc.open_file(source, options=options)
    numbers = range(reader.num_record_batches) if batches is None else batches
    return pa.Table.from_batches([reader.get_batch(i) for i in numbers], reader.schema)


def _file_name_part(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.]+", "_", text)[:64] or "worker"


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200]

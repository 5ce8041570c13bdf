"""Segments: the files in which examples are committed.

A segment is an Arrow IPC *file* (zstd, one schema, dictionaries unified) that may span cells. Its
footer states its coverage, so a resume reads footers only. It appears under its final name whole
or not at all, hence a segment that is listed is committed, and there is no second ledger.
"""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.ipc as ipc

from evalcore.errors import DataError, IncompatibleError, ResultsError
from evalcore.store.coverage import SegmentCoverage
from evalcore.store.files import utc_stamp, write_atomically
from evalcore.store.schema import EXAMPLE_SCHEMA, SCHEMA_VERSION, conform

log = logging.getLogger("evalcore")

SEGMENT_SUFFIX = ".arrow"
FLUSH_BYTES = 64 * 1024 * 1024
FLUSH_AGE_S = 60.0
_ROWS_PER_BATCH = 65_536
_VERSION_KEY = b"evalcore.schema_version"
_ROWS_KEY = b"evalcore.rows"
_COVERAGE_KEY = b"evalcore.coverage"


@dataclass(frozen=True)
class SegmentInfo:
    """What a segment's footer says."""

    path: Path
    num_rows: int
    num_bytes: int
    coverage: SegmentCoverage


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

    def add(self, rows: pa.Table | pa.RecordBatch | list[dict], *, age_s: float = 0.0) -> None:
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
        name = f"{utc_stamp(self._last_ns)}-{self._worker}-{secrets.token_hex(6)}{SEGMENT_SUFFIX}"
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

    def write(sink: IO[bytes]) -> None:
        options = ipc.IpcWriteOptions(compression="zstd")
        with ipc.new_file(sink, table.schema, options=options, metadata=metadata) as writer:
            writer.write_table(table, max_chunksize=_ROWS_PER_BATCH)

    try:
        write_atomically(path, write)
    except OSError as error:
        raise ResultsError(
            f"cannot write results to {path.parent}: {error.strerror or error}; "
            "make room or give another folder, then run again: committed rows are kept"
        ) from error
    return path


def list_segments(folder: Path) -> list[Path]:
    """Paths of committed segments, in the order in which the first of equal rows wins."""
    return sorted(
        path for path in folder.glob(f"*{SEGMENT_SUFFIX}") if not path.name.startswith(".")
    )


def read_info(path: Path) -> SegmentInfo:
    """Reads a segment's footer, and nothing else of the file.

    Raises:
        UnreadableSegment: Torn, or not written by evalcore.
        IncompatibleError: Of another schema version.
        FileNotFoundError: Gone (a compaction replaced it).
    """
    try:
        with pa.OSFile(str(path)) as source:
            num_bytes = source.size()
            metadata = ipc.open_file(source).metadata or {}
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise UnreadableSegment(f"not a whole Arrow file ({_first_line(error)})") from error
    version = metadata.get(_VERSION_KEY)
    if version is None or _COVERAGE_KEY not in metadata:
        raise UnreadableSegment("not written by evalcore (its footer states no coverage)")
    if version != str(SCHEMA_VERSION).encode():
        raise IncompatibleError(
            f"{path}: segment of schema {version.decode(errors='replace')}, this evalcore reads "
            f"schema {SCHEMA_VERSION}; use the evalcore that wrote it or another results folder"
        )
    try:
        coverage = SegmentCoverage.decode(metadata[_COVERAGE_KEY])
        num_rows = int(metadata[_ROWS_KEY])
    except (ValueError, KeyError, TypeError, pa.ArrowException, OSError) as error:
        raise UnreadableSegment(f"its coverage is damaged ({_first_line(error)})") from error
    return SegmentInfo(path, num_rows, num_bytes, coverage)


def read_rows(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Reads a segment's rows.

    Args:
        path: A segment that :func:`read_info` accepted.
        columns: Columns wanted, in this order; None for all.

    Raises:
        DataError: The footer is whole but the rows are damaged.
        FileNotFoundError: Gone (a compaction replaced it).
    """
    names = EXAMPLE_SCHEMA.names if columns is None else list(columns)
    fields = sorted(EXAMPLE_SCHEMA.get_field_index(name) for name in names)
    try:
        # Not a memory map: buffers are decompressed anyway, and a map of a file that vanishes on
        # a network file system kills the process instead of raising.
        with pa.OSFile(str(path)) as source:
            options = ipc.IpcReadOptions(included_fields=fields)
            return ipc.open_file(source, options=options).read_all().select(names)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, KeyError) as error:
        raise DataError(
            f"{path}: segment is damaged ({_first_line(error)}); remove the file and run the same "
            "command again: its rows are then scored anew"
        ) from error


def _file_name_part(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.]+", "_", text)[:64] or "worker"


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200]

"""A results folder.

Layout::

    RESULTS/store.json         format and schema version
    RESULTS/cells/*.arrow      per-cell constants, named by content
    RESULTS/segments/*.arrow   examples; each footer states its coverage
    RESULTS/runs/*.json        one record per run
    RESULTS/cache/             encoded requests; may be deleted

Any number of processes may write to one folder at once; nothing is ever changed in place.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc as ipc

from evalcore.errors import IncompatibleError, InputError
from evalcore.store.compaction import CompactReport, compact_segments
from evalcore.store.coverage import Coverage
from evalcore.store.files import remove_stale_temporaries, utc_stamp, write_atomically
from evalcore.store.reading import join_cells, read_examples
from evalcore.store.runs import RunLog
from evalcore.store.schema import CELL_SCHEMA, EXAMPLE_SCHEMA, SCHEMA_VERSION, conform, joined_name
from evalcore.store.segments import (
    SEGMENT_SUFFIX,
    SegmentInfo,
    SegmentWriter,
    UnreadableSegment,
    list_segments,
    read_info,
)

log = logging.getLogger("evalcore")

FORMAT_NAME = "evalcore-results"
_WRITTEN_KEY = b"evalcore.written"
_ATTEMPTS = 5
_T = TypeVar("_T")


class ResultStore:
    """Opens, and if needed creates, a results folder.

    Args:
        path: The folder.
        read_only: Create and check nothing; the folder must be one already.

    Raises:
        InputError: The folder cannot be written (or, read only, holds no results).
        IncompatibleError: Its results are of another schema version.
    """

    def __init__(self, path: str | os.PathLike[str], *, read_only: bool = False) -> None:
        self.path = Path(path)
        self.read_only = read_only
        self.cells_folder = self.path / "cells"
        self.segments_folder = self.path / "segments"
        self.cache_folder = self.path / "cache"
        self.runs = RunLog(self.path / "runs")
        self._warned: set[str] = set()
        if read_only:
            if not (self.path / "store.json").is_file():
                raise InputError(
                    f"no results in {self.path}: it has no store.json; give the folder that "
                    "`evalcore score -o` wrote"
                )
        else:
            self._create()
        self._check_version()

    # Writing ---------------------------------------------------------------------------------

    def open_writer(self, worker_name: str, **limits: Any) -> SegmentWriter:
        """Gives a writer of segments; ``worker_name`` becomes part of their names.

        ``limits``: ``flush_bytes``, ``flush_age_s`` of :class:`SegmentWriter`.
        """
        return SegmentWriter(self.segments_folder, worker_name, **limits)

    def write_cells(self, rows: Sequence[dict[str, Any]]) -> Path | None:
        """Records the constants of cells; the same rows a second time write nothing.

        Returns:
            The file that holds them; None for no rows.

        Raises:
            IncompatibleError: A row does not fit :data:`CELL_SCHEMA`.
            InputError: The folder cannot be written.
        """
        if not rows:
            return None
        table = conform(list(rows), CELL_SCHEMA, "rows for the cells table").sort_by("cell")
        content = json.dumps([SCHEMA_VERSION, table.to_pylist()], sort_keys=True)
        name = hashlib.blake2b(content.encode(), digest_size=16).hexdigest()
        path = self.cells_folder / f"{name}{SEGMENT_SUFFIX}"
        if path.exists():
            return path

        def write(sink: IO[bytes]) -> None:
            options = ipc.IpcWriteOptions(compression="zstd")
            metadata = {_WRITTEN_KEY: utc_stamp().encode()}
            with ipc.new_file(sink, CELL_SCHEMA, options=options, metadata=metadata) as writer:
                writer.write_table(table)

        try:
            write_atomically(path, write)
        except OSError as error:
            raise _not_writable(self.path, error) from error
        return path

    def compact(self, **options: Any) -> CompactReport:
        """Merges small segments into few and drops doubled rows; safe to kill, safe beside writers.

        ``options``: see :func:`evalcore.store.compaction.compact_segments`.
        """
        return self._retried(
            lambda: compact_segments(self.segments_folder, self._infos(), **options)
        )

    # Reading ---------------------------------------------------------------------------------

    def coverage(self) -> Coverage:
        """What is committed: cell -> document ids, from footers only."""
        return Coverage(info.coverage for info in self._retried(self._infos))

    def cells(self) -> pa.Table:
        """The cells table (:data:`CELL_SCHEMA`), one row per cell, ordered by cell.

        Where a cell was recorded more than once (by other versions), the first record wins.
        """
        tables = []
        for path in sorted(self.cells_folder.glob(f"[!.]*{SEGMENT_SUFFIX}")):
            try:
                with pa.OSFile(str(path)) as source:
                    reader = ipc.open_file(source)
                    written = (reader.metadata or {}).get(_WRITTEN_KEY)
                    if written is None or reader.schema != CELL_SCHEMA:
                        raise pa.ArrowInvalid("not a cells table of evalcore")
                    tables.append((written, path.name, reader.read_all()))
            except (pa.ArrowException, OSError) as error:
                self._warn_once(path, str(error).split("\n")[0])
        ordered = [table for _, _, table in sorted(tables, key=lambda entry: entry[:2])]
        table = pa.concat_tables([CELL_SCHEMA.empty_table(), *ordered])
        first: dict[str, int] = {}
        for row, cell in enumerate(table.column("cell").to_pylist()):
            first.setdefault(cell, row)
        rows = [first[cell] for cell in sorted(first)]
        return table.take(pa.array(rows, type=pa.int64())).combine_chunks()

    def examples(
        self,
        columns: Sequence[str] | None = None,
        filter: pc.Expression | None = None,
        *,
        cells: Collection[str] | None = None,
    ) -> pa.Table:
        """Examples without doubles: the first by (cell, document, segment name).

        Args:
            columns: Columns wanted, in this order; None for all of :data:`EXAMPLE_SCHEMA`.
            filter: Arrow expression on example columns.
            cells: Only these cells; segments without any of them are not opened.

        Raises:
            UnknownNameError: A column that does not exist.
            DataError: A segment's rows are damaged.
        """
        chosen = None if cells is None else frozenset(cells)

        def read() -> pa.Table:
            paths = [
                info.path
                for info in self._infos()
                if chosen is None or not chosen.isdisjoint(info.coverage.cells)
            ]
            return read_examples(paths, columns, filter, chosen)

        return self._retried(read)

    def read(
        self,
        columns: Sequence[str] | None = None,
        filter: pc.Expression | None = None,
        *,
        cells: Collection[str] | None = None,
    ) -> pa.Table:
        """Examples joined with the constants of their cells.

        A name both tables have (``shots``) is the example's; the cell's is ``cell_shots``. Text
        columns of cells are dictionary-encoded.

        Args:
            columns: Columns of the joined table wanted; None for all.
            filter: Arrow expression on columns of the joined table.
            cells: Only these cells.
        """
        constants = self.cells()
        from_cells = {joined_name(name) for name in CELL_SCHEMA.names} - {"cell"}
        text = str(filter) if filter is not None else ""
        own = None
        if columns is not None:
            own = [
                name
                for name in dict.fromkeys([*columns, *EXAMPLE_SCHEMA.names])
                if name not in from_cells and (name in columns or name == "cell" or name in text)
            ]
        examples = self.examples(own, cells=cells)
        missing = set(pc.unique(examples.column("cell")).to_pylist())
        missing -= set(constants.column("cell").to_pylist())
        if missing:
            self._warn_once(
                self.cells_folder, f"no constants of {len(missing)} cells, e.g. {min(missing)}"
            )
        table = join_cells(examples, constants)
        if filter is not None:
            try:
                table = table.filter(filter)
            except pa.ArrowException as error:
                raise InputError(f"filter {text!r} does not fit the results: {error}") from error
        return table if columns is None else table.select(list(columns))

    # Parts -----------------------------------------------------------------------------------

    def _infos(self) -> list[SegmentInfo]:
        infos = []
        for path in list_segments(self.segments_folder):
            try:
                infos.append(read_info(path))
            except UnreadableSegment as error:
                self._warn_once(path, str(error))
        return infos

    def _retried(self, action: Callable[[], _T]) -> _T:
        """Runs ``action`` again when a compaction took a listed segment away meanwhile."""
        for attempt in range(_ATTEMPTS):
            try:
                return action()
            except FileNotFoundError:
                if attempt == _ATTEMPTS - 1:
                    raise
                time.sleep(0.05 * 2**attempt)
        raise AssertionError("unreachable")

    def _warn_once(self, path: Path, reason: str) -> None:
        if str(path) not in self._warned:
            self._warned.add(str(path))
            log.warning("ignored %s: %s", path, reason)

    def _create(self) -> None:
        folders = (self.segments_folder, self.cells_folder, self.runs.folder, self.cache_folder)
        try:
            for folder in folders:
                folder.mkdir(parents=True, exist_ok=True)
            for folder in (self.path, *folders[:3]):
                # Permission bits do not tell (root, read-only mounts): only writing does.
                with tempfile.TemporaryFile(dir=folder):
                    pass
                remove_stale_temporaries(folder)
            settings = self.path / "store.json"
            if not settings.exists():
                # Two processes may both come here: they write the same.
                content = {"format": FORMAT_NAME, "schema_version": SCHEMA_VERSION}
                text = json.dumps(content, indent=1) + "\n"
                write_atomically(settings, lambda sink: sink.write(text.encode()))
        except OSError as error:
            raise _not_writable(self.path, error) from error

    def _check_version(self) -> None:
        path = self.path / "store.json"
        try:
            content = json.loads(path.read_bytes())
            name, version = content["format"], content["schema_version"]
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror or error}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise IncompatibleError(
                f"{path} is not evalcore's (it must name format and schema_version); give another "
                "results folder"
            ) from error
        if name != FORMAT_NAME or version != SCHEMA_VERSION:
            raise IncompatibleError(
                f"{self.path} holds results of format {name!r}, schema {version}; this evalcore "
                f"reads {FORMAT_NAME!r}, schema {SCHEMA_VERSION}: give another results folder, or "
                "use the evalcore that wrote these"
            )


def _not_writable(path: Path, error: OSError) -> InputError:
    reason = error.strerror or str(error)
    return InputError(f"results folder {path} cannot be written ({reason}); give another with -o")

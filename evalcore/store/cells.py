"""The cells table: what is recorded of each cell, and which definition is the current one.

What describes a cell can be corrected: of several records of one cell the newest counts. A prompt
or task that was mended makes other cells; of all cells with one subject, task name, variant name
and numerics the one that was asked for last (of those with rows) is *current*, the others are
*superseded*. A cell can also be *dropped*, or *sampled*: scored on a few documents that were drawn
for an estimate over many prompts, so that its own mean is no score. All stay on disk; readers take
current cells.
"""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc as ipc

from evalcore.checked import (
    ARROW_SUFFIX,
    JSON_SUFFIX,
    DamagedFile,
    is_checked,
    read_end,
    read_json,
    read_table,
    require_regular,
    write_batches,
    write_json,
)
from evalcore.errors import ResultsError, UnknownNameError
from evalcore.files import utc_stamp
from evalcore.store.access import listed, patiently
from evalcore.store.cell_rows import CellRows, Codes
from evalcore.store.migration import OLDEST_VERSION, check_version, upgrade_cells
from evalcore.store.schema import CELL_SCHEMA, SCHEMA_VERSION

log = logging.getLogger("evalcore")

CellState = Literal["current", "sampled", "superseded", "dropped"]
GROUP = ("subject", "task", "variant", "numerics")
"""Cells that share these are definitions of one thing."""
_ROWS_AT_ONCE = 65_536
_WRITTEN_KEY = b"evalcore.written"
_VERSION_KEY = b"evalcore.schema_version"


@dataclass(frozen=True)
class CellRecords:
    """The newest record of every cell.

    Attributes:
        table: One row per cell, ordered by cell, each with when it was recorded.
        sampled: Cell -> what was drawn (see ``ResultStore.mark_sampled``).
    """

    table: pa.Table
    dropped: frozenset[str]
    sampled: Mapping[str, Mapping[str, Any]]

    @cached_property
    def rows(self) -> dict[str, dict[str, Any]]:
        """By cell; where few columns are wanted, take them of ``table``."""
        return {row["cell"]: row for row in self.table.to_pylist()}

    @cached_property
    def recorded(self) -> dict[str, str]:
        """Cell -> when it was recorded."""
        columns = (self.table[name].to_pylist() for name in ("cell", "recorded"))
        return dict(zip(*columns, strict=True))

    def groups(self) -> list[list[str]]:
        """Cells that are definitions of one thing, oldest first; those that stand alone too."""
        found: dict[tuple[Any, ...], list[str]] = defaultdict(list)
        for cell, group in zip(self.table["cell"].to_pylist(), _groups(self.table), strict=True):
            found[group].append(cell)
        return [
            sorted(cells, key=lambda cell: (self.recorded[cell], cell)) if len(cells) > 1 else cells
            for cells in found.values()
        ]

    def newest(self, cells: list[str]) -> list[str]:
        """Those that were asked for last; several only where one run asked for them (models of the
        same weights with other tokenizers)."""
        last = max((self.recorded[cell] for cell in cells), default="")
        return [cell for cell in cells if self.recorded[cell] == last]

    def states(self, with_rows: Callable[[], Set[str]]) -> dict[str, CellState]:
        """State of every cell.

        Args:
            with_rows: Gives the cells that have rows; asked only where there is a choice.
        """
        states: dict[str, CellState] = {}
        for cells in self.groups():
            left = [cell for cell in cells if cell not in self.dropped]
            scored = [c for c in left if c in with_rows()] if len(left) > 1 else left
            current = self.newest(scored or left)
            for cell in cells:
                states[cell] = (
                    "dropped" if cell in self.dropped
                    else "superseded" if cell not in current
                    else "sampled" if cell in self.sampled
                    else "current"
                )  # fmt: skip
        return states


class CellTables:
    """The ``cells`` folder: tables of records, and marks of dropped cells; only ever added to."""

    def __init__(self, folder: Path, warn: Callable[[Path, str], None]) -> None:
        self.folder = folder
        self._warn = warn
        self._kept: tuple[tuple[object, ...], pa.Table] | None = None

    def files(self) -> list[Path]:
        return listed(self.folder, "[!.]*.arrow")

    def mark_files(self) -> list[Path]:
        return listed(self.folder, f"[!.]*{JSON_SUFFIX}")

    def read(self) -> CellRecords:
        """Every cell's newest record.

        Raises:
            IncompatibleError: A file is of a newer schema.
        """
        return CellRecords(self._table(), *self._marks())

    def _table(self) -> pa.Table:
        """Newest record of every cell, from memory while the folder holds the same files."""
        files = self.files()
        there = tuple((path.name, *_state_of(path)) for path in files)
        if self._kept is not None and self._kept[0] == there:
            return self._kept[1]
        tables = []
        for path in files:
            try:
                written, table = patiently(path, read_cells_file)
            except FileNotFoundError:
                continue
            except DamagedFile as error:
                self._warn(path, str(error))
                continue
            tables.append((written, path.name, table))
        tables.sort(key=lambda entry: entry[:2])
        dated = [_dated(each, written) for written, _, each in tables]
        table = pa.concat_tables([CELL_SCHEMA.empty_table(), *dated])
        if len(dated) > 1 or pc.count_distinct(table["cell"]).as_py() < table.num_rows:
            table = _last_of_each(table)
        self._kept = (there, table.sort_by("cell"))
        return self._kept[1]

    def write(self, rows: CellRows, known: CellRecords | None = None) -> Path | None:
        """Records what is not recorded like this already; see ``ResultStore.write_cells``."""
        known = self.read() if known is None else known
        keys = rows.column("cell")
        order = pc.array_sort_indices(keys).to_numpy().astype(np.int64)
        wanted = order if not known.table.num_rows else self._news(known, rows, order)
        again = known.dropped & set(keys.to_pylist()) if known.dropped else ()
        if again:
            log.warning(
                "%d of these cells were dropped and stay so: `evalcore cells %s restore`",
                len(again), self.folder.parent,
            )  # fmt: skip
        if not len(wanted):
            return None
        # A clock that steps back must not make an old definition the newest.
        last = pc.max(known.table["recorded"]).as_py() if known.table.num_rows else None
        stamp = _after(utc_stamp(), last or "")
        path = self.folder / f"{stamp}-{secrets.token_hex(8)}{ARROW_SUFFIX}"
        metadata = {_WRITTEN_KEY: stamp.encode(), _VERSION_KEY: str(SCHEMA_VERSION).encode()}
        batches = (
            batch
            for begin in range(0, len(wanted), _ROWS_AT_ONCE)
            for batch in _dated(rows.take(wanted[begin : begin + _ROWS_AT_ONCE]), stamp)
            .combine_chunks()
            .to_batches()
        )
        try:
            write_batches(path, CELL_SCHEMA, batches, metadata=metadata)
        except OSError as error:
            raise not_writable(self.folder, error) from error
        return path

    @staticmethod
    def _news(known: CellRecords, rows: CellRows, order: Codes) -> Codes:
        """Rows, in their order, that are new, described otherwise, or superseded."""
        latest = {cell for cells in known.groups() for cell in known.newest(cells)}
        begins = range(0, len(order), _ROWS_AT_ONCE)
        asked = [rows.take(order[begin : begin + _ROWS_AT_ONCE]) for begin in begins]
        news = np.concatenate([~_recorded_so(part, known.table) for part in asked])
        keys = [cell for part in asked for cell in part["cell"].to_pylist()]
        # A correction keeps when it was asked for.
        given = np.concatenate([_flags(pc.is_valid(part["recorded"])) for part in asked])
        news |= ~given & np.array([cell not in latest for cell in keys], dtype=np.bool_)
        if not news.any():
            return order[:0]
        # What one run asks for together stays together: all of it is current.
        groups = [group for part in asked for group in _groups(part)]
        fresh = {groups[i] for i in np.flatnonzero(news & ~given).tolist()}
        along = np.array([group in fresh for group in groups], dtype=np.bool_)
        there = {keys[i] for i in np.flatnonzero(news).tolist()}
        along &= np.array([cell not in there for cell in keys], dtype=np.bool_)
        return np.concatenate([order[news], order[along]])

    def mark(self, cells: Iterable[str], dropped: bool) -> int:
        """Marks cells as dropped, or no longer; returns how many were not so before.

        Raises:
            UnknownNameError: A cell that is not recorded.
            ResultsError: The folder cannot be written.
        """
        known = self.read()
        cells = sorted(set(cells))
        for cell in cells:
            if cell not in known.rows:
                raise UnknownNameError("cell", cell, known.rows)
        changed = [cell for cell in cells if (cell in known.dropped) != dropped]
        if changed:
            self._write_mark({"dropped": dropped, "cells": changed})
        return len(changed)

    def mark_sampled(self, cells: Mapping[str, Mapping[str, Any] | None]) -> None:
        """See ``ResultStore.mark_sampled``."""
        known = self.read().sampled
        groups: dict[str, list[str]] = defaultdict(list)
        for cell, how in sorted(cells.items()):
            if (None if how is None else dict(how)) != known.get(cell):
                groups[json.dumps(how, sort_keys=True)].append(cell)
        for text, changed in groups.items():
            self._write_mark({"sampled": json.loads(text), "cells": changed})

    def _write_mark(self, record: dict[str, Any]) -> None:
        last = max((path.name.split("-")[0] for path in self.mark_files()), default="")
        stamp = _after(utc_stamp(), last)
        text = json.dumps([stamp, record], sort_keys=True)
        digest = hashlib.blake2b(text.encode(), digest_size=8)
        path = self.folder / f"{stamp}-{digest.hexdigest()}{JSON_SUFFIX}"
        try:
            write_json(path, {"written": stamp, **record})
        except OSError as error:
            raise not_writable(self.folder, error) from error

    def _marks(self) -> tuple[frozenset[str], dict[str, dict[str, Any]]]:
        """Cells that are dropped, and those that are sampled with how."""
        dropped: set[str] = set()
        sampled: dict[str, dict[str, Any]] = {}
        for path in self.mark_files():
            try:
                record = patiently(path, read_json)
                cells = record["cells"]
                if "sampled" not in record:
                    dropped = dropped | set(cells) if record["dropped"] else dropped - set(cells)
                    continue
                how = record["sampled"]
            except (DamagedFile, FileNotFoundError, KeyError) as error:
                self._warn(path, str(error))
                continue
            for cell in cells:
                sampled.pop(cell, None)
                if how is not None:
                    sampled[cell] = how
        return frozenset(dropped), sampled


def _state_of(path: Path) -> tuple[int, int]:
    """Size and time of a file; (-1, -1) where it is gone."""
    try:
        about = path.stat()
    except OSError:
        return -1, -1
    return about.st_size, about.st_mtime_ns


def read_cells_file(path: Path) -> tuple[str, pa.Table]:
    """(when it was written, its rows in the present schema).

    Raises:
        DamagedFile: Its bytes are not those that were written, or not evalcore's.
        IncompatibleError: Of a newer schema.
        OSError: It cannot be read.
    """
    if is_checked(path):
        metadata = read_end(path).metadata
        version = check_version(int(metadata.get(_VERSION_KEY, b"0")), str(path))
        table = read_table(path)
    else:  # schema 2
        try:
            require_regular(path)
            with pa.OSFile(str(path)) as source:
                reader = ipc.open_file(source)
                metadata, version = reader.metadata or {}, OLDEST_VERSION
                if _WRITTEN_KEY not in metadata or "cell" not in reader.schema.names:
                    raise DamagedFile("not a cells table of evalcore")
                table = reader.read_all()
                table.validate(full=True)
        except (pa.ArrowException, ValueError) as error:
            raise DamagedFile(str(error).split("\n")[0][:200]) from error
    return metadata[_WRITTEN_KEY].decode(), upgrade_cells(table, version, str(path))


def _groups(table: pa.Table) -> list[tuple[Any, ...]]:
    """What definitions of one thing share; without a subject nobody can tell, and a cell stands
    alone."""
    columns = (table[name].to_pylist() for name in GROUP)
    rows = zip(table["cell"].to_pylist(), *columns, strict=True)
    return [row[1:] if row[1] else row[:1] for row in rows]


def _dated(table: pa.Table, stamp: str) -> pa.Table:
    """The rows, with a time for those that have none."""
    at = table.schema.get_field_index("recorded")
    column = pc.fill_null(table["recorded"], stamp)
    return table.set_column(at, CELL_SCHEMA.field(at), column)


def _last_of_each(table: pa.Table) -> pa.Table:
    """Of each cell's rows the last."""
    numbered = pa.table({"cell": table["cell"], "row": pa.array(np.arange(table.num_rows))})
    return table.take(numbered.group_by("cell").aggregate([("row", "max")])["row_max"])


def _recorded_so(table: pa.Table, known: pa.Table) -> npt.NDArray[np.bool_]:
    """Which rows are recorded to the letter, whenever that was."""
    place = pc.index_in(table["cell"], known["cell"].combine_chunks())
    same = _flags(pc.is_valid(place))
    old = known.take(pc.fill_null(place, 0))
    for name in table.column_names:
        if name == "recorded":
            continue
        one, other = _comparable(table[name]), _comparable(old[name])
        equal = _flags(pc.equal(one, other)) | _flags(pc.and_(pc.is_null(one), pc.is_null(other)))
        if pa.types.is_floating(one.type):  # NaN is equal to NaN here
            equal |= _flags(pc.and_(pc.is_nan(one), pc.is_nan(other)))
        same &= equal
    return same


def _flags(column: pa.ChunkedArray) -> npt.NDArray[np.bool_]:
    """A column of truths; null is false."""
    flags: npt.NDArray[np.bool_] = pc.fill_null(column, False).to_numpy(zero_copy_only=False)
    return flags


def _comparable(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Lists as text, which can be compared."""
    if not pa.types.is_list(column.type):
        return column
    texts = [None if each is None else json.dumps(each) for each in column.to_pylist()]
    return pa.chunked_array([pa.array(texts, pa.string())])


def _after(stamp: str, last: str) -> str:
    """``stamp``, or the microsecond after ``last`` where the clock is behind that."""
    if stamp > last:
        return stamp
    moment = datetime.strptime(last, "%Y%m%dT%H%M%S.%fZ").replace(tzinfo=UTC)
    return utc_stamp(round(moment.timestamp() * 1e6) * 1000 + 1000)


def not_writable(folder: Path, error: OSError) -> ResultsError:
    """The one line about a results folder that cannot be written."""
    reason = error.strerror or str(error)
    return ResultsError(
        f"results folder {folder} cannot be written ({reason}); give another with -o"
    )

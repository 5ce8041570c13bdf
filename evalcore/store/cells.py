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
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
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
    write_json,
    write_table,
)
from evalcore.errors import ResultsError, UnknownNameError
from evalcore.files import utc_stamp
from evalcore.store.migration import OLDEST_VERSION, check_version, upgrade_cells
from evalcore.store.schema import CELL_SCHEMA, SCHEMA_VERSION, conform

log = logging.getLogger("evalcore")

CellState = Literal["current", "sampled", "superseded", "dropped"]
GROUP = ("subject", "task", "variant", "numerics")
"""Cells that share these are definitions of one thing."""
_WRITTEN_KEY = b"evalcore.written"
_VERSION_KEY = b"evalcore.schema_version"


@dataclass(frozen=True)
class CellRecords:
    """The newest record of every cell, by cell key.

    Attributes:
        sampled: Cell -> what was drawn (see ``ResultStore.mark_sampled``).
    """

    rows: dict[str, dict[str, Any]]
    dropped: frozenset[str]
    sampled: Mapping[str, Mapping[str, Any]]

    def groups(self) -> list[list[str]]:
        """Cells that are definitions of one thing, oldest first; those that stand alone too."""
        found: dict[tuple[Any, ...], list[str]] = defaultdict(list)
        for cell, row in self.rows.items():
            found[_group(row)].append(cell)
        return [
            sorted(cells, key=lambda cell: (self.rows[cell]["recorded"], cell))
            for cells in found.values()
        ]

    def newest(self, cells: list[str]) -> list[str]:
        """Those that were asked for last; several only where one run asked for them (models of the
        same weights with other tokenizers)."""
        last = max((self.rows[cell]["recorded"] for cell in cells), default="")
        return [cell for cell in cells if self.rows[cell]["recorded"] == last]

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
        self._kept: tuple[tuple[object, ...], dict[str, dict[str, Any]]] | None = None

    def files(self) -> list[Path]:
        return sorted(self.folder.glob("[!.]*.arrow"))

    def mark_files(self) -> list[Path]:
        return sorted(self.folder.glob(f"[!.]*{JSON_SUFFIX}"))

    def read(self) -> CellRecords:
        """Every cell's newest record.

        Raises:
            IncompatibleError: A file is of a newer schema.
        """
        return CellRecords(dict(self._rows()), *self._marks())

    def _rows(self) -> dict[str, dict[str, Any]]:
        """Cell -> newest record, from memory while the folder holds the same files."""
        files = self.files()
        there = tuple((path.name, *_state_of(path)) for path in files)
        if self._kept is not None and self._kept[0] == there:
            return self._kept[1]
        tables = []
        for path in files:
            try:
                written, table = read_cells_file(path)
            except FileNotFoundError:
                continue
            except (DamagedFile, OSError) as error:
                self._warn(path, str(error))
                continue
            tables.append((written, path.name, table))
        rows: dict[str, dict[str, Any]] = {}
        for written, _, table in sorted(tables, key=lambda entry: entry[:2]):
            for row in table.to_pylist():
                row["recorded"] = row["recorded"] or written
                rows[row["cell"]] = row
        self._kept = (there, dict(sorted(rows.items())))
        return self._kept[1]

    def write(self, rows: Sequence[dict[str, Any]]) -> Path | None:
        """Records what is not recorded like this already; see ``ResultStore.write_cells``."""
        table = conform(list(rows), CELL_SCHEMA, "rows for the cells table").sort_by("cell")
        known = self.read()
        latest = {cell for cells in known.groups() for cell in known.newest(cells)}
        wanted, asked = [], table.to_pylist()
        for row in asked:
            old = known.rows.get(row["cell"])
            given = row["recorded"] is not None  # a correction keeps when it was asked for
            same = old is not None and _text(old | {"recorded": row["recorded"]}) == _text(row)
            if not same or (row["cell"] not in latest and not given):
                wanted.append(row)
        # What one run asks for together stays together: all of it is current.
        fresh = {_group(row) for row in wanted if row["recorded"] is None}
        keys = {row["cell"] for row in wanted}
        wanted += [row for row in asked if row["cell"] not in keys and _group(row) in fresh]
        again = known.dropped & {row["cell"] for row in rows}
        if again:
            log.warning(
                "%d of these cells were dropped and stay so: `evalcore cells %s restore`",
                len(again), self.folder.parent,
            )  # fmt: skip
        if not wanted:
            return None
        # A clock that steps back must not make an old definition the newest.
        stamp = _after(utc_stamp(), max((r["recorded"] for r in known.rows.values()), default=""))
        for row in wanted:
            row["recorded"] = row["recorded"] or stamp
        digest = hashlib.blake2b(json.dumps(wanted, sort_keys=True).encode(), digest_size=8)
        path = self.folder / f"{stamp}-{digest.hexdigest()}{ARROW_SUFFIX}"
        metadata = {_WRITTEN_KEY: stamp.encode(), _VERSION_KEY: str(SCHEMA_VERSION).encode()}
        try:
            write_table(path, pa.Table.from_pylist(wanted, CELL_SCHEMA), metadata=metadata)
        except OSError as error:
            raise not_writable(self.folder, error) from error
        return path

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
                record = read_json(path)
                cells = record["cells"]
                if "sampled" not in record:
                    dropped = dropped | set(cells) if record["dropped"] else dropped - set(cells)
                    continue
                how = record["sampled"]
            except (DamagedFile, OSError, KeyError) as error:
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
        except FileNotFoundError:
            raise
        except (pa.ArrowException, OSError, ValueError) as error:
            raise DamagedFile(str(error).split("\n")[0][:200]) from error
    return metadata[_WRITTEN_KEY].decode(), upgrade_cells(table, version, str(path))


def _group(row: dict[str, Any]) -> tuple[Any, ...]:
    """What its definitions share; without a subject nobody can tell, and a cell stands alone."""
    return tuple(row[name] for name in GROUP) if row["subject"] else (row["cell"],)


def _text(row: dict[str, Any]) -> str:
    return json.dumps(row, sort_keys=True)  # NaN is equal to NaN here


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

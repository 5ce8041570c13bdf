"""The ``reduced`` folder: what was derived from examples once, for later reports.

    reduced/cells-*.arrow       numbers per document of a few cells, a batch each; facts in footers
    reduced/estimates-*.arrow   what was computed of them

Nothing here is authoritative: everything is filed under a digest of what it was derived from, is
made again where it is missing, and may be deleted at any time. A damaged file is left out, as one
that is not there, and removed where that is allowed; one that cannot be read is left out.
"""

from __future__ import annotations

import contextlib
import json
import logging
import secrets
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa

from evalcore.checked import (
    ARROW_SUFFIX,
    CheckedBatches,
    DamagedFile,
    read_end,
    read_table,
    write_batches,
    write_table,
)
from evalcore.files import remove_stale_temporaries

log = logging.getLogger("evalcore")
_FACTS_KEY = b"evalcore.facts"
_MOST_ESTIMATE_FILES = 8


@dataclass(frozen=True)
class Place:
    """Where the arrays of a reduced cell lie, and its facts.

    Attributes:
        path: The file.
        batch: Number of the record batch.
        facts: What is known without reading it, JSON values.
    """

    path: Path
    batch: int
    facts: Mapping[str, Any]


class Reductions:
    """Reads and writes the folder; never fails for want of room or rights (it is a cache)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open = lru_cache(maxsize=16)(CheckedBatches)

    def cells(self) -> dict[str, Place]:
        """Key -> where it lies; only the ends of files are read."""
        found: dict[str, Place] = {}
        for path in sorted(self.folder.glob(f"cells-*{ARROW_SUFFIX}")):
            try:
                listed = json.loads(read_end(path).metadata[_FACTS_KEY])
                found |= {key: Place(path, i, facts) for i, (key, facts) in enumerate(listed)}
            except (DamagedFile, OSError, KeyError, ValueError, TypeError) as error:
                self._discard(path, error)
        return found

    def read(self, place: Place) -> pa.RecordBatch:
        """The rows of a place.

        Raises:
            DamagedFile: They are not as they were written (the file was removed), or cannot be
                read.
        """
        try:
            return self._open(place.path).read(place.batch)
        except (DamagedFile, OSError, pa.ArrowException) as error:
            self._discard(place.path, error)
            raise DamagedFile(str(error)) from error

    def write_cells(
        self, cells: Sequence[tuple[str, Mapping[str, Any], pa.RecordBatch]]
    ) -> Path | None:
        """Keeps cells: (key, facts, rows), the rows' dictionaries being alike.

        Returns:
            The file; None where it could not be written.
        """
        path = self.folder / f"cells-{secrets.token_hex(8)}{ARROW_SUFFIX}"
        listed = [[key, dict(facts)] for key, facts, _ in cells]
        batches = [rows for _, _, rows in cells]
        metadata = {_FACTS_KEY: json.dumps(listed).encode()}
        try:
            self.folder.mkdir(exist_ok=True)
            write_batches(path, cells[0][2].schema, batches, metadata=metadata)
        except OSError as error:
            log.info("%s: not kept (%s)", self.folder, error.strerror or error)
            return None
        return path

    def estimates(self) -> list[pa.Table]:
        """What was computed, in the caller's own form (``analysis.memo.KEPT_SCHEMA``)."""
        found = []
        for path in self._estimate_files():
            try:
                found.append(read_table(path))
            except (DamagedFile, OSError, pa.ArrowException) as error:
                self._discard(path, error)
        return found

    @property
    def scattered(self) -> bool:
        """Whether what was computed lies in so many files that the next should replace them."""
        return len(self._estimate_files()) >= _MOST_ESTIMATE_FILES

    def write_estimates(self, table: pa.Table, *, replace: bool) -> None:
        """Keeps what was computed; ``replace``: instead of all that was kept."""
        files = self._estimate_files() if replace else []
        try:
            self.folder.mkdir(exist_ok=True)
            name = f"estimates-{secrets.token_hex(8)}{ARROW_SUFFIX}"
            write_table(self.folder / name, table)
        except OSError as error:
            log.info("%s: not kept (%s)", self.folder, error.strerror or error)
            return
        _remove(files)

    def prune(self, keys: Collection[str]) -> None:
        """Removes files of which no cell is one of ``keys``."""
        held: dict[Path, bool] = {}
        for key, place in self.cells().items():
            held[place.path] = held.get(place.path, False) or key in keys
        _remove(path for path, wanted in held.items() if not wanted)
        with contextlib.suppress(OSError):
            remove_stale_temporaries(self.folder)

    def _estimate_files(self) -> list[Path]:
        return sorted(self.folder.glob(f"estimates-*{ARROW_SUFFIX}"))

    def _discard(self, path: Path, error: Exception) -> None:
        refused = isinstance(error, OSError) and error.errno is not None  # that is not damage
        if not isinstance(error, FileNotFoundError):
            log.info("%s: %s; made again", path, error)
        if not refused:
            _remove([path])


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        with contextlib.suppress(OSError):
            path.unlink()

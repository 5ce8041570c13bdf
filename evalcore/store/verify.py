"""Checking every byte of a results folder, and setting aside what is not as it was written."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from evalcore.checked import (
    DamagedFile,
    is_checked,
    read_json,
    read_named_table,
    require_regular,
)
from evalcore.errors import IncompatibleError
from evalcore.files import fsync_folder
from evalcore.store.access import patiently, refuse
from evalcore.store.cells import not_writable, read_cells_file
from evalcore.store.coverage import Coverage, SegmentCoverage
from evalcore.store.segments import (
    SegmentInfo,
    UnreadableSegment,
    list_segments,
    merged_name,
    read_info,
    read_rows,
    write_segment,
)
from evalcore.store.settings import SETTINGS_FILE, check_settings, write_settings

DAMAGED_FOLDER = "damaged"
_OWN_NAME = re.compile(r"\d{8}T\d{6}\.\d{6}Z[-+]")
_SHOWN = 3


@dataclass(frozen=True)
class Damage:
    """One file that is not as it was written.

    Attributes:
        file: Path below the results folder.
        reason: What is wrong with it.
        num_rows: Examples lost; None where that cannot be told, 0 for other files.
        rows: [start, stop) of them in the file.
        cells: Cells they belong to, as far as that can be told.
        set_aside: Whether it was moved to ``damaged/``.
    """

    file: str
    reason: str
    num_rows: int | None = 0
    rows: tuple[tuple[int, int], ...] = ()
    cells: tuple[str, ...] = ()
    set_aside: bool = False

    def line(self) -> str:
        """For a person."""
        where = ", ".join(f"{start}-{stop - 1}" for start, stop in self.rows)
        rows = f"; rows {where} lost" if where else ""
        shown = ", ".join(self.cells[:_SHOWN]) + (" ..." if len(self.cells) > _SHOWN else "")
        cells = f" of {len(self.cells)} cells ({shown})" if self.cells else ""
        unknown = "; its rows cannot be told" if self.num_rows is None else ""
        moved = "; set aside" if self.set_aside else ""
        return f"{self.file}: {self.reason}{rows}{cells}{unknown}{moved}"


@dataclass
class VerifyReport:
    """What :func:`verify_folder` found.

    Attributes:
        files, num_bytes, rows: Files, bytes and examples that were checked and are sound.
        unchecked: Files without checksums (of an earlier schema); they were parsed only.
        damaged: The others.
    """

    files: int = 0
    num_bytes: int = 0
    rows: int = 0
    unchecked: int = 0
    damaged: list[Damage] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        return not self.damaged

    def lines(self) -> list[str]:
        """For a person."""
        lines = [damage.line() for damage in self.damaged]
        old = f"; {self.unchecked} files are from before there were checksums" * bool(
            self.unchecked
        )
        size = f"{self.num_bytes / 1e6:,.1f} MB"
        lines.append(f"{self.files} files ({size}), {self.rows:,} rows are as written{old}")
        if any(damage.set_aside for damage in self.damaged):
            lines.append(
                f"damaged files lie in {DAMAGED_FOLDER}/; the next run scores what is lost"
            )
        return lines


def aside_lines(folder: Path) -> list[str]:
    """A line about the damaged files that were set aside here, until somebody removes them.

    Whoever moved them may have been killed before it said so.

    Raises:
        ResultsError: The folder they are in cannot be looked into.
    """
    names = [
        str((Path(root) / name).relative_to(folder / DAMAGED_FOLDER))
        for root, _, names in os.walk(folder / DAMAGED_FOLDER, onerror=refuse)
        for name in names
    ]
    if not names:
        return []
    shown = ", ".join(sorted(names)[:_SHOWN]) + (" ..." if len(names) > _SHOWN else "")
    return [
        f"{len(names)} damaged file{'s were' if len(names) > 1 else ' was'} set aside ({shown}): "
        "what that held is missing until the same `evalcore score` is run again; then remove "
        f"{folder / DAMAGED_FOLDER}"
    ]


def verify_folder(folder: Path, *, set_aside: bool) -> VerifyReport:
    """See ``ResultStore.verify``."""
    report = VerifyReport()
    try:
        for path in list_segments(folder / "segments"):
            with contextlib.suppress(FileNotFoundError):  # a compaction beside us
                _segment(folder, path, report, set_aside)
        for path in _other_files(folder):
            with contextlib.suppress(FileNotFoundError):
                _other(folder, path, report, set_aside)
    except OSError as error:
        raise not_writable(folder, error) from error
    return report


def _segment(folder: Path, path: Path, report: VerifyReport, set_aside: bool) -> None:
    name = str(path.relative_to(folder))
    try:
        info = read_info(path)
    except UnreadableSegment as error:
        own = is_checked(path) or bool(_OWN_NAME.match(path.name))
        moved = own and set_aside and _move(folder, path)
        report.damaged.append(Damage(name, str(error), None, set_aside=moved))
        return
    part = read_rows(info)
    report.unchecked += not info.checked
    if part.reason is None:
        report.files += 1
        report.num_bytes += info.num_bytes
        report.rows += info.num_rows
        return
    if set_aside and part.table.num_rows:
        # The sound rows first: killed in between, they are there twice, which readers settle.
        write_segment(path.parent / merged_name(path), part.table)
    moved = set_aside and _move(folder, path)
    cells = _lost_cells(info, part.table)
    report.damaged.append(Damage(name, part.reason, part.num_lost, part.lost, cells, moved))


def _lost_cells(info: SegmentInfo, sound: pa.Table) -> tuple[str, ...]:
    """Cells of which the footer states documents that are not among the sound rows."""
    have = Coverage([SegmentCoverage.of_rows(sound.column("cell"), sound.column("doc_id"))])
    stated = Coverage([info.coverage])
    return tuple(cell for cell in stated if have.count(cell) < stated.count(cell))


def _other_files(folder: Path) -> Iterator[Path]:
    yield folder / SETTINGS_FILE
    for root, folders, names in os.walk(folder, onerror=refuse):
        at = Path(root)
        if at == folder:
            folders[:] = [f for f in folders if f not in ("segments", DAMAGED_FOLDER)]
        folders.sort()
        for name in sorted(names):
            path = at / name
            if not name.startswith(".") and (is_checked(path) or at.name in ("cells", "runs")):
                yield path


def _other(folder: Path, path: Path, report: VerifyReport, set_aside: bool) -> None:
    name = str(path.relative_to(folder))
    try:
        num_bytes = patiently(path, lambda path: _check(folder, path))
    except (DamagedFile, IncompatibleError) as error:
        moved = set_aside and _move(folder, path)
        if moved and name == SETTINGS_FILE:
            write_settings(folder)  # all it says is known
        report.damaged.append(Damage(name, str(error), set_aside=moved))
        return
    report.files += 1
    report.num_bytes += num_bytes
    report.unchecked += name != SETTINGS_FILE and not is_checked(path)


def _check(folder: Path, path: Path) -> int:
    """Reads a file that is no segment; returns its bytes."""
    require_regular(path)
    num_bytes = path.stat().st_size
    if path == folder / SETTINGS_FILE:
        check_settings(path)
    elif path.suffix == ".json":
        read_json(path)
    elif path.parent == folder / "cells":
        read_cells_file(path)
    elif is_checked(path):
        read_named_table(path)
    return num_bytes


def _move(folder: Path, path: Path) -> bool:
    to = folder / DAMAGED_FOLDER / path.relative_to(folder)
    to.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.replace(path, to)
    except FileNotFoundError:
        return False  # another process was faster
    fsync_folder(to.parent)
    fsync_folder(path.parent)
    return True

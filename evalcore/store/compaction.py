"""Merging many small segments into few, without a moment in which a row is missing.

The merged segment is committed first, then the old ones are removed. Killed in between, both are
there: the same rows twice, which every reader settles. The merged segment takes the time stamp of
its oldest part and sorts before every writer's name of that moment, so that among *different* rows
for one key the winner stays who it was.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from evalcore.errors import DataError
from evalcore.files import fsync_folder
from evalcore.store.coverage import codes_of, doubled_segments
from evalcore.store.reading import distinct_rows
from evalcore.store.schema import EXAMPLE_SCHEMA
from evalcore.store.segments import (
    SegmentInfo,
    SegmentRows,
    merged_name,
    write_segment,
)

TARGET_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True)
class CompactReport:
    """What a compaction did; ``damaged``: a line for each file that was set aside before."""

    segments_before: int
    segments_after: int
    rows: int
    doubles_removed: int
    damaged: tuple[str, ...] = ()


def compact_segments(
    folder: Path, infos: Sequence[SegmentInfo], *, target_bytes: int = TARGET_BYTES
) -> CompactReport:
    """Merges neighbouring segments up to ``target_bytes`` of file size each; rows lie by cell.

    Args:
        folder: The segments folder.
        infos: The segments to consider, in name order.
        target_bytes: Size of a group of files to merge; a larger file stays alone.

    Raises:
        DataError: A segment's rows are damaged; nothing of its group was changed.
        ResultsError: The folder cannot be written.
    """
    doubled = doubled_segments([info.coverage for info in infos])
    groups = _groups([info.num_bytes for info in infos], target_bytes)
    # A segment alone in its group stays as it is, if it should.
    alone = {start for start, stop in groups if stop - start == 1}
    alone -= {i for i, info in enumerate(infos) if i in doubled or not _whole(info)}
    rest = [info for i, info in enumerate(infos) if i not in alone]
    # Where there are doubles, every segment is asked what it holds first.
    kept = distinct_rows(infos if doubled else rest, EXAMPLE_SCHEMA.names, None, _refuse)
    waiting = next(kept, None)
    after = rows = doubles = 0
    for start, stop in groups:
        group = infos[start:stop]
        parts = []
        for info in group:
            if waiting is not None and waiting[0] is info:
                parts.append(waiting[1])
                waiting = next(kept, None)
        total = sum(info.num_rows for info in group)
        if start in alone:
            after, rows = after + 1, rows + total
            continue
        left = sum(part.num_rows for part in parts)
        rows, doubles, after = rows + left, doubles + total - left, after + bool(left)
        if left:
            write_segment(folder / merged_name(group[0].path), _by_cell(pa.concat_tables(parts)))
        for info in group:
            with contextlib.suppress(FileNotFoundError):  # another compaction was faster
                info.path.unlink()
        fsync_folder(folder)
    return CompactReport(len(infos), after, rows, doubles)


def _whole(info: SegmentInfo) -> bool:
    """Whether a segment is checked and holds no row twice, by its footer."""
    return info.checked and info.coverage.num_pairs == info.num_rows


def _by_cell(table: pa.Table) -> pa.Table:
    """Rows of a cell lie together, so that reading a cell touches few batches."""
    _, codes = codes_of(table.column("cell"))
    order = np.argsort(codes, kind="stable")
    if np.array_equal(order, np.arange(len(order))):
        return table
    return table.unify_dictionaries().combine_chunks().take(pa.array(order))


def _refuse(info: SegmentInfo, rows: SegmentRows) -> None:
    raise DataError(
        f"{info.path}: {rows.num_lost} rows are damaged ({rows.reason}); `evalcore verify` sets "
        "them aside, then compact again"
    )


def _groups(sizes: Sequence[int], target: int) -> list[tuple[int, int]]:
    """Cuts neighbours into [start, stop) groups of at most ``target`` bytes (or one file)."""
    groups = []
    start = total = 0
    for i, size in enumerate(sizes):
        if i > start and total + size > target:
            groups.append((start, i))
            start, total = i, 0
        total += size
    if len(sizes) > start:
        groups.append((start, len(sizes)))
    return groups

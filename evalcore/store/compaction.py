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

import numpy as np
import pyarrow as pa

from evalcore.errors import DataError
from evalcore.files import fsync_folder
from evalcore.store.coverage import codes_of
from evalcore.store.reading import distinct_rows
from evalcore.store.schema import EXAMPLE_SCHEMA
from evalcore.store.segments import (
    Segment,
    SegmentRows,
    merged_name,
    write_segment,
)
from evalcore.store.survey import Survey

TARGET_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True)
class CompactReport:
    """What a compaction did; ``damaged``: a line for each file that was set aside before."""

    segments_before: int
    segments_after: int
    rows: int
    doubles_removed: int
    damaged: tuple[str, ...] = ()

    def plus(self, other: CompactReport) -> CompactReport:
        """Of two compactions of different segments, together."""
        return CompactReport(
            self.segments_before + other.segments_before,
            self.segments_after + other.segments_after,
            self.rows + other.rows,
            self.doubles_removed + other.doubles_removed,
            (*self.damaged, *other.damaged),
        )


def compact_segments(survey: Survey, *, target_bytes: int = TARGET_BYTES) -> CompactReport:
    """Merges neighbouring segments up to ``target_bytes`` of file size each; rows lie by cell.

    Args:
        survey: The segments to consider, in name order.
        target_bytes: Size of a group of files to merge; a larger file stays alone.

    Raises:
        DataError: A segment's rows are damaged; nothing of its group was changed.
        ResultsError: The folder cannot be written.
    """
    doubled = survey.doubled()
    groups = _groups(survey.num_bytes.tolist(), target_bytes)
    # A segment alone in its group stays as it is, if it should.
    alone = {start for start, stop in groups if stop - start == 1}
    alone -= {i for i in alone if i in doubled or not _whole(survey, i)}
    # Where there are doubles, every segment is asked what it holds first.
    asked = survey if doubled else survey.select([i for i in range(len(survey)) if i not in alone])
    kept = distinct_rows(asked, EXAMPLE_SCHEMA.names, None, _refuse)
    waiting = next(kept, None)
    after = rows = doubles = 0
    for start, stop in groups:
        group = [survey.folder / name for name in survey.names[start:stop]]
        parts = []
        for path in group:
            if waiting is not None and waiting[0].path == path:
                parts.append(waiting[1])
                waiting = next(kept, None)
        total = int(survey.num_rows[start:stop].sum())
        if start in alone:
            after, rows = after + 1, rows + total
            continue
        left = sum(part.num_rows for part in parts)
        rows, doubles, after = rows + left, doubles + total - left, after + bool(left)
        if left:
            merged = survey.folder / merged_name(group[0])
            write_segment(merged, _by_cell(parts))
        for path in group:
            with contextlib.suppress(FileNotFoundError):  # another compaction was faster
                path.unlink()
        fsync_folder(survey.folder)
    return CompactReport(len(survey), after, rows, doubles)


def _whole(survey: Survey, number: int) -> bool:
    """Whether a segment is checked and holds no row twice, by its footer."""
    pairs, segment = int(survey.num_pairs[number]), survey.segment(number)
    return segment.checked and pairs == segment.num_rows


def _by_cell(parts: list[pa.Table]) -> pa.Table:
    """Rows of a cell lie together, so that reading a cell touches few batches.

    The list is emptied: with the parts there would be three copies of all rows at a time.
    """
    table = pa.concat_tables(parts).unify_dictionaries().combine_chunks()
    parts.clear()
    _, codes = codes_of(table.column("cell"))
    order = np.argsort(codes, kind="stable")
    if np.array_equal(order, np.arange(len(order))):
        return table
    return table.take(pa.array(order))


def _refuse(info: Segment, rows: SegmentRows) -> None:
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

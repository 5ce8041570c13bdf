"""Merging many small segments into few, without a moment in which a row is missing.

The merged segment is committed first, then the old ones are removed. Killed in between, both are
there: the same rows twice, which every reader settles. The merged segment takes the time stamp of
its oldest part and sorts before every writer's name of that moment, so that among *different* rows
for one key the winner stays who it was.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from evalcore.store.files import fsync_folder
from evalcore.store.reading import KEY_COLUMNS, first_rows
from evalcore.store.segments import SEGMENT_SUFFIX, SegmentInfo, read_rows, write_segment

TARGET_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True)
class CompactReport:
    """What a compaction did."""

    segments_before: int
    segments_after: int
    rows: int
    doubles_removed: int


def compact_segments(
    folder: Path, infos: Sequence[SegmentInfo], *, target_bytes: int = TARGET_BYTES
) -> CompactReport:
    """Merges neighbouring segments up to ``target_bytes`` of file size each.

    Args:
        folder: The segments folder.
        infos: The segments to consider, in name order.
        target_bytes: Size of a group of files to merge; a larger file stays alone.

    Raises:
        DataError: A segment's rows are damaged; nothing of its group was changed.
        InputError: The folder cannot be written.
    """
    keep = _winners(infos)
    after = rows = doubles = 0
    for start, stop in _groups([info.num_bytes for info in infos], target_bytes):
        masks = keep[start:stop]
        lost = int(sum(np.count_nonzero(~mask) for mask in masks))
        kept = int(sum(np.count_nonzero(mask) for mask in masks))
        rows, doubles = rows + kept, doubles + lost
        after += 1 if kept else 0
        if stop - start == 1 and not lost:
            continue
        group = infos[start:stop]
        if kept:
            parts = [
                read_rows(info.path).filter(pa.array(mask))
                for info, mask in zip(group, masks, strict=True)
            ]
            write_segment(folder / _merged_name(group[0].path), pa.concat_tables(parts))
        for info in group:
            with contextlib.suppress(FileNotFoundError):  # another compaction was faster
                info.path.unlink()
        fsync_folder(folder)
    return CompactReport(len(infos), after, rows, doubles)


def _winners(infos: Sequence[SegmentInfo]) -> list[np.ndarray]:
    """For each segment, which of its rows a reader would keep; list of bool [rows]."""
    if not infos:
        return []
    keys = [read_rows(info.path, KEY_COLUMNS) for info in infos]
    table = pa.concat_tables(keys)
    keep = first_rows(table.column("cell"), table.column("doc_id"))
    return np.split(keep, np.cumsum([part.num_rows for part in keys])[:-1])


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


def _merged_name(oldest: Path) -> str:
    """``<time>+<random>``: "+" sorts before the "-" that follows the time in writers' names."""
    stamp = oldest.name.split("Z", 1)[0]
    return f"{stamp}Z+{secrets.token_hex(6)}{SEGMENT_SUFFIX}"

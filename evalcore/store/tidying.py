"""Merging small segments by itself: a little at a time, never two at once, never in the way.

A fleet that commits once a minute leaves tens of thousands of small files a day. What is merged are
neighbours (so that which of equal rows is first stays as it was), and only where there are many.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from evalcore.errors import DataError, ResultsError
from evalcore.files import try_lock
from evalcore.store.compaction import CompactReport, compact_segments
from evalcore.store.survey import Survey

log = logging.getLogger("evalcore")

SMALL_BYTES = 16 * 1024 * 1024
FEWEST = 512
"""Fewer small segments than this are left as they are."""
_GROUP_BYTES = 64 * 1024 * 1024
_LEAST_TOGETHER = 16


def tidy_segments(
    survey: Survey, lock: Path, seconds: float, *, stop: Callable[[], bool] = lambda: False
) -> CompactReport | None:
    """Merges small neighbours into segments of some 64 MiB, until there are few or time is up.

    Args:
        survey: All segments.
        lock: A file; while another process holds it nothing is done.
        seconds: No group of segments is begun after so long.
        stop: Asked before each group.

    Returns:
        What was done; None if there was nothing to do.

    Raises:
        FileNotFoundError: A compaction took a segment away meanwhile.
    """
    groups = small_groups(survey.num_bytes)
    if not groups:
        return None
    end, done = time.monotonic() + seconds, CompactReport(0, 0, 0, 0)
    with _held(lock) as held:
        for start, stop_at in groups if held else ():
            if stop() or time.monotonic() >= end:
                break
            try:
                group = survey.select(np.arange(start, stop_at))
                part = compact_segments(group, target_bytes=_GROUP_BYTES + SMALL_BYTES)
            except (DataError, ResultsError) as error:
                log.info("small segments were not merged: %s", error)
                break
            done = done.plus(part)
    return done if done.segments_before else None


def small_groups(num_bytes: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
    """[start, stop) of neighbours worth merging, given the size of each segment, oldest first."""
    small = num_bytes < SMALL_BYTES
    if int(small.sum()) < FEWEST:
        return []
    groups, start = [], 0
    while start < len(small):
        stop, total = start, 0
        while stop < len(small) and small[stop] and total < _GROUP_BYTES:
            total += int(num_bytes[stop])
            stop += 1
        if stop - start >= _LEAST_TOGETHER:
            groups.append((start, stop))
        start = max(stop, start + 1)
    return groups


@contextlib.contextmanager
def _held(path: Path) -> Iterator[bool]:
    """Whether the lock was free; it is held meanwhile. Where there are no locks: not free."""
    try:
        path.parent.mkdir(exist_ok=True)
        file = open(path, "ab")  # noqa: SIM115
    except OSError as error:
        log.info("no lock for merging small segments: %s", error)
        yield False
        return
    with file:
        yield bool(try_lock(file))

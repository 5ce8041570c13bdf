"""Whole cells, a bounded number of rows at a time, and which segments hold which cell.

A cell's rows may lie in any number of segments. Footers say in which; of a footer only its head is
decoded, so that a folder of thousands of segments can be surveyed in seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from evalcore.store.reading import OnDamage, in_cells, read_examples
from evalcore.store.segments import UnreadableSegment, list_segments, read_cells, read_info

ROWS_AT_ONCE = 1 << 19
Warn = Callable[[Path, str], None]


@dataclass(frozen=True)
class CellPlaces:
    """Where rows lie.

    Attributes:
        segments: Paths, in the order in which the first of equal rows wins.
        of_cell: Cell -> numbers of the segments that hold rows of it, ascending.
        rows: Cell -> rows, those counted twice that two segments hold.
    """

    segments: tuple[Path, ...]
    of_cell: Mapping[str, tuple[int, ...]]
    rows: Mapping[str, int]

    def names(self, cell: str) -> list[str]:
        """Names of the segments that hold a cell. A segment never changes, so they say what."""
        return [self.segments[i].name for i in self.of_cell.get(cell, ())]

    def batches(self, cells: Collection[str], rows: int = ROWS_AT_ONCE) -> list[list[str]]:
        """Cells that lie in the same segments together, about ``rows`` rows in a batch."""
        found: list[list[str]] = []
        size = 0
        for cell in sorted(cells, key=lambda c: (self.of_cell.get(c, ()), c)):
            if not found or size >= rows:
                found.append([])
                size = 0
            found[-1].append(cell)
            size += self.rows.get(cell, 0)
        return found


def find_cells(folder: Path, warn: Warn) -> CellPlaces:
    """Surveys the footers of a segments folder.

    Args:
        folder: The segments folder.
        warn: Told of files that are no whole segments; they are left out.

    Raises:
        FileNotFoundError: A compaction took a segment away.
    """
    paths: list[Path] = []
    of_cell: dict[str, list[int]] = {}
    rows: dict[str, int] = {}
    for path in list_segments(folder):
        try:
            held = read_cells(path)
        except UnreadableSegment as error:
            warn(path, str(error))
            continue
        for cell, count in held.items():
            of_cell.setdefault(cell, []).append(len(paths))
            rows[cell] = rows.get(cell, 0) + count
        paths.append(path)
    return CellPlaces(tuple(paths), {c: tuple(n) for c, n in of_cell.items()}, rows)


def read_whole(
    places: CellPlaces,
    cells: Sequence[str],
    columns: Sequence[str] | None = None,
    on_damage: OnDamage | None = None,
) -> pa.Table:
    """All rows of some cells without doubles (as ``reading.read_examples`` gives them).

    Raises:
        FileNotFoundError: A compaction took a segment away.
    """
    numbers = sorted({n for cell in cells for n in places.of_cell.get(cell, ())})
    infos = [read_info(places.segments[n]) for n in numbers]
    return read_examples(infos, columns, None, in_cells(cells), on_damage)

"""What the footers of all segments say, as arrays; and the file that saves reading them again.

    RESULTS/index/footers-*.checked.arrow    what footers said; may be deleted

A segment never changes, so what its footer said holds as long as a file of that name and size is
there. The index is not authoritative: segments that it does not know are asked themselves, those
that are gone are left out, and a damaged index is one that is not there.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from evalcore.checked import ARROW_SUFFIX, DamagedFile, read_table, write_table
from evalcore.files import remove_stale_temporaries
from evalcore.store.coverage import Coverage, SegmentCoverage
from evalcore.store.segments import (
    Segment,
    SegmentInfo,
    UnreadableSegment,
    list_segments,
    read_info,
)

log = logging.getLogger("evalcore")
Warn = Callable[[Path, str], None]

MOST_UNKNOWN = 256
"""Footers that are read again and again before an index of them is written."""
_PAIRS_AT_ONCE = 1 << 24
_TEXTS = ("names", "cells", "doc_ids")
_NUMBERS = {
    "num_bytes": np.int64, "num_rows": np.int64, "offsets": np.int64, "entry_cell": np.int32,
    "entry_set": np.int32, "set_offsets": np.int64, "set_docs": np.int32,
}  # fmt: skip
_SCHEMA = pa.schema(
    [pa.field(name, pa.large_list(pa.string())) for name in _TEXTS]
    + [
        pa.field(name, pa.large_list(pa.from_numpy_dtype(dtype)))
        for name, dtype in _NUMBERS.items()
    ]
)

Ints = npt.NDArray[np.int64]
Codes = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Survey:
    """The footers of segments, in the order in which the first of equal rows wins.

    A segment's entries are the cells it holds, each with a set of documents; equal sets of one
    folder are the same set.

    Attributes:
        folder: Where the segments lie.
        names: File names, ascending.
        num_bytes: Their sizes; int64 [segments].
        num_rows: Their rows; int64 [segments].
        offsets: A segment's entries are ``offsets[i]:offsets[i + 1]``; int64 [segments + 1].
        cells: Cell keys, without an order.
        entry_cell: Number of each entry's cell; int32 [entries].
        entry_set: Number of its set; int32 [entries].
        doc_ids: Document ids, without an order.
        set_offsets: A set's documents are ``set_offsets[j]:set_offsets[j + 1]``; int64 [sets + 1].
        set_docs: Numbers of documents, ascending in each set; int32 [documents of all sets].
    """

    folder: Path
    names: tuple[str, ...]
    num_bytes: Ints
    num_rows: Ints
    offsets: Ints
    cells: Sequence[str]
    entry_cell: Codes
    entry_set: Codes
    doc_ids: Sequence[str]
    set_offsets: Ints
    set_docs: Codes

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def of(cls, folder: Path, infos: Iterable[SegmentInfo]) -> Survey:
        """Of footers that were read, in the given order."""
        builder = _Builder()
        for info in infos:
            builder.add(info)
        return builder.survey(folder)

    def documents(self, number: int) -> Codes:
        """Numbers of the documents of a set, ascending."""
        return self.set_docs[self.set_offsets[number] : self.set_offsets[number + 1]]

    @cached_property
    def set_sizes(self) -> Ints:
        """Documents of each set; int64 [sets]."""
        return np.diff(self.set_offsets)

    @cached_property
    def num_pairs(self) -> Ints:
        """Distinct (cell, document) pairs of each segment; int64 [segments]."""
        sums = np.concatenate([[0], np.cumsum(self.set_sizes[self.entry_set])])
        return np.asarray(sums[self.offsets[1:]] - sums[self.offsets[:-1]], dtype=np.int64)

    @cached_property
    def owners(self) -> Ints:
        """Segment of each entry; int64 [entries]."""
        return np.repeat(np.arange(len(self), dtype=np.int64), np.diff(self.offsets))

    def by_cell(self) -> Iterator[tuple[str, Ints]]:
        """Each cell that has rows with its entries, in the order of segments."""
        order = np.argsort(self.entry_cell, kind="stable")
        codes, starts = np.unique(self.entry_cell[order], return_index=True)
        for code, entries in zip(codes.tolist(), np.split(order, starts[1:]), strict=False):
            yield self.cells[code], entries

    def holding(self, wanted: Callable[[str], bool]) -> list[int]:
        """Segments that hold rows of cells that are wanted, ascending."""
        chosen = np.fromiter(map(wanted, self.cells), dtype=np.bool_, count=len(self.cells))
        return [int(number) for number in np.unique(self.owners[chosen[self.entry_cell]])]

    def select(self, segments: Sequence[int] | Ints) -> Survey:
        """Some segments alone, in the given order."""
        chosen = np.asarray(segments, dtype=np.int64)
        sizes = np.diff(self.offsets)[chosen]
        offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        entries = np.arange(offsets[-1]) + np.repeat(
            self.offsets[:-1][chosen] - offsets[:-1], sizes
        )
        return Survey(
            self.folder, tuple(self.names[i] for i in chosen), self.num_bytes[chosen],
            self.num_rows[chosen], offsets, self.cells, self.entry_cell[entries],
            self.entry_set[entries], self.doc_ids, self.set_offsets, self.set_docs,
        )  # fmt: skip

    def segment(self, number: int) -> Segment:
        """A segment's file."""
        path = self.folder / self.names[number]
        return Segment(path, int(self.num_rows[number]), int(self.num_bytes[number]))

    def stated(self, number: int) -> SegmentCoverage:
        """What a segment's footer says it holds."""
        entries = slice(self.offsets[number], self.offsets[number + 1])
        own, codes = np.unique(self.entry_set[entries], return_inverse=True)
        members = [self.documents(one) for one in own.tolist()]
        docs = np.unique(np.concatenate([np.zeros(0, np.int32), *members]))
        return SegmentCoverage(
            tuple(self.cells[code] for code in self.entry_cell[entries].tolist()),
            tuple(codes.tolist()),
            tuple(np.searchsorted(docs, part).astype(np.int32) for part in members),
            tuple(self.doc_ids[code] for code in docs.tolist()),
        )

    def coverage(self) -> Coverage:
        """Which documents each cell has."""
        cells = {}
        for cell, entries in self.by_cell():
            sets = np.unique(self.entry_set[entries]).tolist()
            cells[cell] = [self.documents(number) for number in sets]
        return Coverage.of_codes(self.doc_ids, cells, len(self))

    def doubled(self) -> set[int]:
        """Segments that hold a (cell, document) pair that an earlier one holds, too.

        Cell by cell, many at once: one sort of some millions of numbers of eight bytes at a time.
        """
        order = np.argsort(self.entry_cell, kind="stable")
        firsts = np.flatnonzero(np.diff(self.entry_cell[order], prepend=-1))
        lengths = np.diff(firsts, append=len(order))
        # A cell that one segment holds cannot be doubled.
        order = order[np.repeat(lengths > 1, lengths)]
        lengths = lengths[lengths > 1]
        if not len(order):
            return set()
        firsts = np.cumsum(lengths) - lengths
        pairs = np.cumsum(np.add.reduceat(self.set_sizes[self.entry_set[order]], firsts))
        cuts = firsts[1:][np.diff(pairs // _PAIRS_AT_ONCE) > 0]
        return set().union(*map(self._doubled_among, np.split(order, cuts)))

    def _doubled_among(self, entries: Ints) -> set[int]:
        """Like :meth:`doubled`, of entries that hold all there is of their cells."""
        sizes = self.set_sizes[self.entry_set[entries]]
        firsts = self.set_offsets[:-1][self.entry_set[entries]]
        starts = np.concatenate([[0], np.cumsum(sizes)])
        places = np.arange(starts[-1]) + np.repeat(firsts - starts[:-1], sizes)
        pairs = self.set_docs[places].astype(np.int64)
        pairs += np.repeat(self.entry_cell[entries].astype(np.int64) << 32, sizes)
        owners = np.repeat(self.owners[entries], sizes)
        order = np.argsort(pairs, kind="stable")
        again = pairs[order][1:] == pairs[order][:-1]
        return set(np.unique(owners[order][1:][again]).tolist())


class _Builder:
    """Takes in footers one by one."""

    def __init__(self, known: Survey | None = None) -> None:
        self.known = known
        self.infos: list[SegmentInfo] = []
        self.cells: dict[str, int] = {}
        self.docs: dict[str, int] = {}
        self.sets: dict[bytes, int] = {}
        if known is not None:
            self.cells = {cell: i for i, cell in enumerate(known.cells)}
            self.docs = {doc: i for i, doc in enumerate(known.doc_ids)}
            count = len(known.set_offsets) - 1
            self.sets = {known.documents(i).tobytes(): i for i in range(count)}
        self.sizes: list[int] = []
        self.entry_cell: list[int] = []
        self.entry_set: list[int] = []

    def add(self, info: SegmentInfo) -> None:
        coverage = info.coverage
        docs = np.fromiter(
            (self.docs.setdefault(doc, len(self.docs)) for doc in coverage.doc_ids),
            dtype=np.int32,
            count=len(coverage.doc_ids),
        )
        sets = [
            self.sets.setdefault(np.sort(docs[codes]).tobytes(), len(self.sets))
            for codes in coverage.sets
        ]
        self.entry_cell += [self.cells.setdefault(c, len(self.cells)) for c in coverage.cells]
        self.entry_set += [sets[number] for number in coverage.cell_sets]
        self.sizes.append(len(coverage.cells))
        self.infos.append(info)

    def survey(self, folder: Path) -> Survey:
        """What was known and what was added since, in this order."""
        old = self.known or _nothing(folder)
        new = [np.frombuffer(key, np.int32) for key in list(self.sets)[len(old.set_sizes) :]]
        sizes = np.concatenate([old.set_sizes, [len(part) for part in new]])
        entries = np.concatenate([np.diff(old.offsets), self.sizes])
        return Survey(
            folder,
            (*old.names, *(info.path.name for info in self.infos)),
            _joined(old.num_bytes, [info.num_bytes for info in self.infos]),
            _joined(old.num_rows, [info.num_rows for info in self.infos]),
            np.concatenate([[0], np.cumsum(entries)]).astype(np.int64),
            tuple(self.cells),
            _joined(old.entry_cell, self.entry_cell).astype(np.int32),
            _joined(old.entry_set, self.entry_set).astype(np.int32),
            tuple(self.docs),
            np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
            np.concatenate([old.set_docs, *new]).astype(np.int32),
        )


def _joined(old: npt.NDArray[np.integer], new: Sequence[int]) -> Ints:
    both: Ints = np.concatenate([old, np.array(new, dtype=np.int64)]).astype(np.int64)
    return both


def _nothing(folder: Path) -> Survey:
    none, codes, zero = np.zeros(0, np.int64), np.zeros(0, np.int32), np.zeros(1, np.int64)
    return Survey(folder, (), none, none, zero, (), codes, codes, (), zero, codes)


class Index:
    """The ``index`` folder. Never fails for want of room or rights (it is a cache).

    Args:
        folder: The folder; it need not exist.
        keep: Whether to write an index where many footers had to be read.
    """

    def __init__(self, folder: Path, *, keep: bool) -> None:
        self.folder = folder
        self.keep = keep

    def survey(self, segments: Path, warn: Warn) -> Survey:
        """Surveys a segments folder.

        Args:
            segments: The folder.
            warn: Told of files that are no whole segments; they are left out.

        Raises:
            FileNotFoundError: A compaction took a segment away meanwhile.
            IncompatibleError: A segment is of a newer schema.
        """
        found = [path.name for path in list_segments(segments)]
        known = self._read(segments)
        there = set(known.names)
        unknown = [name for name in found if name not in there]
        if not unknown:
            return known
        builder = _Builder(known)
        for name in unknown:
            try:
                builder.add(read_info(segments / name))
            except UnreadableSegment as error:
                warn(segments / name, str(error))
        survey = builder.survey(segments)
        order = np.argsort(np.array(survey.names, dtype=object), kind="stable")
        survey = survey.select(order)
        if self.keep and len(builder.infos) >= MOST_UNKNOWN:
            self._write(survey)
        return survey

    def _read(self, segments: Path) -> Survey:
        """What an index says of segments that are there as it knew them."""
        for path in sorted(self.folder.glob(f"[!.]*{ARROW_SUFFIX}"), reverse=True):
            try:
                known = _decode(segments, read_table(path))
            except (DamagedFile, OSError, pa.ArrowException, ValueError, KeyError) as error:
                log.info("ignored %s: %s", path, error)
                continue
            sizes = _sizes(segments, len(known))
            same = [
                i for i, name in enumerate(known.names) if sizes.get(name) == known.num_bytes[i]
            ]
            return known if len(same) == len(known) else known.select(same)
        return _nothing(segments)

    def _write(self, survey: Survey) -> None:
        try:
            self.folder.mkdir(exist_ok=True)
            remove_stale_temporaries(self.folder)
            earlier = list(self.folder.glob(f"[!.]*{ARROW_SUFFIX}"))
            name = f"footers-{len(survey):010d}-{secrets.token_hex(6)}{ARROW_SUFFIX}"
            write_table(self.folder / name, _encode(_trimmed(survey)))
            for path in earlier:
                with contextlib.suppress(FileNotFoundError):
                    path.unlink()
        except OSError as error:
            log.info("no index of segments: %s", error)


def _sizes(folder: Path, expected: int) -> dict[str, int]:
    """Size of each file in a folder; of none where nothing is expected."""
    if not expected:
        return {}
    with os.scandir(folder) as entries:
        return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}


def _trimmed(survey: Survey) -> Survey:
    """Without cells, sets and documents that no segment has any more."""
    sets, entry_set = np.unique(survey.entry_set, return_inverse=True)
    cells, entry_cell = np.unique(survey.entry_cell, return_inverse=True)
    parts = [survey.documents(number) for number in sets.tolist()]
    joined = np.concatenate(parts) if parts else np.zeros(0, np.int32)
    docs, set_docs = np.unique(joined, return_inverse=True)
    offsets = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
    return Survey(
        survey.folder, survey.names, survey.num_bytes, survey.num_rows, survey.offsets,
        [survey.cells[code] for code in cells.tolist()], entry_cell.astype(np.int32),
        entry_set.astype(np.int32), [survey.doc_ids[code] for code in docs.tolist()], offsets,
        set_docs.astype(np.int32),
    )  # fmt: skip


def _encode(survey: Survey) -> pa.Table:
    columns = [[getattr(survey, name)] for name in _SCHEMA.names]
    return pa.table(
        [pa.array(column, field.type) for column, field in zip(columns, _SCHEMA, strict=True)],
        schema=_SCHEMA,
    )


def _decode(folder: Path, table: pa.Table) -> Survey:
    """Inverse of :func:`_encode`; ValueError if the table is not such a one."""
    if table.schema != _SCHEMA or table.num_rows != 1:
        raise ValueError("not an index of segments")
    values: dict[str, Any] = {name: table.column(name).chunk(0).values for name in _SCHEMA.names}
    known: dict[str, Any] = {name: tuple(values[name].to_pylist()) for name in _TEXTS}
    known |= {name: values[name].to_numpy(zero_copy_only=False) for name in _NUMBERS}
    return Survey(folder, **known)

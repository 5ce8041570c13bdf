"""From a results folder to a book of scores: reduces what is new, reads the rest from before."""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from evalcore.checked import DamagedFile
from evalcore.machine import cores
from evalcore.store import ResultStore
from evalcore.store.whole import CellPlaces

if TYPE_CHECKING:
    import pyarrow as pa

    from evalcore.analysis import ScoreBook, Way
    from evalcore.analysis.book import ReducedCell
    from evalcore.analysis.reduction import CellArrays, CellFacts

log = logging.getLogger("evalcore")

ARRAY_BYTES = 256 * 1024 * 1024
"""Arrays of cells that are kept in memory at a time."""
ROWS_FOR_WORKERS = 1_000_000
TEXTS_FOR_WORKERS = 20_000
"""From so many new rows (generated texts) on, processes share the work."""
MOST_WORKERS = 8


@dataclass(frozen=True)
class _Reduced:
    """A cell that was reduced now; ``rows`` where they could not be kept on disk."""

    key: str
    facts: CellFacts
    rows: pa.RecordBatch | None


def read_book(
    store: ResultStore,
    *,
    cells: Collection[str] | None = None,
    numerics: str | None = None,
    preferred: Sequence[Way] = (),
    empty: bool = False,
    sampled: bool = False,
) -> ScoreBook:
    """The current cells of a folder, reduced; what an earlier call reduced is not read again.

    Nothing but one batch of new rows is in memory at a time, and arrays of cells up to
    ``ARRAY_BYTES``. Give the book to :func:`keep_estimates` when it was used.

    Args:
        store: The results.
        cells: Only these cells; None: all.
        numerics, preferred: See ``ScoreBook.of``.
        empty: Give an empty book where there are no rows.
        sampled: Cells too of which only drawn documents are scored.

    Raises:
        InputError: There are no rows, or no record of whose they are.
        ResultsError: The folder was compacted meanwhile.
    """
    from evalcore.analysis import ScoreBook
    from evalcore.analysis.memo import Kept, Memo

    codes = DocumentCodes()
    reduced, lost = read_cells(store, codes, cells=cells, sampled=sampled)
    if empty and not reduced:
        return ScoreBook({}, {}, {}, ())
    return ScoreBook.of(
        reduced, codes.names, numerics=numerics, preferred=preferred, lost=lost,
        clusters=codes.clusters if codes.has_clusters else None,
        memo=Memo(known=Kept(store.reductions.estimates()), about=codes.digest),
    )  # fmt: skip


def read_cells(
    store: ResultStore,
    codes: DocumentCodes,
    *,
    cells: Collection[str] | None = None,
    sampled: bool = False,
) -> tuple[list[ReducedCell], int]:
    """(the current cells of a folder, reduced; how many have rows but no record).

    Args:
        store: The results.
        codes: Gives documents their codes in the arrays.
        cells: Only these cells; None: all.
        sampled: Cells too of which only drawn documents are scored.
    """
    from evalcore.analysis.book import ReducedCell, makings_of
    from evalcore.analysis.reduction import CellFacts, reduction_key

    places = store.places()
    store.note_left_out()
    codes.hang_together(store.clusters())
    about = {row["cell"]: row for row in store.cells(sampled=sampled).to_pylist()}
    wanted = [c for c in places.of_cell if c in about and (cells is None or c in cells)]
    keys = {cell: reduction_key(about[cell], places.names(cell)) for cell in wanted}
    kept = store.reductions.cells()
    missing = [cell for cell in wanted if keys[cell] not in kept]
    now = {found.key: found for found in _reduce(store, places, missing, about)}
    if missing:
        kept = store.reductions.cells()
    arrays = _Arrays(store, places, kept, about, codes)
    makers = store.makers()
    reduced = []
    for cell in wanted:
        key = keys[cell]
        fresh = now.get(key)
        if fresh is None and key not in kept:
            continue  # every row of it is damaged
        facts = CellFacts.of(kept[key].facts) if fresh is None else fresh.facts
        load = partial(arrays.load, key, cell, None if fresh is None else fresh.rows)
        made = makings_of(facts, about[cell]["numerics"], makers)
        reduced.append(ReducedCell(key, about[cell], facts, load, made))
    lost = 0
    if cells is None:
        recorded = store.recorded()
        lost = sum(cell not in recorded for cell in places.of_cell)
        if missing:
            store.reductions.prune(set(keys.values()))
    return reduced, lost


def keep_estimates(store: ResultStore, book: ScoreBook) -> None:
    """Keeps what was computed of a book of :func:`read_book` for a later one."""
    memo, kept = book.memo, store.reductions
    if memo.added:
        scattered = kept.scattered
        kept.write_estimates(memo.table(everything=scattered), replace=scattered)


class DocumentCodes:
    """Numbers documents as they are met.

    Attributes:
        names: Document id of each code.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self._code: dict[str, int] = {}
        self._cluster: dict[str, str] = {}
        self._grouped = np.zeros(0, dtype=np.int64)
        self._first: dict[str, int] = {}

    def hang_together(self, clusters: Mapping[str, str]) -> None:
        """Says what documents hang together in: document id -> cluster."""
        self._cluster.update(clusters)
        self._grouped, self._first = np.zeros(0, dtype=np.int64), {}

    @property
    def has_clusters(self) -> bool:
        return bool(self._cluster)

    @property
    def digest(self) -> str:
        """Of what hangs together in what."""
        text = json.dumps(sorted(self._cluster.items()))
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def clusters(self, docs: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Document codes -> code of the first document of the cluster each belongs to."""
        known = len(self._grouped)
        if known < len(self.names):
            new = np.arange(known, len(self.names))
            for i, name in enumerate(self.names[known:]):
                cluster = self._cluster.get(name)
                if cluster is not None:
                    new[i] = self._first.setdefault(cluster, known + i)
            self._grouped = np.concatenate([self._grouped, new])
        return self._grouped[docs]

    def of(self, names: Sequence[str]) -> npt.NDArray[np.int64]:
        """int64 [n]: codes of some ids."""
        codes = np.empty(len(names), dtype=np.int64)
        for i, name in enumerate(names):
            code = self._code.setdefault(name, len(self.names))
            if code == len(self.names):
                self.names.append(name)
            codes[i] = code
        return codes


class _Arrays:
    """Arrays of cells by key, the latest in memory."""

    def __init__(
        self,
        store: ResultStore,
        places: CellPlaces,
        kept: Mapping[str, Any],
        about: Mapping[str, dict[str, Any]],
        codes: DocumentCodes,
    ) -> None:
        self._store, self._places, self._kept, self._about = store, places, kept, about
        self._codes = codes
        self._held: OrderedDict[str, CellArrays] = OrderedDict()
        self._bytes = 0
        self._codes_of_file: OrderedDict[Path, npt.NDArray[np.int64]] = OrderedDict()

    def load(self, key: str, cell: str, rows: pa.RecordBatch | None) -> CellArrays:
        """A cell's arrays; ``rows`` where they are in memory already."""
        held = self._held.get(key)
        if held is not None:
            self._held.move_to_end(key)
            return held
        found = self._read(key, cell) if rows is None else self._coded(rows)
        self._held[key] = found
        self._bytes += _size(found)
        while self._bytes > ARRAY_BYTES and len(self._held) > 1:
            self._bytes -= _size(self._held.popitem(last=False)[1])
        return found

    def _read(self, key: str, cell: str) -> CellArrays:
        from evalcore.analysis.reduction import arrays_of, reduce_cells

        place = self._kept.get(key)
        try:
            if place is None:
                raise DamagedFile("it was kept, and is gone")
            rows = self._store.reductions.read(place)
        except DamagedFile:
            table = _rows_of(self._store, self._places, [self._about[cell]])
            return self._coded(reduce_cells(table, scores=False)[0][1])
        codes = self._codes_of_file.get(place.path)
        if codes is None:
            codes = self._codes.of(rows.column("doc").dictionary.to_pylist())
            self._codes_of_file[place.path] = codes
            if len(self._codes_of_file) > 256:
                self._codes_of_file.popitem(last=False)
        return arrays_of(rows, codes)

    def _coded(self, rows: pa.RecordBatch) -> CellArrays:
        from evalcore.analysis.reduction import arrays_of

        return arrays_of(rows, self._codes.of(rows.column("doc").dictionary.to_pylist()))


def _size(arrays: CellArrays) -> int:
    return len(arrays.docs) * 40


def _reduce(
    store: ResultStore,
    places: CellPlaces,
    cells: Sequence[str],
    about: Mapping[str, dict[str, Any]],
) -> Iterator[_Reduced]:
    """Reduces cells a batch at a time; in several processes where there is much to do."""
    if not cells:
        return
    batches = places.batches(cells)
    records = [[about[cell] for cell in batch] for batch in batches]
    texts = sum(
        places.rows[cell] for cell in cells if about[cell]["output_type"] == "generate_until"
    )
    rows = sum(places.rows[cell] for cell in cells)
    workers = min(cores(), MOST_WORKERS)
    if texts > TEXTS_FOR_WORKERS and len(batches) < 4 * workers:
        batches = places.batches(cells, max(1, texts // (4 * workers)))
        records = [[about[cell] for cell in batch] for batch in batches]
    little = rows < ROWS_FOR_WORKERS and texts < TEXTS_FOR_WORKERS
    if len(batches) < 2 or workers < 2 or little:
        for batch in records:
            yield from _reduce_batch(store, places, batch)
        return
    log.info("reducing %d cells (%d rows) for this and later reports", len(cells), rows)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        jobs = [
            pool.submit(_reduce_elsewhere, store.path, _only(places, batch), batch)
            for batch in records
        ]
        for job in jobs:
            found, damage = job.result()
            store.damage.update(damage)
            yield from found


def _only(places: CellPlaces, about: Sequence[Mapping[str, Any]]) -> CellPlaces:
    """Places of some cells alone."""
    cells = [row["cell"] for row in about]
    of_cell = {cell: places.of_cell[cell] for cell in cells}
    return replace(places, of_cell=of_cell, rows={cell: places.rows[cell] for cell in cells})


def _reduce_elsewhere(
    path: Path, places: CellPlaces, about: Sequence[dict[str, Any]]
) -> tuple[list[_Reduced], dict[str, str]]:
    """:func:`_reduce_batch` in a process of its own, and what was damaged."""
    store = ResultStore(path, read_only=True)
    return list(_reduce_batch(store, places, about)), store.damage


def _reduce_batch(
    store: ResultStore, places: CellPlaces, about: Sequence[dict[str, Any]]
) -> list[_Reduced]:
    from evalcore.analysis.reduction import reduce_cells, reduction_key

    damaged = len(store.damage)
    table = _rows_of(store, places, about)
    records = {row["cell"]: row for row in about}
    found = []
    for facts, rows in reduce_cells(table):
        key = reduction_key(records[facts.cell], places.names(facts.cell))
        found.append(_Reduced(key, facts, rows))
    if not found or len(store.damage) > damaged:
        return found  # what is damaged may be mended: nothing of it is kept
    listed = [(f.key, asdict(f.facts), f.rows) for f in found]
    if store.reductions.write_cells(listed) is None:
        return found
    return [replace(f, rows=None) for f in found]


def _rows_of(store: ResultStore, places: CellPlaces, about: Sequence[dict[str, Any]]) -> pa.Table:
    """The examples of some cells, joined with what a reduction needs."""
    import pyarrow as pa

    from evalcore.analysis.reduction import DECIDE_COLUMNS, EXAMPLE_COLUMNS
    from evalcore.store import CELL_SCHEMA

    names = ["cell", *DECIDE_COLUMNS]
    schema = pa.schema([CELL_SCHEMA.field(name) for name in names])
    rows = pa.Table.from_pylist([{n: row[n] for n in names} for row in about], schema)
    return store.read_whole(places, rows, EXAMPLE_COLUMNS)

"""A results folder.

Layout::

    RESULTS/store.json           format and schema version
    RESULTS/cells/*.arrow        records of cells; of several the newest counts; marks (JSON)
    RESULTS/segments/*.arrow     examples; each footer states its coverage
    RESULTS/makers/*.json        environments that made rows, by the id in ``made_by``
    RESULTS/settled/*.json       the way of scoring that the first engine of a kind chose
    RESULTS/weights/*.json       what weights are called here, by the hashes of their files
    RESULTS/documents/*/*.arrow  questions, choices and golds, once per (task, data)
    RESULTS/clusters/*.arrow     which documents hang together, of tasks that say in what
    RESULTS/requests/*.arrow     prompts as token ids, once per (task, variant, tokenizer)
    RESULTS/runs/*.json          one record per run
    RESULTS/progress/*.json      what runs under way say of themselves
    RESULTS/damaged/             what failed its checksum, set aside
    RESULTS/cache/               encoded requests; may be deleted
    RESULTS/reduced/             numbers per document, for later reports; may be deleted
    RESULTS/index/               what the footers of many segments say; may be deleted

Any number of processes may write to one folder at once; nothing is ever changed in place. Every
file has checksums that are checked before a parser sees its bytes (see ``evalcore.checked``); files
of schema 2 have none and are read unchecked.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from evalcore.checked import is_checked
from evalcore.errors import InputError, ResultsError, UnknownNameError
from evalcore.files import remove_stale_temporaries, try_folder
from evalcore.identity.away import Named, NamedWeights
from evalcore.reading import is_there
from evalcore.store.access import patiently
from evalcore.store.cell_rows import CellRows
from evalcore.store.cells import CellRecords, CellState, CellTables, not_writable
from evalcore.store.compaction import CompactReport, compact_segments
from evalcore.store.coverage import Coverage
from evalcore.store.reading import (
    example_columns,
    in_cells,
    iterate_examples,
    join_cells,
    maker_column,
    read_examples,
    together,
)
from evalcore.store.records import Clusters, Documents, Makers, Requests, WeightNames
from evalcore.store.reductions import Reductions
from evalcore.store.runs import RunLog
from evalcore.store.schema import CELL_SCHEMA, MAKER_COLUMN, conform
from evalcore.store.segments import (
    Segment,
    SegmentRows,
    SegmentWriter,
    list_segments,
)
from evalcore.store.settings import open_settings
from evalcore.store.settled import Settled
from evalcore.store.survey import Index, Survey
from evalcore.store.tidying import tidy_segments
from evalcore.store.verify import VerifyReport, aside_lines, verify_folder
from evalcore.store.whole import CellPlaces, find_cells, read_documents, read_whole

log = logging.getLogger("evalcore")

_ATTEMPTS = 5
ROWS_TOGETHER = 1 << 16
"""Rows of small segments that are joined with their cells at once."""
_T = TypeVar("_T")


class ResultStore:
    """Opens, and if needed creates, a results folder.

    Args:
        path: The folder.
        read_only: Create and change nothing; the folder must be one already.
        later: Where it is none yet, only :meth:`create` makes it; until then it reads as empty.

    Raises:
        ResultsError: The folder cannot be written.
        InputError: Read only, and it holds no results.
        IncompatibleError: Its results are of a newer schema, or its store.json is damaged.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, read_only: bool = False, later: bool = False
    ) -> None:
        self.path = Path(path)
        self.read_only = read_only
        self.cells_folder = self.path / "cells"
        self.segments_folder = self.path / "segments"
        self.cache_folder = self.path / "cache"
        self.runs = RunLog(self.path / "runs")
        self.damage: dict[str, str] = {}
        """What of the files read so far is damaged and was left out: file -> one line."""
        self._warned: set[str] = set()
        self._cells = CellTables(self.cells_folder, self._warn_damaged)
        self.settle = Settled(self.path / "settled")
        """The way of scoring of a kind: what is settled; if nothing is, what the caller chose."""
        self._makers = Makers(self.path / "makers", self._warn_damaged)
        self._weights = WeightNames(self.path / "weights", self._warn_damaged)
        self._documents = Documents(self.path / "documents", self._warn_damaged)
        self._clusters = Clusters(self.path / "clusters", self._warn_damaged)
        self._requests = Requests(self.path / "requests")
        self.reductions = Reductions(self.path / "reduced")
        self._index = Index(self.path / "index", keep=not read_only)
        if read_only:
            if not is_there(self.path / "store.json"):
                raise InputError(
                    f"no results in {self.path}: it has no store.json; give the folder that "
                    "`evalcore score -o` wrote"
                )
            open_settings(self.path, read_only=True)
        elif not later or is_there(self.path / "store.json"):
            self.create()

    # Writing ---------------------------------------------------------------------------------

    def open_writer(self, worker_name: str, **limits: Any) -> SegmentWriter:
        """Gives a writer of segments; ``worker_name`` becomes part of their names.

        ``limits``: ``flush_bytes``, ``flush_age_s`` of :class:`SegmentWriter`.
        """
        return SegmentWriter(self.segments_folder, worker_name, **limits)

    def cell_records(self) -> CellRecords:
        """What is recorded of every cell now."""
        return self._cells.read()

    def write_cells(
        self, rows: Sequence[dict[str, Any]] | CellRows, known: CellRecords | None = None
    ) -> Path | None:
        """Records what describes cells: those that are new, described otherwise, or superseded.

        A row without ``recorded`` says that a run asks for the cell now, which makes it the current
        definition; a row that has it (a corrected record as :meth:`cells` gave it) changes nothing
        but the description.

        Args:
            rows: The rows.
            known: What was recorded (:meth:`cell_records`) before others of the same run, which
                has many cells, recorded theirs; None: it is read now.

        Returns:
            The file that holds what was new; None if nothing was.

        Raises:
            IncompatibleError: A row does not fit :data:`CELL_SCHEMA`.
            ResultsError: The folder cannot be written.
        """
        if not isinstance(rows, CellRows):
            table = conform(list(rows), CELL_SCHEMA, "rows for the cells table")
            rows = CellRows.of_table(table)
        return self._cells.write(rows, known) if rows.num_rows else None

    def drop_cells(self, cells: Iterable[str], *, restore: bool = False) -> int:
        """Leaves cells out of every view from now on, or takes them in again; deletes nothing.

        Returns:
            How many were not dropped (or restored) already.

        Raises:
            UnknownNameError: A cell that is not recorded.
            ResultsError: The folder cannot be written.
        """
        return self._cells.mark(cells, dropped=not restore)

    def mark_sampled(self, cells: Mapping[str, Mapping[str, Any] | None]) -> None:
        """Says of cells that only drawn documents of them are scored, or (None) no longer so.

        They are in no view but the estimate over many prompts (``app.pairs``).

        Args:
            cells: Cell -> ``prompts`` and ``documents`` (how many were drawn from), ``budget``
                (share) and ``seed``.

        Raises:
            ResultsError: The folder cannot be written.
        """
        if cells:
            self._cells.mark_sampled(cells)

    def sampled(self) -> Mapping[str, Mapping[str, Any]]:
        """What was drawn for each cell that is marked so; see :meth:`mark_sampled`."""
        return self._cells.read().sampled

    def write_maker(self, record: Mapping[str, Any]) -> str:
        """Records what makes rows (versions, hardware, strategy ...), once.

        Args:
            record: JSON values; what differs makes another id.

        Returns:
            The id for column ``made_by``, 16 hex digits of the content.

        Raises:
            ResultsError: The folder cannot be written.
        """
        return self._makers.write(record)

    def write_documents(
        self, task: str, data: str, rows: Iterable[Mapping[str, Any]]
    ) -> Path | None:
        """Keeps questions, choices and golds; documents that are there are not written again.

        Args:
            task: Task name.
            data: What decides the task's documents (the cells' column ``data``).
            rows: Rows of :data:`~evalcore.store.schema.DOCUMENT_SCHEMA` without task and data.

        Raises:
            ResultsError: The folder cannot be written.
        """
        return self._documents.write(task, data, rows)

    def write_clusters(self, task: str, clusters: Mapping[str, str]) -> Path | None:
        """Keeps what a task's documents hang together in: document id -> cluster.

        Raises:
            ResultsError: The folder cannot be written.
        """
        return self._clusters.write(task, clusters)

    def write_requests(self, name: str, table: pa.Table) -> Path:
        """Keeps the prompts of a (task, variant, tokenizer) as token ids.

        Args:
            name: The cells' column ``requests``.
            table: One row per document, with ``doc_id`` (``prompting.REQUEST_SCHEMA``).

        Raises:
            ResultsError: The folder cannot be written.
        """
        return self._requests.write(name, table)

    def has_requests(self, name: str) -> bool:
        """Whether these prompts are kept already, under their own name.

        Raises:
            ResultsError: The file cannot be read.
        """
        return self._requests.has(name)

    def compact(self, **options: Any) -> CompactReport:
        """Merges small segments into few and drops doubled rows; safe to kill, safe beside writers.

        Segments of an earlier schema are written anew, with checksums. What is damaged is set aside
        first, and named. ``options``: see :func:`evalcore.store.compaction.compact_segments`.
        """
        damaged = tuple(damage.line() for damage in self.verify().damaged)
        done = self._retried(lambda: compact_segments(self._survey(), **options))
        return replace(done, damaged=damaged)

    def tidy(
        self, seconds: float, stop: Callable[[], bool] = lambda: False
    ) -> CompactReport | None:
        """Merges small segments where there are many; see :mod:`evalcore.store.tidying`.

        Args:
            seconds: Nothing is begun after so long.
            stop: Asked now and then whether to end.

        Returns:
            What was done; None if nothing was.
        """
        lock = self.path / "index" / "tidying.lock"
        return self._retried(lambda: tidy_segments(self._survey(), lock, seconds, stop=stop))

    @property
    def num_bytes(self) -> int:
        """Size of all segments."""
        total = 0
        for path in list_segments(self.segments_folder):
            with suppress(FileNotFoundError):  # a compaction beside us
                total += patiently(path, os.stat).st_size
        return total

    def verify(self, *, set_aside: bool = True) -> VerifyReport:
        """Checks every byte of the folder.

        Args:
            set_aside: Move damaged files to ``damaged/``; sound rows of a damaged segment are kept
                in a new one. What is lost is scored again by the next run.

        Raises:
            ResultsError: The folder cannot be written.
        """
        return verify_folder(self.path, set_aside=set_aside and not self.read_only)

    # Reading ---------------------------------------------------------------------------------

    def coverage(self) -> Coverage:
        """What is committed, superseded cells too: cell -> document ids, from footers only."""
        return self._retried(self._survey).coverage()

    def cells(self, *, every: bool = False, sampled: bool = False) -> pa.Table:
        """The cells table (:data:`CELL_SCHEMA`), one row per cell, ordered by cell.

        Where a cell was recorded more than once, the newest record counts.

        Args:
            every: Superseded, dropped and sampled cells too.
            sampled: Sampled cells too.
        """
        records = self._cells.read()
        if every:
            return self._cells_table(records, None)
        states = self._states(records)
        if sampled:
            states = {c: "current" if s == "sampled" else s for c, s in states.items()}
        return self._cells_table(records, states)

    def recorded(self) -> frozenset[str]:
        """Keys of all cells of which there is a record, whatever became of them."""
        return frozenset(self._cells.read().rows)

    def undescribed(self) -> str | None:
        """A line about cells that have rows but no record of whose they are; None: there are none.

        That is so where a file of ``cells/`` was damaged or lost, until a run records them again.
        """
        recorded = self._cells.read().rows
        count = sum(cell not in recorded for cell in self.places().of_cell)
        if not count:
            return None
        return (
            f"{count:,} cells have rows but no description (a file of cells/ is damaged or lost); "
            "not used; the same `evalcore score` once more describes them again"
        )

    def cell_states(self) -> dict[str, CellState]:
        """Whether each recorded cell is ``current``, ``sampled``, ``superseded`` or ``dropped``."""
        return self._states(self._cells.read())

    def left_out(self) -> list[str]:
        """What readers leave out, one line each: sampled, superseded and dropped cells, damaged
        files."""
        states = list(self.cell_states().values())
        texts = {
            "superseded": "cells are superseded: their prompt, task or settings were changed and "
            "scored again under the same name",
            "dropped": "cells were dropped",
            "sampled": "cells are scored on drawn documents alone (--budget); `evalcore scores` "
            "shows what they say about all prompts",
        }
        lines = [
            f"{count:,} {text}"
            + ("" if state == "sampled" else f"; not used (`evalcore cells {self.path} list`)")
            for state, text in texts.items()
            if (count := sum(found == state for found in states))
        ]
        lines += aside_lines(self.path)
        return lines + [f"{name}: {text}" for name, text in sorted(self.damage.items())]

    def weights(self) -> NamedWeights:
        """Under which fingerprints weights are scored here, by their files and their content."""
        return self._weights.read()

    def write_weights(self, rows: Iterable[Named]) -> None:
        """Keeps under which fingerprint the weights of some files are scored here; what is new.

        Raises:
            ResultsError: The folder cannot be written.
        """
        self._weights.write(rows)

    def makers(self) -> dict[str, dict[str, Any]]:
        """Environments that made rows, by the id in ``made_by``."""
        return self._makers.read()

    def documents(self, task: str | None = None, data: str | None = None) -> pa.Table:
        """Documents of a task (None: of all tasks), as
        :data:`~evalcore.store.schema.DOCUMENT_SCHEMA`."""
        return self._documents.read(task, data)

    def clusters(self) -> dict[str, str]:
        """Document id -> what it hangs together in; of tasks that say so."""
        return self._clusters.read()

    def requests(self, cell: str) -> pa.Table:
        """Prompts of a cell as token ids of its checkpoint's tokenizer, one row per document.

        Columns: ``prompting.REQUEST_SCHEMA`` (``contexts``, ``continuations``, ``prompt`` ...).

        Raises:
            UnknownNameError: The cell is not recorded.
            InputError: Its prompts were not kept, or are damaged.
        """
        rows = self._cells.read().rows
        if cell not in rows:
            raise UnknownNameError("cell", cell, rows)
        return self._requests.read(str(rows[cell]["requests"]))

    def examples(
        self,
        columns: Sequence[str] | None = None,
        filter: pc.Expression | None = None,
        *,
        cells: Collection[str] | None = None,
    ) -> pa.Table:
        """Examples of current cells without doubles: the first by (cell, document, segment name).

        Damaged rows are left out, with a warning and a line in ``damage``.

        Args:
            columns: Columns wanted, in this order; None for all of :data:`EXAMPLE_SCHEMA`.
            filter: Arrow expression on example columns.
            cells: Only these cells, current or not; segments without any of them are not opened.

        Raises:
            UnknownNameError: A column that does not exist.
        """
        wanted = self._wanted(cells)
        return self._retried(
            lambda: read_examples(self._survey(note=True), columns, filter, wanted, self._on_damage)
        )

    def read(
        self,
        columns: Sequence[str] | None = None,
        filter: pc.Expression | None = None,
        *,
        cells: Collection[str] | None = None,
    ) -> pa.Table:
        """Examples of current cells joined with what is recorded of their cells and makers.

        A name both tables have (``shots``) is the example's; the cell's is ``cell_shots``. Text
        columns of cells are dictionary-encoded. ``maker`` is the record of ``made_by`` as text.

        Args:
            columns: Columns of the joined table wanted; None for all.
            filter: Arrow expression on columns of the joined table.
            cells: Only these cells, current or not.
        """
        own = example_columns(columns, filter)
        return self.joined(self.examples(own, cells=cells), columns, filter)

    def iterate(
        self,
        columns: Sequence[str] | None = None,
        filter: pc.Expression | None = None,
        *,
        cells: Collection[str] | None = None,
    ) -> Iterator[pa.Table]:
        """Like :meth:`read`, some segments at a time: memory for the largest one is enough."""
        own, wanted = example_columns(columns, filter), self._wanted(cells)
        records = self._cells.read()
        about = self._cells_table(records, None)
        # Segments that a compaction takes away meanwhile cannot be looked for again: rows that were
        # given already would come twice.
        survey = self._retried(lambda: self._survey(note=True))
        try:
            parts = iterate_examples(survey, own, None, wanted, self._on_damage)
            for part in together(parts, ROWS_TOGETHER):
                yield self.joined(part, columns, filter, about)
        except FileNotFoundError as error:
            raise self._compacted(error) from error

    def places(self) -> CellPlaces:
        """Which segments hold which cell (superseded ones too), from the heads of footers."""
        return find_cells(self._retried(lambda: self._survey(note=True)))

    def note_left_out(self) -> None:
        """Warns, once, of superseded and dropped cells, which views leave out."""
        self._wanted(None)

    def read_whole(
        self, places: CellPlaces, about: pa.Table, columns: Sequence[str] | None = None
    ) -> pa.Table:
        """Like :meth:`read` for the cells of ``about`` (some rows and columns of :meth:`cells`).

        Quicker than :meth:`read` where a folder is read a few cells at a time.

        Args:
            places: What :meth:`places` gave.
            about: The cells, and which columns of theirs are joined.
            columns: Columns of the examples.

        Raises:
            ResultsError: A compaction took a segment away.
        """
        try:
            cells = about.column("cell").to_pylist()
            rows = read_whole(places, cells, columns, self._on_damage)
        except FileNotFoundError as error:
            raise self._compacted(error) from error
        return self.joined(rows, None, None, about)

    def of_documents(
        self, columns: Sequence[str], cells: Collection[str], doc_ids: Collection[str]
    ) -> pa.Table:
        """Rows of a few documents under some cells, joined; quicker than :meth:`read`.

        Args:
            columns: Columns of the joined table wanted.
            cells: The cells, current or not.
            doc_ids: The documents.
        """
        own = example_columns(columns, None) or []
        rows = self._retried(
            lambda: read_documents(self._survey(note=True), cells, doc_ids, own, self._on_damage)
        )
        return self.joined(rows, columns)

    def _compacted(self, error: FileNotFoundError) -> ResultsError:
        return ResultsError(
            f"{self.path} was compacted while it was read ({error.filename} is gone); once more"
        )

    def joined(
        self,
        examples: pa.Table,
        columns: Sequence[str] | None = None,
        filter: pc.Expression | None = None,
        about: pa.Table | None = None,
    ) -> pa.Table:
        """Examples (with column ``cell``) with what is recorded of their cells and makers.

        ``about``: records of cells that were read already.
        """
        about = self.cells(every=True) if about is None else about
        missing = set(pc.unique(examples.column("cell")).to_pylist())
        missing -= set(about.column("cell").to_pylist())
        if missing:
            self._warn_once(
                self.cells_folder, f"no constants of {len(missing)} cells, e.g. {min(missing)}"
            )
        table = join_cells(examples, about)
        if "made_by" in examples.column_names:
            table = table.append_column(
                MAKER_COLUMN, maker_column(examples["made_by"], self._makers.texts())
            )
        if filter is not None:
            try:
                table = table.filter(filter)
            except pa.ArrowException as error:
                raise InputError(f"filter {filter} does not fit the results: {error}") from error
        return table if columns is None else table.select(list(columns))

    # Parts -----------------------------------------------------------------------------------

    def _wanted(self, cells: Collection[str] | None) -> Callable[[str], bool] | None:
        if cells is not None:
            return in_cells(cells)
        left_out = {cell for cell, state in self.cell_states().items() if state != "current"}
        if not left_out:
            return None
        self._warn_once(self.cells_folder / "states", "; ".join(self.left_out()), ignored=False)
        return lambda cell: cell not in left_out

    def _states(self, records: CellRecords) -> dict[str, CellState]:
        found: set[str] = set()

        def with_rows() -> set[str]:
            if not found:
                found.update(cell for cell, _ in self._retried(self._survey).by_cell())
            return found

        return records.states(with_rows)

    def _cells_table(
        self, records: CellRecords, states: Mapping[str, CellState] | None
    ) -> pa.Table:
        if states is None:
            return records.table
        cells = records.table["cell"].to_pylist()
        return records.table.filter(pa.array([states[c] == "current" for c in cells], pa.bool_()))

    def _survey(self, note: bool = False) -> Survey:
        survey = self._index.survey(self.segments_folder, self._warn_damaged)
        if note:
            self._note_unchecked([is_checked(Path(name)) for name in survey.names])
        return survey

    def _note_unchecked(self, checked: Sequence[bool]) -> None:
        if unchecked := checked.count(False):
            text = (
                f"{unchecked} of {len(checked)} segments are from before there were checksums and "
                f"are read unchecked; `evalcore compact {self.path}` writes them anew"
            )
            self._warn_once(self.segments_folder, text, ignored=False)

    def _retried(self, action: Callable[[], _T]) -> _T:
        """Runs ``action`` again when a compaction took a listed segment away meanwhile."""
        for attempt in range(_ATTEMPTS):
            try:
                return action()
            except FileNotFoundError:
                if attempt == _ATTEMPTS - 1:
                    raise
                time.sleep(0.05 * 2**attempt)
        raise AssertionError("unreachable")

    def _on_damage(self, info: Segment, rows: SegmentRows) -> None:
        text = (
            f"{rows.num_lost} of {info.num_rows} rows are damaged and not used ({rows.reason}); "
            f"`evalcore verify {self.path}` sets them aside, then run again"
        )
        self._warn_damaged(info.path, text)

    def _warn_damaged(self, path: Path, reason: str) -> None:
        self.damage[str(path.relative_to(self.path))] = reason
        self._warn_once(path, reason)

    def _warn_once(self, path: Path, reason: str, *, ignored: bool = True) -> None:
        if str(path) not in self._warned:
            self._warned.add(str(path))
            log.warning("%s: %s", path if ignored else self.path, reason)

    def create(self) -> None:
        """Makes what is missing of the folder, and checks that it can be written.

        Raises:
            ResultsError: It cannot.
            IncompatibleError: It is of a newer schema, or its store.json is damaged.
        """
        folders = (self.segments_folder, self.cells_folder, self.runs.folder, self.cache_folder)
        try:
            for folder in folders:
                folder.mkdir(parents=True, exist_ok=True)
            for folder in (self.path, *folders[:3]):
                # Permission bits do not tell (root, read-only mounts): only writing does.
                try_folder(folder)
            below = [f for f in self.path.iterdir() if f.is_dir()]
            below += [f for f in (self.path / "documents").glob("*") if f.is_dir()]
            for folder in (self.path, *below):
                remove_stale_temporaries(folder)
        except OSError as error:
            raise not_writable(self.path, error) from error
        open_settings(self.path, read_only=False)

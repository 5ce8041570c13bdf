"""What is read of a results folder: cells, examples, and what stands beside them.

Every byte is checked before it is parsed; what is damaged is left out and said. Reading is safe
beside any number of writers: what a compaction takes away meanwhile is looked for again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from evalcore.checked import is_checked
from evalcore.errors import InputError, ResultsError, UnknownNameError
from evalcore.identity.away import NamedWeights
from evalcore.store.access import patiently
from evalcore.store.cells import CellRecords, CellState, CellTables
from evalcore.store.coverage import Coverage
from evalcore.store.noting import Noted
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
from evalcore.store.schema import MAKER_COLUMN
from evalcore.store.segments import list_segments
from evalcore.store.settled import Settled
from evalcore.store.survey import Index, Survey
from evalcore.store.verify import aside_lines
from evalcore.store.whole import CellPlaces, find_cells, read_documents, read_whole

_ATTEMPTS = 5
ROWS_TOGETHER = 1 << 16
"""Rows of small segments that are joined with their cells at once."""
_T = TypeVar("_T")


class ResultViews:
    """The views of a folder; nothing here writes into it but its index.

    Args:
        path: The folder.
        read_only: Keep no index either.

    Attributes:
        settle: The way of scoring of a kind: what is settled; if nothing is, what the caller chose.
    """

    def __init__(self, path: Path, read_only: bool) -> None:
        self.path, self.read_only = path, read_only
        self.cells_folder = path / "cells"
        self.segments_folder = path / "segments"
        self.cache_folder = path / "cache"
        self.runs = RunLog(path / "runs")
        self.settle = Settled(path / "settled")
        self.reductions = Reductions(path / "reduced")
        self._noted = Noted(path)
        self._cells = CellTables(self.cells_folder, self._noted.damaged)
        self._makers = Makers(path / "makers", self._noted.damaged)
        self._weights = WeightNames(path / "weights", self._noted.damaged)
        self._documents = Documents(path / "documents", self._noted.damaged)
        self._clusters = Clusters(path / "clusters", self._noted.damaged)
        self._requests = Requests(path / "requests")
        self._index = Index(path / "index", keep=not read_only)

    @property
    def damage(self) -> dict[str, str]:
        """What of the files read so far is damaged and was left out: file -> one line."""
        return self._noted.damage

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

    def cell_records(self) -> CellRecords:
        """What is recorded of every cell now."""
        return self._cells.read()

    def sampled(self) -> Mapping[str, Mapping[str, Any]]:
        """What was drawn for each cell that is marked so; see :meth:`mark_sampled`."""
        return self._cells.read().sampled

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
        return lines + [f"{name}: {text}" for name, text in sorted(self._noted.damage.items())]

    def weights(self) -> NamedWeights:
        """Under which fingerprints weights are scored here, by their files and their content."""
        return self._weights.read()

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

    def has_requests(self, name: str) -> bool:
        """Whether these prompts are kept already, under their own name.

        Raises:
            ResultsError: The file cannot be read.
        """
        return self._requests.has(name)

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
            lambda: read_examples(
                self._survey(note=True), columns, filter, wanted, self._noted.rows
            )
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
            parts = iterate_examples(survey, own, None, wanted, self._noted.rows)
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
            rows = read_whole(places, cells, columns, self._noted.rows)
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
            lambda: read_documents(self._survey(note=True), cells, doc_ids, own, self._noted.rows)
        )
        return self.joined(rows, columns)

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
            self._noted.once(
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

    @property
    def num_bytes(self) -> int:
        """Size of all segments."""
        total = 0
        for path in list_segments(self.segments_folder):
            with suppress(FileNotFoundError):  # a compaction beside us
                total += patiently(path, os.stat).st_size
        return total

    # Parts -----------------------------------------------------------------------------------

    def _wanted(self, cells: Collection[str] | None) -> Callable[[str], bool] | None:
        if cells is not None:
            return in_cells(cells)
        left_out = {cell for cell, state in self.cell_states().items() if state != "current"}
        if not left_out:
            return None
        self._noted.once(self.cells_folder / "states", "; ".join(self.left_out()), ignored=False)
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
        survey = self._index.survey(self.segments_folder, self._noted.damaged)
        if note:
            self._noted.unchecked([is_checked(Path(name)) for name in survey.names])
        return survey

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

    def _compacted(self, error: FileNotFoundError) -> ResultsError:
        return ResultsError(
            f"{self.path} was compacted while it was read ({error.filename} is gone); once more"
        )

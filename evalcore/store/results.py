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

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from evalcore.errors import InputError
from evalcore.files import remove_stale_temporaries, try_folder
from evalcore.identity.away import Named
from evalcore.reading import is_there
from evalcore.store.cell_rows import CellRows
from evalcore.store.cells import CellRecords, not_writable
from evalcore.store.compaction import CompactReport, compact_segments
from evalcore.store.schema import CELL_SCHEMA, conform
from evalcore.store.segments import SegmentWriter
from evalcore.store.settings import open_settings
from evalcore.store.tidying import tidy_segments
from evalcore.store.verify import VerifyReport, verify_folder
from evalcore.store.views import ResultViews


class ResultStore(ResultViews):
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
        super().__init__(Path(path), read_only)
        if read_only:
            if not is_there(self.path / "store.json"):
                raise InputError(
                    f"no results in {self.path}: it has no store.json; give the folder that "
                    "`evalcore score -o` wrote"
                )
            open_settings(self.path, read_only=True)
        elif not later or is_there(self.path / "store.json"):
            self.create()

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

    def open_writer(self, worker_name: str, **limits: Any) -> SegmentWriter:
        """Gives a writer of segments; ``worker_name`` becomes part of their names.

        ``limits``: ``flush_bytes``, ``flush_age_s`` of :class:`SegmentWriter`.
        """
        return SegmentWriter(self.segments_folder, worker_name, **limits)

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

    def write_weights(self, rows: Iterable[Named]) -> None:
        """Keeps under which fingerprint the weights of some files are scored here; what is new.

        Raises:
            ResultsError: The folder cannot be written.
        """
        self._weights.write(rows)

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

    def verify(self, *, set_aside: bool = True) -> VerifyReport:
        """Checks every byte of the folder.

        Args:
            set_aside: Move damaged files to ``damaged/``; sound rows of a damaged segment are kept
                in a new one. What is lost is scored again by the next run.

        Raises:
            ResultsError: The folder cannot be written.
        """
        return verify_folder(self.path, set_aside=set_aside and not self.read_only)

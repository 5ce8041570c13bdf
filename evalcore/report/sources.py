"""Where the page's documents and tokens come from: a results folder, or a table at hand."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

import pyarrow as pa
import pyarrow.compute as pc

from evalcore.errors import InputError
from evalcore.metrics.arrays import column
from evalcore.store.schema import DOCUMENT_SCHEMA


class Source(Protocol):
    """What a results folder knows of its rows (``store.ResultStore``)."""

    def of_documents(
        self, columns: Sequence[str], cells: Collection[str], doc_ids: Collection[str]
    ) -> pa.Table:
        """Joined rows of a few documents under some cells."""

    def documents(self, task: str | None = None) -> pa.Table:
        """Questions, choices and golds of a task."""

    def requests(self, cell: str) -> pa.Table:
        """Prompts of a cell as token ids."""


class TableSource:
    """A joined table; questions and prompts are not known."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    def of_documents(
        self, columns: Sequence[str], cells: Collection[str], doc_ids: Collection[str]
    ) -> pa.Table:
        table = self.table
        for name, wanted in (("cell", cells), ("doc_id", doc_ids)):
            names = column(table, name).cast(pa.string())
            table = table.filter(pc.is_in(names, value_set=pa.array(sorted(wanted), pa.string())))
        return table.select([name for name in columns if name in table.column_names])

    def documents(self, task: str | None = None) -> pa.Table:
        return DOCUMENT_SCHEMA.empty_table()

    def requests(self, cell: str) -> pa.Table:
        raise InputError("prompts of a bare table are not known")

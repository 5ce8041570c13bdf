"""Where the page's documents and tokens come from: a results folder, or a table at hand."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Protocol

import pyarrow as pa
import pyarrow.compute as pc

from evalcore.errors import InputError
from evalcore.metrics.arrays import column
from evalcore.store.schema import DOCUMENT_SCHEMA


class Source(Protocol):
    """What a results folder knows of its rows (``store.ResultStore``)."""

    def iterate(
        self,
        columns: Sequence[str] | None = None,
        filter: pc.Expression | None = None,
        *,
        cells: Collection[str] | None = None,
    ) -> Iterator[pa.Table]:
        """Joined rows, a part at a time."""

    def documents(self, task: str | None = None) -> pa.Table:
        """Questions, choices and golds of a task."""

    def requests(self, cell: str) -> pa.Table:
        """Prompts of a cell as token ids."""


class TableSource:
    """A joined table; questions and prompts are not known."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    def iterate(
        self,
        columns: Sequence[str] | None = None,
        filter: pc.Expression | None = None,
        *,
        cells: Collection[str] | None = None,
    ) -> Iterator[pa.Table]:
        table = self.table if filter is None else self.table.filter(filter)
        if cells is not None:
            names = column(table, "cell").cast(pa.string())
            table = table.filter(pc.is_in(names, value_set=pa.array(sorted(cells), pa.string())))
        yield (
            table
            if columns is None
            else table.select([name for name in columns if name in table.column_names])
        )

    def documents(self, task: str | None = None) -> pa.Table:
        return DOCUMENT_SCHEMA.empty_table()

    def requests(self, cell: str) -> pa.Table:
        raise InputError("prompts of a bare table are not known")

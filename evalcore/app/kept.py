"""A data set that grew or lost rows: answers to the rows that stayed are kept, not scored again.

Other rows make other cells (docs/identity.md), so that answers about different data never mix. But
an answer to a document that is in both is the same answer: everything that decides it is equal.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from evalcore.prompting import read_requests
from evalcore.store import ResultStore
from evalcore.store.coverage import Coverage

if TYPE_CHECKING:
    from evalcore.app.cells import Grid
    from evalcore.planning import PlannedCell


class KeptAnswers:
    """Answers that earlier data sets' cells have and cells of this run may keep.

    Attributes:
        kept: Answers copied so far.
        tasks: Of these.
    """

    def __init__(self, store: ResultStore) -> None:
        self._store = store
        self.kept = 0
        self.tasks: set[str] = set()
        rows = store.cells(every=True).select(["cell", "asked", "recorded"]).to_pylist()
        states = store.cell_states() if rows else {}
        self._by_asked: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for row in rows:
            if row["asked"] and states.get(row["cell"]) != "dropped":
                self._by_asked[row["asked"]].append((str(row["recorded"] or ""), row["cell"]))

    def keep(self, grid: Grid, covered: Coverage) -> bool:
        """Copies what some cells may keep; whether there was anything.

        The cells must be recorded already. Nothing is copied that is there.

        Raises:
            ResultsError: The folder cannot be written.
        """
        earlier = self._earlier(grid) if self._by_asked else {}
        if not earlier:
            return False
        before, store = self.kept, self._store
        writer = store.open_writer("kept")
        for planned in grid.cells:
            sources = earlier.get(planned.cell.key, [])
            missing = set(planned.doc_ids) - set(covered.get(planned.cell.key, ()))
            for source in sources:
                found = missing & set(covered.get(source, ()))
                if not found:
                    continue
                writer.add(_copied(store, source, planned, found))
                missing -= found
                self.kept += len(found)
                self.tasks.add(planned.cell.task.name)
            if writer.due():
                writer.flush()
        writer.flush()
        return self.kept > before

    def lines(self) -> list[str]:
        """A line about what was kept."""
        if not self.kept:
            return []
        return [
            f"{', '.join(sorted(self.tasks))}: the data changed; {self.kept:,} answers to rows "
            f"that stayed the same are kept"
        ]

    def _earlier(self, grid: Grid) -> dict[str, list[str]]:
        """Cell of the grid -> cells that ask the same of other rows, the newest first."""
        found = {}
        for row in grid.rows.to_pylist(["cell", "asked"]):
            others = sorted(self._by_asked.get(row["asked"] or "", ()), reverse=True)
            own = [cell for _, cell in others if cell != row["cell"]]
            if own:
                found[row["cell"]] = own
        return found


def _copied(store: ResultStore, source: str, planned: PlannedCell, wanted: set[str]) -> pa.Table:
    """Rows of an earlier cell as rows of this one; their place is that in today's data."""
    rows = store.examples(cells=[source])
    rows = rows.filter(
        pc.is_in(rows["doc_id"], value_set=pa.array(sorted(wanted), rows["doc_id"].type))
    )
    asked = read_requests(planned.requests_path)
    place = dict(zip(asked["doc_id"].to_pylist(), asked["doc_index"].to_pylist(), strict=True))
    index = pa.array([place[doc] for doc in rows["doc_id"].to_pylist()], pa.int32())
    cell = pa.DictionaryArray.from_arrays(
        pa.array(np.zeros(len(rows), np.int32)), pa.array([planned.cell.key])
    )
    names = rows.column_names
    rows = rows.set_column(names.index("cell"), "cell", cell)
    return rows.set_column(names.index("doc_index"), "doc_index", index)

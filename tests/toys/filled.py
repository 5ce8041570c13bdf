"""Results folders that hold a table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from evalcore.store import CELL_SCHEMA, EXAMPLE_SCHEMA, ResultStore


def fill(folder: Path, table: pa.Table, parts: int = 3) -> ResultStore:
    """Writes a joined table as segments that cut through cells; some rows lie in two of them."""
    store = ResultStore(folder)
    cells = {}
    for row in table.to_pylist():
        known = {k: row[k] for k in CELL_SCHEMA.names if k in row}
        cells[row["cell"]] = {**known, "shots": row["cell_shots"]}
    store.write_cells(list(cells.values()))
    order = np.random.default_rng(1).permutation(table.num_rows)
    writer = store.open_writer("one")
    for part in np.array_split(order, parts):
        again = order[: table.num_rows // 20]
        rows = table.take(pa.array(np.concatenate([part, again])))
        writer.add(rows.select(EXAMPLE_SCHEMA.names))
        writer.flush()
    return store

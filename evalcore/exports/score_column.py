"""Column ``score``: each row's value of its task's primary metric."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from evalcore.metrics import document_metric, example_values
from evalcore.store.coverage import codes_of


def with_scores(table: pa.Table) -> pa.Table:
    """The joined table with column ``score``, and ``score_metric`` that says what it is."""
    _, codes = codes_of(table["cell"])
    cells, first = np.unique(codes, return_index=True)
    about = table.select(["primary_metric", "output_type", "answer"]).take(pa.array(first))
    cells_of: dict[str, list[int]] = {}
    for cell, row in zip(cells.tolist(), about.to_pylist(), strict=True):
        if row["primary_metric"] is not None and row["output_type"] is not None:
            how = row["answer"] or "choices"
            metric = document_metric(row["primary_metric"], row["output_type"], how)
            cells_of.setdefault(metric, []).append(cell)
    values = np.full(table.num_rows, np.nan)
    which = np.full(table.num_rows, -1, np.int32)
    for number, (metric, own) in enumerate(cells_of.items()):
        rows = np.flatnonzero(np.isin(codes, own))
        values[rows] = example_values(table.take(pa.array(rows)), metric)
        which[rows] = number
    score = pa.array(values, pa.float64(), mask=np.isnan(values))
    metrics = pa.DictionaryArray.from_arrays(
        pa.array(which, pa.int32(), mask=which < 0), pa.array(list(cells_of), pa.string())
    )
    return table.append_column("score", score).append_column("score_metric", metrics)

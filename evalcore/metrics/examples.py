"""Per-document values of every metric, from example rows of the store (``EXAMPLE_SCHEMA``)."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from evalcore.errors import UnknownNameError
from evalcore.metrics.arrays import BoolArray, FloatArray, Ragged, column, segment_sum
from evalcore.metrics.registry import METRICS, find_metric

OVERFLOW_FLAG = "overflow"


def example_values(table: pa.Table, metric: str) -> FloatArray:
    """Value of ``metric`` for every row.

    Args:
        table: N rows with the columns of the store's ``EXAMPLE_SCHEMA``, better joined with their
            cell's (``output_type`` and ``answer`` decide; without them rows are taken as choices
            ranked by log-probability). Others are ignored.
        metric: A metric that has values per document.

    Returns:
        float64 [N]; NaN where there is nothing to score: rows flagged ``overflow``, rows without
        what the metric needs (gold label, text, log-probabilities).

    Raises:
        UnknownNameError: No such per-document metric.
    """
    found = find_metric(metric)
    if found.values is None:
        known = [name for name, other in METRICS.items() if other.values is not None]
        raise UnknownNameError("metric", metric, known, "it has a value per cell only")
    values = found.values(table)
    values[~is_scored(table)] = np.nan
    return values


def is_scored(table: pa.Table) -> BoolArray:
    """bool [N]: False for rows whose prompt did not fit (flag ``overflow``)."""
    flags = column(table, "flags")
    if len(flags) == 0:
        return np.zeros(0, dtype=bool)
    lengths = flags.value_lengths().fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    hits = np.asarray(
        flags.flatten().cast(pa.string()).to_numpy(zero_copy_only=False) == OVERFLOW_FLAG
    ).reshape(-1)
    rows = Ragged(hits, lengths)
    result: BoolArray = segment_sum(rows, hits.astype(np.float64)) == 0
    return result

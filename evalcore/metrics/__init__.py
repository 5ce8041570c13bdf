"""Example rows to per-document values, and those to cell scores with errors. No device needed."""

from __future__ import annotations

from evalcore.metrics.cells import CELL_SCORE_SCHEMA, cell_scores
from evalcore.metrics.examples import example_values, is_scored
from evalcore.metrics.registry import (
    METRICS,
    METRICS_VERSION,
    Metric,
    check_metrics,
    document_metric,
    find_metric,
    higher_is_better,
    metric_bounds,
    needs_unconditional,
)

__all__ = [
    "CELL_SCORE_SCHEMA",
    "METRICS",
    "METRICS_VERSION",
    "Metric",
    "cell_scores",
    "check_metrics",
    "document_metric",
    "example_values",
    "find_metric",
    "higher_is_better",
    "is_scored",
    "metric_bounds",
    "needs_unconditional",
]

"""Example rows to per-document values, and those to cell scores with errors. No device needed."""

from __future__ import annotations

from evalcore.metrics.cells import cell_scores
from evalcore.metrics.examples import (
    CELL_METRICS,
    EXAMPLE_METRICS,
    METRICS_VERSION,
    example_values,
    higher_is_better,
    is_scored,
)

__all__ = [
    "CELL_METRICS",
    "EXAMPLE_METRICS",
    "METRICS_VERSION",
    "cell_scores",
    "example_values",
    "higher_is_better",
    "is_scored",
]

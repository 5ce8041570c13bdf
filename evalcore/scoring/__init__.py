"""Scoring: one unit of work (requests -> engine -> segment), and the loop over the cluster."""

from evalcore.scoring.batching import (
    GenerateRequests,
    ScoreRequests,
    generate_requests,
    score_requests,
)
from evalcore.scoring.rows import example_rows
from evalcore.scoring.run import Progress, RunSummary, score_units
from evalcore.scoring.worker import CellWork, ScoringWorker, UnitJob, UnitReport, WorkerConfig

__all__ = [
    "CellWork",
    "GenerateRequests",
    "Progress",
    "RunSummary",
    "ScoreRequests",
    "ScoringWorker",
    "UnitJob",
    "UnitReport",
    "WorkerConfig",
    "example_rows",
    "generate_requests",
    "score_requests",
    "score_units",
]

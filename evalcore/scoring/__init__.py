"""Scoring: one unit of work (requests -> engine -> segment), and the loop over the cluster."""

from evalcore.scoring.batching import (
    GenerateRequests,
    ScoreRequests,
    generate_requests,
    score_requests,
)
from evalcore.scoring.feed import Feed, Progress
from evalcore.scoring.reports import Effort, RunSummary, UnitReport
from evalcore.scoring.rows import example_rows
from evalcore.scoring.run import score_units, warm_workers
from evalcore.scoring.shares import CellWork, CellWorks, UnitJob
from evalcore.scoring.source import UnitSource
from evalcore.scoring.watch import Watch
from evalcore.scoring.witnessed import Witnessed
from evalcore.scoring.worker import ScoringWorker, WorkerConfig

__all__ = [
    "CellWork",
    "CellWorks",
    "Effort",
    "Feed",
    "GenerateRequests",
    "Progress",
    "RunSummary",
    "ScoreRequests",
    "ScoringWorker",
    "UnitJob",
    "UnitReport",
    "UnitSource",
    "Watch",
    "Witnessed",
    "WorkerConfig",
    "example_rows",
    "generate_requests",
    "score_requests",
    "score_units",
    "warm_workers",
]

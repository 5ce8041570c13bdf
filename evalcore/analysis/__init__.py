"""Scored rows to the study's quantities: gains, controls, forgetting, prompt spread. Pure."""

from __future__ import annotations

from evalcore.analysis.book import CellValues, Flag, ScoreBook, SubjectInfo, TaskInfo
from evalcore.analysis.gains import (
    ControlComparison,
    Forgetting,
    ForgettingSummary,
    Gain,
    forgetting,
    paired_gain,
)
from evalcore.analysis.prompts import (
    BestOfPrompts,
    PromptSpread,
    best_of_prompts,
    prompt_spreads,
)
from evalcore.analysis.scores import ScoreRow, model_names, score_rows, scores_table
from evalcore.analysis.stats import (
    Estimate,
    SpreadEstimate,
    mean_estimate,
    normal_range,
    prompt_spread,
)
from evalcore.analysis.study import Analysis, CheckpointSummary, CurvePoint, analyse
from evalcore.analysis.ways import Way

__all__ = [
    "Analysis",
    "BestOfPrompts",
    "CellValues",
    "CheckpointSummary",
    "ControlComparison",
    "CurvePoint",
    "Estimate",
    "Flag",
    "Forgetting",
    "ForgettingSummary",
    "Gain",
    "PromptSpread",
    "ScoreBook",
    "ScoreRow",
    "SpreadEstimate",
    "SubjectInfo",
    "TaskInfo",
    "Way",
    "analyse",
    "best_of_prompts",
    "forgetting",
    "mean_estimate",
    "model_names",
    "normal_range",
    "paired_gain",
    "prompt_spread",
    "prompt_spreads",
    "score_rows",
    "scores_table",
]

"""Scored rows to the study's quantities: gains, controls, forgetting, prompt spread. Pure."""

from __future__ import annotations

from evalcore.analysis.book import ScoreBook
from evalcore.analysis.cells import CellValues
from evalcore.analysis.forgetting import Forgetting, ForgettingSummary, forgetting
from evalcore.analysis.gains import Contrast, ControlComparison, Gain, paired_gain, paired_gains
from evalcore.analysis.groups import Group
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
from evalcore.analysis.study import Analysis, CurvePoint, analyse
from evalcore.analysis.subjects import Flag, SubjectInfo, TaskInfo
from evalcore.analysis.summary import CheckpointSummary, GroupMean
from evalcore.analysis.ways import Way

__all__ = [
    "Analysis",
    "BestOfPrompts",
    "CellValues",
    "CheckpointSummary",
    "Contrast",
    "ControlComparison",
    "CurvePoint",
    "Estimate",
    "Flag",
    "Forgetting",
    "ForgettingSummary",
    "Gain",
    "Group",
    "GroupMean",
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
    "paired_gains",
    "prompt_spread",
    "prompt_spreads",
    "score_rows",
    "scores_table",
]

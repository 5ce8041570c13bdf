"""Pictures, one self-contained HTML page, CSV tables and the plain-text study table."""

from __future__ import annotations

from evalcore.report.html import write_report
from evalcore.report.prompteval import prompt_score_lines, prompt_score_table
from evalcore.report.scores import SHOWN_LINES, report_table, scores_text
from evalcore.report.tables import StudyRow, study_rows, study_table

__all__ = [
    "SHOWN_LINES",
    "StudyRow",
    "prompt_score_lines",
    "prompt_score_table",
    "report_table",
    "scores_text",
    "study_rows",
    "study_table",
    "write_report",
]

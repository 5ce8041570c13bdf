"""Pictures, one self-contained HTML page, CSV tables and the plain-text study table."""

from __future__ import annotations

from evalcore.report.html import write_report
from evalcore.report.tables import StudyRow, study_rows, study_table

__all__ = ["StudyRow", "study_rows", "study_table", "write_report"]

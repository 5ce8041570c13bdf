"""Results on disk: Arrow segments, coverage, resume, reading, compaction."""

from evalcore.store.cells import CellState
from evalcore.store.compaction import CompactReport
from evalcore.store.coverage import Coverage
from evalcore.store.merge import MergeReport, merge
from evalcore.store.progress import ProgressFile, Seen, SeenRuns, read_progress
from evalcore.store.results import ResultStore
from evalcore.store.runs import RunLog
from evalcore.store.schema import CELL_SCHEMA, EXAMPLE_SCHEMA, SCHEMA_VERSION
from evalcore.store.segments import SegmentWriter
from evalcore.store.spreadsheet import text_cell, text_columns
from evalcore.store.verify import VerifyReport, aside_lines, verify_folder

__all__ = [
    "CELL_SCHEMA",
    "EXAMPLE_SCHEMA",
    "SCHEMA_VERSION",
    "CellState",
    "CompactReport",
    "Coverage",
    "MergeReport",
    "ProgressFile",
    "ResultStore",
    "RunLog",
    "Seen",
    "SeenRuns",
    "SegmentWriter",
    "VerifyReport",
    "aside_lines",
    "merge",
    "read_progress",
    "text_cell",
    "text_columns",
    "verify_folder",
]

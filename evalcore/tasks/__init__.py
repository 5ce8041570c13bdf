"""Tasks: definitions in YAML, their documents, and checks of the data."""

from evalcore.tasks.baseline import floor_by_document, trivial_baseline
from evalcore.tasks.checks import (
    check_control_tokens,
    check_counts,
    check_documents,
    check_pool,
    check_sample,
    check_selection,
    check_source,
)
from evalcore.tasks.documents import (
    DocumentRows,
    LoadCounts,
    asked_key,
    content_key,
    documents_from_rows,
    is_scorable,
    load_documents,
    load_documents_counted,
    open_documents,
)
from evalcore.tasks.faults import DataFault, FileFault, TaskDataError, TaskError, TaskFault
from evalcore.tasks.finding import ROWS_SHOWN, Finding
from evalcore.tasks.hub import data_commits, data_resolution
from evalcore.tasks.model import TaskDefinition
from evalcore.tasks.overlaps import KEY_VERSION, Compared, ScoredRows, texts_key
from evalcore.tasks.reading import (
    UniqueKeyLoader,
    definition_error,
    once_per_state,
    parse_yaml,
    read_yaml,
    validation_line,
)
from evalcore.tasks.registry import (
    list_tasks,
    load_task,
    read_task,
    select_tasks,
    task_from_definition,
)
from evalcore.tasks.sample import RowLimit
from evalcore.tasks.sources import data_state
from evalcore.tasks.texts import check_prefixes
from evalcore.tasks.turns import conversation

__all__ = [
    "KEY_VERSION",
    "ROWS_SHOWN",
    "Compared",
    "DataFault",
    "DocumentRows",
    "FileFault",
    "Finding",
    "LoadCounts",
    "RowLimit",
    "ScoredRows",
    "TaskDataError",
    "TaskDefinition",
    "TaskError",
    "TaskFault",
    "UniqueKeyLoader",
    "asked_key",
    "check_control_tokens",
    "check_counts",
    "check_documents",
    "check_pool",
    "check_prefixes",
    "check_sample",
    "check_selection",
    "check_source",
    "content_key",
    "conversation",
    "data_commits",
    "data_resolution",
    "data_state",
    "definition_error",
    "documents_from_rows",
    "floor_by_document",
    "is_scorable",
    "list_tasks",
    "load_documents",
    "load_documents_counted",
    "load_task",
    "once_per_state",
    "open_documents",
    "parse_yaml",
    "read_task",
    "read_yaml",
    "select_tasks",
    "task_from_definition",
    "texts_key",
    "trivial_baseline",
    "validation_line",
]

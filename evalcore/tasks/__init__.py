"""Tasks: definitions in YAML, their documents, and checks of the data."""

from evalcore.tasks.baseline import trivial_baseline
from evalcore.tasks.checks import Finding, check_documents
from evalcore.tasks.documents import (
    LoadCounts,
    content_key,
    documents_from_rows,
    load_documents,
    load_documents_counted,
)
from evalcore.tasks.model import TaskDefinition, read_yaml, validation_line
from evalcore.tasks.registry import (
    list_tasks,
    load_task,
    read_task,
    select_tasks,
    task_from_definition,
)

__all__ = [
    "Finding",
    "LoadCounts",
    "TaskDefinition",
    "check_documents",
    "content_key",
    "documents_from_rows",
    "list_tasks",
    "load_documents",
    "load_documents_counted",
    "load_task",
    "read_task",
    "read_yaml",
    "select_tasks",
    "task_from_definition",
    "trivial_baseline",
    "validation_line",
]

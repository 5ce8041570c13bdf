"""Two tasks of two columns: one to choose in, one to write in."""

from __future__ import annotations

from typing import Any

from evalcore.tasks import TaskDefinition, task_from_definition
from evalcore.types import Task

CHOOSER: dict[str, Any] = {
    "name": "toy", "version": 1, "group": "toys", "output_type": "multiple_choice",
    "source": {"path": "toy"}, "splits": {"score": "test"}, "fields": {"text": "sentence"},
    "choices": {"labels": ["no", "yes"]}, "gold": {"column": "label"}, "metrics": ["acc"],
    "primary": "acc",
}  # fmt: skip
WRITER: dict[str, Any] = {
    **CHOOSER, "output_type": "generate_until", "choices": None, "gold": None,
    "references": {"column": "said"}, "metrics": ["exact_match"], "primary": "exact_match",
}  # fmt: skip


def toy(base: dict[str, Any] = CHOOSER, **changes: Any) -> Task:
    """A task of such a definition, with other members."""
    return task_from_definition(TaskDefinition.model_validate({**base, **changes}))

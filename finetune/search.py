"""Where a study's tasks and prompts are looked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from evalcore.lm_eval.names import split_selection
from evalcore.tasks import select_tasks
from evalcore.types import Task


@dataclass(frozen=True, slots=True)
class Search:
    """Folders with definitions beside those of the package.

    Attributes:
        tasks: Of tasks.
        prompts: Of prompt variants, one folder per group.
    """

    tasks: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()


PACKAGED = Search()


def own_tasks(selection: str, search: Search) -> list[Task]:
    """The tasks of a selection that are defined here; those of lm-eval are left out.

    Raises:
        UnknownNameError: With the nearest names.
    """
    ours, theirs = split_selection(selection)
    if theirs and not ours:
        return []
    return select_tasks(ours, search=[Path(folder) for folder in search.tasks])

"""The whole grid of a study in numbers, before anything of it is tuned or at hand."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from evalcore.errors import DataError
from evalcore.identity import is_commit
from evalcore.prompting import load_variants
from evalcore.tasks import RowLimit, open_documents
from evalcore.types import Task

if TYPE_CHECKING:
    from evalcore.app.study import StudyOptions
    from finetune import Study


@dataclass
class _Asked:
    """What is asked of every model about one task.

    Attributes:
        prompts: Names of its prompt variants.
        rows: Documents to score; None where they are not at hand.
    """

    task: Task
    prompts: set[str]
    rows: int | None


def outlook_lines(
    spec: Study, options: StudyOptions, checkpoints: int, tuned: int, limit: int | str | None
) -> list[str]:
    """The grid that is scored once everything is tuned, and what is to be known of its data.

    Args:
        spec: The study; it has an evaluation block.
        options: Where it runs.
        checkpoints: Bases.
        tuned: Models that will have been tuned from them.
        limit: Rows of each task.
    """
    asked = _asked(spec, options, limit)
    models = checkpoints + tuned
    prompts = sum(len(each.prompts) for each in asked)
    known = [each for each in asked if each.rows is not None]
    examples = models * sum((each.rows or 0) * len(each.prompts) for each in known)
    lines = [
        f"scoring once all is tuned: {checkpoints:,} checkpoints and {tuned:,} tuned models x "
        f"{prompts:,} prompts of {len(asked)} tasks = {models * prompts:,} cells"
    ]
    if known:
        part = "" if len(known) == len(asked) else f" in {len(known)} tasks whose rows are at hand"
        by_task = ", ".join(
            f"{each.task.name} {each.rows:,} x {len(each.prompts)}" for each in known
        )
        lines.append(f"{examples:,} examples{part} (rows x prompts of one model: {by_task})")
    away = [each.task.name for each in asked if each.rows is None]
    if away:
        lines.append(f"rows not at hand: {', '.join(away)}")
    return [*lines, *data_lines([each.task for each in asked])]


def data_lines(tasks: list[Task]) -> list[str]:
    """Data that can move, and scores that are not comparable with published ones."""
    loose = [task.name for task in tasks if _is_loose(task)]
    lines = []
    if loose:
        lines.append(
            f"not pinned: {', '.join(loose)}: no commit is named, the rows may change; the commit "
            "that is read is recorded with every cell"
        )
    return lines + [
        f"not comparable with published scores: {task.name}: {task.spec['published']}"
        for task in tasks
        if task.spec.get("published")
    ]


def _is_loose(task: Task) -> bool:
    hub = (task.spec.get("source") or {}).get("hub")
    return hub is not None and not is_commit(hub.get("revision"))


def _asked(spec: Study, options: StudyOptions, limit: int | str | None) -> list[_Asked]:
    from finetune.search import own_tasks

    assert spec.evaluation is not None
    root = options.data_root or spec.data_folder
    folders = [Path(folder) for folder in spec.search.prompts]
    found: dict[str, _Asked] = {}
    for tasks, prompts in spec.evaluation.blocks:
        for task in own_tasks(tasks, spec.search):
            if task.name not in found:
                found[task.name] = _Asked(task, set(), _rows(task, root, limit))
            names = (variant.name for variant in load_variants(task.group, prompts, search=folders))
            found[task.name].prompts.update(names)
    return list(found.values())


def _rows(task: Task, root: Path | None, limit: int | str | None) -> int | None:
    try:
        rows = len(open_documents(task, "score", data_root=root))
    except DataError:
        return None
    most = RowLimit.of(limit)
    return rows if most is None else min(rows, most.count)

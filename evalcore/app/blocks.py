"""Which prompts which tasks are asked in: ``-p`` as blocks of a grid."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from evalcore.errors import UnknownNameError
from evalcore.lm_eval.names import PREFIX, split_selection
from evalcore.tasks import select_tasks
from evalcore.types import Task

_OWN = re.compile(r"([^,:=]+)=(.+)", re.DOTALL)  # settings of a variant stand behind a colon


def prompt_blocks(
    tasks: str, prompts: Sequence[str], search: Sequence[Path] = ()
) -> tuple[tuple[str, str], ...]:
    """Blocks of (task selection, prompt selection).

    Args:
        tasks: Task selection.
        prompts: Prompt selections for all tasks, or ``TASK=SELECTION`` for one task, group or
            pattern of names, which is then asked in those alone.
        search: Folders with more task definitions.

    Raises:
        UnknownNameError: Prompts are given for a task that is not selected.
    """
    named: dict[str, str] = {}
    general: list[str] = []
    for piece in prompts:
        own = _OWN.fullmatch(piece.strip())
        if own is None:
            general.append(piece)
        else:
            key = own[1].strip()
            named[key] = f"{named[key]},{own[2]}" if key in named else own[2]
    rest = ",".join(general) or "default"
    if not named:
        return ((tasks, rest),)
    ours, theirs = split_selection(tasks)
    if ours:
        select_tasks(ours, search=search)  # two files of one name are seen together
    chosen: dict[str, tuple[Task, str]] = {}  # name -> (task, how to ask for it again)
    for word in filter(None, ours.split(",")):
        for task in select_tasks(word, search=search):
            file = word if word.endswith((".yaml", ".yml")) else task.name
            chosen.setdefault(task.name, (task, file))
    asked: dict[str, str] = {}
    for key, selection in named.items():
        found = [name for name, (task, _) in chosen.items() if _means(key, task)]
        if not found:
            groups = {task.group for task, _ in chosen.values()}
            raise UnknownNameError(f"task of -p {key}=...", key, {*chosen, *groups})
        for name in found:
            asked[name] = f"{asked[name]},{selection}" if name in asked else selection
    pairs = [(file, asked.get(name, rest)) for name, (_, file) in chosen.items()]
    blocks = [
        (",".join(file for file, _ in block), selection)
        for selection, block in groupby(pairs, key=lambda pair: pair[1])
    ]
    if theirs:  # they bring their own prompt
        blocks.append((",".join(PREFIX + name for name in theirs), rest))
    return tuple(blocks)


def _means(key: str, task: Task) -> bool:
    return task.name == key or task.group == key or fnmatch.fnmatchcase(task.name, key)

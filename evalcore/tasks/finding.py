"""What a check found, in one line that a person can act on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from evalcore.types import Task

Level = Literal["error", "warning", "note"]
ROWS_SHOWN = 5
"""Rows that a finding names."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about a task's data that a person should know.

    Attributes:
        level: ``error``: scores would mean nothing; ``warning``: they need a remark; ``note``: for
            the record (no reason to stop a strict run).
        code: Stable name of the check.
        message: One line with numbers, the first rows, and the consequence.
        count: Documents concerned.
        task: Name of the task (of several, joined by commas).
        rows: Numbers of the first rows concerned, counted in their split (after its cut) from 0.
        consequence: What it does to the scores.
    """

    level: Level
    code: str
    message: str
    count: int
    task: str = ""
    rows: tuple[int, ...] = ()
    consequence: str = ""


def if_any(
    task: Task, level: Level, code: str, rows: Sequence[int], text: str, consequence: str
) -> list[Finding]:
    """The finding of these rows, if there are any."""
    return [make_finding(task, level, code, text, consequence, rows, len(rows))] if rows else []


def make_finding(
    task: Task,
    level: Level,
    code: str,
    text: str,
    consequence: str,
    rows: Sequence[int],
    count: int,
) -> Finding:
    """A finding whose line names the task and the first rows.

    Args:
        task: The task.
        level: How serious it is.
        code: Of the check.
        text: What was found, with numbers.
        consequence: What it does to the scores.
        rows: Numbers of the rows.
        count: How many documents are concerned.
    """
    first = tuple(rows[:ROWS_SHOWN])
    where = ""
    if first:
        dots = ", ..." if count > len(first) else ""
        where = f" (row{'s' * (count > 1)} {', '.join(map(str, first))}{dots})"
    message = f"task {task.name}: {text}{where}: {consequence}"
    return Finding(level, code, message, count, task.name, first, consequence)

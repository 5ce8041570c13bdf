"""Checks of the data before anything is scored: each fault here has spoilt a published number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from evalcore.tasks.documents import content_key
from evalcore.types import Document, Task


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about a task's data that a person should know.

    Attributes:
        level: ``error``: scores would mean nothing; ``warning``: they need a remark.
        code: Stable name of the check.
        message: One line with numbers.
        count: Documents concerned.
    """

    level: Literal["error", "warning"]
    code: str
    message: str
    count: int


def check_documents(
    task: Task, docs: Sequence[Document], shots: Sequence[Document] = ()
) -> list[Finding]:
    """Looks for hidden labels, leaked shots, copies, empty fields and equal choices.

    Args:
        task: The task.
        docs: Its scored documents (all of them: a limit hides faults).
        shots: The pool shots are drawn from.
    """
    findings: list[Finding] = []

    def add(level: Literal["error", "warning"], code: str, count: int, text: str) -> None:
        if count:
            findings.append(Finding(level, code, f"task {task.name}: {text}", count))

    total = len(docs)
    add("error", "no_documents", int(total == 0), "no documents")
    if task.output_type == "multiple_choice" and docs:
        outside = sum(doc.gold < 0 for doc in docs)
        add(
            "error", "gold_outside", outside,
            f"{outside} of {total} gold values are outside the choices (hidden labels?)",
        )  # fmt: skip
        classes = {doc.gold for doc in docs if doc.gold >= 0}
        one = len(classes) == 1 and total >= 20 and outside == 0
        add(
            "error" if task.choices else "warning", "one_class", total * int(one),
            f"all {total} gold values are choice {next(iter(classes), -1)} "
            f"(hidden labels, or unshuffled choices)",
        )  # fmt: skip
        equal = sum(len({c.strip().lower() for c in d.choices}) < len(d.choices) for d in docs)
        add("warning", "equal_choices", equal, f"{equal} of {total} have two equal choices")
    keys = Counter(content_key(doc) for doc in docs)
    copies = sum(count - 1 for count in keys.values())
    add("warning", "duplicates", copies, f"{copies} of {total} documents repeat another's text")
    empty = sum(any(not str(value).strip() for value in doc.fields.values()) for doc in docs)
    add("warning", "empty_fields", empty, f"{empty} of {total} documents have an empty field")
    blank = sum(any(not choice.strip() for choice in doc.choices) for doc in docs)
    add("error", "empty_choices", blank, f"{blank} of {total} documents have an empty choice")
    leaked = sum(content_key(shot) in keys for shot in shots)
    add("error", "shots_leak", leaked, f"{leaked} of {len(shots)} shots stand in the scored rows")
    return findings

"""What a study says of its report: groups of tasks, and the way of asking of its headlines."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from evalcore.types import AnswerWay
from finetune.method import Strict


class GroupSpec(Strict):
    """Tasks whose scores are averaged in the table per checkpoint."""

    tasks: list[str] = Field(min_length=1)
    tuned_by: str | None = Field(
        None,
        description="gains of models tuned on this; default: each task's own tuned_by, every "
        "tuning where the study has none for it",
    )
    prompts: list[str] = Field(
        [], description="only these prompts; default: all of the primary way of asking"
    )


class PrimarySpec(Strict):
    """The way of asking that headlines are about; others stand in rows of their own."""

    shots: int = Field(0, ge=0)
    shots_seed: int = Field(0, ge=0)
    shots_order: int = Field(0, ge=0)
    shots_balance: bool = False
    chat: bool = False
    listing: Literal["cloze", "letters"] = "cloze"
    answer: AnswerWay = "choices"
    space: Literal[-1, 0, 1] = Field(-1, description="before the answer; -1: as the prompt has it")
    chat_shots: Literal["", "turns", "text"] = ""


def tasks_in_several(groups: dict[str, GroupSpec]) -> list[str]:
    """Tasks that are named more than once, in one group or in several."""
    named = [task for group in groups.values() for task in group.tasks]
    return sorted({task for task in named if named.count(task) > 1})

"""What a study says of its report: groups of tasks, and the way of asking of its headlines."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from evalcore.types import AnswerWay, Variant, option_of
from finetune.method import Filled, Strict


class GroupSpec(Strict):
    """Tasks whose scores are averaged in the table per checkpoint."""

    tasks: list[Filled] = Field(min_length=1)
    tuned_by: Filled | None = Field(
        None,
        description="gains of models tuned on this; default: each task's own tuned_by, every "
        "tuning where the study has none for it",
    )
    prompts: list[Filled] = Field(
        [], description="only these prompts; default: all of the primary way of asking"
    )

    def asks(self, variant: Variant) -> bool:
        """Whether a prompt counts, by its name or that of its text."""
        names = (variant.name, variant.name.partition(":")[0])
        return not self.prompts or any(name in self.prompts for name in names)


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

    def fits(self, variant: Variant) -> bool:
        """Whether a prompt asks in this way (see ``evalcore.analysis.Way``)."""
        drawn = variant.shots > 0
        shots = (variant.shots_seed, variant.shots_order, variant.shots_balance)
        space = option_of(variant.name, "space")
        return (
            variant.shots == self.shots
            and (not drawn or shots == (self.shots_seed, self.shots_order, self.shots_balance))
            and (variant.chat, variant.listing) == (self.chat, self.listing)
            and variant.answer == self.answer
            and int(space or -1) == self.space
            and option_of(variant.name, "chat_shots") == self.chat_shots
        )


def tasks_in_several(groups: dict[str, GroupSpec]) -> list[str]:
    """Tasks that are named more than once, in one group or in several."""
    named = [task for group in groups.values() for task in group.tasks]
    return sorted({task for task in named if named.count(task) > 1})

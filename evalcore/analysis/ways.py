"""The way of asking a cell was scored under; prompts that differ in wording alone share one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from evalcore.types import AXES, option_of


@dataclass(frozen=True, slots=True, order=True)
class Way:
    """How a question is put, its wording apart. Scores are averaged within one way only.

    Attributes:
        shots: Worked examples before the question.
        shots_seed, shots_order, shots_balance: Which examples, in which order (0, 0, False
            without any).
        chat: Whether the chat template was applied.
        listing: ``cloze`` or ``letters``.
        answer: How a choice is made (``choices``, ``first_token``, ``constrained``, ``free``).
        space: 1: a space before the answer, 0: none, -1: as the prompt's file has it.
        chat_shots: How worked examples stand in a chat, where that was asked for.
        others: Other options of the prompt that change more than its wording.
    """

    shots: int = 0
    shots_seed: int = 0
    shots_order: int = 0
    shots_balance: bool = False
    chat: bool = False
    listing: str = "cloze"
    answer: str = "choices"
    space: int = -1
    chat_shots: str = ""
    others: tuple[str, ...] = ()

    @classmethod
    def of(cls, about: Mapping[str, Any], shots: int) -> Way:
        """From a cell's columns; ``shots`` is its nominal number of worked examples."""
        drawn = shots > 0
        return cls(
            shots=shots,
            shots_seed=(about["shots_seed"] or 0) if drawn else 0,
            shots_order=(about["shots_order"] or 0) if drawn else 0,
            shots_balance=drawn and bool(about["shots_balance"]),
            chat=bool(about["chat"]),
            listing=about["listing"] or "cloze",
            answer=about["answer"] or "choices",
            space=int(option_of(about["variant"], "space") or -1),
            chat_shots=option_of(about["variant"], "chat_shots"),
            others=tuple(
                f"{axis}={value}"
                for axis in AXES
                if axis != "answer" and (value := option_of(about["variant"], axis))
            ),
        )

    @property
    def label(self) -> str:
        """``0 shots``, or ``4 shots (seed 1), chat, letters``: what differs from the plain way."""
        drawn = [f"seed {self.shots_seed}"] if self.shots_seed else []
        drawn += [f"order {self.shots_order}"] if self.shots_order else []
        drawn += ["balanced"] if self.shots_balance else []
        parts = [f"{self.shots} shot{'' if self.shots == 1 else 's'}"]
        parts[0] += f" ({', '.join(drawn)})" if drawn else ""
        parts += ["chat"] if self.chat else []
        parts += [self.listing] if self.listing != "cloze" else []
        parts += [f"answer {self.answer.replace('_', ' ')}"] if self.answer != "choices" else []
        parts += [f"space={self.space}"] if self.space >= 0 else []
        parts += [f"shots as {self.chat_shots}"] if self.chat_shots else []
        return ", ".join([*parts, *self.others])


def ranked(ways: Iterable[Way]) -> list[Way]:
    """Ways of asking, the one most cells have first; of equals the plainest."""
    count = Counter(ways)
    return sorted(count, key=lambda way: (-count[way], way))

"""What a witness has done, and what it cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

LONGER = "longer texts"
"""What reasons begin with that are about no subject, but texts beyond a length."""


@dataclass(frozen=True)
class Witnessed:
    """What the witness has done, and what it cost.

    Attributes:
        agreed: Subjects whose canaries agree with transformers'.
        disagreed: Subjects whose do not.
        unasked: Subjects that were not compared, while another of their kind was.
        not_compared: Why subjects could not be compared -> how many.
        unseen: Architectures that no test of this version compares -> how many subjects of them.
        largest: The largest gap of those that agreed, over what is allowed.
        gap: That gap, in nats.
        rows: Examples of a certificate that agree.
        tokens: Longest text of which they were compared and agree.
        cpu_s: Processor time of its answers.
        start_s: Processor time of its start.
        wait_s: Time the worker waited for it.
        memory_bytes: Most memory it had.
    """

    agreed: int = 0
    disagreed: int = 0
    unasked: int = 0
    not_compared: Mapping[str, int] = field(default_factory=dict)
    unseen: Mapping[str, int] = field(default_factory=dict)
    largest: float = 0.0
    gap: float = 0.0
    rows: int = 0
    tokens: int = 0
    cpu_s: float = 0.0
    start_s: float = 0.0
    wait_s: float = 0.0
    memory_bytes: int = 0

    def plus(self, other: Witnessed) -> Witnessed:
        """Both together."""
        worst = max(self, other, key=lambda one: one.largest)
        return Witnessed(
            self.agreed + other.agreed,
            self.disagreed + other.disagreed,
            self.unasked + other.unasked,
            _added(self.not_compared, other.not_compared),
            _added(self.unseen, other.unseen),
            worst.largest,
            worst.gap,
            self.rows + other.rows,
            max(self.tokens, other.tokens),
            self.cpu_s + other.cpu_s,
            self.start_s + other.start_s,
            self.wait_s + other.wait_s,
            max(self.memory_bytes, other.memory_bytes),
        )


def _added(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    return {key: one.get(key, 0) + other.get(key, 0) for key in [*one, *other]}

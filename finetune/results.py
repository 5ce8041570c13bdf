"""What a tuning worker is told, and what it gives back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class TuneConfig:
    """What all jobs of a worker have in common.

    Attributes:
        threads: CPU threads of torch; 0 leaves torch's own choice.
        device: ``auto`` takes a GPU if there is one.
    """

    threads: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"


@dataclass(frozen=True, slots=True)
class TuneResult:
    """One model that was tuned.

    Attributes:
        job_id: Id of its job.
        directory: Where it is.
        examples: Rows learned.
        left_out: Rows left out or cut, by reason.
        steps: Optimizer steps.
        tokens: Tokens run through the model, without padding.
        first_loss: Loss of the first step, nats per completion token.
        final_loss: Mean loss of the last 10 steps.
        load_s: Seconds to read the base (0 when it was in memory).
        wall_s: Seconds of the job, reading the base left out.
        moved_share: Share of the weights written that training changed.
        learning_rate: The one that was used (chosen, where the job had several).
        resumed_at: Steps at which training went on after an interruption.
    """

    job_id: str
    directory: str
    examples: int
    left_out: dict[str, int]
    steps: int
    tokens: int
    first_loss: float
    final_loss: float
    load_s: float
    wall_s: float
    moved_share: float
    learning_rate: float
    resumed_at: tuple[int, ...] = ()

    @property
    def untrained(self) -> bool:
        """Whether training changed nothing."""
        return self.moved_share == 0

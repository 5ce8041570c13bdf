"""How long a worker may be silent before it counts as hung."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Patience:
    """Silence means: no progress (see :mod:`evalcore.cluster.pulse`), no answer.

    Attributes:
        floor_s: Never less than this, however fast jobs were so far.
        start_s: While weights are loaded, which may mean a new engine, and in a job as long as no
            job has been timed.
        flush_s: While it writes.
        times: In a job, so many times what the job should take as a whole by the slowest so far:
            an engine may tell nothing before it is done.
    """

    floor_s: float = 120.0
    start_s: float = 1200.0
    flush_s: float = 600.0
    times: float = 10.0


class Pace:
    """Seconds per unit of cost, from jobs that were done."""

    def __init__(self) -> None:
        self._slowest = self._cost = self._spent_s = 0.0

    def done(self, cost: int, seconds: float) -> None:
        """Counts a job that was done."""
        if cost > 0:
            self._cost += cost
            self._spent_s += seconds
            self._slowest = max(self._slowest, seconds / cost)

    @property
    def known(self) -> bool:
        """Whether any job was timed."""
        return self._cost > 0

    def expected_s(self, cost: int) -> float:
        """What a job should take by the mean of those done; 0 if none was."""
        return cost * self._spent_s / self._cost if self.known else 0.0

    def silence_s(self, cost: int, patience: Patience) -> float:
        """How long a job of this cost may be silent."""
        if not self.known:
            return max(patience.floor_s, patience.start_s)
        return max(patience.floor_s, patience.times * cost * self._slowest)

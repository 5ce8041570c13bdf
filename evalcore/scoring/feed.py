"""Units of a run for its workers: those that are planned, and those that are planned meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping
from typing import Protocol

from evalcore.planning import NO_PLAN, Plan, PlanCounts, Unit
from evalcore.scoring.certificates.sampling import choose_sample
from evalcore.scoring.reports import UnitReport
from evalcore.scoring.shares import CellWorks
from evalcore.scoring.source import UnitSource
from evalcore.scoring.watch import Watch


class Progress(Protocol):
    """What a run tells while it works; every method may do nothing.

    ``preparing`` comes first, then ``planned``, ``ended`` last; these two from any thread, the
    others from one.
    """

    def preparing(self, what: str) -> None:
        """What is being done, before anything is planned: seconds here, minutes elsewhere."""

    def planned(self, counts: PlanCounts, limits: Mapping[str, int], whole: bool) -> None:
        """So much is planned; ``whole``: and no more will come. ``limits`` may come later."""

    def worker(self, index: int, state: str) -> None: ...

    def unit(self, label: str, report: UnitReport) -> None:
        """A unit was scored and has cost this; its rows may still be lost."""

    def committed(self, report: UnitReport) -> None:
        """The unit's rows are on disk; called once for each unit."""

    def failure(self, label: str, message: str) -> None:
        """Something of a subject cannot be scored; said once for each reason."""

    def ended(self) -> None:
        """The run is over."""


class Feed:
    """What a run's workers are given, in the order in which it is planned.

    Args:
        progress, watch: Told of what is planned.
        apart: Fingerprints of the checkpoints that workers of a second kind score, after the others
            have done theirs.
        certify: Share of the examples that is scored a second time (see ``certificates``).

    Attributes:
        sources: Units of the workers of the first and of the second kind.
        strata: Cell -> (subject, task), of what a certificate speaks of.
    """

    def __init__(
        self, progress: Progress, watch: Watch, *, apart: Collection[str] = (), certify: float = 0.0
    ) -> None:
        self._progress, self._watch = progress, watch
        self._apart, self.certify = apart, certify
        self._lock = threading.Lock()
        self._counts, self._whole = NO_PLAN.counts, False
        self._limits: Mapping[str, int] = {}
        self.sources = (UnitSource(growing=True), UnitSource(growing=True))
        self.strata: dict[str, tuple[str, str]] = {}

    def add(self, plan: Plan, counts: PlanCounts, *, whole: bool) -> None:
        """Takes in units that were planned.

        Args:
            plan: The units.
            counts: Of all that is planned by now, these units too.
            whole: No more will come.
        """
        if self.certify:
            names = {key: (c.subject.label, c.task.name) for key, c in plan.cells.items()}
            self.strata |= names
        sample = choose_sample(plan, self.certify) if self.certify else {}
        works = CellWorks(plan.cells)
        with self._lock:
            self._counts, self._whole = counts, whole
        self._watch.planned(plan, whole=whole)
        self._tell()
        for source, here in zip(self.sources, (False, True), strict=True):
            units = [unit for unit in plan.units if (_home(unit) in self._apart) is here]
            source.add(units, works, sample)

    def limited(self, limits: Mapping[str, int]) -> None:
        """The least work of what is planned so far."""
        with self._lock:
            self._limits = dict(limits)
        self._tell()

    def end(self) -> None:
        """No more will come, whatever was planned."""
        for source in self.sources:
            source.growing = False

    def _tell(self) -> None:
        with self._lock:
            self._progress.planned(self._counts, self._limits, self._whole)


def _home(unit: Unit) -> str:
    """Fingerprint of the checkpoint of a unit's subjects."""
    return unit.subject.checkpoint.fingerprint

"""A run's cells, piece by piece: made, recorded, planned; all but the first beside the scoring.

What a piece is has no bearing on keys, rows or units: they are those of the whole grid at once.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from evalcore.app.cells import Grid
from evalcore.app.grid import require_documents
from evalcore.app.inputs import keep_clusters, keep_inputs, keep_weights
from evalcore.app.kept import KeptAnswers
from evalcore.app.limits import Limits
from evalcore.app.ordering import Order
from evalcore.app.outcome import ScoreOutcome
from evalcore.app.pairs import draw, settle_marks
from evalcore.app.pieces import pieces, shard_of
from evalcore.app.place import Place
from evalcore.app.relabelled import LabelsSince
from evalcore.app.settling import OldKeys, Settled
from evalcore.app.unasked import unasked_lines
from evalcore.cluster import Stop, StopSignals
from evalcore.config import ScoreConfig
from evalcore.engines.protocol import EngineSpec
from evalcore.errors import EvalcoreError, InputError
from evalcore.identity import away_at, bring
from evalcore.planning import Plan, plan_units
from evalcore.scoring import Feed, RunSummary
from evalcore.store import ResultStore
from evalcore.types import Subject

if TYPE_CHECKING:
    from evalcore.lm_eval.outcomes import LmEvalWork


WAIT_S = 10.0
"""Longest that the end of a run waits for the piece at hand, which nobody wants any more."""


class Preparer:
    """Prepares the pieces of a run's grid, in order.

    Args:
        config: Of the run.
        store: The results; nothing is written into them in a dry run.
        settled: What all cells have in common.
        block_size: Tokens of a block of the engines' cache.
        relabelled: Labels set since the subjects were labelled; None: since now.

    Attributes:
        grids: Of the pieces so far.
        left: Pieces that are still to be prepared.
    """

    def __init__(
        self,
        config: ScoreConfig,
        store: ResultStore,
        settled: Settled,
        block_size: int,
        relabelled: LabelsSince | None = None,
    ) -> None:
        self._relabelled = LabelsSince(store) if relabelled is None else relabelled
        self._config, self._store, self._settled = config, store, settled
        self._order = Order(settled.survey.grid.cells)
        self._coverage = store.coverage()
        self._known = store.cell_records()  # pieces do not share cells: what they add is no matter
        self._old, self._kept = OldKeys(store), KeptAnswers(store)
        self._limits = Limits(block_size)
        self._gone: dict[str, str] = {}
        self._drawn: list[str] = []
        self.grids: list[Grid] = []
        self._shard, self.left = self._pieces()
        self.left.reverse()

    def _pieces(self) -> tuple[tuple[int, int] | None, list[list[Subject]]]:
        """(shard that is cut from the plan of a piece, the pieces)."""
        run, grid, survey = self._config.run, self._config.grid, self._settled.survey
        subjects: Sequence[Subject] = survey.subjects
        shard = run.shard
        at_once = run.dry_run or grid.budget is not None or grid.strict
        if shard is not None and not at_once:
            own = shard_of(subjects, survey.cost_of, shard)
            if own is not None:
                subjects, shard = own, None
        if at_once or shard is not None:
            return shard, [list(subjects)]
        whole = bool(self._settled.adapters.beside)
        return None, pieces(subjects, survey.cells_of, whole=whole)

    def next(self) -> Plan:
        """Prepares the next piece.

        Raises:
            InputError: Data are not what ``--strict`` wants.
            ResultsError: The folder cannot be written.
        """
        grid = self._grid(self.left.pop())
        self.grids.append(grid)
        marks: dict[str, dict[str, Any] | None] = {}
        if self._config.grid.budget is not None:
            budget, seed = self._config.grid.budget, self._config.grid.seed or 0
            marks, self._drawn = draw(grid, budget, seed)
        self._old.look(grid)
        if self._config.grid.strict:
            require_documents(self._settled.maker.findings())
        if self._config.run.dry_run:
            return self._planned(grid)
        rows = self._relabelled.applied(grid.rows)
        self._relabelled.own(self._store.write_cells(rows, self._known))
        settle_marks(self._store, grid, marks, self._known.sampled)
        if self._kept.keep(grid, self._coverage):
            self._coverage = self._store.coverage()
        plan = self._planned(grid)
        cluster = self._config.cluster
        elsewhere = cluster.backend == "ray" or cluster.disk_budget is not None
        if not elsewhere and (gone := bring_weights(plan)):
            self._gone |= gone
            grid.cells = grid.cells.chosen(lambda subject: subject.checkpoint.path not in gone)
            plan = self._planned(grid)
        return plan

    def first(self, outcome: ScoreOutcome) -> None:
        """Prepares pieces until there is something to score, or none is left.

        Raises:
            InputError: As :meth:`next`, or the weights of all that is left to score are gone.
            ResultsError: As :meth:`next`.
        """
        while self.left and not outcome.plan.units:
            outcome.add(self.next(), self.grids[-1])
        if self._gone and not outcome.plan.units:
            raise InputError(next(iter(self._gone.values())))

    def limits(self, plan: Plan) -> dict[str, int]:
        """Least work of a piece's plan (see ``app.limits``)."""
        return self._limits.of(plan)

    def keep_inputs(self) -> None:
        """Keeps what is asked beside what will be answered.

        Raises:
            ResultsError: The folder cannot be written.
        """
        keep_weights(self._store, self._settled.survey.subjects)
        keep_clusters(self._store, self._settled.survey.grid)
        if self._config.run.documents:
            keep_inputs(self._store, self._settled.survey.grid)

    def tell(self, outcome: ScoreOutcome) -> None:
        """Adds to an outcome what the pieces have shown."""
        adapters, spec = self._settled.adapters, self._settled.spec
        labels = {subject.id: subject.label for subject in self._settled.survey.subjects_asked()}
        outcome.problems += [(labels[own], reason) for own, reason in adapters.refused.items()]
        unasked: dict[tuple[str, str], int] = {}
        for grid in self.grids:
            for at, count in grid.unasked.items():
                unasked[at] = unasked.get(at, 0) + count
        outcome.problems += [*unasked_lines(unasked), *self._gone.items()]
        outcome.notes += [*self._drawn, *adapters.notes, *self._old.lines()]
        if adapters.beside:
            outcome.notes.append(
                f"{len(adapters.beside):,} adapters are applied beside the weights, up to "
                f"{spec.max_loras} of a checkpoint at once"
            )
        outcome.notes += self._kept.lines()
        if not self._config.run.dry_run:
            outcome.notes += weights_away(outcome.plan, self._settled.survey.subjects)
        findings = self._settled.maker.findings()
        outcome.findings = [finding.message for finding in findings]

    def _grid(self, subjects: Sequence[Subject]) -> Grid:
        settled = self._settled
        grid = settled.maker.grid(subjects, settled.numerics, settled.apart)
        refused = settled.adapters.refused
        grid.cells = grid.cells.chosen(lambda subject: subject.id not in refused)
        return grid

    def _planned(self, grid: Grid) -> Plan:
        return plan_units(
            self._order.ranked(grid.cells),
            self._coverage,
            max_examples_per_unit=self._config.run.unit_examples,
            shard=self._shard,
            beside=self._settled.adapters.beside,
            most_together=self._settled.spec.max_loras,
        )


@dataclass(frozen=True)
class Prepared:
    """What a run needs beside its plan."""

    store: ResultStore
    place: Place
    settled: Settled
    preparer: Preparer

    @property
    def spec(self) -> EngineSpec:
        return self.settled.spec

    @property
    def subjects(self) -> Sequence[Subject]:
        return self.settled.survey.subjects

    @property
    def grids(self) -> Sequence[Grid]:
        """Of the pieces that were prepared."""
        return self.preparer.grids

    @property
    def lm_eval(self) -> LmEvalWork | None:
        """What is to be done for lm-eval's tasks after scoring, if there are any."""
        works = [grid.lm_eval for grid in self.grids if grid.lm_eval is not None]
        cells = [cell for work in works for cell in work.cells]
        return replace(works[0], cells=cells) if works else None


class Rest:
    """Prepares what is left of a run in a thread of its own; a context manager around the scoring.

    Attributes:
        error: What ended it before everything was prepared.
    """

    def __init__(self, preparer: Preparer, outcome: ScoreOutcome, feed: Feed) -> None:
        self._preparer, self._outcome, self._feed = preparer, outcome, feed
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="evalcore-prepare", daemon=True)
        self.error: BaseException | None = None

    def __enter__(self) -> Self:
        plan = self._outcome.plan
        self._feed.add(plan, plan.counts, whole=not self._preparer.left)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join(WAIT_S)

    def judge(self, summary: RunSummary) -> None:
        """Sees to it that a preparation that failed is what the run ended with.

        Raises:
            BaseException: What it failed with, where that is no error of evalcore's.
        """
        if isinstance(self.error, EvalcoreError):
            summary.error = summary.error or self.error
        elif self.error is not None:
            raise self.error

    def _run(self) -> None:
        preparer, outcome = self._preparer, self._outcome
        try:
            self._note_limits(outcome.plan)
            preparer.keep_inputs()
            while preparer.left and not self._stopped.is_set():
                plan = preparer.next()
                if self._stopped.is_set():
                    break
                outcome.add(plan, preparer.grids[-1])
                self._feed.add(plan, outcome.plan.counts, whole=not preparer.left)
                self._note_limits(plan)
        except BaseException as error:
            self.error = error
        finally:
            self._feed.end()

    def _note_limits(self, plan: Plan) -> None:
        for name, count in self._preparer.limits(plan).items():
            self._outcome.limits[name] = self._outcome.limits.get(name, 0) + count
        self._feed.limited(self._outcome.limits)


class StopOrFail:
    """Whether a run is to stop: because it was asked to, or because its preparation failed."""

    def __init__(self, signals: StopSignals, rest: Rest) -> None:
        self._signals, self._rest = signals, rest

    def __call__(self) -> Stop:
        failed = self._rest.error is not None
        return max(self._signals(), Stop.SOON if failed else Stop.NO)

    @property
    def reason(self) -> str | None:
        return self._signals.reason or ("preparation failed" if self._rest.error else None)


def bring_weights(plan: Plan) -> dict[str, str]:
    """Fetches the weights that units need and that are still on the hub, where engines are here.

    Returns:
        Path -> why, of checkpoints whose weights are not to be had.
    """
    gone = {}
    for path in dict.fromkeys(unit.subject.checkpoint.path for unit in plan.units):
        try:
            bring(path)
        except InputError as error:
            gone[path] = str(error)
    return gone


def weights_away(plan: Plan, subjects: Sequence[Subject]) -> list[str]:
    """A line on the weights that stay on the hub, as nothing of them is left to score."""
    wanted = {made.path for unit in plan.units for s in unit.subjects for made in s.parts}
    away = {
        made.path
        for subject in subjects
        for made in subject.parts
        if made.path not in wanted and away_at(made.path) is not None
    }
    if not away:
        return []
    return [
        f"weights that stayed on the hub: of {len(away):,} checkpoints and adapters, known by "
        f"their hashes, of which nothing is left to score"
    ]

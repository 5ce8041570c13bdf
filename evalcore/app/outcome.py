"""What came of a run: its figures, what could not be scored, its record."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evalcore.app.cells import Grid
from evalcore.app.flops import peak_flops, run_flops
from evalcore.app.versions import installed_versions
from evalcore.config import ScoreConfig
from evalcore.engines.protocol import EngineSpec
from evalcore.errors import EXIT_BAD_INPUT, EXIT_CELLS_FAILED, EXIT_STOPPED, InputError
from evalcore.identity import numeric_config
from evalcore.planning import NO_PLAN, Plan
from evalcore.scoring import RunSummary
from evalcore.shown import one_line
from evalcore.tasks import data_commits

if TYPE_CHECKING:
    from evalcore.app.preparing import Prepared
    from evalcore.app.survey import Survey


@dataclass(repr=False)
class ScoreOutcome:
    """What came of :func:`evalcore.app.score`.

    Attributes:
        problems: (what, message) of adapters and cells that could not be scored.
        findings: What the checks of the data found, as lines.
        limits: Least work of what was planned (see ``app.limits``).
        flops: Operations the engines did; None where the model family is not known.
        peak_flops: Operations per second a worker's devices can do, if known.
        examples_per_s: Rate of the last run into this folder, for a dry run's estimate.
        lm_eval: lm-eval's own metrics of its tasks, as lines.
        cells: Keys of the cells that were asked for.
        asked: Of a dry run, the names of the subjects, tasks and prompts of these cells.
        engines: Where and in what the engines compute, in words.
    """

    output: Path
    plan: Plan = NO_PLAN
    summary: RunSummary = field(default_factory=RunSummary)
    dry_run: bool = False
    notes: list[str] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    limits: dict[str, int] = field(default_factory=dict)
    flops: float | None = None
    peak_flops: float | None = None
    examples_per_s: float | None = None
    lm_eval: list[str] = field(default_factory=list)
    cells: frozenset[str] = frozenset()
    asked: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    engines: str = ""

    def __repr__(self) -> str:
        """Counts and times alone: the plan of a run may be long."""
        s, dry = self.summary, "dry run, " if self.dry_run else ""
        failed = f"{s.failed_examples:,} failed, " if s.failed_examples else ""
        problems = f", {len(self.problems):,} problems" if self.problems else ""
        return (
            f"ScoreOutcome({str(self.output)!r}: {dry}{s.examples:,} of {s.planned:,} examples "
            f"scored, {failed}{s.covered:,} were there already, {len(self.cells):,} cells, "
            f"{s.wall_s:.1f} s, status {self.exit_status}{problems})"
        )

    def add(self, plan: Plan, grid: Grid) -> None:
        """Takes in a piece of the run's grid, and its plan."""
        self.plan = self.plan.plus(plan)
        self.cells |= frozenset(grid.cells.keys)
        counts = self.plan.counts
        self.summary.planned = counts.examples_planned
        self.summary.covered = counts.examples_covered

    @property
    def exit_status(self) -> int:
        if self.summary.error is not None:
            status = self.summary.error.exit_status
            # of bad input it says that nothing was done
            told = self.summary.units and status == EXIT_BAD_INPUT
            return EXIT_CELLS_FAILED if told else status
        if self.summary.stopped:
            return EXIT_STOPPED
        failed = self.problems or self.summary.failed_cells or not self.certified
        return EXIT_CELLS_FAILED if failed else 0

    @property
    def certified(self) -> bool:
        """Whether the certificate holds, if there is one."""
        return self.summary.certificate is None or self.summary.certificate.holds

    @property
    def how_it_ended(self) -> str:
        """In a line, for whoever looks from outside."""
        if self.summary.error is not None:
            return str(self.summary.error)
        if self.summary.stopped:
            return f"stopped ({self.summary.stopped}); run the same command again to go on"
        if not self.certified:
            return "not certified: scores depend on more than model and prompt"
        return "some cells could not be scored" if self.exit_status else "done"

    def lines(self, *, scores: bool = True) -> list[str]:
        """The summary for a person: scores (if wanted), how to go on, what it cost."""
        from evalcore.app.words import next_lines, plan_lines, score_lines, summary_lines

        notes = map(one_line, self.notes)
        if self.dry_run:
            return [*notes, *plan_lines(self)]
        # Who stops a run wants it to end: a table of what is half done can wait.
        table = score_lines(self) if scores and not self.summary.stopped else []
        told = [*table, *self.lm_eval, *next_lines(self)] if scores else self.lm_eval
        return [*notes, *told, *summary_lines(self)]

    def problem_lines(self) -> list[str]:
        """Findings and failures, one line each."""
        lines = [f"data: {finding}" for finding in self.findings]
        certificate = self.summary.certificate
        if certificate is not None and not certificate.holds:
            lines += certificate.fault_lines()
        lines += [f"{who} got no more work: {why}" for who, why in self.summary.given_up.items()]
        lines += [f"not scored: {what}: {message}" for what, message in self.problems]
        if self.summary.error is not None:
            lines.append(f"evalcore: {self.summary.error}")
        return lines


def asked_names(survey: Survey) -> dict[str, tuple[str, ...]]:
    """Names of what the grid is made of, each once, in its order."""
    questions = survey.questions()
    names = {
        "subjects": (subject.label for subject in survey.subjects_asked()),
        "tasks": (question.task.name for question in questions),
        "prompts": (question.variant.name for question in questions),
    }
    return {what: tuple(dict.fromkeys(of)) for what, of in names.items()}


def count_flops(outcome: ScoreOutcome, prepared: Prepared, peak_tflops: float | None) -> None:
    """What the engines computed, in operations, checkpoint by checkpoint: shapes may differ."""
    limits = outcome.limits
    if "attended" not in limits:  # preparation failed before any were known
        return
    mean_context = limits["attended"] / max(limits["token_limit"], 1)
    paths = {s.checkpoint.fingerprint: Path(s.checkpoint.path) for s in prepared.subjects}
    counts: list[float | None] = []
    for fingerprint, effort in outcome.summary.checkpoints.items():
        try:
            config = numeric_config(paths[fingerprint])
        except (InputError, OSError) as error:  # gone since it was scored
            outcome.notes.append(f"operations were not counted: {error}")
            counts.append(None)
            continue
        count = run_flops(
            config,
            computed_tokens=effort.computed_tokens,
            head_rows=effort.head_rows,
            mean_context=mean_context,
        )
        counts.append(count)
    known = [count for count in counts if count is not None]
    outcome.flops = sum(known) if len(known) == len(counts) else None
    spec = prepared.spec
    peak = peak_flops(prepared.place.gpu_name or "", spec.dtype, peak_tflops)
    outcome.peak_flops = peak and peak * spec.tensor_parallel


def doubted(prepared: Prepared) -> frozenset[str]:
    """Weights that disagreed with the witness in any run before: they are compared again."""
    summaries = (record.get("summary", {}) for record in prepared.store.runs.list())
    return frozenset(weights for summary in summaries for weights in summary.get("disagreed", ()))


def left_out(prepared: Prepared, disagreed: Mapping[str, str]) -> list[tuple[str, str]]:
    """Drops cells of refused weights that have rows from another worker or an earlier run."""
    store = prepared.store
    if not disagreed:
        return []
    cells = (planned.cell for grid in prepared.grids for planned in grid.cells)
    wrong = {cell.key: cell.subject for cell in cells if cell.subject.weights in disagreed}
    there = wrong.keys() & set(store.coverage()) if wrong else set()
    if not there:
        return []
    store.drop_cells(there)
    counts = Counter(wrong[key].label for key in there)
    what = (
        f"cells with rows of it from another worker or an earlier run are left out from now on "
        f"(`evalcore cells {store.path} restore` takes them in again)"
    )
    return [(label, f"{count:,} {what}") for label, count in counts.items()]


def name_failures(outcome: ScoreOutcome, grids: Sequence[Grid]) -> None:
    """Failed cells as one problem per subject and reason."""
    why: dict[tuple[str, str], int] = {}
    if not outcome.summary.failed_cells:
        return
    for planned in (planned for grid in grids for planned in grid.cells):
        message = outcome.summary.failed_cells.get(planned.cell.key)
        if message:
            adapter = planned.cell.subject.adapter
            copies = (
                f" and its copies {', '.join(adapter.copies)}" if adapter and adapter.copies else ""
            )
            at = (planned.cell.subject.label + copies, message)
            why[at] = why.get(at, 0) + 1
    outcome.problems += [(f"{label} ({n} cells)", message) for (label, message), n in why.items()]


def run_record(outcome: ScoreOutcome, config: ScoreConfig, spec: EngineSpec) -> dict[str, Any]:
    """What is kept of a run; ``config``: what was told, where it is not the default."""
    return {
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "summary": outcome.summary.as_record(),
        "limits": outcome.limits,
        "flops": outcome.flops,
        "peak_flops": outcome.peak_flops,
        "config": config.record(),
        "engine": {f.name: getattr(spec, f.name) for f in fields(spec)},
        "problems": [list(problem) for problem in outcome.problems],
        "findings": outcome.findings,
        "data_commits": data_commits(),
        "versions": installed_versions(),
    }

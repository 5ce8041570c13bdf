"""``study()``: pre-train (pocket study only), finetune, score and report, top to bottom.

``evalcore demo`` is ``study()`` on the pocket study file that travels with the package; a cluster
runs the same function on a larger file.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from evalcore.app.report import MadeReport, report
from evalcore.app.score import ScoreOptions, ScoreOutcome, gpu_count, score
from evalcore.cluster import StopSignals
from evalcore.errors import EXIT_CELLS_FAILED, EXIT_STOPPED, InputError
from evalcore.scoring import Progress

if TYPE_CHECKING:
    from finetune import Study, TuneEvent, TuneSummary

# Seconds each stage of the pocket study may take on two cores; printed beside what it took.
POCKET_BUDGET_S = {"pretrain": 120, "finetune": 120, "score": 180, "report": 40}


class StudyProgress(Progress, Protocol):
    """What a study tells while it works."""

    def stage(self, name: str, what: str) -> None: ...

    def stage_done(self, name: str, seconds: float, budget_s: float | None) -> None: ...

    def step(self, what: str, done: int, total: int, note: str) -> None: ...


@dataclass(frozen=True)
class StudyOptions:
    """Where a study runs.

    Attributes:
        file: The study file.
        output: Folder for pretrained/, adapters/, results/ and report/.
        text: Folder with real text for pre-training the pocket model; None: generated text alone.
        scoring: Engine, cluster and worker options of the scoring stage.
        tune_workers: Tuning processes at a time; None: one per GPU, or per core up to two.
    """

    file: Path
    output: Path
    text: Path | None = None
    scoring: ScoreOptions = field(default_factory=lambda: ScoreOptions(grid=()))
    tune_workers: int | None = None


@dataclass
class StudyOutcome:
    """What came of a study; later stages are None when an earlier one did not finish."""

    tuned: TuneSummary | None = None
    scored: ScoreOutcome | None = None
    made: MadeReport | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def exit_status(self) -> int:
        if self.scored is not None and self.scored.exit_status:
            return self.scored.exit_status
        return tuned_status(self.tuned) if self.tuned is not None else 0


def pocket_study_file() -> Path:
    """The pocket study file: in an installed package, else in the repository."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "_studies", package.parent / "studies"):
        if (folder / "pocket.yaml").is_file():
            return folder / "pocket.yaml"
    raise InputError("pocket.yaml is missing from this installation; install evalcore again")


def demo(options: StudyOptions, progress: StudyProgress) -> StudyOutcome:
    """The pocket study in ``options.output``, with a copy of its study file to start one's own."""
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        copy = options.output / "study.yaml"
        if not copy.exists():
            shutil.copyfile(options.file, copy)
    except OSError as error:
        raise InputError(
            f"{options.output}: cannot write there ({error.strerror}); give another folder"
        ) from None
    return study(replace(options, file=copy), progress, budget_s=POCKET_BUDGET_S)


def study(
    options: StudyOptions, progress: StudyProgress, budget_s: Mapping[str, float] | None = None
) -> StudyOutcome:
    """Runs every stage of a study; what is there already is not done again.

    Raises:
        InputError: The study file or something it names is wrong.
    """
    from finetune import load_study

    spec = load_study(options.file)
    outcome, timer = StudyOutcome(), _Timer(progress, budget_s or {})
    with timer.stage("pretrain", "pre-training checkpoints", skip=spec.pretrain is None):
        pretrain(spec, options, progress)
    with timer.stage("finetune", "training adapters"):
        outcome.tuned = tune(spec, options, progress)
    if spec.evaluation is not None and not outcome.tuned.stopped:
        with timer.stage("score", "scoring"):
            outcome.scored = score(scoring_options(spec, options), progress)
        if outcome.scored.summary.stopped is None:
            with timer.stage("report", "writing the report"):
                results, out = options.output / "results", options.output / "report"
                outcome.made = report(results, out, title=f"{spec.name}: {spec.description}")
    outcome.seconds = timer.seconds
    return outcome


@dataclass
class _Timer:
    progress: StudyProgress
    budget_s: Mapping[str, float]
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str, what: str, skip: bool = False) -> Iterator[None]:
        if not skip:
            self.progress.stage(name, what)
        begin = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - begin
        if not skip:
            self.progress.stage_done(name, self.seconds[name], self.budget_s.get(name))


def finetune(
    options: StudyOptions, progress: StudyProgress, *, dry_run: bool = False
) -> tuple[list[str], int]:
    """The tuning stage alone; gives lines for a person and the exit status.

    Raises:
        InputError: The study file or something it names is wrong.
    """
    from finetune import load_study, plan_jobs

    spec = load_study(options.file)
    if dry_run:
        plan = plan_jobs(spec, options.output)
        jobs = [f"{job.id}: {job.task}, {job.examples or 'all'} examples" for job in plan.jobs]
        return [*jobs, f"{len(plan.jobs)} to train, {len(plan.finished)} finished"], 0
    pretrain(spec, options, progress)
    summary = tune(spec, options, progress)
    return tuned_lines(summary), tuned_status(summary)


def tuned_status(summary: TuneSummary) -> int:
    """Exit status of a tuning run."""
    if summary.stopped:
        return EXIT_STOPPED
    return EXIT_CELLS_FAILED if summary.failures else 0


def tuned_lines(summary: TuneSummary) -> list[str]:
    """What a tuning run did, for a person."""
    if not (summary.results or summary.failures):
        return ["no adapter is missing"]
    lines = [
        f"{len(summary.results)} adapters trained in {summary.wall_s:.1f} s, "
        f"{summary.tokens_per_s:,.0f} tokens/s"
    ]
    lines += [f"not trained: {failure.job_id}: {failure.error}" for failure in summary.failures]
    lines += [f"untrained (zero change): {result.job_id}" for result in summary.untrained]
    return lines


def pretrain(spec: Study, options: StudyOptions, progress: StudyProgress) -> None:
    """Pre-trains the pocket model where the study asks for it (finished checkpoints are kept)."""
    if spec.pretrain is None:
        return
    # Read when torch loads its OpenMP runtime. Threads that spin while they wait take more than
    # ten times as long as soon as anything else runs on the machine; quiet, they save a third.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from finetune.pocket.pretrain import pretrain as run

    run(
        options.output / "pretrained",
        steps=spec.pretrain.steps,
        save_steps=tuple(spec.pretrain.save_steps),
        seed=spec.pretrain.seed,
        text_dir=options.text,
        threads=os.cpu_count() or 1,
        on_progress=lambda done, total, loss, more: progress.step(
            "pre-training", done, total, f"loss {loss:.2f}"
        ),
    )


def tune(spec: Study, options: StudyOptions, progress: StudyProgress) -> TuneSummary:
    """Trains every adapter of the study that is not finished yet."""
    from finetune import plan_jobs
    from finetune import tune as run

    cores = os.cpu_count() or 1
    workers = options.tune_workers or gpu_count() or min(2, cores)
    jobs = plan_jobs(spec, options.output).jobs

    def on_event(event: TuneEvent) -> None:
        note = f"{event.remaining_s:.0f} s left"
        progress.step("training", event.done, event.total, note)
        if event.failure is not None:
            progress.failure(event.failure.job_id, str(event.failure.error))

    with StopSignals() as signals:
        return run(
            jobs,
            workers=workers,
            backend=options.scoring.cluster,
            threads=max(1, cores // workers),
            on_event=on_event,
            should_stop=signals,
            ray_options={
                "address": options.scoring.ray_address,
                "num_cpus": max(1, cores // workers),
                "num_gpus": 1 if gpu_count() else 0,
            },
            log_dir=options.output / "logs" / "finetune",
        )


def scoring_options(spec: Study, options: StudyOptions) -> ScoreOptions:
    """The study's evaluation block as scoring options: every checkpoint, every adapter."""
    from finetune import resolve_checkpoints

    assert spec.evaluation is not None
    evaluation = spec.evaluation
    blocks = [(",".join(evaluation.tasks), evaluation.prompts)]
    blocks += [(",".join(extra.tasks), extra.prompts) for extra in evaluation.extra]
    return replace(
        options.scoring,
        grid=tuple(blocks),
        limit=evaluation.limit,
        output=options.output / "results",
        adapters=(str(options.output / "adapters"),),
        checkpoints=tuple(
            checkpoint.source for checkpoint in resolve_checkpoints(spec, options.output)
        ),
    )

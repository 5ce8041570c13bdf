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
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from evalcore.app.outcome import ScoreOutcome
from evalcore.app.outlook import outlook_lines
from evalcore.app.overlap import tune_and_score, wants_overlap
from evalcore.app.report import MadeReport, declared_by, report
from evalcore.app.score import score
from evalcore.app.tuning import (
    collect_loss_curves,
    dry_run_lines,
    tune_missing,
    tuned_models,
    tuned_status,
)
from evalcore.cluster import StopSignals
from evalcore.config import ScoreConfig, study_keys
from evalcore.errors import EvalcoreError, InputError
from evalcore.files import pinned
from evalcore.identity import unasked
from evalcore.machine import cores
from evalcore.metrics import check_metrics
from evalcore.scoring import Progress

if TYPE_CHECKING:
    from finetune import Study, TuneSummary

# Seconds each stage of the pocket study may take on two cores; printed beside what it took.
POCKET_BUDGET_S = {"pretrain": 120, "finetune": 120, "score": 180, "report": 40}

SAID_BY_THE_STUDY = frozenset(
    {"grid", "output", "adapters", "checkpoints", "task_path", "prompt_path", "include_path"}
)
"""Fields of a configuration that follow from a study file and its folder."""


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
        given: What is given of scoring and machines, by the names of ``ScoreConfig``'s fields; it
            goes before the study file, and counts for tuning, too, where that runs on machines.
        tune_workers: Tuning processes at a time; None: as many as the GPUs hold, or one per core
            up to two.
        data_root: Folder of local task data; None: the study file's own.
        jobs_per_gpu: Tunings that share a GPU; None: as many as are estimated to fit.
        overlap: Score while adapters train; None: where there are two GPUs or more.
        replace_changed: Train models anew that were made with other settings, instead of refusing.
        gpu_speed: (peak in TFLOP/s, share of it reached) in estimates; None: the defaults.
    """

    file: Path
    output: Path
    text: Path | None = None
    given: Mapping[str, Any] = field(default_factory=dict)
    tune_workers: int | None = None
    data_root: Path | None = None
    jobs_per_gpu: int | None = None
    overlap: bool | None = None
    replace_changed: bool = False
    gpu_speed: tuple[float, float] | None = None

    @cached_property
    def scoring(self) -> ScoreConfig:
        """What was given, with defaults for the rest: the study file is not asked."""
        return ScoreConfig.of(**self.given)

    def __post_init__(self) -> None:
        if taken := sorted(set(self.given) & SAID_BY_THE_STUDY):
            raise InputError(f"{taken[0]} is said by the study; leave it out")
        _ = self.scoring  # what is wrong is told before anything is tuned


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

    options = replace(options, output=pinned(options.output))
    spec = as_given(load_study(options.file), options)
    run = options.scoring.run
    # Without a limit a model at hand is tuned to its end, however long that takes.
    grace = None if run.time_limit is None else run.stop_grace
    with StopSignals(run.time_limit, grace, last_resort=True) as signals:
        return _stages(spec, options, progress, budget_s or {}, signals)


def _stages(
    spec: Study,
    options: StudyOptions,
    progress: StudyProgress,
    budget_s: Mapping[str, float],
    signals: StopSignals,
) -> StudyOutcome:
    outcome, timer = StudyOutcome(), _Timer(progress, budget_s)

    def asked() -> ScoreConfig:
        left_s = signals.left_s()
        limit = None if left_s is None else max(left_s, 0.001)
        return scoring_config(spec, options).changed(time_limit=limit)

    if options.scoring.run.shard is not None:
        _require_tuned(spec, options)
    with timer.stage("pretrain", "pre-training checkpoints", skip=spec.pretrain is None):
        if spec.pretrain is not None:  # it polls nothing
            with signals.interrupting("while checkpoints were pre-trained"):
                pretrain(spec, options, progress)
    overlap = options.scoring.run.shard is None and wants_overlap(options)
    if spec.evaluation is not None and overlap:
        with timer.stage("finetune and score", "training adapters, scoring what is ready"):
            outcome.tuned, outcome.scored = tune_and_score(spec, options, progress, asked, signals)
    else:
        with timer.stage("finetune", "training adapters"):
            outcome.tuned = tune_missing(spec, options, progress, signals)
        if spec.evaluation is not None and not outcome.tuned.stopped:
            with timer.stage("score", "scoring"):
                outcome.scored = score(asked(), progress)
    whole = options.scoring.run.shard is None  # the report of a part would look like that of all
    if whole and outcome.scored is not None and outcome.scored.summary.stopped is None:
        with (
            timer.stage("report", "writing the report"),
            signals.interrupting("with everything scored, before the report was written"),
        ):
            results, out = options.output / "results", options.output / "report"
            losses = collect_loss_curves(options.output).sort_by("base_step")
            outcome.made = report(results, out, losses=losses, **declared_by(spec))
    outcome.seconds = timer.seconds
    return outcome


def _require_tuned(spec: Study, options: StudyOptions) -> None:
    """Parts of one grid need all models first: each would tune them, and cut another grid."""
    from finetune import plan_jobs

    jobs = plan_jobs(spec, options.output, data_root=options.data_root).jobs
    if jobs:
        raise InputError(
            f"--shard: {len(jobs)} models are not tuned yet ({jobs[0].id}); run evalcore finetune "
            f"{options.file} first"
        )


def study_plan(options: StudyOptions) -> list[str]:
    """What a study would tune and score, as lines; it fetches, tunes and writes nothing.

    Raises:
        InputError: The study file or something it names is wrong.
    """
    from finetune import load_study

    spec = as_given(load_study(options.file), options)
    lines = []
    if spec.pretrain is not None:
        lines.append(f"pre-training: {spec.pretrain.steps} steps, unless it is done already")
    lines += dry_run_lines(spec, options)
    if spec.evaluation is None:
        return lines
    with unasked():
        lines += _outlook(spec, options)
    lines.append("scoring what is tuned by now:")
    try:
        with unasked():
            asked = scoring_config(spec, options).changed(dry_run=True)
            return [*lines, *score(asked).lines()]
    except EvalcoreError as error:
        return [*lines, f"not planned: {error}"]


def _outlook(spec: Study, options: StudyOptions) -> list[str]:
    from finetune import plan_jobs

    changed: Literal["error", "replace"] = "replace" if options.replace_changed else "error"
    plan = plan_jobs(
        spec, options.output, data_root=options.data_root, on_changed=changed, at_hand_only=True
    )
    assert spec.evaluation is not None
    limit = ScoreConfig.of(**spec.evaluation.said | dict(options.given)).grid.limit
    tuned = len(plan.jobs) + len(plan.finished)
    return outlook_lines(spec, options, len(plan.checkpoints), tuned, limit)


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


def finetune(options: StudyOptions, progress: StudyProgress) -> TuneSummary:
    """The tuning stage alone.

    Raises:
        InputError: The study file or something it names is wrong.
    """
    from finetune import load_study

    options = replace(options, output=pinned(options.output))
    spec = as_given(load_study(options.file), options)
    pretrain(spec, options, progress)
    return tune_missing(spec, options, progress)


def finetune_plan(options: StudyOptions) -> list[str]:
    """What the tuning stage would do and cost, as lines; it fetches and trains nothing.

    Raises:
        InputError: The study file or something it names is wrong.
    """
    from finetune import load_study

    return dry_run_lines(as_given(load_study(options.file), options), options)


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
        threads=cores(),
        on_progress=lambda done, total, loss, more: progress.step(
            "pre-training", done, total, f"loss {loss:.2f}"
        ),
    )


def as_given(spec: Study, options: StudyOptions) -> Study:
    """The study, what is given of its scoring in the place of what it says: checks see that too."""
    _check_scored(spec)
    keys = {about.name: key for key, about in study_keys().items()}
    own = {keys[name]: value for name, value in options.given.items() if name in keys}
    if spec.evaluation is None or not own:
        return spec
    return spec.model_copy(update={"evaluation": spec.evaluation.model_copy(update=own)})


def _check_scored(spec: Study) -> None:
    """Whether the metrics of what is scored after tuning are there; unknown tasks the plan names.

    Raises:
        InputError: A metric is not.
    """
    from finetune.search import own_tasks

    for selection, _ in spec.evaluation.blocks if spec.evaluation is not None else ():
        try:
            tasks = own_tasks(selection, spec.search)
        except InputError:
            continue
        for task in tasks:
            check_metrics(task)


def scoring_config(spec: Study, options: StudyOptions) -> ScoreConfig:
    """How a study is scored: what is given, then its evaluation block, then the defaults.

    Every base is scored, and every model that is tuned by now.
    """
    from finetune.checkpoints import checkpoint_sources

    assert spec.evaluation is not None
    adapters, tuned = tuned_models(options.output)
    return ScoreConfig.of(**spec.evaluation.said | dict(options.given)).changed(
        grid=tuple(spec.evaluation.blocks),
        task_path=tuple(Path(folder) for folder in spec.search.tasks),
        prompt_path=tuple(Path(folder) for folder in spec.search.prompts),
        include_path=spec.include_folders,
        output=options.output / "results",
        data_root=options.data_root or spec.data_folder,
        adapters=tuple(str(path) for path in adapters),
        checkpoints=(*checkpoint_sources(spec, options.output), *(str(path) for path in tuned)),
    )

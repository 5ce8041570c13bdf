"""``evalcore demo``, ``finetune`` and ``run``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from evalcore.cli.command import SectionedCommand
from evalcore.cli.options import (
    STUDY_OPTIONS,
    Decorator,
    Finite,
    echo_summary,
    option_for,
    said,
    with_options,
)
from evalcore.cli.output import echo, loading
from evalcore.config import option_named
from evalcore.config.cluster import MAX_WORKERS

if TYPE_CHECKING:
    from evalcore.app import StudyOptions

_OUTPUT = click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Folder (default: beside the file)."
)
_TUNING_OPTIONS: list[Decorator] = [
    click.option(
        "--text", type=click.Path(path_type=Path), metavar="DIR",
        help="Folder with real text to pre-train the pocket model on, beside generated text.",
    ),
    option_for(
        option_named("data_root"), type=click.Path(path_type=Path), metavar="DIR",
        help="Folder of local task data (default: the study file's data_root).",
    ),
    click.option(
        "--tune-workers", type=click.IntRange(1, MAX_WORKERS), help="Models tuned at a time."
    ),
    click.option(
        "--jobs-per-gpu", type=click.IntRange(1, 64),
        help="Tunings that share a GPU (default: as many as are estimated to fit).",
    ),
    click.option(
        "--replace-changed", is_flag=True,
        help="Tune models anew that were made with other settings, instead of refusing.",
    ),
    option_for(
        option_named("strict"),
        help="Findings are errors: evaluation rows in training data, faults of scored data.",
    ),
]  # fmt: skip
_OVERLAP = click.option(
    "--overlap/--no-overlap", default=None,
    help="Score while models are tuned (default: where there are two GPUs or more).",
)  # fmt: skip


@click.command(cls=SectionedCommand)
@click.argument("output", type=click.Path(path_type=Path), default="evalcore-demo")
@with_options(_OVERLAP, *_TUNING_OPTIONS, *STUDY_OPTIONS)
def demo(output: Path, **options: Any) -> int:
    """Pre-trains a pocket model, tunes adapters, scores the grid and reports, into OUTPUT.

    Takes minutes on two cores and uses exactly the code a cluster uses. OUTPUT/study.yaml is a
    study file to copy. Run it again after a stop: finished parts are kept.
    """
    from evalcore.app import demo as run_demo
    from evalcore.app import pocket_study_file

    return _run(run_demo, pocket_study_file(), output, options)


@click.command(cls=SectionedCommand)
@click.argument("study_file", type=click.Path(path_type=Path), metavar="STUDY.yaml")
@_OUTPUT
@with_options(_OVERLAP, *_TUNING_OPTIONS, *STUDY_OPTIONS)
def run(study_file: Path, output: Path | None, **options: Any) -> int:
    """Runs a study: tunes missing models, scores what is missing, writes the report.

    What is said here goes before the study file, what the file says before the defaults.
    --time-limit counts for tuning and scoring together; with --shard all models must be tuned, and
    the report is made afterwards (evalcore report).
    """
    from evalcore.app import study

    return _run(study, study_file, output or study_file.parent, options)


@click.command(cls=SectionedCommand)
@click.argument("study_file", type=click.Path(path_type=Path), metavar="STUDY.yaml")
@_OUTPUT
@click.option("--dry-run", is_flag=True, help="List what would be tuned and its cost; tune none.")
@click.option(
    "--peak-tflops", type=Finite(0, 1e6, min_open=True), default=312.0, show_default=True,
    help="Peak of a GPU (bfloat16), for the estimate of --dry-run.",
)  # fmt: skip
@click.option(
    "--mfu", type=Finite(0, 1, min_open=True), default=0.3, show_default=True,
    help="Share of that peak that training reaches.",
)  # fmt: skip
@with_options(
    *(option_for(option_named(name)) for name in ("device", "num_gpus", "cluster", "ray_address")),
    *_TUNING_OPTIONS,
)
def finetune(
    study_file: Path,
    output: Path | None,
    dry_run: bool,
    peak_tflops: float,
    mfu: float,
    **options: Any,
) -> int:
    """Tunes the models of a study that are missing; finished ones are never tuned again."""
    with loading():
        from evalcore.app import finetune as run_finetune
        from evalcore.app import finetune_plan, tuned_lines, tuned_status
        from evalcore.cli.progress import StudyProgress

    chosen = _study_options(
        study_file, output or study_file.parent, options, speed=(peak_tflops, mfu)
    )
    if dry_run:
        for line in finetune_plan(chosen):
            echo(line)
        return 0
    with StudyProgress() as progress:
        summary = run_finetune(chosen, progress)
    for line in tuned_lines(summary):
        echo(line)
    return tuned_status(summary)


def _run(action: Any, study_file: Path, output: Path, options: dict[str, Any]) -> int:
    with loading():
        from evalcore.app import study_plan, tuned_lines
        from evalcore.cli.progress import StudyProgress

    if options["dry_run"]:
        for line in study_plan(_study_options(study_file, output, options)):
            echo(line)
        return 0
    with StudyProgress() as progress:
        outcome = action(_study_options(study_file, output, options), progress)
    if outcome.tuned is not None:
        for line in tuned_lines(outcome.tuned):
            echo(line)
    if outcome.scored is not None:
        echo_summary(outcome.scored, scores=False)  # the study's table follows
        echo(f"results: {outcome.scored.output}")
        if options["shard"] is not None:
            echo(f"when all parts are done: evalcore report {outcome.scored.output}")
    if outcome.made is not None:
        echo()
        echo(outcome.made.table)
        echo(f"report: {outcome.made.page}")
    return int(outcome.exit_status)


def _study_options(
    study_file: Path,
    output: Path,
    options: dict[str, Any],
    speed: tuple[float, float] | None = None,
) -> StudyOptions:
    """The command line's values as ``app.StudyOptions``; what else was said is for scoring."""
    from evalcore.app import StudyOptions

    names = ("text", "data_root", "tune_workers", "jobs_per_gpu", "replace_changed", "overlap")
    own = {name: options[name] for name in names if name in options}
    elsewhere = {*names, "study_file", "output", "dry_run", "mfu"}
    elsewhere |= {"peak_tflops"} if speed else set()
    given = {
        name: value
        for name, value in said(click.get_current_context()).items()
        if name not in elsewhere
    }
    return StudyOptions(study_file, output, given=given, gpu_speed=speed, **own)

"""``evalcore demo``, ``finetune`` and ``run``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from evalcore.cli.options import echo_summary, engine_options

_TEXT = click.option(
    "--text", type=click.Path(path_type=Path), metavar="DIR",
    help="Folder with real text to pre-train the pocket model on, beside generated text.",
)  # fmt: skip
_TUNE_WORKERS = click.option(
    "--tune-workers", type=click.IntRange(1), help="Adapters trained at a time."
)


@click.command()
@click.argument("output", type=click.Path(path_type=Path), default="evalcore-demo")
@_TEXT
@_TUNE_WORKERS
@engine_options
def demo(output: Path, **options: Any) -> int:
    """Pre-trains a pocket model, tunes adapters, scores the grid and reports, into OUTPUT.

    Takes minutes on two cores and uses exactly the code a cluster uses. OUTPUT/study.yaml is a
    study file to copy. Run it again after a stop: finished parts are kept.
    """
    from evalcore.app import demo as run_demo
    from evalcore.app import pocket_study_file

    return _run(run_demo, pocket_study_file(), output, options)


@click.command()
@click.argument("study_file", type=click.Path(path_type=Path), metavar="STUDY.yaml")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Folder (default: beside the file)."
)
@_TEXT
@_TUNE_WORKERS
@engine_options
def run(study_file: Path, output: Path | None, **options: Any) -> int:
    """Runs a study: trains missing adapters, scores what is missing, writes the report."""
    from evalcore.app import study

    return _run(study, study_file, output or study_file.parent, options)


@click.command()
@click.argument("study_file", type=click.Path(path_type=Path), metavar="STUDY.yaml")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Folder (default: beside the file)."
)
@click.option("--dry-run", is_flag=True, help="List the adapters to train and train none.")
@click.option(
    "--cluster", type=click.Choice(["local", "ray"]), default="local", show_default=True,
    help="Workers as child processes of this one, or as Ray actors.",
)  # fmt: skip
@_TEXT
@_TUNE_WORKERS
def finetune(
    study_file: Path,
    output: Path | None,
    dry_run: bool,
    cluster: Any,
    text: Path | None,
    tune_workers: int | None,
) -> int:
    """Trains the adapters of a study that are missing; finished ones are never trained again."""
    from evalcore.app import ScoreOptions, StudyOptions
    from evalcore.app import finetune as run_finetune
    from evalcore.cli.progress import StudyProgress

    scoring = ScoreOptions(grid=(), cluster=cluster)
    options = StudyOptions(study_file, output or study_file.parent, text, scoring, tune_workers)
    with StudyProgress() as progress:
        lines, status = run_finetune(options, progress, dry_run=dry_run)
    for line in lines:
        click.echo(line)
    return status


def _run(action: Any, study_file: Path, output: Path, options: dict[str, Any]) -> int:
    from evalcore.app import ScoreOptions, StudyOptions, tuned_lines
    from evalcore.cli.progress import StudyProgress

    text, tune_workers = options.pop("text"), options.pop("tune_workers")
    scoring = ScoreOptions(grid=(), **options)
    with StudyProgress() as progress:
        outcome = action(StudyOptions(study_file, output, text, scoring, tune_workers), progress)
    if outcome.tuned is not None:
        for line in tuned_lines(outcome.tuned):
            click.echo(line)
    if outcome.scored is not None:
        echo_summary(outcome.scored)
    if outcome.made is not None:
        click.echo()
        click.echo(outcome.made.table)
        click.echo(f"report: {outcome.made.page}")
    return outcome.exit_status

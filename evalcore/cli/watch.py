"""``evalcore watch``."""

from __future__ import annotations

from pathlib import Path

import click

from evalcore.cli.command import SectionedCommand
from evalcore.cli.options import (
    MACHINE_OPTIONS,
    RUN_OPTIONS,
    Finite,
    echo_summary,
    option_for,
    options_for,
    parse_time_limit,
    with_options,
)
from evalcore.cli.output import echo_line, loading
from evalcore.cli.score import PROMPTS, TASKS
from evalcore.config import GridConfig, SubjectsConfig, option_named


@click.command(cls=SectionedCommand)
@click.argument("folders", nargs=-1, required=True, metavar="FOLDER...")
@TASKS
@PROMPTS
@click.option(
    "--every", type=Finite(0, 86400, min_open=True), default=60.0, show_default=True,
    help="Seconds between two looks at the folders.",
)  # fmt: skip
@click.option(
    "--rest",
    type=Finite(0, 86400),
    default=30.0,
    show_default=True,
    help="Seconds for which no file of an adapter or checkpoint may have changed.",
)
@click.option(
    "--until", metavar="FILE",
    help="End when this file is there: a path, or a pattern below FOLDER ('**/training_done'). "
    "What is complete then is scored, what is not is named.",
)  # fmt: skip
@click.option(
    "--idle",
    callback=parse_time_limit,
    metavar="TIME",
    help="End when nothing new came for so long.",
)
@click.option(
    "--report", type=click.Path(path_type=Path, file_okay=False), metavar="FOLDER",
    help="Make the report anew there after each round.",
)  # fmt: skip
@with_options(
    *options_for(SubjectsConfig),
    *options_for(GridConfig),
    option_for(option_named("output"), required=True),
    *RUN_OPTIONS,
    *MACHINE_OPTIONS,
)
def watch(
    folders: tuple[str, ...], every: float, rest: float, until: str | None, idle: float | None,
    report: Path | None, **options: object,
) -> int:  # fmt: skip
    """Scores adapters and checkpoints while a training writes them.

    Looks into FOLDERs again and again; what is complete (headers and lists of shards whole, files
    at rest) is scored like by `evalcore score`, with its base, and the report grows. Ends at
    --until, by --idle, --time-limit or Ctrl-C; the same command again goes on where it ended.

    \b
    Examples:
      evalcore watch runs/ -t mnli_matched -o results --report report --until '**/done'
      evalcore watch pretraining/ -t all -o results --every 300 --idle 6h
    """
    from evalcore.cluster import StopSignals

    limit, grace = options["time_limit"], options["stop_grace"]
    with StopSignals(limit, grace, last_resort=True) as signals:  # type: ignore[arg-type]
        with signals.interrupting(), loading():
            from evalcore.app.following import FollowConfig, follow
            from evalcore.cli.options import score_config
            from evalcore.cli.progress import ScoreProgress

            config = score_config({"adapters": folders, **options})
            how = FollowConfig(every, rest, until, idle, report)
        with ScoreProgress() as progress:
            return follow(
                config, how, signals, tell=lambda line: echo_line(line, err=True),
                shown=echo_summary, progress=progress,
            )  # fmt: skip

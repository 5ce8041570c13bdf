"""``evalcore score``."""

from __future__ import annotations

import click

from evalcore.cli.command import SectionedCommand
from evalcore.cli.options import (
    MACHINE_OPTIONS,
    RUN_OPTIONS,
    echo_summary,
    option_for,
    options_for,
    with_options,
)
from evalcore.cli.output import loading
from evalcore.config import GridConfig, SubjectsConfig, option_named

TASKS = click.option(
    "-t",
    "--tasks",
    required=True,
    help="Task names or groups, joined by commas, or all; lm-eval:NAME for a task, group, tag or "
    "YAML file of lm-evaluation-harness.",
)
PROMPTS = click.option(
    "-p", "--prompts", multiple=True, default=("default",), show_default=True,
    metavar="[TASK=]NAMES",
    help="Prompt variants joined by commas, each NAME[:shots=K,seed=S,chat=1,...]; a name may be a "
    "pattern (p0*), paper, paraphrases, all, or grammar:n=40,seed=1 (see: evalcore prompts list). "
    "Repeatable; TASK=NAMES is for one task or group alone.",
)  # fmt: skip


@click.command(cls=SectionedCommand)
@click.argument("adapters", nargs=-1, metavar="ADAPTERS...")
@TASKS
@PROMPTS
@with_options(
    *options_for(SubjectsConfig),
    *options_for(GridConfig),
    option_for(option_named("output"), required=True),
    *RUN_OPTIONS,
    *MACHINE_OPTIONS,
)
def score(**options: object) -> int:
    """Scores every checkpoint and adapter on every task under every prompt variant.

    ADAPTERS are folders searched for adapter_config.json; each adapter is scored, and its base by
    itself. Run the same command again after a crash, or with more tasks, prompts, documents or
    adapters: only what is missing is scored.

    \b
    Examples:
      evalcore score demo/adapters -t pocket_nli -p default,instruct -o results
      evalcore score runs/ -t all -p 'default:shots=4,io' -o results --dry-run
      evalcore score -m allenai/OLMo-1B-hf@step1000-tokens4B -t pocket_facts -o results
    """
    from evalcore.cluster import StopSignals

    # First of all: the time limit counts from here, and a signal must find its handler.
    limit, grace = options["time_limit"], options["stop_grace"]
    with StopSignals(limit, grace, last_resort=True) as signals:  # type: ignore[arg-type]
        with signals.interrupting(), loading():
            from evalcore.app import score as run_score
            from evalcore.cli.options import score_config
            from evalcore.cli.progress import ScoreProgress

        with ScoreProgress() as progress:
            outcome = run_score(score_config(options), progress, signals)
        if outcome.summary.stopped:
            return echo_summary(outcome)
        with signals.interrupting("with everything scored, before its table was made"):
            return echo_summary(outcome)

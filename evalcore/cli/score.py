"""``evalcore score``."""

from __future__ import annotations

from pathlib import Path

import click

from evalcore.cli.command import SectionedCommand, plain_source
from evalcore.cli.options import (
    SEED,
    echo_summary,
    engine_options,
    run_options,
)


@click.command(cls=SectionedCommand)
@click.argument("adapters", nargs=-1, metavar="ADAPTERS...")
@click.option(
    "-m", "--checkpoint", "checkpoints", multiple=True, metavar="PATH|REPO@REV",
    callback=plain_source,
    help="Also score this checkpoint by itself (repeatable; works without any adapter).",
)  # fmt: skip
@click.option(
    "-t",
    "--tasks",
    required=True,
    help="Task names or groups, joined by commas, or all; lm-eval:NAME for a task, group, tag or "
    "YAML file of lm-evaluation-harness.",
)
@click.option(
    "-p", "--prompts", multiple=True, default=("default",), show_default=True,
    metavar="[TASK=]NAMES",
    help="Prompt variants joined by commas, each NAME[:shots=K,seed=S,chat=1,...]; a name may be a "
    "pattern (p0*), paper, paraphrases, all, or grammar:n=40,seed=1 (see: evalcore prompts list). "
    "Repeatable; TASK=NAMES is for one task or group alone.",
)  # fmt: skip
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), metavar="RESULTS",
    help="Results folder; what it already covers is not scored again.",
)  # fmt: skip
@click.option(
    "--num-fewshot", type=click.IntRange(0, 10_000), help="Shots of every variant named with -p."
)
@click.option(
    "--seed", type=SEED, help="Seed that draws the shots (default: 0; lm-eval's tasks: its 1234)."
)
@click.option("--apply-chat-template", is_flag=True, help="Use the tokenizer's chat template.")
@click.option("--system-instruction", help="System text of the chat.")
@click.option(
    "--chat-template-args", metavar="JSON",
    help="Arguments of the chat template, as '{\"enable_thinking\": false}'.",
)  # fmt: skip
@click.option(
    "--template-date", metavar="YYYY-MM-DD",
    help="Day that chat templates which write the date are given (default: 2024-07-26).",
)  # fmt: skip
@click.option(
    "--fewshot-as-multiturn", type=bool, default=True, show_default=True,
    help="Shots of lm-eval's tasks as turns of the chat.",
)  # fmt: skip
@click.option(
    "--include-path", multiple=True, type=click.Path(path_type=Path),
    help="Folder with more tasks of lm-eval's format (repeatable).",
)  # fmt: skip
@click.option(
    "--allow-code", is_flag=True,
    help="Let task files of --include-path run the Python code they name.",
)  # fmt: skip
@click.option(
    "--data-root", type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder with the tasks' data (parquet, jsonl, csv or arrow), instead of the hub.",
)  # fmt: skip
@click.option(
    "--task-path", multiple=True, type=click.Path(path_type=Path, exists=True),
    help="Folder with more task definitions (repeatable).",
)  # fmt: skip
@click.option(
    "--prompt-path", multiple=True, type=click.Path(path_type=Path, exists=True),
    help="Folder with more prompt variants, one folder per group (repeatable).",
)  # fmt: skip
@click.option(
    "--base-map", multiple=True, metavar="GLOB=PATH|REPO@REV",
    help="Base of the adapters whose path or name matches (repeatable).",
)  # fmt: skip
@click.option("--assume-base", metavar="PATH|REPO@REV", help="Base of adapters that name none.")
@click.option(
    "--tokenizer", default="adapter", show_default=True, metavar="adapter|base|PATH",
    help="Whose tokenizer, chat template and end tokens ask: an adapter's own where they change "
    "what is asked (the base is then asked so too), the base's, or those of one folder.",
)  # fmt: skip
@click.option(
    "--parent-map", multiple=True, metavar="GLOB=PATH|REPO@REV",
    help="What the fully tuned checkpoints whose path or name fits were tuned from (repeatable); "
    "those below ADAPTERS are scored too.",
)  # fmt: skip
@click.option(
    "--tuned-on", multiple=True, metavar="GLOB=TASK[,seed=N,...]",
    help="What the models whose path or name fits were tuned on, where no record says it "
    "(repeatable; also: labels.yaml beside them, or later evalcore label).",
)  # fmt: skip
@click.option(
    "--name-pattern", metavar="PATTERN",
    help="The same read from their paths, for example '{step}/{tuning}-seed{seed}'.",
)  # fmt: skip
@click.option("--no-bases", is_flag=True, help="Do not score the adapters' bases by themselves.")
@click.option("--strict", is_flag=True, help="Findings about the data are errors.")
@run_options
@engine_options
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
        with signals.interrupting():
            from evalcore.app import score as run_score
            from evalcore.cli.options import score_options
            from evalcore.cli.progress import ScoreProgress

        with ScoreProgress() as progress:
            outcome = run_score(score_options(options), progress, signals)
    return echo_summary(outcome)

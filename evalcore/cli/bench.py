"""``evalcore bench``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from evalcore.cli.options import Decorator, option_for, with_options
from evalcore.cli.output import echo
from evalcore.config import ScoreConfig, option_named

_MACHINE = ("engine", "dtype", "device", "threads", "tensor_parallel", "peak_tflops")
"""Fields of a configuration that decide on what is measured."""


def _numbers(ctx: click.Context, param: click.Parameter, value: str) -> tuple[int, ...]:
    pieces = [piece.strip() for piece in value.split(",")]
    if not all(re.fullmatch(r"[0-9]{1,7}", piece) for piece in pieces):
        raise click.BadParameter(
            f"{value!r} is not numbers up to 9999999 joined by commas, for example 1,4,16"
        )
    return tuple(dict.fromkeys(int(piece) for piece in pieces))


def _names(ctx: click.Context, param: click.Parameter, value: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(piece.strip() for piece in value.split(",")))


def _swept(name: str, default: str, text: str) -> Decorator:
    return click.option(
        f"--{name.replace('_', '-')}", name, default=default, show_default=True, callback=_numbers,
        metavar="N[,N...]", help=text,
    )  # fmt: skip


@click.command()
@click.option(
    "-o", "--out", required=True, type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Where bench.md, bench.png and bench.arrow go (they are replaced), and random models.",
)  # fmt: skip
@click.option(
    "-m", "--checkpoint", type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Measure with these weights instead of random ones.",
)  # fmt: skip
@click.option(
    "--config", default="pocket", show_default=True, metavar="NAME|PATH",
    help="Random weights of this size: pocket, smollm2-135m, olmo-1b, olmo-7b, llama-1b, llama-8b, "
    "or the path of a Hugging Face config.json.",
)  # fmt: skip
@click.option(
    "--requests", type=click.Path(path_type=Path, exists=True), metavar="PATH",
    help="Requests of a run (a results folder, or one request file) instead of synthetic ones.",
)  # fmt: skip
@click.option(
    "--limit", type=click.IntRange(1), help="Only the first so many documents of a request file."
)
@_swept("contexts", "200", "Contexts (questions) of a batch.")
@_swept("context_tokens", "100", "Mean tokens of a context, its shots left out.")
@_swept("choices", "4", "Continuations of a context.")
@_swept("continuation_tokens", "5", "Mean tokens of a continuation; 1: labels of one token.")
@_swept("shots", "0", "Worked examples all contexts begin with.")
@_swept("adapters", "0", "Random LoRA adapters scored besides the model alone.")
@click.option(
    "--adapter-ways", default="merged", show_default=True, callback=_names, metavar="WAY[,WAY]",
    help="How adapters are applied, joined by commas (as --adapters of score).",
)  # fmt: skip
@click.option(
    "--strategies", default="auto", show_default=True, callback=_names, metavar="NAME[,NAME...]",
    help="Scoring strategies, joined by commas (as --strategy of score).",
)  # fmt: skip
@click.option(
    "--rank", type=click.IntRange(1, 65536), default=16, show_default=True, help="LoRA rank."
)
@click.option(
    "--repeats", type=click.IntRange(1, 100_000), default=5, show_default=True,
    help="Measured repetitions of each point, after one to warm up.",
)  # fmt: skip
@option_for(option_named("seed"), default=0, show_default=True, help="Seed of weights and tokens.")
@with_options(*(option_for(option_named(name)) for name in _MACHINE))
@click.option(
    "--max-batch-tokens", type=click.IntRange(0, 2**24), default=0, help="Tokens of a forward pass."
)
@click.option(
    "--max-num-seqs", type=click.IntRange(0, 2**20), default=0, help="Sequences of a forward pass."
)
@click.option("--dry-run", is_flag=True, help="List the points and measure nothing.")
def bench(**values: Any) -> int:
    """Measures scoring throughput on this hardware, over a sweep.

    Values joined by commas are swept, each with each. Start-up is measured apart. The figure of
    merit that needs no clock is computed/limit: prompt tokens run through the model over the
    distinct ones; 1.00 is perfect.

    \b
    Examples:
      evalcore bench -o out --shots 0,4 --choices 2,4,8
      evalcore bench -o out --strategies plain,packed --config smollm2-135m
      evalcore bench -o out -m checkpoints/step-01600 --requests results --adapters 0,4
    """
    from evalcore.benchmark.sweep import BenchOptions
    from evalcore.benchmark.sweep import bench as measure
    from evalcore.benchmark.tables import plain, table

    def told(row: dict[str, Any]) -> None:
        rate = row["examples_per_s"]
        done = f"{rate:,.0f} examples/s" if rate is not None else row["status"]
        echo(f"{row['label']}: {done}", err=True)

    config = ScoreConfig.of(**{name: values.pop(name) for name in _MACHINE})
    outcome = measure(BenchOptions(**values, engine=config.engine, cluster=config.cluster), told)
    if values["dry_run"]:
        for point in outcome.points:
            echo(point.label)
        echo(f"{len(outcome.points)} points, {values['repeats']} repetitions each")
        return 0
    echo(plain(*table(outcome.rows)))
    echo("written: " + ", ".join(str(path) for path in outcome.files))
    return outcome.exit_status

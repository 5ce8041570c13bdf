"""Options several commands share, their parsing, and how a run's outcome is printed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from evalcore.app import ScoreOptions, ScoreOutcome

_ENGINE_OPTIONS = [
    click.option(
        "--engine", type=click.Choice(["vllm", "hf"]), default="vllm", show_default=True,
        help="vllm is fast; hf (transformers and peft) is slow and plain, the reference.",
    ),
    click.option(
        "--dtype", type=click.Choice(["auto", "float32", "bfloat16", "float16"]), default="auto",
        show_default=True, help="auto: float32 on CPUs, bfloat16 on GPUs.",
    ),
    click.option(
        "--strategy", type=click.Choice(["auto", "packed", "cached", "plain"]), default="auto",
        show_default=True, help="How choices are scored; auto takes the cheapest exact one.",
    ),
    click.option(
        "--adapters", "adapter_way", type=click.Choice(["auto", "merged", "batched"]),
        default="auto", show_default=True,
        help="merged: into the weights, one adapter at a time; batched: beside them, several "
        "together; auto: merged on CPUs, on GPUs by a rule (docs/engines.md).",
    ),
    click.option("--max_length", type=click.IntRange(8), help="Tokens of prompt and answer."),
    click.option(
        "--cluster", type=click.Choice(["local", "ray"]), default="local", show_default=True,
        help="Workers as child processes of this one, or as Ray actors.",
    ),
    click.option(
        "--ray-address", metavar="ADDRESS", help="Ray cluster to join (auto: the running one)."
    ),
    click.option(
        "--workers", type=click.IntRange(1), help="Engines at a time (default: one per GPU, or 1)."
    ),
    click.option(
        "--tensor-parallel", type=click.IntRange(1), default=1, show_default=True,
        help="GPUs of one engine.",
    ),
    click.option(
        "--threads", type=click.IntRange(1), help="CPU threads of one engine (default: fair share)."
    ),
    click.option(
        "--peak-tflops", type=click.FloatRange(0, min_open=True),
        help="Peak of one device in TFLOP/s, for the MFU (default: a table of known GPUs).",
    ),
    click.option(
        "--trust-remote-code", is_flag=True, help="Let checkpoints run their own Python code."
    ),
]  # fmt: skip


def engine_options(command: Callable) -> Callable:
    """Adds the options that say with what and where to score."""
    for option in reversed(_ENGINE_OPTIONS):
        command = option(command)
    return command


def parse_shard(
    ctx: click.Context, param: click.Parameter, value: str | None
) -> tuple[int, int] | None:
    if value is None:
        return None
    index, _, count = value.partition("/")
    if not (index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise click.BadParameter(f"{value!r} is not I/N with 0 <= I < N, for example 0/4")
    return int(index), int(count)


def parse_time_limit(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    if value is None:
        return None
    from evalcore.cluster import parse_duration

    return parse_duration(value)


def score_options(options: dict[str, Any]) -> ScoreOptions:
    """The command line's values as ``app.ScoreOptions``."""
    from evalcore.app import ScoreOptions

    values = dict(options)
    grid = ((values.pop("tasks"), values.pop("prompts")),)
    renamed = {
        "chat": values.pop("apply_chat_template"),
        "system": values.pop("system_instruction"),
        "multiturn": values.pop("fewshot_as_multiturn"),
        "include_bases": not values.pop("no_bases"),
        "certify": values.pop("certify") * values.pop("certify_share"),
    }
    return ScoreOptions(grid=grid, **renamed, **values)


def echo_summary(outcome: ScoreOutcome, *, scores: bool = True) -> int:
    """Prints what came of a run and what it did; returns its exit status."""
    for line in outcome.lines(scores=scores):
        click.echo(line)
    for line in outcome.problem_lines():
        click.echo(line, err=True)
    return outcome.exit_status

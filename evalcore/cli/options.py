"""Options several commands share, their parsing, and how a run's outcome is printed."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from evalcore.cli.output import echo, echo_line

if TYPE_CHECKING:
    from evalcore.app import ScoreOptions, ScoreOutcome


class Finite(click.FloatRange):
    """A number in a range; ``nan`` and ``inf`` are in none."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return number


_LONGEST_DURATION, _MAX_SECONDS = 40, 10 * 366 * 86400
MAX_WORKERS, MAX_THREADS, MAX_GPUS = 4096, 1024, 64
SEED = click.IntRange(0, 2**32 - 1)  # what every random generator takes


class _Limit(click.ParamType):
    """``20`` or ``first:20``."""

    name = "limit"

    def convert(self, value: Any, param: Any, ctx: Any) -> str:
        from evalcore.errors import InputError
        from evalcore.tasks import RowLimit

        try:
            RowLimit.of(value)
        except InputError as error:
            self.fail(str(error), param, ctx)
        return str(value)


LIMIT = _Limit()

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
        "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True,
        help="What engines compute on: auto takes GPUs where they are, on this machine or, with "
        "--cluster ray, on the cluster's nodes; cuda: without one nothing is done.",
    ),
    click.option(
        "--num-gpus", type=click.IntRange(0, MAX_WORKERS * MAX_GPUS),
        help="GPUs to use at most, over all engines (default: all that are shown).",
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
    click.option(
        "--max_length", type=click.IntRange(8, 2**24), help="Tokens of prompt and answer."
    ),
    click.option(
        "--cluster", type=click.Choice(["local", "ray"]), default="local", show_default=True,
        help="Workers as child processes of this one, or as Ray actors.",
    ),
    click.option(
        "--ray-address", metavar="ADDRESS", help="Ray cluster to join (auto: the running one)."
    ),
    click.option(
        "--workers", type=click.IntRange(1, MAX_WORKERS),
        help="Engines at a time (default: one per GPU, or 1)."
    ),
    click.option(
        "--tensor-parallel", type=click.IntRange(1, MAX_GPUS), default=1, show_default=True,
        help="GPUs of one engine.",
    ),
    click.option(
        "--threads", type=click.IntRange(1, MAX_THREADS),
        help="CPU threads of one engine (default: fair share)."
    ),
    click.option(
        "--peak-tflops", type=Finite(0, 1e6, min_open=True),
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
    plain = all(re.fullmatch(r"[0-9]{1,7}", number) for number in (index, count))
    if not (plain and int(index) < int(count)):
        raise click.BadParameter(f"{value[:40]!r} is not I/N with 0 <= I < N, for example 0/4")
    return int(index), int(count)


def parse_time_limit(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    if value is None:
        return None
    from evalcore.cluster import parse_duration

    seconds = parse_duration(value[:_LONGEST_DURATION])
    if len(value) > _LONGEST_DURATION or seconds > _MAX_SECONDS:
        raise click.BadParameter(f"{value[:_LONGEST_DURATION]!r} is more than ten years")
    return seconds


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
        "documents": not values.pop("no_documents"),
        "certify": values.pop("certify") * values.pop("certify_share"),
    }
    return ScoreOptions(grid=grid, **renamed, **values)


def echo_summary(outcome: ScoreOutcome, *, scores: bool = True) -> int:
    """Prints what came of a run and what it did; returns its exit status."""
    for line in outcome.lines(scores=scores):
        echo(line)
    for line in outcome.problem_lines():
        echo_line(line, err=True)
    return outcome.exit_status

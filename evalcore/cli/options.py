"""Options several commands share, their parsing, and how a run's outcome is printed."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from evalcore.cli.output import echo, echo_line

if TYPE_CHECKING:
    from evalcore.app import ScoreOptions, ScoreOutcome


_RENAMED = {
    "apply_chat_template": "chat",
    "system_instruction": "system",
    "fewshot_as_multiturn": "multiturn",
}
_NEGATED = {"no_bases": "include_bases", "no_documents": "documents"}
_SAID = (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT, ParameterSource.PROMPT)


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


DEVICE = click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True,
    help="What engines compute on: auto takes GPUs where they are, on this machine or, with "
    "--cluster ray, on the cluster's nodes; cuda: without one nothing is done.",
)  # fmt: skip
NUM_GPUS = click.option(
    "--num-gpus", type=click.IntRange(0, MAX_WORKERS * MAX_GPUS),
    help="GPUs to use at most, over all engines (default: all that are shown).",
)  # fmt: skip
CLUSTER = click.option(
    "--cluster", type=click.Choice(["local", "ray"]), default="local", show_default=True,
    help="Workers as child processes of this one, or as Ray actors.",
)  # fmt: skip
RAY_ADDRESS = click.option(
    "--ray-address", metavar="ADDRESS", help="Ray cluster to join (auto: the running one)."
)  # fmt: skip
_RUN_OPTIONS = [
    click.option(
        "--limit", type=LIMIT, metavar="N|first:N",
        help="At most N documents a task: a random sample, the same for every subject, that a "
        "larger N contains; first:N takes the first ones (tasks of lm-eval: always the first).",
    ),
    click.option("--shard", metavar="I/N", callback=parse_shard, help="Do part I (from 0) of N."),
    click.option(
        "--time-limit", callback=parse_time_limit, metavar="DURATION",
        help="After this long (90m, 1:30:00) finish the units at hand, commit and exit 75.",
    ),
    click.option(
        "--stop-grace", type=Finite(0), default=60.0, show_default=True, metavar="SECONDS",
        help="After a signal to stop, units that have not ended in so long are killed (after the "
        "time limit: 20 at most).",
    ),
    click.option(
        "--unit-examples", type=click.IntRange(1, 10_000_000), default=4096, show_default=True,
        help="Examples handed to an engine at once, at most.",
    ),
    click.option(
        "--commit-every", type=Finite(0, 86400), default=60.0, show_default=True, metavar="SECONDS",
        help="Most work a crash may cost; committing more often makes more files.",
    ),
    click.option(
        "--certify", is_flag=True,
        help="Score a sample a second time, cold, in another order and batch size; report "
        "differences.",
    ),
    click.option(
        "--certify-share", type=Finite(0, 1, min_open=True), default=0.02, show_default=True,
        help="Share of each cell's examples in that sample.",
    ),
    click.option("--dry-run", is_flag=True, help="Print the plan and score nothing."),
    click.option(
        "--no-documents", is_flag=True,
        help="Keep no questions, choices, golds and prompts in the results.",
    ),
    click.option(
        "--log-json", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
        help="Append a JSON line per event of scoring (unit, commit, failure, worker ...) to FILE.",
    ),
]  # fmt: skip

_ENGINE_OPTIONS = [
    click.option(
        "--engine", type=click.Choice(["vllm", "hf"]), default="vllm", show_default=True,
        help="vllm is fast; hf (transformers and peft) is slow and plain, the reference.",
    ),
    click.option(
        "--dtype", type=click.Choice(["auto", "float32", "bfloat16", "float16"]), default="auto",
        show_default=True, help="auto: float32 on CPUs, bfloat16 on GPUs.",
    ),
    DEVICE,
    NUM_GPUS,
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
        "--max-length", type=click.IntRange(8, 2**24), help="Tokens of prompt and answer."
    ),
    CLUSTER,
    RAY_ADDRESS,
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


def run_options(command: Callable) -> Callable:
    """Adds the options that say how much is scored in one run, and how it ends."""
    for option in reversed(_RUN_OPTIONS):
        command = option(command)
    return command


def score_fields(options: dict[str, Any]) -> dict[str, Any]:
    """The command line's values by the names of ``app.ScoreOptions``."""
    values = dict(options)
    for option, name in _RENAMED.items():
        if option in values:
            values[name] = values.pop(option)
    for option, name in _NEGATED.items():
        if option in values:
            values[name] = not values.pop(option)
    share = values.pop("certify_share", 0.0)
    return values | ({"certify": values["certify"] * share} if "certify" in values else {})


def given_fields(context: click.Context) -> frozenset[str]:
    """The fields of ``app.ScoreOptions`` that were said on the command line."""
    said = {
        name: context.params[name]
        for name in context.params
        if context.get_parameter_source(name) in _SAID
    }
    return frozenset(score_fields(said))


def score_options(options: dict[str, Any]) -> ScoreOptions:
    """The command line's values as ``app.ScoreOptions``."""
    from evalcore.app import ScoreOptions, prompt_blocks

    values = dict(options)
    grid = prompt_blocks(values.pop("tasks"), values.pop("prompts"), values["task_path"])
    return ScoreOptions(grid=grid, **score_fields(values))


def echo_summary(outcome: ScoreOutcome, *, scores: bool = True) -> int:
    """Prints what came of a run and what it did; returns its exit status."""
    for line in outcome.lines(scores=scores):
        echo(line)
    for line in outcome.problem_lines():
        echo_line(line, err=True)
    return outcome.exit_status

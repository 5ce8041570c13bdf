"""Options made from the fields of a configuration, their parsing, and how an outcome is printed."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from evalcore.cli.command import plain_source
from evalcore.cli.output import echo, echo_line
from evalcore.config import ClusterConfig, EngineConfig, Option, RunConfig, option_named, options_of

if TYPE_CHECKING:
    from evalcore.app import ScoreOutcome
    from evalcore.config import ScoreConfig

Command = Callable[..., Any]
Decorator = Callable[[Command], Command]
"""What click's options are: they add themselves to a command."""

_SAID = (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT, ParameterSource.PROMPT)


_LONGEST_DURATION, _MAX_SECONDS = 40, 10 * 366 * 86400
CERTIFIED_SHARE = 0.02


class Finite(click.FloatRange):
    """A number in a range; ``nan`` and ``inf`` are in none."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return number


class Percent(Finite):
    """A share: ``5%`` or ``.05``."""

    name = "share"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        if isinstance(value, str) and value.strip().endswith("%"):
            return super().convert(
                Finite().convert(value.strip()[:-1], param, ctx) / 100, param, ctx
            )
        return super().convert(value, param, ctx)


class Limit(click.ParamType[str]):
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


def read_size(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    if value is None:
        return None
    from evalcore.errors import InputError
    from evalcore.identity.listings import parse_size

    try:
        return parse_size(value)
    except InputError as error:
        raise click.BadParameter(str(error)) from None


def option_for(about: Option, **changed: Any) -> Decorator:
    """The click option of a field of a configuration.

    Args:
        about: What is known of the field; it has words.
        **changed: What click is told otherwise, where a command does more with the field.
    """
    more: dict[str, Any] = {"help": about.help, "metavar": about.metavar}
    if about.type is bool and about.read != "yes-no":
        more |= {"is_flag": True}
        if about.takes_away:
            more["callback"] = _taken_away
    else:
        more |= _how(about)
        if about.repeats:
            more["multiple"] = True
        elif about.default is not None and not isinstance(about.default, Path):
            more |= {"default": about.default, "show_default": True}
    return click.option(*about.words, about.name, **more | changed)


def _taken_away(ctx: click.Context, param: click.Parameter, value: bool) -> bool:
    return not value


def _how(about: Option) -> dict[str, Any]:
    """How click reads a value."""
    match about.read:
        case "limit":
            return {"type": Limit()}
        case "shard":
            return {"callback": parse_shard}
        case "duration":
            return {"callback": parse_time_limit}
        case "size":
            return {"callback": read_size}
        case "source":
            return {"callback": plain_source}
        case "percent":
            return {"type": Percent(about.above or 0.0, about.high or 1.0, min_open=True)}
    if about.choices:
        return {"type": click.Choice(about.choices)}
    if about.type is int:
        return {"type": click.IntRange(_whole(about.low), _whole(about.high))}
    if about.type is float:
        open_below = about.above is not None
        low = about.above if open_below else about.low
        return {"type": Finite(low, about.high, min_open=open_below)}
    if about.type is Path:
        must = about.path_must
        kind = click.Path(
            path_type=Path,
            exists="exist" in must,
            file_okay="be a folder" not in must,
            dir_okay="not be a folder" not in must,
        )
        return {"type": kind}
    return {"type": about.type}


def _whole(bound: float | None) -> int | None:
    return None if bound is None else int(bound)


def with_options(*options: Decorator) -> Decorator:
    """Adds several options to a command, which lists them in this order."""

    def added(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return added


def options_for(part: type, *, leave_out: Iterable[str] = ()) -> list[Decorator]:
    """The options of a configuration's part, but for fields that are left out (by name)."""
    return [
        option_for(about)
        for about in options_of(part).values()
        if about.words and about.name not in leave_out
    ]


_CERTIFY: list[Decorator] = [
    click.option(
        "--certify", is_flag=True,
        help="Score a sample a second time, cold, in another order and batch size; report "
        "differences.",
    ),
    click.option(
        "--certify-share", type=Finite(0, 1, min_open=True), default=CERTIFIED_SHARE,
        show_default=True, help="Share of each cell's examples in that sample.",
    ),
]  # fmt: skip
"""One field, two words: whether, and how much if so."""

RUN_OPTIONS: list[Decorator] = [*options_for(RunConfig, leave_out=["output"]), *_CERTIFY]
MACHINE_OPTIONS = [*options_for(EngineConfig), *options_for(ClusterConfig)]
STUDY_OPTIONS: list[Decorator] = [
    *(option_for(option_named(name)) for name in ("limit", "num_fewshot", "max_length")),
    *RUN_OPTIONS, *MACHINE_OPTIONS,
]  # fmt: skip
"""What the command line may say of the scoring of a study."""


def option_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values of a command line by the names of a configuration's fields."""
    fields = dict(values)
    share = fields.pop("certify_share", CERTIFIED_SHARE)
    if "certify" in fields:
        fields["certify"] = share if fields["certify"] else 0.0
    return fields


def said(context: click.Context) -> dict[str, Any]:
    """The fields of a configuration that were said on the command line, by name."""
    params = context.params
    said_at_all = [name for name in params if context.get_parameter_source(name) in _SAID]
    values = {name: params[name] for name in said_at_all}
    if "certify" in values:  # the share counts if so
        values["certify_share"] = params["certify_share"]
    return option_fields(values)


def score_config(values: Mapping[str, Any]) -> ScoreConfig:
    """The command line's values as a configuration."""
    from evalcore.app import prompt_blocks
    from evalcore.config import ScoreConfig

    fields = option_fields(values)
    grid = prompt_blocks(fields.pop("tasks"), fields.pop("prompts"), fields["task_path"])
    return ScoreConfig.of(grid=grid, **fields)


def echo_summary(outcome: ScoreOutcome, *, scores: bool = True) -> int:
    """Prints what came of a run and what it did; returns its exit status."""
    for line in outcome.lines(scores=scores):
        echo(line)
    for line in outcome.problem_lines():
        echo_line(line, err=True)
    return outcome.exit_status

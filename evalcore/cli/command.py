"""Commands whose help is in sections, and who answer habits of other tools in one line.

Options are spelled with dashes; underscores are taken as well (:func:`dashes`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

_TITLES = (
    "What is scored", "What is asked", "Data and definitions", "Tuning", "Engine", "Machines",
    "The run",
)  # fmt: skip
_OWN = {
    "What is asked": ("tasks", "prompts"),
    "Data and definitions": ("text",),
    "Tuning": ("tune_workers", "jobs_per_gpu", "replace_changed", "overlap", "mfu"),
}
"""Parameters of commands that are no fields of a configuration."""


def sections() -> dict[str, list[str]]:
    """Titles of the help -> the parameters below them, in this order."""
    from evalcore.config import all_options  # `evalcore --help` does without

    found = {title: list(_OWN.get(title, ())) for title in _TITLES}
    for _, _, about in all_options().values():
        if about.read == "share":  # one field, two words: whether, and how much
            found[about.section] += [about.name, f"{about.name}_share"]
        elif about.words:
            found[about.section].append(about.name)
    return found


_MODEL = (
    "give adapters as arguments and checkpoints with -m PATH or -m REPO@REV, without pretrained="
)
HABITS = {
    "--model": f"the engine is --engine vllm|hf; {_MODEL}",
    "--model-args": f"{_MODEL}; dtype, max_length ... are options (--dtype, --max-length)",
    "--batch-size": "batches are made by themselves, as large as memory allows; leave it out",
    "--max-batch-size": "batches are made by themselves, as large as memory allows; leave it out",
    "--output-path": "the results folder is -o RESULTS",
    "--log-samples": "every example is kept already (evalcore export RESULTS); leave it out",
    "--predict-only": "every answer is kept already (evalcore export RESULTS); leave it out",
    "--use-cache": "what RESULTS holds is never scored again; leave it out",
    "--cache-requests": "requests are kept already; leave it out",
    "--write-out": "evalcore prompts show TASK PROMPT shows what is asked",
    "--gen-kwargs": "generation is greedy, its end and length are the task's (docs/tasks.md)",
    "--confirm-run-unsafe-code": "code that task files name runs with --allow-code",
}
"""Options of lm-evaluation-harness that are none here -> what to do."""


_MAY_BE_EMPTY = {"--title", "--system-instruction"}


def refuse_empty(words: Sequence[str]) -> None:
    """Refuses an empty word: a shell variable that is not set would mean the folder one is in.

    Raises:
        click.UsageError: Names the option before it.
    """
    before = ""
    for word in words:
        option, equals, value = word.partition("=")
        if not word and dashes(before) not in _MAY_BE_EMPTY:
            of = f" of {before}" if before.startswith("-") else f" after {before!r}"
            raise click.UsageError(f"the value{of} is empty; is a variable of the shell not set?")
        if equals and not value and option.startswith("--") and dashes(option) not in _MAY_BE_EMPTY:
            raise click.UsageError(
                f"the value of {option} is empty; is a variable of the shell not set?"
            )
        before = word


def dashes(token: str) -> str:
    """One spelling of an option: ``num_fewshot`` is ``num-fewshot``."""
    return token.replace("_", "-")


class SectionedCommand(click.Command):
    """A command with :func:`sections` in its help, and answers to :data:`HABITS`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            answer = HABITS.get(dashes(error.option_name))
            if answer is None:
                raise
            raise click.UsageError(f"{error.option_name}: {answer}", ctx) from None

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        records: dict[str, Any] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                records[str(param.name)] = record
        for title, names in sections().items():
            rows = [records.pop(name) for name in names if name in records]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)
        if records:
            with formatter.section("Other"):
                formatter.write_dl(list(records.values()))


def plain_source(
    ctx: click.Context, param: click.Parameter, value: tuple[str, ...]
) -> tuple[str, ...]:
    """Checkpoints as they are; ``pretrained=`` in front is a habit of lm-eval's."""
    for one in value:
        if one.startswith("pretrained="):
            own = one.removeprefix("pretrained=").partition(",")[0]
            raise click.BadParameter(
                f"{one[:200]!r}: give the path or REPO@REV by itself: -m {own[:200]}"
            )
    return value

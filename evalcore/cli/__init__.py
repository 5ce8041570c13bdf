"""The command line: parses, calls ``app``, prints. Heavy modules load when a command runs."""

from __future__ import annotations

import atexit
import errno
import importlib
import math
import os
import resource
import sys

import click

from evalcore import __version__
from evalcore.cli.command import dashes, refuse_empty
from evalcore.cli.output import echo
from evalcore.errors import EvalcoreError, missing_extra
from evalcore.shown import one_line

# command name -> module that defines it; imported only when asked for, so that --help is quick
_COMMANDS = {
    "demo": ("evalcore.cli.study", "The pocket study, end to end, from nothing to a report."),
    "score": ("evalcore.cli.score", "Score checkpoints and adapters on tasks and prompts."),
    "watch": ("evalcore.cli.watch", "Score adapters and checkpoints as a training writes them."),
    "finetune": ("evalcore.cli.study", "Train the adapters of a study that are missing."),
    "run": ("evalcore.cli.study", "Run a whole study: finetune, score, report."),
    "status": ("evalcore.cli.status", "What runs on results do, or how they ended."),
    "scores": ("evalcore.cli.report", "Print scores, and gains over the base."),
    "import": ("evalcore.cli.outside", "Analyse score tables that others wrote."),
    "compare": ("evalcore.cli.outside", "Compare models, paired by document."),
    "power": ("evalcore.cli.power", "How many documents, prompts and seeds find an effect."),
    "label": ("evalcore.cli.label", "Say what scored models were tuned on."),
    "report": ("evalcore.cli.report", "Tables, pictures and one HTML page from results."),
    "show": ("evalcore.cli.report", "One document as one cell saw it: prompt, choices, answer."),
    "export": ("evalcore.cli.report", "Write results as parquet or csv."),
    "verify": ("evalcore.cli.results", "Check every byte of results; set aside what is damaged."),
    "cells": ("evalcore.cli.results", "List, drop and restore cells of results."),
    "compact": ("evalcore.cli.results", "Merge many small result files into few."),
    "merge": ("evalcore.cli.results", "Copy several results folders into one."),
    "convert": ("evalcore.cli.convert", "Write adapters or checkpoints in .bin as safetensors."),
    "bench": ("evalcore.cli.bench", "Measure scoring throughput on this hardware."),
    "tasks": ("evalcore.cli.tasks", "List, show and check tasks."),
    "prompts": ("evalcore.cli.prompts", "List, show and check prompt variants."),
    "doctor": ("evalcore.cli.doctor", "What is installed, what will be used, known traps."),
}

_RUN_NO_MODEL = ("score", "watch", "prompts", "tasks")  # in their own process: workers run them


class _LazyGroup(click.Group):
    """A group that lists its commands without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(_COMMANDS[cmd_name][0])
        command: click.Command = getattr(module, {"import": "import_"}.get(cmd_name, cmd_name))
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in _COMMANDS and not args[0].startswith("-"):
            from evalcore.errors import UnknownNameError

            raise click.UsageError(str(UnknownNameError("command", args[0], _COMMANDS)))
        refuse_empty(args)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


@click.group(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "token_normalize_func": dashes},
)
@click.version_option(__version__, prog_name="evalcore")
@click.option("--debug", is_flag=True, help="Show a traceback instead of one line on an error.")
@click.pass_context
def cli(ctx: click.Context, debug: bool) -> None:
    """Scores every checkpoint, adapter, task and prompt variant of a study as one job.

    Start with `evalcore demo`, then `evalcore score ADAPTERS -t TASKS -p PROMPTS -o RESULTS`.
    """
    from evalcore.cli.logs import show_logs  # `evalcore --help` does without

    own = ctx.ensure_object(dict).get("own_process", False)
    ctx.obj["debug"] = debug
    show_logs(debug)
    if own and ctx.invoked_subcommand in _RUN_NO_MODEL:
        from evalcore.library import runs_no_model

        runs_no_model()


LEAST_ADDRESSES = 256_000_000
"""Bytes; with less, libraries wait in their start without end for what they do not get."""
_LONGEST = 400  # signs of what click has to say of a value


def _show(error: click.ClickException) -> None:
    """Prints what click has to say: values it quotes come from outside."""
    text = one_line(error.format_message())
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}"
    if isinstance(error, click.UsageError):
        error = click.UsageError(text, error.ctx)
    else:
        error = click.ClickException(text)
    error.show()


def _line_of(error: Exception) -> str | None:
    """One line for what the system refuses, wherever that was; None for faults of the program."""
    chain: list[BaseException] = [error]
    while (before := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(before)
    if any(_is_memory(each) for each in chain):
        return _too_little(_allowed())
    if isinstance(error, RuntimeError) and "home directory" in str(error):
        return "there is no home directory, for caches: set HOME to a folder that can be written"
    if not isinstance(error, OSError) or error.errno is None:
        return None
    name = one_line(str(error.filename))
    if error.errno == errno.ENAMETOOLONG:
        return f"{name[:60]} ...: a name of {len(name):,} signs is too long"
    if error.filename is None:
        return f"{error.strerror} (where that happened: --debug)"
    return f"{name}: {error.strerror} (where that happened: --debug)"


def _allowed() -> float:
    """Bytes of addresses this process may have."""
    allowed = resource.getrlimit(resource.RLIMIT_AS)[0]
    return math.inf if allowed == resource.RLIM_INFINITY else allowed


def _too_little(allowed: float) -> str:
    if allowed == math.inf:
        return "there is not enough memory; free some, or ask for less at once"
    return (
        f"there is not enough memory: ulimit -v allows {allowed / 1e6:,.0f} MB of addresses; raise "
        "it (ulimit -v unlimited)"
    )


def _is_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    words = ("failed to map segment", "Cannot allocate memory", "can't start new thread")
    return isinstance(error, (ImportError, RuntimeError, OSError)) and any(
        word in str(error) for word in words
    )


def program() -> None:
    """Entry point of the program: :func:`main` in a process that nobody else uses."""
    ended: list[int] = []
    atexit.register(_leave, ended)  # the first that is registered is the last that runs
    try:
        main(own_process=True)
    except SystemExit as end:
        ended += [end.code] if isinstance(end.code, int) else []
        raise


def _leave(ended: list[int]) -> None:
    """Ends the process when exit handlers have run, without taking the interpreter down.

    Arrow's threads let go of Python's buffers a moment after the call that used them. One that does
    so while the interpreter goes down ends its process by an abort (before Python 3.14): a command
    that did all it should would end with status 134, now and then, on a busy machine.
    """
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:  # closed before the command began
                stream.flush()
    except OSError:  # Python says so itself, with a status of its own
        return
    if ended:
        os._exit(ended[0])


def main(*, own_process: bool = False) -> None:
    """Runs a command; typed errors become one line on stderr and their exit status.

    Args:
        own_process: Nobody will build a model in this process afterwards.
    """
    debug = "--debug" in sys.argv[1:]
    if _allowed() < LEAST_ADDRESSES:
        echo(f"evalcore: {_too_little(_allowed())}", err=True)
        sys.exit(2)
    try:
        status = cli.main(standalone_mode=False, obj={"own_process": own_process})
    except click.ClickException as error:
        _show(error)
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        echo("stopped", err=True)
        sys.exit(130)
    except EvalcoreError as error:
        if debug:
            raise
        echo(f"evalcore: {error}", err=True)
        sys.exit(error.exit_status)
    except ModuleNotFoundError as error:
        known = missing_extra(error)
        if debug or known is None:
            raise
        echo(f"evalcore: {known}", err=True)
        sys.exit(known.exit_status)
    except UnicodeEncodeError as error:
        if debug or not any("\ud800" <= sign <= "\udfff" for sign in error.object):
            raise
        # Libraries and tables of results know no such paths.
        name = one_line(error.object)[:200]
        echo(f"evalcore: {name}: this name is not UTF-8; give another", err=True)
        sys.exit(2)
    except BrokenPipeError:
        sys.exit(141)
    except Exception as error:
        line = _line_of(error)
        if debug or line is None:
            raise
        echo(f"evalcore: {line}", err=True)
        sys.exit(2)
    sys.exit(status if isinstance(status, int) else 0)

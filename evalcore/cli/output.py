"""The one place where the command line prints: what a terminal would obey is shown instead.

Names of adapters, tasks and files, texts of models and messages of libraries come from outside; an
escape sequence in one of them could clear the screen, hide a line or set a window's title.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Timer
from typing import Any, TextIO

import click

from evalcore.errors import ResultsError
from evalcore.shown import one_line, printable

LATE_S = 10.0
"""Seconds after which a log is told what is being done."""


def echo(text: object = "", *, err: bool = False, **style: Any) -> None:
    """Prints text, control characters written as escapes; ``style`` as for ``click.style``.

    Where nobody reads any more (``| head``), the command goes on to its own end and status; nor
    does one end for what cannot be said on standard error.

    Raises:
        ResultsError: Standard output cannot be written.
    """
    shown = printable(str(text))
    try:
        click.echo(click.style(shown, **style) if style else shown, err=err)
    except BrokenPipeError:
        _to_nobody(sys.stderr if err else sys.stdout)
    except OSError as error:
        if not err:
            _to_nobody(sys.stdout)  # what is left of it is tried again when the process ends
            reason = error.strerror or error
            raise ResultsError(f"standard output cannot be written ({reason})") from error


def _to_nobody(stream: TextIO) -> None:
    with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as nobody:
        os.dup2(nobody.fileno(), stream.fileno())


def on_terminal() -> bool:
    """Whether standard error is a terminal; it may be closed."""
    return sys.stderr is not None and sys.stderr.isatty()


@contextmanager
def loading() -> Iterator[None]:
    """Says that libraries are loaded: a second here, a minute on a busy shared file system."""
    if not on_terminal():
        late = echo_late("loading libraries")
        try:
            yield
        finally:
            late.cancel()
        return
    with contextlib.suppress(OSError):
        click.echo("loading libraries", nl=False, err=True)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            click.echo("\r\x1b[2K", nl=False, err=True)


def echo_late(line: str) -> Timer:
    """A line for a log, printed if nobody cancels it within :data:`LATE_S`: what is quick, and an
    error that is found at once, need none."""
    timer = Timer(LATE_S, echo, [line], {"err": True})
    timer.daemon = True
    timer.start()
    return timer


def echo_line(text: object, *, err: bool = False) -> None:
    """Prints text that should be one line: line ends in it are shown too."""
    echo(one_line(str(text)), err=err)

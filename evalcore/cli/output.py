"""The one place where the command line prints: what a terminal would obey is shown instead.

Names of adapters, tasks and files, texts of models and messages of libraries come from outside; an
escape sequence in one of them could clear the screen, hide a line or set a window's title.
"""

from __future__ import annotations

from typing import Any

import click

from evalcore.shown import one_line, printable


def echo(text: object = "", *, err: bool = False, **style: Any) -> None:
    """Prints text, control characters written as escapes; ``style`` as for ``click.style``."""
    shown = printable(str(text))
    click.echo(click.style(shown, **style) if style else shown, err=err)


def echo_line(text: object, *, err: bool = False) -> None:
    """Prints text that should be one line: line ends in it are shown too."""
    echo(one_line(str(text)), err=err)

"""docs/cli.md says what the commands say."""

from __future__ import annotations

import subprocess
import sys

from evalcore.cli.page import PAGE


def test_the_page_is_current() -> None:
    # In a process of its own: click keeps a command's --help as it was first asked for.
    code = "from evalcore.cli.page import page; print(page(), end='')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert PAGE.read_text("utf-8") == done.stdout, "run: python -m evalcore.cli.page"


def test_every_option_has_a_sentence() -> None:
    import click

    from evalcore.cli import cli
    from evalcore.cli.page import _commands, _context

    for context in _commands(_context(cli, "evalcore")):
        for parameter in context.command.params:
            if isinstance(parameter, click.Option) and not parameter.hidden:
                assert parameter.help, f"{context.command_path} {parameter.opts[0]}"

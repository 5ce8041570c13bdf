"""docs/cli.md: every command with its help, made from the click tree.

``python -m evalcore.cli.page`` writes it anew; a test says when it is not what the commands say.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from evalcore.cli import cli

PAGE = Path(__file__).resolve().parents[2] / "docs" / "cli.md"
_WIDTH = 96
_HEAD = """# The command line

Made from the commands' own help by `python -m evalcore.cli.page`. Tab completion is click's: for
bash `eval "$(_EVALCORE_COMPLETE=bash_source evalcore)"`, likewise `zsh_source` and `fish_source`.
"""


def page() -> str:
    """The text of the page."""
    parts = [_HEAD]
    for context in _commands(_context(cli, "evalcore")):
        help_text = "\n".join(line.rstrip() for line in context.get_help().splitlines())
        parts.append(f"## {context.command_path}\n\n```text\n{help_text}\n```\n")
    return "\n".join(parts)


def _context(
    command: click.Command, name: str, parent: click.Context | None = None
) -> click.Context:
    """As when the command is called: with the settings it has and those of the commands above."""
    return command.make_context(name, [], parent=parent, resilient_parsing=True)


def _commands(context: click.Context) -> Iterator[click.Context]:
    """A command and those below it, in order of their names; none shows a value of this machine."""
    context.terminal_width = context.max_content_width = _WIDTH
    yield context
    command = context.command
    if isinstance(command, click.Group):
        for name in sorted(command.list_commands(context)):
            below = command.get_command(context, name)
            if below is not None and not below.hidden:
                yield from _commands(_context(below, name, context))


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")

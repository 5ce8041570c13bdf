"""The command line: every option says what it does, and what the README shows exists."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from evalcore.cli import cli
from evalcore.cli.options import parse_shard

ROOT = Path(__file__).resolve().parents[2]


def commands() -> Iterator[tuple[str, click.Command]]:
    context = click.Context(cli)
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        yield name, command
        if isinstance(command, click.Group):
            yield from ((f"{name} {sub}", c) for sub, c in command.commands.items())


@pytest.mark.parametrize(("name", "command"), commands(), ids=[name for name, _ in commands()])
def test_every_command_and_option_has_help(name: str, command: click.Command) -> None:
    assert command.help, name
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{name} {parameter.opts}"


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{p.name}" for p in ROOT.glob("docs/*.md"))])
def test_documented_commands_and_options_exist(page: str) -> None:
    known = dict(commands())
    text = (ROOT / page).read_text().replace("\\\n", " ")
    for line in re.findall(r"evalcore ((?:score|run|report|export|finetune|demo) .*)", text):
        words = re.split(r"[`#]", line)[0].split()
        options = {o for p in known[words[0]].params for o in p.opts}
        for option in (w.rstrip(",.)") for w in words if re.match(r"--?[a-zA-Z]", w)):
            assert option in options, f"{page}: evalcore {words[0]} has no {option}"


@pytest.mark.parametrize(("text", "value"), [("0/1", (0, 1)), ("3/8", (3, 8))])
def test_shard(text: str, value: tuple[int, int]) -> None:
    assert parse_shard(None, None, text) == value  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["8/8", "1", "a/b", "-1/2", "1/0", "/"])
def test_wrong_shards_are_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="0/4"):
        parse_shard(None, None, text)  # type: ignore[arg-type]

"""``evalcore convert``."""

from __future__ import annotations

from pathlib import Path

import click

from evalcore.cli.output import echo


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="New folder.")
def convert(source: Path, output: Path) -> None:
    """Write an adapter or checkpoint saved as .bin again as safetensors.

    Only tensors are read from the pickle, in a process of its own; SOURCE is not changed.

    Example: evalcore convert runs/old -o runs/new
    """
    from evalcore.app.convert import convert as run

    for file in run(source, output):
        echo(str(file))

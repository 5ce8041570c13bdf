"""``evalcore convert``."""

from __future__ import annotations

from pathlib import Path

import click

from evalcore.cli.output import echo


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="New folder.")
@click.option(
    "--initial",
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    help="The adapter before its first step: makes a plain LoRA of PiSSA, OLoRA, CorDA, LoRA-GA.",
)
@click.option(
    "--base",
    metavar="PATH",
    help="Its base, of which PiSSA's and OLoRA's start is computed again, instead of --initial.",
)
def convert(source: Path, output: Path, initial: Path | None, base: str | None) -> None:
    """Write an adapter or checkpoint again so that it can be scored.

    Without options: one saved as .bin as safetensors. Only tensors are read from the pickle, in a
    process of its own. With --initial or --base: an adapter whose start changed its base as a plain
    LoRA of twice the rank over the unchanged base. SOURCE is not changed.

    Example: evalcore convert runs/old -o runs/new
    """
    if initial is not None or base is not None:
        from evalcore.app.plain import to_plain

        echo(str(to_plain(source, output, initial=initial, base=base)))
        return
    from evalcore.app.convert import convert as run

    for file in run(source, output):
        echo(str(file))

"""``evalcore status``."""

from __future__ import annotations

from pathlib import Path

import click

from evalcore.cli.output import echo, echo_line


@click.command()
@click.argument("results", type=click.Path(path_type=Path))
@click.option("--all", "every", is_flag=True, help="Every run of the last week that is over, too.")
@click.option("--json", "as_json", is_flag=True, help="The same, and all of it, as JSON.")
def status(results: Path, every: bool, as_json: bool) -> int:
    """Says what runs on RESULTS do, or how they ended; from any machine that sees the folder.

    A run tells of itself every five seconds. On its own machine its process is asked for; from
    another one it counts as silent when its file was not written for a minute by this machine's
    clock.
    """
    from evalcore.app.status import status as look

    told = look(results)
    if as_json:
        import json

        echo(json.dumps(told.as_record(every=every), indent=1, default=str))
    else:
        for line in told.lines(every=every):
            echo_line(line)
    return 0

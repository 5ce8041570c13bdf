"""``evalcore power``."""

from __future__ import annotations

from pathlib import Path

import click

from evalcore.cli.options import Finite
from evalcore.cli.output import echo


@click.command()
@click.argument("place", type=click.Path(path_type=Path), metavar="RESULTS|STUDY.yaml")
@click.option(
    "--effect", type=Finite(1e-6, 1e6), required=True,
    help="Smallest difference that is to be found, in units of the metric: .02 is two points.",
)  # fmt: skip
@click.option(
    "--power", "chance", type=Finite(0, 1, min_open=True, max_open=True), default=0.8,
    show_default=True, help="With what chance.",
)  # fmt: skip
@click.option(
    "--level", type=Finite(0, 1, min_open=True, max_open=True), default=0.95, show_default=True,
    help="Of the two-sided interval that has to leave out 0.",
)  # fmt: skip
@click.option("-t", "--task", "tasks", multiple=True, help="Only this task (repeatable).")
@click.option(
    "--sd-prompts", type=Finite(0, 1e6),
    help="Standard deviation of the gain between prompts, where the results have one prompt.",
)  # fmt: skip
@click.option(
    "--sd-seeds", type=Finite(0, 1e6),
    help="Standard deviation of the gain between training seeds, where the results have one seed.",
)  # fmt: skip
@click.option(
    "--max-documents", "most", type=click.IntRange(2), default=100_000, show_default=True,
    help="Designs beyond it are not looked at.",
)  # fmt: skip
def power(
    place: Path,
    effect: float,
    chance: float,
    level: float,
    tasks: tuple[str, ...],
    sd_prompts: float | None,
    sd_seeds: float | None,
    most: int,
) -> int:
    """Says how many documents, prompts and training seeds find a difference that large.

    Variances come from what was scored: results, or the study whose results lie beside its file; a
    small part of a study is enough (--limit 100). No number of documents makes up for prompts or
    seeds that differ much among themselves: then it says so.
    """
    from evalcore.app.power import PowerOptions
    from evalcore.app.power import power as plan

    options = PowerOptions(effect, chance, level, tasks, sd_prompts, sd_seeds, most)
    for line in plan(place, options).lines():
        echo(line)
    return 0

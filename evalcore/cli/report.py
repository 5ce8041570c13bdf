"""``evalcore scores``, ``report`` and ``export``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from evalcore.cli.output import echo
from evalcore.errors import InputError
from evalcore.exports import FORMATS


@click.command()
@click.argument("results", type=click.Path(path_type=Path))
@click.option(
    "--by", type=click.Choice(["task", "prompt"]), default="task", show_default=True,
    help="task: mean over the prompts of one way of asking and over training seeds; "
    "prompt: every prompt and model by itself.",
)  # fmt: skip
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="FILE.csv",
    help="Write the table there, with every column.",
)  # fmt: skip
def scores(results: Path, by: Literal["task", "prompt"], output: Path | None) -> int:
    """Prints the score of every model on every task, and its gain over its base.

    Below the table stands what its errors and intervals are about: other prompts and seeds where
    there are several, else documents alone.
    """
    from evalcore.app import open_results, write_scores_csv
    from evalcore.app import scores as score_rows
    from evalcore.app.pairs import prompt_scores
    from evalcore.report import prompt_score_lines, scores_text

    store = open_results(results)
    rows = score_rows(store, by)
    if output is not None:
        write_scores_csv(rows, by, output)
        echo(f"{len(rows):,} rows in {output}")
        return 0
    estimated = prompt_score_lines(prompt_scores(store))
    lines = scores_text(rows)
    lines += [""] * bool(lines and estimated) + estimated
    for line in lines or [f"no scores in {results} yet"]:
        echo(line)
    return 0


@click.command()
@click.argument("results", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Folder (default: RESULTS/report; of several results it must be named).",
)
@click.option("--title", help="Title of the page (default: the study's name).")
@click.option(
    "--allow-mixed", is_flag=True,
    help="Compare scores of different engines, dtypes or devices all the same.",
)  # fmt: skip
@click.option(
    "--study", type=click.Path(path_type=Path), metavar="STUDY.yaml",
    help="Take title, groups of tasks and the primary way of asking from it.",
)  # fmt: skip
@click.option("--tasks", help="Only these tasks (names or patterns, with commas between).")
@click.option("--checkpoints", help="Only these checkpoints, with what was tuned from them.")
@click.option("--tunings", help="Only these tunings, and the untuned checkpoints.")
@click.option("--numerics", help="Only this numerics class (see the page's last section).")
def report(
    results: tuple[Path, ...], output: Path | None, title: str | None, allow_mixed: bool,
    study: Path | None, **part: str | None,
) -> int:  # fmt: skip
    """Prints the study's table and writes report.html, pictures (PNG, SVG) and tables (CSV).

    Several results folders give one page, each number with the folder it is of. A cell that stands
    in several is taken from the first and named among the warnings; nothing is averaged over them.
    """
    from evalcore.app import report as make
    from evalcore.app.report import Part, declared
    from evalcore.identity.globs import split_at

    given = {"title": "Scores and gains"} if study is None else declared(study)
    if title is not None:
        given["title"] = title
    if output is None and len(results) > 1:
        raise InputError("report of several results: say where with -o FOLDER")
    wanted = {name: tuple(split_at(text, ",")) for name, text in part.items() if text}
    made = make(
        results,
        output or results[0] / "report",
        allow_mixed=allow_mixed,
        part=Part(**wanted),
        **given,
    )
    echo(made.table)
    echo(f"report: {made.page}")
    return 0


@click.command()
@click.argument("results", type=click.Path(path_type=Path))
@click.argument("cell")
@click.argument("document")
def show(results: Path, cell: str, document: str) -> int:
    """Prints one document as one cell saw it.

    CELL is the beginning of a cell's key (`evalcore cells RESULTS list --all`; the report's page
    says it), DOCUMENT the document's number in its task or the beginning of its id. Prints the
    prompt as sent, choices with log-probabilities, what was right, what was chosen, and texts.
    """
    from evalcore.app.document import document_lines

    echo("\n".join(document_lines(results, cell, document)))
    return 0


@click.command()
@click.argument("results", type=click.Path(path_type=Path))
@click.option(
    "--format", "--to", "kind", type=click.Choice(list(FORMATS)),
    help="; ".join(f"{name}: {form.help}" for name, form in FORMATS.items())
    + ". Without it: by the ending of the file, parquet if it has none.",
)  # fmt: skip
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="File or folder.",
)
def export(results: Path, kind: str | None, output: Path) -> int:
    """Writes results for other tools: tables, files of the harness or the hub, trackers' runs."""
    from evalcore.app import export as write

    echo(str(write(results, output, kind)))
    return 0

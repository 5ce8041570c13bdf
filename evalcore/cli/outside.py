"""``evalcore import`` and ``compare``."""

from __future__ import annotations

from pathlib import Path

import click

from evalcore.cli.output import echo


@click.command("import")
@click.argument("files", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option(
    "-c", "--column", "columns", multiple=True, metavar="WHAT=COLUMN",
    help="Which column of a CSV file is what (repeatable): model, step, tuned, task, metric, "
    "prompt, way, shots, score, stderr, n. Columns of such names are found by themselves.",
)  # fmt: skip
@click.option(
    "-g", "--group", "groups", multiple=True, metavar="NAME=TASK[@TUNING][/WAY],...",
    help="Tasks whose gains are averaged at each checkpoint (repeatable). A task that stands twice "
    "is counted once, and twice in a second line.",
)  # fmt: skip
@click.option("--prompt", default="", help="Groups take scores under this prompt only.")
@click.option(
    "--shots", "--num-fewshot", "shots", type=click.IntRange(0),
    help="Groups take scores with so many shots only.",
)  # fmt: skip
@click.option(
    "--size", "sizes", multiple=True, metavar="TASK=DOCUMENTS",
    help="How many documents a task has: errors that imply another number are named (repeatable).",
)  # fmt: skip
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Folder for the tables as CSV."
)
def import_(
    files: tuple[Path, ...],
    columns: tuple[str, ...],
    groups: tuple[str, ...],
    prompt: str,
    shots: int | None,
    sizes: tuple[str, ...],
    output: Path | None,
) -> int:
    """Analyses score tables that others wrote: CSV files, or lm-eval's results_*.json.

    Gains over the untuned checkpoint, means over groups of tasks, spread over prompts, and what is
    odd about the scores: labels of one class, keys with two values, errors that fit another number
    of documents. A table of scores has no documents: differences are unpaired, and what needs
    documents is left out. lm-eval's samples_*.jsonl have them: give those to `evalcore compare`.
    """
    from evalcore.app.outside import import_scores
    from evalcore.report.tabled import table_lines, write_table_csvs

    made = import_scores(
        files, columns=columns, groups=groups, sizes=sizes, prompt=prompt, shots=shots
    )
    if made.columns:
        taken = ", ".join(f"{what} from {column}" for what, column in made.columns.items())
        echo(f"columns: {taken}")
    for line in table_lines(made.table, made.means, made.flags):
        echo(line)
    if output is not None:
        from evalcore.errors import InputError

        try:
            paths = write_table_csvs(made.table, made.means, made.flags, output)
        except OSError as error:
            raise InputError(f"cannot write {output}: {error.strerror or error}") from None
        echo(f"{len(paths)} tables in {output}")
    return 0


@click.command()
@click.argument("sides", nargs=-1, required=True, metavar="A B [C ...]")
@click.option(
    "-r", "--results", type=click.Path(path_type=Path),
    help="A results folder whose models A, B ... are.",
)  # fmt: skip
@click.option("-t", "--task", "tasks", multiple=True, help="Only this task (repeatable).")
@click.option(
    "--allow-mixed", is_flag=True,
    help="Compare scores of different engines, dtypes or devices all the same.",
)  # fmt: skip
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="FILE.csv",
    help="Write the table there, with every column.",
)  # fmt: skip
def compare(
    sides: tuple[str, ...],
    results: Path | None,
    tasks: tuple[str, ...],
    allow_mixed: bool,
    output: Path | None,
) -> int:
    """Compares each of B, C ... with A: per task and in the mean, with interval and p.

    Each is a results folder that holds one model, FOLDER::MODEL, a model of --results, or
    samples_*.jsonl of lm-eval (a file, or a folder of one model's). Scores are paired document by
    document where both sides saw the same; where they saw none in common, a task is left out and
    named.
    """
    from evalcore.app.compare import compare as run
    from evalcore.report.compared import compared_lines, compared_rows
    from evalcore.report.csvs import write_csv

    found = run(sides, results=results, tasks=tasks, allow_mixed=allow_mixed)
    for line in compared_lines(found):
        echo(line)
    if output is not None:
        from evalcore.errors import InputError

        try:
            write_csv(output, compared_rows(found))
        except OSError as error:
            raise InputError(f"cannot write {output}: {error.strerror or error}") from None
    return 0

"""``evalcore verify``, ``cells``, ``compact`` and ``merge``: care of a results folder."""

from __future__ import annotations

from pathlib import Path

import click

from evalcore.cli.output import echo

_RESULTS = click.argument("results", type=click.Path(path_type=Path))


@click.command()
@_RESULTS
@click.option("--check-only", is_flag=True, help="Say what is damaged and change nothing.")
def verify(results: Path, check_only: bool) -> int:
    """Checks every byte of a results folder; status 1 if any is not as it was written.

    Damaged files move to RESULTS/damaged; sound rows of a damaged file are kept, the others are
    scored again by the next run.
    """
    from evalcore.app.results import verify as check

    report = check(results, check_only=check_only)
    echo("\n".join(report.lines()))
    return 0 if report.sound else 1


@click.command()
@_RESULTS
@click.argument("action", type=click.Choice(["list", "drop", "restore"]), default="list")
@click.argument("keys", nargs=-1)
@click.option("--checkpoint", help="Cells of checkpoints with this name (a pattern: 'step-*').")
@click.option("--adapter", help="Of adapters with this name; '(base)' are those without.")
@click.option("--task", help="Of these tasks.")
@click.option("--variant", help="Of these prompt variants.")
@click.option("--superseded", is_flag=True, help="Only those that a newer definition superseded.")
@click.option("--all", "every", is_flag=True, help="list: current cells too.")
def cells(
    results: Path,
    action: str,
    keys: tuple[str, ...],
    checkpoint: str | None,
    adapter: str | None,
    task: str | None,
    variant: str | None,
    superseded: bool,
    every: bool,
) -> int:
    """Lists cells that are not used, drops cells from every view, or restores them.

    A prompt or task that was mended and scored again supersedes what was scored before it. Nothing
    is ever deleted: RESULTS keeps the rows of superseded and dropped cells.
    """
    from evalcore.app import open_results
    from evalcore.app import results as care

    if action == "list":
        echo("\n".join(care.cell_lines(care.list_cells(results), every=every)))
        if lost := open_results(results).undescribed():
            echo(lost)
        return 0
    patterns = {"checkpoint": checkpoint, "adapter": adapter, "task": task, "variant": variant}
    chosen = care.select_cells(results, keys, patterns, superseded=superseded)
    changed = care.drop_cells(results, chosen, restore=action == "restore")
    word = "restored" if action == "restore" else "dropped"
    echo(f"{changed:,} cells {word}" + (f", {len(chosen) - changed:,} were so already"
                                              if changed < len(chosen) else ""))  # fmt: skip
    return 0


@click.command()
@_RESULTS
def compact(results: Path) -> int:
    """Merges many small segments into few and gives files of earlier versions checksums.

    Safe beside runs that write, and at any moment to stop. Damaged files move to RESULTS/damaged
    first, as `evalcore verify` does it; status 1 if there are any.
    """
    from evalcore.app.results import compact as merge_segments

    done = merge_segments(results)
    for line in done.damaged:
        echo(line)
    echo(
        f"{done.segments_before:,} segments -> {done.segments_after:,}; {done.rows:,} rows, "
        f"{done.doubles_removed:,} doubles removed"
    )
    if done.damaged:
        echo("damaged files lie in damaged/; the next run scores what is lost")
    return 1 if done.damaged else 0


@click.command()
@click.argument("parts", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path),
    help="Results folder, new or existing.",
)  # fmt: skip
def merge(parts: tuple[Path, ...], output: Path) -> int:
    """Copies several results folders into one; of rows that several have, the oldest is read."""
    from evalcore.app.results import merge_results

    done = merge_results(parts, output)
    echo(
        f"{done.files:,} files copied; {done.rows:,} rows in {output}, {done.doubled:,} were in "
        "several parts"
    )
    return 0

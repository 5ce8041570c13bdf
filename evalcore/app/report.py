"""``report()`` and ``export()``: from a results folder to tables, pictures and files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from evalcore.errors import InputError
from evalcore.store import ResultStore, to_csv, to_parquet

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class MadeReport:
    """The study's table as text, and the HTML page that was written."""

    table: str
    page: Path


def report(
    results: Path,
    output: Path,
    *,
    title: str,
    losses: pa.Table | None = None,
    allow_mixed: bool = False,
) -> MadeReport:
    """Analyses a results folder and writes report.html, PNGs and CSVs into ``output``.

    ``losses``: training losses to show as well (``evalcore.report.losses.LOSS_COLUMNS``).

    Raises:
        InputError: There are no results, or the output cannot be written.
        IncompatibleError: Results of different engines or dtypes would be compared.
    """
    from evalcore.analysis import analyse
    from evalcore.report import study_table, write_report

    store = open_results(results)
    table = store.read()
    analysis = analyse(table, allow_mixed=allow_mixed)
    page = write_report(
        table,
        output,
        title=title,
        run_records=store.runs.list(),
        analysis=analysis,
        losses=losses,
    )
    return MadeReport(study_table(analysis), page)


def export(results: Path, output: Path, kind: str) -> int:
    """Writes the joined table as ``parquet`` or ``csv``; returns its number of rows."""
    store = open_results(results)
    return to_parquet(store, output) if kind == "parquet" else to_csv(store, output)


def open_results(results: Path) -> ResultStore:
    """An existing results folder (reading must not create one)."""
    if not (results / "store.json").is_file():
        raise InputError(
            f"{results}: no results there (no store.json); give the folder of `evalcore score -o`"
        )
    return ResultStore(results, read_only=True)

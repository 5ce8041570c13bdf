"""``report()`` and ``export()``: from a results folder to tables, pictures and files."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from evalcore.app.reduction import keep_estimates, read_book
from evalcore.errors import InputError
from evalcore.store import ResultStore, text_columns, to_csv, to_parquet

if TYPE_CHECKING:
    import pyarrow as pa

    from evalcore.analysis import Flag, Group, ScoreBook, Way
    from evalcore.analysis.scores import By, ScoreRow
    from finetune import Study

log = logging.getLogger("evalcore")

# Of what made a row: these belong to its subject, not to the machine.
MAY_DIFFER = {"adapter", "proven_share", "compared"}


@dataclass(frozen=True)
class MadeReport:
    """The main table as text, and the HTML page that was written."""

    table: str
    page: Path


def report(
    results: Path,
    output: Path,
    *,
    title: str,
    losses: pa.Table | None = None,
    allow_mixed: bool = False,
    groups: Sequence[Group] | None = None,
    primary: Way | None = None,
) -> MadeReport:
    """Analyses a results folder and writes report.html, PNGs and CSVs into ``output``.

    ``losses``: training losses to show as well (``evalcore.report.losses.LOSS_COLUMNS``);
    ``groups`` and ``primary``: what a study declares (see ``evalcore.analysis.analyse``).

    Raises:
        InputError: There are no results, or the output cannot be written.
        IncompatibleError: Results of different engines or dtypes would be compared.
    """
    from evalcore.analysis import Flag, analyse
    from evalcore.report import report_table, write_report

    store = open_results(results)
    book = read_book(store, preferred=(primary,) if primary else ())
    analysis = analyse(book, allow_mixed=allow_mixed, groups=groups)
    analysis.flags.extend(Flag("left out", "results", line) for line in store.left_out())
    analysis.flags.extend(_maker_flags(store, book))
    page = write_report(
        None,
        output,
        title=title,
        run_records=store.runs.list(),
        analysis=analysis,
        losses=losses,
    )
    made = MadeReport(report_table(analysis), page)
    keep_estimates(store, book)
    return made


def declared(file: Path) -> tuple[list[Group] | None, Way | None]:
    """(groups of tasks, primary way of asking) that a study file declares; None where it does not.

    Raises:
        InputError: The study file is wrong.
    """
    from finetune import load_study

    return declared_by(load_study(file))


def declared_by(study: Study) -> tuple[list[Group] | None, Way | None]:
    """The same of a study that was read."""
    from evalcore.analysis import Group, Way

    spec = study.evaluation
    if spec is None:
        return None, None
    groups = [
        Group(name, tuple(g.tasks), g.tuned_by, tuple(g.prompts)) for name, g in spec.groups.items()
    ]
    return groups or None, None if spec.primary is None else Way(**spec.primary.model_dump())


def _maker_flags(store: ResultStore, book: ScoreBook) -> list[Flag]:
    """Whether all rows were made alike: by the same versions, device, strategy ..."""
    from evalcore.analysis import Flag

    used = {maker for cell in book.read for maker in cell.facts.makers}
    unmade = sum(cell.facts.unmade for cell in book.read)
    records = [record for id_, record in store.makers().items() if id_ in used]
    keys = sorted({key for record in records for key in record} - MAY_DIFFER)
    texts = {key: sorted({str(record.get(key)) for record in records}) for key in keys}
    differ = [f"{key} ({' | '.join(values)})" for key, values in texts.items() if len(values) > 1]
    flags = []
    if differ:
        text = f"rows were made by different {'; '.join(differ)}; see column maker"
        flags.append(Flag("made by", "results", text, len(records)))
    if unmade and used:
        text = "what made some of the rows was not recorded"
        flags.append(Flag("made by", "results", text, unmade))
    return flags


def scores(
    store: ResultStore, by: By = "task", *, cells: Collection[str] | None = None
) -> list[ScoreRow]:
    """Scores and gains, from reduced cells (``app.reduction``).

    Args:
        store: The results.
        by: ``task``: one row per subject, task and way of asking; ``prompt``: one per cell.
        cells: Only these cells (keys), and those of their subjects' bases; None: all.

    Raises:
        InputError: There are rows, but no record of whose they are.
    """
    from evalcore.analysis import Way, score_rows
    from evalcore.analysis.ways import ranked

    about = store.cells().to_pylist()
    preferred = ranked(Way.of(row, row["shots"] or 0) for row in about)  # as one book of all has
    asked = [row for row in about if cells is None or row["cell"] in cells]
    bases = {(row["task"], row["variant"], row["base"]) for row in asked}
    own = {row["cell"] for row in asked}
    wanted = {
        row["cell"]
        for row in about
        if row["cell"] in own or (row["task"], row["variant"], row["subject"]) in bases
    }
    rows: list[ScoreRow] = []
    book = read_book(store, cells=wanted, preferred=list(preferred), empty=True)
    if book.read:
        rows = score_rows(book, by)
        keep_estimates(store, book)
    if cells is None and (lost := store.undescribed()):
        if not rows:
            raise InputError(f"{store.path}: {lost}")
        log.warning("%s: %s", store.path, lost)
    return rows


def write_scores_csv(rows: Sequence[ScoreRow], by: By, path: Path) -> None:
    """Writes rows of :func:`scores` with every column.

    Raises:
        InputError: The file cannot be written.
    """
    import pyarrow.csv as csv

    from evalcore.analysis import scores_table

    try:
        csv.write_csv(text_columns(scores_table(rows, by)), path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from None


def export(results: Path, output: Path, kind: Literal["parquet", "csv"] | None = None) -> int:
    """Writes the joined table as ``parquet`` or ``csv``; returns its number of rows.

    ``kind`` None: csv where the file's name ends in .csv, else parquet.

    Column ``score`` is each row's value of its task's primary metric (or what stands for it where
    that has no value per document); null where a prompt did not fit.
    """
    store = open_results(results)
    if kind is None:
        kind = "csv" if output.suffix.lower() == ".csv" else "parquet"
    write = to_parquet if kind == "parquet" else to_csv
    return write(store, output, _with_scores)


def _with_scores(table: pa.Table) -> pa.Table:
    """The joined table with column ``score``, and ``score_metric`` that says what it is."""
    import numpy as np
    import pyarrow as pa

    from evalcore.metrics import document_metric, example_values
    from evalcore.store.coverage import codes_of

    _, codes = codes_of(table["cell"])
    cells, first = np.unique(codes, return_index=True)
    about = table.select(["primary_metric", "output_type", "answer"]).take(pa.array(first))
    cells_of: dict[str, list[int]] = {}
    for cell, row in zip(cells.tolist(), about.to_pylist(), strict=True):
        if row["primary_metric"] is not None and row["output_type"] is not None:
            how = row["answer"] or "choices"
            metric = document_metric(row["primary_metric"], row["output_type"], how)
            cells_of.setdefault(metric, []).append(cell)
    values = np.full(table.num_rows, np.nan)
    which = np.full(table.num_rows, -1, np.int32)
    for number, (metric, own) in enumerate(cells_of.items()):
        rows = np.flatnonzero(np.isin(codes, own))
        values[rows] = example_values(table.take(pa.array(rows)), metric)
        which[rows] = number
    score = pa.array(values, pa.float64(), mask=np.isnan(values))
    metrics = pa.DictionaryArray.from_arrays(
        pa.array(which, pa.int32(), mask=which < 0), pa.array(list(cells_of), pa.string())
    )
    return table.append_column("score", score).append_column("score_metric", metrics)


def open_results(results: Path) -> ResultStore:
    """An existing results folder (reading must not create one)."""
    if not (results / "store.json").is_file():
        raise InputError(
            f"{results}: no results there (no store.json); give the folder of `evalcore score -o`"
        )
    return ResultStore(results, read_only=True)

"""``report()`` and ``export()``: from a results folder to tables, pictures and files."""

from __future__ import annotations

import contextlib
import gc
import logging
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from evalcore.app.reduction import keep_estimates, read_book
from evalcore.errors import InputError, UnknownNameError
from evalcore.identity import globs
from evalcore.reading import is_there
from evalcore.store import ResultStore, text_columns

if TYPE_CHECKING:
    import pyarrow as pa

    from evalcore.analysis import Group, Way
    from evalcore.analysis.scores import By, ScoreRow
    from evalcore.exports import Exported
    from finetune import Study

log = logging.getLogger("evalcore")


@dataclass(frozen=True)
class Part:
    """Which cells a report is of: those that fit every list of patterns that is given.

    Attributes:
        tasks, checkpoints, tunings, numerics: Names or patterns (``step-*``); empty: all. Untuned
            checkpoints are kept whatever ``tunings`` says: tuned models are compared with them.
    """

    tasks: tuple[str, ...] = ()
    checkpoints: tuple[str, ...] = ()
    tunings: tuple[str, ...] = ()
    numerics: tuple[str, ...] = ()

    def cells(self, rows: Sequence[Mapping[str, Any]]) -> set[str] | None:
        """Keys of the cells among rows of the cells table; None for all.

        Raises:
            UnknownNameError: A pattern that no cell fits.
        """
        columns = {"task": self.tasks, "checkpoint": self.checkpoints, "tuning": self.tunings,
                   "numerics": self.numerics}  # fmt: skip
        if not any(columns.values()):
            return None
        for column, patterns in columns.items():
            known = {str(row[column]) for row in rows if row[column] is not None}
            for pattern in patterns:
                if not globs.fits(pattern, known):
                    raise UnknownNameError(column, pattern, known)

        def fits(row: Mapping[str, Any], column: str, patterns: tuple[str, ...]) -> bool:
            if not patterns or (column == "tuning" and row["base"] is None):
                return True
            return any(globs.fits(pattern, [str(row[column])]) for pattern in patterns)

        return {row["cell"] for row in rows if all(fits(row, *item) for item in columns.items())}

    @property
    def said(self) -> str:
        """What is taken, in words."""
        given = {k: v for k, v in asdict(self).items() if v}
        return "; ".join(f"{name} {', '.join(values)}" for name, values in given.items())

    @property
    def options(self) -> str:
        """The same as options of the command."""
        given = {k: v for k, v in asdict(self).items() if v}
        return "".join(f" --{name} {shlex.quote(','.join(v))}" for name, v in given.items())


@dataclass(frozen=True)
class MadeReport:
    """The main table as text, and the HTML page that was written."""

    table: str
    page: Path


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Python's collector of cycles rests.

    What a report is made of lives until the end and has no cycles; to look through it again and
    again took a quarter of the time of a report of 40,000 cells, and saved no memory.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@uncollected()
def report(
    results: Path | Sequence[Path],
    output: Path,
    *,
    title: str,
    description: str = "",
    losses: pa.Table | None = None,
    allow_mixed: bool = False,
    groups: Sequence[Group] | None = None,
    primary: Way | None = None,
    part: Part | None = None,
) -> MadeReport:
    """Analyses results and writes report.html, pictures and CSVs into ``output``.

    ``results``: a results folder, or several that are shown in one page (``app.folders``);
    ``losses``: training losses to show as well (``evalcore.report.losses.LOSS_COLUMNS``);
    ``groups`` and ``primary``: what a study declares (see ``evalcore.analysis.analyse``); ``part``:
    a report of these cells alone, which says so.

    Raises:
        InputError: There are no results, or the output cannot be written.
        UnknownNameError: ``part`` names what is not there.
        IncompatibleError: Results of different engines or dtypes would be compared.
    """
    from evalcore.analysis import Flag, analyse
    from evalcore.app.folders import Folders, folder_names
    from evalcore.app.pairs import prompt_scores
    from evalcore.report import prompt_score_table, report_table, write_report

    paths = [results] if isinstance(results, Path) else list(results)
    stores = [open_results(path) for path in paths]
    folders = Folders(dict(zip(folder_names(paths), stores, strict=True)))
    estimated = [row for store in stores for row in prompt_scores(store)]
    rows = folders.cells()
    if estimated and not rows:
        raise InputError(
            f"{paths[0]}: only drawn (prompt, document) pairs are scored (--budget), and a report "
            f"needs whole cells; `evalcore scores {paths[0]}` shows what the pairs say"
        )
    cells = None if part is None else part.cells(rows)
    preferred = (primary,) if primary else ()
    if len(stores) == 1:
        book = read_book(stores[0], cells=cells, preferred=preferred)
    else:
        book = folders.book(cells, preferred)
        description = f"{description} Results of {', '.join(folders.stores)}.".strip()
    if part is not None and part.said:
        description = f"{description} A part of the results: {part.said}.".strip()
    analysis = analyse(book, allow_mixed=allow_mixed, groups=groups)
    for store in stores:
        analysis.flags.extend(Flag("left out", "results", line) for line in store.left_out())
    named = " ".join(shlex.quote(str(path)) for path in paths)
    page = write_report(
        None,
        output,
        title=title,
        description=description,
        run_records=[record for store in stores for record in store.runs.list()],
        analysis=analysis,
        losses=losses,
        source=folders if len(stores) > 1 else stores[0],
        estimated=estimated,
        command=f"evalcore report {named} -o {shlex.quote(str(output))}"
        + (part.options if part else ""),
    )
    if estimated:
        _write_csv(prompt_score_table(estimated), output / "prompt_scores.csv")
    made = MadeReport(report_table(analysis), page)
    if len(stores) == 1:
        keep_estimates(stores[0], book)
    return made


class Declared(TypedDict):
    """What a study file says of its report: keywords of :func:`report`."""

    title: str
    description: str
    groups: list[Group] | None
    primary: Way | None


def declared(file: Path) -> Declared:
    """What a study file declares.

    Raises:
        InputError: The study file is wrong.
    """
    from finetune import load_study

    return declared_by(load_study(file))


def declared_by(study: Study) -> Declared:
    """The same of a study that was read; ``groups`` and ``primary`` are None where it has none."""
    from evalcore.analysis import Group, Way

    spec = study.evaluation
    groups, primary = None, None
    if spec is not None:
        groups = [
            Group(name, tuple(g.tasks), g.tuned_by, tuple(g.prompts))
            for name, g in spec.groups.items()
        ] or None
        primary = None if spec.primary is None else Way(**spec.primary.model_dump())
    return {
        "title": study.name, "description": study.description, "groups": groups,
        "primary": primary,
    }  # fmt: skip


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
    from evalcore.analysis import scores_table

    _write_csv(scores_table(rows, by), path)


def _write_csv(table: pa.Table, path: Path) -> None:
    import pyarrow.csv as csv

    try:
        csv.write_csv(text_columns(table), path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from None


def export(results: Path, output: Path, kind: str | None = None) -> Exported:
    """Writes results in one of the forms of ``evalcore.exports.FORMATS``.

    Args:
        results: A results folder.
        output: File, or folder for forms of several files.
        kind: The form; None: by the ending of the file's name, else parquet.

    Raises:
        InputError: There are no results, no such form, or ``output`` cannot be written.
    """
    from evalcore.exports import export as write

    return write(open_results(results), output, kind)


def open_results(results: Path) -> ResultStore:
    """An existing results folder (reading must not create one)."""
    if not is_there(results / "store.json"):
        name = str(results)
        if len(name) > 300:  # whatever was pasted: the error is a line that can be read
            name = f"{name[:60]} ... (a name of {len(name):,} signs)"
        raise InputError(
            f"{name}: no results there (no store.json); give the folder of `evalcore score -o`"
        )
    return ResultStore(results, read_only=True)

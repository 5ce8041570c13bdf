"""lm-eval's own metrics of what was scored for its tasks, in the ``outside`` folder of results."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from evalcore.checked import (
    ARROW_SUFFIX,
    JSON_SUFFIX,
    MARK,
    DamagedFile,
    is_checked,
    read_json,
    read_table,
    write_json,
    write_table,
)
from evalcore.errors import EvalcoreError
from evalcore.identity import text_fingerprint
from evalcore.lm_eval import COLUMNS, VERSION, Built, Loaded, Outcome, aggregate_groups, evaluate
from evalcore.store import ResultStore
from evalcore.store.access import listed, patiently
from evalcore.store.cells import not_writable
from evalcore.store.reading import split_by_cell
from evalcore.store.schema import adapter_name
from evalcore.types import Cell

log = logging.getLogger("evalcore")

FOLDER = "outside"
SHOWN_CELLS = 24
VALUES_SCHEMA = pa.schema(
    [
        pa.field("cell", pa.string()),
        pa.field("doc_id", pa.string()),
        pa.field("metric", pa.string()),
        pa.field("filter", pa.string()),
        pa.field("value", pa.float64()),
        pa.field("detail", pa.string()),
    ]
)
"""One row per (document, metric, filter); ``detail``: what is aggregated where it is no number."""


@dataclass(frozen=True)
class LmEvalCell:
    """A cell whose text and metrics are lm-eval's."""

    cell: Cell
    built: Built


@dataclass
class LmEvalWork:
    """What is left to do for lm-eval's tasks once their cells are scored."""

    loaded: Loaded
    cells: list[LmEvalCell] = field(default_factory=list)

    def add(self, cell: Cell, built: Built) -> None:
        """Another cell whose metrics are lm-eval's."""
        self.cells.append(LmEvalCell(cell, built))


def write_outcomes(store: ResultStore, work: LmEvalWork) -> tuple[list[str], list[tuple[str, str]]]:
    """Computes lm-eval's metrics of every cell and keeps them in the results' ``outside`` folder.

    Returns:
        (lines for the summary, (cell, message) of what could not be computed).

    Raises:
        ResultsError: The folder cannot be written.
    """
    keys = [planned.cell.key for planned in work.cells]
    table = store.examples(["cell", *COLUMNS], cells=keys)
    by_cell = split_by_cell(table)
    lines: list[str] = []
    problems: list[tuple[str, str]] = []
    outcomes: dict[tuple[str, str], dict[str, Outcome]] = {}
    labels: dict[tuple[str, str], str] = {}
    for one in work.cells:
        cell = one.cell
        rows = by_cell.get(cell.key, table.slice(0, 0)).to_pylist()
        label = f"{cell.task.name}, {cell.subject.label}, {cell.variant.name}"
        try:
            outcome = evaluate(one.built, {row["doc_id"]: row for row in rows})
        except EvalcoreError as error:
            problems.append((label, f"lm-eval's metrics: {error}"))
            continue
        if not outcome.n:
            continue
        _write(store.path, one, outcome)
        lines.append(f"{label}: {_shown(outcome)}")
        of = (cell.subject.id, cell.variant.name)
        outcomes.setdefault(of, {})[one.built.loaded.name] = outcome
        labels[of] = f"{cell.subject.label}, {cell.variant.name}"
    for of, found in outcomes.items():
        for name, metrics in aggregate_groups(work.loaded.groups, found).items():
            _write_group(store.path, name, of, labels[of], metrics)
            lines.append(f"lm-eval:{name}, {labels[of]}: {_figures(metrics)}")
    if len(lines) > SHOWN_CELLS:
        more = len(lines) - SHOWN_CELLS
        lines = [*lines[:SHOWN_CELLS], f"{more} more such figures: {store.path / FOLDER}"]
    return lines, problems


def read_outcomes(results: Path) -> list[dict[str, Any]]:
    """Every record of lm-eval's metrics in a results folder: cells, then groups, by file name.

    Raises:
        ResultsError: A file cannot be read; whether it is damaged cannot be told.
    """
    records = []
    for file in _newest(results, ".json"):
        try:
            records.append(patiently(file, read_json))
        except (DamagedFile, FileNotFoundError) as error:
            log.warning("ignored %s: %s; the next run makes it again", file, error)
    return records


def read_values(results: Path) -> pa.Table:
    """lm-eval's metrics of every document in a results folder (:data:`VALUES_SCHEMA`).

    Raises:
        ResultsError: A file cannot be read; whether it is damaged cannot be told.
    """
    tables = [VALUES_SCHEMA.empty_table()]
    for file in _newest(results, ".arrow"):
        try:
            tables.append(patiently(file, _read_values))
        except (DamagedFile, FileNotFoundError, pa.ArrowException) as error:
            log.warning("ignored %s: %s; the next run makes it again", file, error)
    return pa.concat_tables(tables)


def _read_values(file: Path) -> pa.Table:
    if is_checked(file):
        return read_table(file)
    with pa.OSFile(str(file)) as source:  # from before there were checksums
        return pa.ipc.open_file(source).read_all()


def _newest(results: Path, suffix: str) -> list[Path]:
    """Files of ``outside``, one of each name: cells, then groups; checked ones come first."""
    files: dict[str, Path] = {}
    for file in sorted(listed(Path(results) / FOLDER, f"[!.]*{suffix}"), key=is_checked):
        files[file.name.removesuffix(suffix).removesuffix(MARK)] = file
    return [files[name] for name in sorted(files, key=lambda n: (n.startswith("group-"), n))]


def _write(results: Path, one: LmEvalCell, outcome: Outcome) -> None:
    cell = one.cell
    checkpoint = cell.subject.checkpoint
    record = {
        "cell": cell.key,
        "task": cell.task.name,
        "variant": cell.variant.name,
        "checkpoint": checkpoint.name,
        "adapter": adapter_name(cell.subject),
        "subject": cell.subject.id,
        "lm_eval": VERSION,
        "metrics": outcome.metrics,
        "higher_is_better": outcome.higher_is_better,
        "n": outcome.n,
        "missing": outcome.missing,
    }
    columns = [[getattr(value, name) for value in outcome.values]
               for name in ("doc_id", "metric", "filter", "value", "detail")]  # fmt: skip
    arrays = [pa.array([cell.key] * len(outcome.values), pa.string())]
    arrays += [
        pa.array(c, kind.type) for c, kind in zip(columns, list(VALUES_SCHEMA)[1:], strict=True)
    ]
    table = pa.Table.from_arrays(arrays, schema=VALUES_SCHEMA)
    with _folder(results) as folder:
        write_table(folder / f"{cell.key}{ARROW_SUFFIX}", table)
        write_json(folder / f"{cell.key}{JSON_SUFFIX}", record)


def _write_group(
    results: Path, name: str, of: tuple[str, str], label: str, metrics: Mapping[str, Any]
) -> None:
    subject, variant = of
    record = {
        "group": f"lm-eval:{name}",
        "label": label,
        "subject": subject,
        "variant": variant,
        "lm_eval": VERSION,
        "metrics": {key: value for key, value in metrics.items() if "," in key},
        "n": metrics["sample_len"],
    }
    key = text_fingerprint([name, *of])
    with _folder(results) as folder:
        write_json(folder / f"group-{key}{JSON_SUFFIX}", record)


@contextmanager
def _folder(results: Path) -> Iterator[Path]:
    """The folder to write to; what goes wrong with that is the results folder's fault."""
    folder = results / FOLDER
    try:
        folder.mkdir(exist_ok=True)
        yield folder
    except OSError as error:
        raise not_writable(folder, error) from error


def _shown(outcome: Outcome) -> str:
    short = f" ({outcome.missing} documents missing)" if outcome.missing else ""
    return f"{_figures(outcome.metrics)}, n {outcome.n}{short}"


def _figures(metrics: Mapping[str, Any]) -> str:
    """``acc 0.4500 ± 0.0502, ...``; a filter's name follows where there is one."""
    parts = []
    for key, value in metrics.items():
        metric, comma, name = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, float):
            continue
        error = metrics.get(f"{metric}_stderr,{name}")
        about = f" ± {error:.4f}" if isinstance(error, float) else ""
        parts.append(f"{metric}{f' ({name})' if name != 'none' else ''} {value:.4f}{about}")
    return ", ".join(parts)

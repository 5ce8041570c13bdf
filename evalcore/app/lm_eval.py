"""Cells of lm-eval's own tasks, and lm-eval's own metrics on what was scored for them."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from evalcore.app.asking import asked_of
from evalcore.app.cells import (
    NO_TEMPLATE,
    AskedCell,
    Grid,
    RequestFile,
    encoding_settings,
)
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
from evalcore.config import GridConfig
from evalcore.errors import EvalcoreError, InputError
from evalcore.identity import (
    data_fingerprint,
    load_tokenizer,
    parse_template_args,
    parse_template_date,
    template_values,
    text_fingerprint,
)
from evalcore.store import ResultStore
from evalcore.store.schema import adapter_name
from evalcore.tasks import Finding, RowLimit, check_documents, trivial_baseline
from evalcore.tasks.lm_eval import (
    COLUMNS,
    VERSION,
    Asked,
    Built,
    Loaded,
    LoadedTask,
    Outcome,
    aggregate_groups,
    build,
    chat_renderer,
    evaluate,
    load,
)
from evalcore.types import Cell, Checkpoint, EncodingSettings, Subject

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


def ask_lm_eval(
    grid: Grid,
    names: Sequence[str],
    subjects: Sequence[Subject],
    options: GridConfig,
    cache: Path,
    versions: str,
) -> LmEvalWork:
    """Adds what lm-eval's tasks ask to a grid: one variant per task.

    Raises:
        InputError: lm-eval is missing, a name is unknown, or a file names code that may not run.
        DataError: A data set is not to be had.
    """
    loaded = load(
        names,
        options.include_path,
        allow_code=options.allow_code,
        data_root=options.data_root,
    )
    versions = json.dumps({**json.loads(versions), "lm_eval": VERSION})
    for task in loaded.tasks.values():
        files = _Files(task, options, grid, cache)
        for subject in asked_of(
            subjects,
            chat=options.chat,
            generates=str(task.own.OUTPUT_TYPE) == "generate_until",
            encode=files.path,
        ):
            if options.chat and not subject.checkpoint.template_fingerprint:
                grid.leave_out(NO_TEMPLATE, subject)
                continue
            settings, built, baseline, file = files.of(subject.checkpoint)
            # lm-eval's definition is code: its words and the rows it made of them.
            data = data_fingerprint(built.task)
            grid.documents[built.task.name, data] = built.documents
            asked = AskedCell(
                subject, built.task, built.variant, settings, file, baseline, built.documents, data,
                versions, keeps_answers=False, built=built,
            )  # fmt: skip
            grid.asked.append(asked)
    return LmEvalWork(loaded)


@dataclass
class _Files:
    """A task's texts and request files, one for each way the subjects are asked."""

    task: LoadedTask
    options: GridConfig
    grid: Grid
    cache: Path
    texts: dict[str, tuple[Built, float]] = field(default_factory=dict)
    files: dict[tuple[str, str, int], RequestFile] = field(default_factory=dict)

    def path(self, checkpoint: Checkpoint) -> Path:
        """The file of requests for a checkpoint."""
        return self.of(checkpoint)[3].path

    def of(self, checkpoint: Checkpoint) -> tuple[EncodingSettings, Built, float, RequestFile]:
        """(settings, the task as built, its trivial baseline, requests) for a checkpoint."""
        # Only a chat's text depends on the model: on its tokenizer.
        chat = ""
        if self.options.chat:
            chat = checkpoint.tokenizer_fingerprint + checkpoint.template_fingerprint
        if chat not in self.texts:
            self.texts[chat] = _built(self.task, self.options, checkpoint.tokenizer, self.grid)
        built, baseline = self.texts[chat]
        length = encoding_settings(checkpoint, self.options.max_length).max_length
        settings = EncodingSettings(max_length=length, overflow="truncate_left")
        at = (checkpoint.tokenizer_fingerprint, chat, length)
        if at not in self.files:
            self.files[at] = RequestFile.of(
                self.cache, built.task, built.variant, built.documents, (), checkpoint, settings
            )
        return settings, built, baseline, self.files[at]


def _built(
    task: LoadedTask, options: GridConfig, checkpoint: str, grid: Grid
) -> tuple[Built, float]:
    """(the task's documents, its trivial baseline); what the data's checks find is noted."""
    args = parse_template_args(options.chat_template_args)
    date = parse_template_date(options.template_date)
    tokenizer = load_tokenizer(checkpoint) if options.chat else None
    limit = RowLimit.of(options.limit)  # a number is lm-eval's: its first documents
    asked = Asked(
        num_fewshot=options.num_fewshot,
        seed=options.seed,
        system=options.system,
        chat=chat_renderer(tokenizer, template_values(args, date)) if options.chat else None,
        chat_args=args,
        chat_date=date,
        multiturn=options.multiturn,
        limit=limit.count if limit is not None else None,
    )
    built = build(task, asked)
    grid.findings += [*check_documents(built.task, built.documents), *_outside(built)]
    answers = any(doc.choices or doc.references for doc in built.documents)
    return built, trivial_baseline(built.task, built.documents) if answers else math.nan


def _outside(built: Built) -> list[Finding]:
    """Targets that are none of the choices: lm-eval counts every answer to them as wrong."""
    count = sum(doc.gold >= len(doc.choices) for doc in built.documents if doc.choices)
    if not count:
        return []
    of = f"{count} of {len(built.documents)}"
    text = f"task {built.task.name}: {of} targets are none of the choices and count as wrong"
    return [Finding("error", "gold_outside", text, count)]


def write_outcomes(store: ResultStore, work: LmEvalWork) -> tuple[list[str], list[tuple[str, str]]]:
    """Computes lm-eval's metrics of every cell and keeps them in the results' ``outside`` folder.

    Returns:
        (lines for the summary, (cell, message) of what could not be computed).

    Raises:
        InputError: The folder cannot be written.
    """
    keys = [planned.cell.key for planned in work.cells]
    table = store.examples(["cell", *COLUMNS], cells=keys)
    names = table["cell"].cast(pa.string())
    lines: list[str] = []
    problems: list[tuple[str, str]] = []
    outcomes: dict[tuple[str, str], dict[str, Outcome]] = {}
    labels: dict[tuple[str, str], str] = {}
    for one in work.cells:
        cell = one.cell
        rows = table.filter(pc.equal(names, cell.key)).to_pylist()
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
    """Every record of lm-eval's metrics in a results folder: cells, then groups, by file name."""
    records = []
    for file in _newest(results, ".json"):
        try:
            records.append(read_json(file))
        except (DamagedFile, OSError) as error:
            log.warning("ignored %s: %s; the next run makes it again", file, error)
    return records


def read_values(results: Path) -> pa.Table:
    """lm-eval's metrics of every document in a results folder (:data:`VALUES_SCHEMA`)."""
    tables = [VALUES_SCHEMA.empty_table()]
    for file in _newest(results, ".arrow"):
        try:
            tables.append(_read_values(file))
        except (DamagedFile, OSError, pa.ArrowException) as error:
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
    for file in sorted((Path(results) / FOLDER).glob(f"[!.]*{suffix}"), key=is_checked):
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
    folder = _folder(results)
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
    write_json(_folder(results) / f"group-{key}{JSON_SUFFIX}", record)


def _folder(results: Path) -> Path:
    folder = results / FOLDER
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror}") from None
    return folder


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


__all__ = [
    "FOLDER",
    "VALUES_SCHEMA",
    "LmEvalCell",
    "LmEvalWork",
    "ask_lm_eval",
    "read_outcomes",
    "read_values",
    "write_outcomes",
]

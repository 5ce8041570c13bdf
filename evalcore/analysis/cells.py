"""One scored cell as arrays: its values by document, and what is odd about it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from evalcore.analysis.subjects import Flag, TaskInfo, subject_of
from evalcore.analysis.ways import Way
from evalcore.metrics import document_metric, example_values, is_scored
from evalcore.metrics.arrays import column, integers
from evalcore.metrics.cells import modal_share
from evalcore.store.schema import MAKER_COLUMN


@dataclass(frozen=True)
class CellValues:
    """Values of one cell's scored documents.

    Attributes:
        cell: Cell key.
        way: How it was asked; ``way.shots`` is the nominal number of worked examples.
        numerics: Label of the numerics class.
        setting: What two cells must share to be compared, beside task and variant name:
            (variant fingerprint, maximum length).
        docs: int64 [n] document codes of this book, ascending.
        values: float64 [n] of the task's metric.
        continuous: float64 [n] of the task's continuous metric (NaN where unknown).
        unscored: Documents recorded but not scored (prompt too long, no gold).
        modal_share: Share of the commonest answer; NaN where nothing was answered.
        golds: int64 [n] right choices (-1: none).
        empty: Generated texts with nothing visible in them, of ``generated``.
        unproven: Rows whose model was not proven to be the one asked for in all its weights.
    """

    cell: str
    way: Way
    numerics: str
    setting: tuple[Any, ...]
    docs: npt.NDArray[np.int64]
    values: npt.NDArray[np.float64]
    continuous: npt.NDArray[np.float64]
    unscored: int
    modal_share: float
    golds: npt.NDArray[np.int64]
    empty: int
    generated: int
    unproven: int


Stratum = tuple[Way, str]
"""What may be averaged: one way of asking, in one numerics class."""
Cells = dict[str, dict[int, CellValues]]
"""Prompt -> number of the run (training seed) -> its cell."""


def task_of(about: dict[str, Any], flags: list[Flag]) -> TaskInfo:
    multiple_choice = about["output_type"] == "multiple_choice"
    primary, baseline = about["primary_metric"], about["baseline"]
    metric = document_metric(primary, about["output_type"])
    if metric != primary:
        text = f"{primary} has no value per document; {metric} is compared"
        flags.append(Flag("metric", about["task"], text))
        baseline = None  # it is in units of the primary metric
    return TaskInfo(
        name=about["task"], group=about["group"], tuned_by=about["tuned_by"],
        domain=about["domain"] or "none", output_type=about["output_type"], metric=metric,
        continuous="gold_prob" if multiple_choice else "gold_bits_per_byte",
        baseline=float("nan") if baseline is None else float(baseline),
    )  # fmt: skip


def cell_values(
    key: str, part: pa.Table, task: TaskInfo, about: dict[str, Any], flags: list[Flag]
) -> CellValues:
    where = f"{subject_of(about).label}, {task.name}, {about['variant']}"
    docs = integers(part, "_doc")
    _, first = np.unique(docs, return_index=True)
    if len(first) < len(docs):
        doubled = len(docs) - len(first)
        flags.append(
            Flag("doubled", where, f"{doubled} rows repeat a document; the first is kept", doubled)
        )
    part, docs = part.take(pa.array(first)), docs[first]
    metric = document_metric(task.metric, task.output_type, about["answer"] or "choices")
    if metric != task.metric:
        text = f"{task.metric} is not defined for answer={about['answer']}; {metric} is used"
        flags.append(Flag("metric", where, text))
    values = example_values(part, metric)
    continuous = example_values(part, task.continuous)
    overflow = int((~is_scored(part)).sum())
    if overflow:
        flags.append(
            Flag("overflow", where, f"{overflow} prompts did not fit and are not scored", overflow)
        )
    keep = ~np.isnan(values)
    other = len(docs) - int(keep.sum()) - overflow
    if other:
        flags.append(Flag("unscored", where, f"{other} rows have no value of {metric}", other))
    dropped = int((integers(part, "shots_dropped", 0) > 0).sum())
    if dropped:
        flags.append(
            Flag("shots_dropped", where, f"{dropped} prompts lost shots to fit the length", dropped)
        )
    cut = int((integers(part, "truncated_tokens", 0) > 0).sum())
    if cut:
        flags.append(
            Flag("truncated", where, f"{cut} prompts lost their beginning to fit the length", cut)
        )
    # In the joined table the cell's own number of shots is called cell_shots.
    nominal = "cell_shots" in part.column_names
    shots = integers(part, "cell_shots" if nominal else "shots", 0)
    if not nominal:
        shots = shots + integers(part, "shots_dropped", 0)
    return CellValues(
        cell=key, way=Way.of(about, int(shots.max())), numerics=about["numerics"],
        setting=(
            about["variant_fingerprint"], about["max_length"], about["chat_template"],
            tuple(about["end_tokens"] or ()),
        ), docs=docs[keep],
        values=values[keep], continuous=continuous[keep], unscored=len(docs) - int(keep.sum()),
        modal_share=modal_share(part), golds=integers(part, "gold", -1)[keep],
        **_texts_and_proof(part),
    )  # fmt: skip


def _texts_and_proof(part: pa.Table) -> dict[str, int]:
    """Counts of empty texts, of texts, and of rows by a model that was not wholly proven."""
    reasons = column(part, "finish_reason")
    texts = len(reasons) - reasons.null_count
    empty = int(pc.sum(pc.equal(reasons, "empty")).as_py() or 0)
    unproven = 0
    if MAKER_COLUMN in part.column_names:
        makers = column(part, MAKER_COLUMN)
        counts = pc.value_counts(makers).to_pylist()
        unproven = sum(c["counts"] for c in counts if _not_proven(c["values"]))
    return {"empty": empty, "generated": texts, "unproven": unproven}


def _not_proven(record: str | None) -> bool:
    """Whether a maker's record says that not every weight was proven; older ones say nothing."""
    share = re.search(r"\bproven_share=([0-9.e+-]+)", record or "")
    return share is not None and float(share[1]) < 1.0

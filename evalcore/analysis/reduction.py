"""A cell's rows reduced once: a few numbers per document, and what is odd about the cell.

Everything that compares models works on these; texts, log-probabilities and choices are not needed
again. Reductions can be kept (``store.reductions``) under :func:`reduction_key`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from evalcore.metrics import METRICS_VERSION, cell_scores, document_metric, example_values
from evalcore.metrics.arrays import column, integers
from evalcore.metrics.cells import iterate_cells, modal_share
from evalcore.metrics.choices import predictions
from evalcore.metrics.examples import is_scored
from evalcore.store.schema import MAKER_COLUMN
from evalcore.tasks import floor_by_document

REDUCTION_VERSION = 4
"""Raised whenever a reduction of the same rows can change (metrics have a version of their own)."""

ARRAY_SCHEMA = pa.schema(
    [
        ("doc", pa.dictionary(pa.int32(), pa.string())), ("value", pa.float64()),
        ("continuous", pa.float64()), ("gold", pa.int32()), ("answer", pa.int32()),
        ("floor", pa.float64()),
    ]
)  # fmt: skip
"""One row per scored document of a cell, each document once."""
EXAMPLE_COLUMNS = (
    "cell", "doc_id", "gold", "golds", "prediction", "choice_logprobs", "choice_bytes",
    "choice_chars", "is_greedy", "unconditional_logprobs", "text", "raw_text", "references",
    "finish_reason", "shots", "shots_dropped", "truncated_tokens", "flags", "made_by",
    "prompt_tokens", "computed_tokens", "cached_tokens", "gen_tokens",
)  # fmt: skip
"""Columns of the examples that a reduction reads."""
TOKEN_COLUMNS = ("prompt_tokens", "computed_tokens", "cached_tokens", "gen_tokens")
DECIDE_COLUMNS = ("output_type", "primary_metric", "metrics", "answer", "shots", "num_choices")
"""Columns of the cells table that decide what a reduction is."""


@dataclass(frozen=True)
class CellArrays:
    """Values of a cell's scored documents, each document once, by document code.

    Attributes:
        docs: int64 [n] document codes of a book, ascending.
        values: float64 [n] of the cell's metric.
        continuous: float64 [n] of the task's continuous metric (NaN where unknown).
        golds: int64 [n] right choices (-1: none).
        answers: int64 [n] choices made (-1: none, or a text).
        floors: float64 [n] what the trivial answer of a generation task scores, chosen on other
            documents; NaN where there is none.
    """

    docs: npt.NDArray[np.int64]
    values: npt.NDArray[np.float64]
    continuous: npt.NDArray[np.float64]
    golds: npt.NDArray[np.int64]
    answers: npt.NDArray[np.int64]
    floors: npt.NDArray[np.float64]


@dataclass(frozen=True)
class CellFacts:
    """What a cell's rows say beside the values of their documents.

    Attributes:
        cell: Cell key.
        metric: The metric of the values.
        n: Documents with a value.
        mean: Mean value; NaN without documents.
        shots: Nominal number of worked examples.
        held_shots: Mean number that prompts really hold.
        doubled: Rows that repeat a document (the first is kept).
        overflow: Rows whose prompt did not fit.
        valueless: Other rows without a value.
        dropped, truncated: Rows whose prompt lost shots, or its beginning, to fit.
        modal_share: Share of the commonest answer; NaN where nothing was answered.
        one_class: Whether all right answers are the same choice (two documents or more).
        empty: Generated texts with nothing visible in them, of ``generated``.
        unproven: Rows whose model was not proven to be the one asked for in all its weights.
        unmade: Rows of which nobody recorded what made them.
        makers: Ids of what made the others.
        tokens: Sum over the cell's documents of each of ``TOKEN_COLUMNS``.
        scores: Every metric of the cell, as rows of ``metrics.CELL_SCORE_SCHEMA``.
    """

    cell: str
    metric: str
    n: int
    mean: float
    shots: int
    held_shots: float
    doubled: int
    overflow: int
    valueless: int
    dropped: int
    truncated: int
    modal_share: float
    one_class: bool
    empty: int
    generated: int
    unproven: int
    unmade: int
    makers: tuple[str, ...]
    tokens: tuple[int, ...]
    scores: tuple[dict[str, Any], ...]

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> CellFacts:
        """Inverse of ``dataclasses.asdict`` after a turn through JSON."""
        listed = {name: tuple(record[name]) for name in ("makers", "tokens", "scores")}
        return cls(**{**record, **listed})


def continuous_metric(output_type: str) -> str:
    """A metric without a threshold, compared beside the task's own."""
    return "gold_prob" if output_type == "multiple_choice" else "gold_bits_per_byte"


def reduction_key(about: Mapping[str, Any], segments: Sequence[str]) -> str:
    """Under what a cell's reduction is kept: whatever it depends on.

    Args:
        about: The cell's record.
        segments: Names of the segments that hold its rows; they never change.
    """
    decide = [about[name] for name in DECIDE_COLUMNS]
    text = json.dumps([REDUCTION_VERSION, METRICS_VERSION, about["cell"], decide, sorted(segments)])
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def reduce_cells(table: pa.Table, *, scores: bool = True) -> list[tuple[CellFacts, pa.RecordBatch]]:
    """Reduces the cells of a joined table.

    Args:
        table: What ``ResultStore.read()`` gives (at least ``EXAMPLE_COLUMNS``).
        scores: Compute every metric of every cell, too.

    Returns:
        Facts and arrays (``ARRAY_SCHEMA``, one dictionary of documents for all) of each cell, in
        order of first rows.
    """
    encoded = column(table, "doc_id").cast(pa.string()).dictionary_encode()
    codes = pa.array(encoded.indices.to_numpy(zero_copy_only=False).astype(np.int32))
    names = encoded.dictionary
    found: dict[str, list[dict[str, Any]]] = {}
    if scores:
        for row in cell_scores(table).to_pylist():
            found.setdefault(row["cell"], []).append(row)
    out = []
    for key, start, stop, ordered in iterate_cells(table.append_column("_doc", codes)):
        part = ordered.slice(start, stop - start)
        out.append(_reduced(key, part, names, tuple(found.get(key, ()))))
    return out


def arrays_of(rows: pa.RecordBatch, codes: npt.NDArray[np.int64] | None = None) -> CellArrays:
    """A cell's arrays.

    Args:
        rows: Of ``ARRAY_SCHEMA``.
        codes: int64 [documents of the dictionary]: a book's code of each; None: they are alike.
    """
    own = rows.column("doc").indices.to_numpy(zero_copy_only=False).astype(np.int64)
    docs = own if codes is None else codes[own]
    order = np.argsort(docs, kind="stable")

    def numbers(name: str, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        values = rows.column(name).to_numpy(zero_copy_only=False)
        return np.ascontiguousarray(values.astype(dtype, copy=False)[order])

    return CellArrays(
        docs=docs[order], values=numbers("value", np.float64),
        continuous=numbers("continuous", np.float64), golds=numbers("gold", np.int64),
        answers=numbers("answer", np.int64), floors=numbers("floor", np.float64),
    )  # fmt: skip


def _reduced(
    key: str, part: pa.Table, names: pa.Array, scores: tuple[dict[str, Any], ...]
) -> tuple[CellFacts, pa.RecordBatch]:
    codes = integers(part, "_doc")
    _, first = np.unique(codes, return_index=True)
    doubled = len(codes) - len(first)
    part, codes = part.take(pa.array(first)), codes[first]
    output_type = part.column("output_type")[0].as_py()
    answer = part.column("answer")[0].as_py() or "choices"
    metric = document_metric(part.column("primary_metric")[0].as_py(), output_type)
    metric = document_metric(metric, output_type, answer)
    values = example_values(part, metric)
    continuous = example_values(part, continuous_metric(output_type))
    overflow = int((~is_scored(part)).sum())
    keep = ~np.isnan(values)
    golds = integers(part, "gold", -1)[keep]
    choice = output_type == "multiple_choice"
    chosen = predictions(part) if choice else np.full(len(codes), -1)
    n = int(keep.sum())
    known = golds[golds >= 0]
    docs = pa.DictionaryArray.from_arrays(pa.array(codes[keep].astype(np.int32)), names)
    columns = (
        values[keep],
        continuous[keep],
        golds.astype(np.int32),
        chosen[keep].astype(np.int32),
        _floors(part.filter(pa.array(keep)), metric, output_type),
    )
    arrays = pa.RecordBatch.from_arrays([docs, *map(pa.array, columns)], schema=ARRAY_SCHEMA)
    facts = CellFacts(
        cell=key, metric=metric, n=n, mean=float(values[keep].mean()) if n else float("nan"),
        shots=_nominal_shots(part), held_shots=_held_shots(part), doubled=doubled,
        overflow=overflow, valueless=len(codes) - n - overflow,
        dropped=int((integers(part, "shots_dropped", 0) > 0).sum()),
        truncated=int((integers(part, "truncated_tokens", 0) > 0).sum()),
        modal_share=modal_share(part),
        one_class=len(known) > 1 and len(np.unique(known)) == 1,
        tokens=tuple(int(integers(part, name, 0).sum()) if name in part.column_names else 0
                     for name in TOKEN_COLUMNS),
        scores=scores, **_texts_and_makers(part),
    )  # fmt: skip
    return facts, arrays


def _floors(part: pa.Table, metric: str, output_type: str) -> npt.NDArray[np.float64]:
    """What the trivial answer scores on each document of a generation task; else NaN."""
    found = None
    if output_type == "generate_until" and part.num_rows:
        ids = tuple(column(part, "doc_id").to_pylist())
        references = tuple(tuple(texts or ()) for texts in column(part, "references").to_pylist())
        found = floor_by_document(metric, ids, references)
    return np.full(part.num_rows, np.nan) if found is None else np.asarray(found, dtype=np.float64)


def _nominal_shots(part: pa.Table) -> int:
    # In the joined table the cell's own number of shots is called cell_shots.
    nominal = "cell_shots" in part.column_names
    shots = integers(part, "cell_shots" if nominal else "shots", 0)
    if not nominal:
        shots = shots + integers(part, "shots_dropped", 0)
    return int(shots.max())


def _held_shots(part: pa.Table) -> float:
    held = integers(part, "shots", 0)
    return float(held.mean()) if len(held) else 0.0


def _texts_and_makers(part: pa.Table) -> dict[str, Any]:
    """Counts of empty texts, of texts, of rows by models not wholly proven, and who made rows."""
    reasons = column(part, "finish_reason")
    texts = len(reasons) - reasons.null_count
    empty = int(pc.sum(pc.equal(reasons, "empty")).as_py() or 0)
    unproven = 0
    if MAKER_COLUMN in part.column_names:
        counts = pc.value_counts(column(part, MAKER_COLUMN)).to_pylist()
        unproven = sum(c["counts"] for c in counts if _not_proven(c["values"]))
    makers: list[str | None] = []
    unmade = 0
    if "made_by" in part.column_names:
        made_by = column(part, "made_by")
        makers, unmade = made_by.unique().to_pylist(), made_by.null_count
    return {
        "empty": empty, "generated": texts, "unproven": unproven, "unmade": unmade,
        "makers": tuple(sorted(m for m in makers if m is not None)),
    }  # fmt: skip


def _not_proven(record: str | None) -> bool:
    """Whether a maker's record says that not every weight was proven; older ones say nothing."""
    share = re.search(r"\bproven_share=([0-9.e+-]+)", record or "")
    return share is not None and float(share[1]) < 1.0

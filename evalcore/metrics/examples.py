"""Per-document values of every metric, from example rows of the store (``EXAMPLE_SCHEMA``)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa

from evalcore.errors import UnknownNameError
from evalcore.metrics import text as text_scores
from evalcore.metrics.arrays import (
    BoolArray,
    FloatArray,
    IntArray,
    Ragged,
    column,
    first_argmax,
    integers,
    ragged,
    segment_sum,
    strings,
)

METRICS_VERSION = 1
"""Raised whenever a value of any metric can change for the same stored rows."""

OVERFLOW_FLAG = "overflow"


def example_values(table: pa.Table, metric: str) -> FloatArray:
    """Value of ``metric`` for every row.

    Args:
        table: N rows with the columns of the store's ``EXAMPLE_SCHEMA`` (others are ignored).
        metric: A name of ``EXAMPLE_METRICS``.

    Returns:
        float64 [N]; NaN where there is nothing to score: rows flagged ``overflow``, rows without
        what the metric needs (gold label, text, log-probabilities).

    Raises:
        UnknownNameError: No such per-document metric.
    """
    try:
        compute = EXAMPLE_METRICS[metric]
    except KeyError:
        raise UnknownNameError(
            "metric",
            metric,
            EXAMPLE_METRICS,
            "it has a value per cell only" if metric in CELL_METRICS else "",
        ) from None
    values = compute(table)
    values[~is_scored(table)] = np.nan
    return values


def is_scored(table: pa.Table) -> BoolArray:
    """bool [N]: False for rows whose prompt did not fit (flag ``overflow``)."""
    flags = column(table, "flags")
    if len(flags) == 0:
        return np.zeros(0, dtype=bool)
    lengths = flags.value_lengths().fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    hits = np.asarray(
        flags.flatten().cast(pa.string()).to_numpy(zero_copy_only=False) == OVERFLOW_FLAG
    ).reshape(-1)
    rows = Ragged(hits, lengths)
    return segment_sum(rows, hits.astype(np.float64)) == 0


def higher_is_better(metric: str) -> bool:
    """False for losses (bits), True for scores."""
    return metric != "gold_bits_per_byte"


def predictions(table: pa.Table, per: str | None = None) -> IntArray:
    """int64 [N]: chosen option, the first of ties; -1 for rows without options.

    Args:
        table: Example rows.
        per: None (summed log-probability), ``choice_chars`` or ``choice_bytes`` (divided by it).
    """
    rows = ragged(table, "choice_logprobs", np.float64)
    values = rows.flat
    if per is not None:
        # An empty choice text has nothing to divide by; lm-eval divides by zero there.
        values = values / np.maximum(ragged(table, per, np.float64).flat, 1.0)
    return first_argmax(rows, values)


def _accuracy(per: str | None) -> Callable[[pa.Table], FloatArray]:
    def compute(table: pa.Table) -> FloatArray:
        gold, chosen = integers(table, "gold"), predictions(table, per)
        right = (gold == chosen).astype(np.float64)
        right[(gold < 0) | (chosen < 0)] = np.nan
        return right

    return compute


def _gold_index(table: pa.Table, rows: Ragged) -> IntArray:
    """Gold option; 0 for rows with one entry only (generation: the first reference)."""
    gold = integers(table, "gold")
    return np.where((rows.lengths == 1) & (gold < 0), 0, gold)


def _gold_prob(table: pa.Table) -> FloatArray:
    rows = ragged(table, "choice_logprobs", np.float64)
    top = rows.reduce(np.maximum, rows.flat, np.nan)
    owner = np.repeat(np.arange(len(rows.lengths)), rows.lengths)
    share = np.exp(rows.flat - top[owner])
    total = segment_sum(rows, share)
    gold = integers(table, "gold")
    chosen = Ragged(share, rows.lengths).at(gold, np.nan)
    return np.divide(chosen, total, out=np.full(len(total), np.nan), where=total > 0)


def _gold_logprob(table: pa.Table) -> FloatArray:
    rows = ragged(table, "choice_logprobs", np.float64)
    return rows.at(_gold_index(table, rows), np.nan).astype(np.float64)


def _gold_bits_per_byte(table: pa.Table) -> FloatArray:
    rows = ragged(table, "choice_logprobs", np.float64)
    sizes = ragged(table, "choice_bytes", np.float64).at(_gold_index(table, rows), np.nan)
    nats = _gold_logprob(table)
    return np.divide(-nats / np.log(2.0), sizes, out=np.full(len(nats), np.nan), where=sizes > 0)


def _greedy_match(table: pa.Table) -> FloatArray:
    rows = ragged(table, "is_greedy", np.float64)
    return rows.at(_gold_index(table, rows), np.nan).astype(np.float64)


def _valid(table: pa.Table) -> FloatArray:
    reasons = strings(table, "finish_reason")
    return np.array([np.nan if r is None else float(r == "stop") for r in reasons], dtype=float)


def _from_text(score: Callable[[str, list[str]], float]) -> Callable[[pa.Table], FloatArray]:
    def compute(table: pa.Table) -> FloatArray:
        out = np.full(table.num_rows, np.nan)
        texts, references = strings(table, "text"), column(table, "references").to_pylist()
        for i, (text, wanted) in enumerate(zip(texts, references, strict=True)):
            if text is not None and wanted:
                out[i] = score(text, wanted)
        return out

    return compute


def _rouge(kind: str) -> Callable[[pa.Table], FloatArray]:
    return _from_text(lambda text, references: text_scores.rouge(text, references, kind))


EXAMPLE_METRICS: dict[str, Callable[[pa.Table], FloatArray]] = {
    "acc": _accuracy(None),
    "acc_norm": _accuracy("choice_chars"),
    "acc_bytes": _accuracy("choice_bytes"),
    "gold_prob": _gold_prob,
    "gold_logprob": _gold_logprob,
    "gold_bits_per_byte": _gold_bits_per_byte,
    "greedy_match": _greedy_match,
    "exact_match": _from_text(text_scores.exact_match),
    "token_f1": _from_text(text_scores.token_f1),
    "rouge_1": _rouge("rouge_1"),
    "rouge_2": _rouge("rouge_2"),
    "rouge_l": _rouge("rouge_l"),
    "valid": _valid,
}
"""Metrics that have a value per document."""

CELL_METRICS = ("macro_f1", "mcc")
"""Metrics of a whole cell, from its table of (gold, prediction) counts."""

"""Per-document values from log-probabilities of choices, references and windows.

Each function takes N example rows and gives float64 [N], NaN where there is nothing to value.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa

from evalcore.metrics.arrays import (
    BoolArray,
    FloatArray,
    IntArray,
    Ragged,
    first_argmax,
    integers,
    matches,
    ragged,
    segment_sum,
    softmax,
)

Values = Callable[[pa.Table], FloatArray]


def is_decoded(table: pa.Table) -> BoolArray:
    """bool [N]: rows whose stored prediction was written by the model, not read off a ranking."""
    return matches(table, "answer", ["constrained", "free"])


def predictions(table: pa.Table, per: str | None = None) -> IntArray:
    """int64 [N]: chosen option, the first of ties; -1 for rows without options.

    Rows answered by decoding (``constrained``, ``free``) keep their stored prediction.

    Args:
        table: Example rows.
        per: None (summed log-probability), ``choice_chars`` or ``choice_bytes`` (divided by it).
    """
    rows = ragged(table, "choice_logprobs", np.float64)
    if per is not None:
        # An empty choice text has nothing to divide by; lm-eval divides by zero there.
        return first_argmax(rows, rows.flat / np.maximum(ragged(table, per, np.float64).flat, 1.0))
    ranked = first_argmax(rows, rows.flat)
    decoded = is_decoded(table)
    return np.where(decoded, integers(table, "prediction"), ranked) if decoded.any() else ranked


def accuracy(per: str | None) -> Values:
    """Share of right choices; a free answer that is no choice is wrong.

    A log-likelihood task has no choices: its answer is right if greedy decoding writes it.
    """

    def compute(table: pa.Table) -> FloatArray:
        right = _right(table, predictions(table, per), matches(table, "answer", ["free"]))
        alone = matches(table, "output_type", ["loglikelihood"])
        return np.where(alone, greedy_match(table), right) if alone.any() else right

    return compute


def acc_mutual_info(table: pa.Table) -> FloatArray:
    """Accuracy of the largest log-probability less that after an empty context."""
    rows = ragged(table, "choice_logprobs", np.float64)
    bare = ragged(table, "unconditional_logprobs", np.float64)
    known = np.repeat(bare.lengths == rows.lengths, rows.lengths)
    given = np.full(len(rows.flat), np.nan)
    given[known] = bare.flat[np.repeat(bare.lengths == rows.lengths, bare.lengths)]
    return _right(table, first_argmax(rows, rows.flat - given), np.zeros(len(table), dtype=bool))


def _right(table: pa.Table, chosen: IntArray, none_is_wrong: BoolArray) -> FloatArray:
    gold = integers(table, "gold")
    right: FloatArray = (gold == chosen).astype(np.float64)
    if "golds" in table.column_names:
        golds = ragged(table, "golds", np.int64)
        if len(golds.flat):
            hits = (golds.flat == np.repeat(chosen, golds.lengths)).astype(np.float64)
            right = np.maximum(right, golds.reduce(np.maximum, hits, 0.0))
    right[(gold < 0) | ((chosen < 0) & ~none_is_wrong)] = np.nan
    return right


def gold_index(table: pa.Table, rows: Ragged) -> IntArray:
    """Gold option; 0 for rows with one entry only (generation: the first reference)."""
    gold = integers(table, "gold")
    return np.where((rows.lengths == 1) & (gold < 0), 0, gold)


def gold_prob(table: pa.Table) -> FloatArray:
    """Softmax share of the right choice among the choices."""
    rows = ragged(table, "choice_logprobs", np.float64)
    return Ragged(softmax(rows), rows.lengths).at(integers(table, "gold"), np.nan)


def brier(table: pa.Table) -> FloatArray:
    """Squared distance between the softmax over choices and the right one: 0 to 2."""
    rows = ragged(table, "choice_logprobs", np.float64)
    share, gold = softmax(rows), integers(table, "gold")
    right = Ragged(share, rows.lengths).at(gold, np.nan)
    # Sum of (p_k - [k = gold])^2 = sum of p_k^2 - 2 p_gold + 1.
    return segment_sum(rows, share**2) - 2.0 * right + 1.0


def confidence(table: pa.Table) -> FloatArray:
    """Largest softmax share."""
    rows = ragged(table, "choice_logprobs", np.float64)
    result: FloatArray = rows.reduce(np.maximum, softmax(rows), np.nan)
    return result


def label_mass(table: pa.Table) -> FloatArray:
    """Probability of all choices together: what the model leaves to other words is missing."""
    rows = ragged(table, "choice_logprobs", np.float64)
    mass = segment_sum(rows, np.exp(rows.flat))
    mass[rows.lengths == 0] = np.nan
    return mass


def gold_logprob(table: pa.Table) -> FloatArray:
    """Log-probability (nats) of the right choice, the first reference or the whole text."""
    rows = ragged(table, "choice_logprobs", np.float64)
    values = rows.at(gold_index(table, rows), np.nan).astype(np.float64)
    whole = matches(table, "output_type", ["loglikelihood_rolling"])
    if not whole.any():
        return values
    total = np.where(rows.lengths > 0, segment_sum(rows, rows.flat), np.nan)
    return np.where(whole, total, values)


def gold_bytes(table: pa.Table) -> FloatArray:
    """UTF-8 bytes of what :func:`gold_logprob` scores."""
    sizes = ragged(table, "choice_bytes", np.float64)
    values = sizes.at(gold_index(table, sizes), np.nan).astype(np.float64)
    whole = matches(table, "output_type", ["loglikelihood_rolling"])
    return np.where(whole, segment_sum(sizes, sizes.flat), values) if whole.any() else values


def gold_bits_per_byte(table: pa.Table) -> FloatArray:
    """Bits the right text costs per byte."""
    nats, sizes = gold_logprob(table), gold_bytes(table)
    result: FloatArray = np.full(len(nats), np.nan)
    np.divide(-nats / np.log(2.0), sizes, out=result, where=sizes > 0)
    return result


def greedy_match(table: pa.Table) -> FloatArray:
    """1 where greedy decoding writes the right text."""
    rows = ragged(table, "is_greedy", np.float64)
    return rows.at(gold_index(table, rows), np.nan).astype(np.float64)

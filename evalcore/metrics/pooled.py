"""Scores of a whole cell: from counts of (gold, prediction), from bins, from sums over documents.

Each takes the cell's rows, which of them are scored, and a seed, and gives (value, standard error,
documents); NaN where there are too few.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from evalcore.metrics.arrays import BoolArray, FloatArray, IntArray, integers, matches
from evalcore.metrics.choices import (
    accuracy,
    confidence,
    gold_bytes,
    gold_logprob,
    predictions,
)
from evalcore.metrics.text import words

BOOTSTRAP_RESAMPLES = 1000
ECE_BINS = 10
Pooled = tuple[float, float, int]
CellScore = Callable[[pa.Table, BoolArray, int], Pooled]
_NONE: Pooled = (float("nan"), float("nan"), 0)


def mean_stderr(values: FloatArray) -> Pooled:
    """(mean, sample standard deviation / sqrt(n), n); NaN where n is too small."""
    n = len(values)
    if n == 0:
        return _NONE
    stderr = float(values.std(ddof=1) / np.sqrt(n)) if n > 1 else float("nan")
    return float(values.mean()), stderr, n


def from_confusion(score: Callable[[npt.NDArray[np.int64]], FloatArray]) -> CellScore:
    """A metric of counts of (gold, prediction); bootstrap over documents.

    A free answer that is no choice is a prediction of its own, never right.
    """

    def compute(part: pa.Table, scored: BoolArray, seed: int) -> Pooled:
        gold, chosen = integers(part, "gold"), predictions(part)
        keep = scored & (gold >= 0) & ((chosen >= 0) | matches(part, "answer", ["free"]))
        gold, chosen = gold[keep], chosen[keep]
        n = len(gold)
        if n == 0:
            return _NONE
        confusion = confusion_counts(gold, chosen)
        value = float(score(confusion[None])[0])
        if n < 2:
            return value, float("nan"), n
        # Resampling documents with replacement is a multinomial draw of the confusion counts.
        generator = np.random.default_rng(seed)
        drawn = generator.multinomial(n, confusion.reshape(-1) / n, size=BOOTSTRAP_RESAMPLES)
        replicates = score(drawn.reshape(-1, *confusion.shape))
        return value, float(replicates.std(ddof=1)), n

    return compute


def confusion_counts(gold: IntArray, chosen: IntArray) -> IntArray:
    """int64 [K + 1, K + 1]: rows with label k (first axis) predicted as j (second axis).

    The last index stands for "no choice" (prediction -1).
    """
    labels = int(max(gold.max(), chosen.max())) + 1
    size = labels + 1
    chosen = np.where(chosen < 0, labels, chosen)
    return np.bincount(gold * size + chosen, minlength=size * size).reshape(size, size)


def _f1(confusion: npt.NDArray[np.int64]) -> tuple[FloatArray, BoolArray]:
    """(F1, whether the class occurs) [B, K] of every class but "no choice"."""
    right = np.diagonal(confusion, axis1=1, axis2=2)[:, :-1].astype(np.float64)
    seen = (confusion.sum(axis=1) + confusion.sum(axis=2))[:, :-1]
    f1 = np.divide(2 * right, seen, out=np.zeros_like(right), where=seen > 0)
    return f1, seen > 0


def macro_f1(confusion: npt.NDArray[np.int64]) -> FloatArray:
    """float64 [B] from counts [B, K + 1, K + 1]: mean F1 of the classes in gold or prediction."""
    f1, occurs = _f1(confusion)
    result: FloatArray = f1.sum(axis=1) / np.maximum(occurs.sum(axis=1), 1)
    return result


def f1(confusion: npt.NDArray[np.int64]) -> FloatArray:
    """float64 [B] from counts [B, K + 1, K + 1]: F1 of class 1 (two-label tasks); 0 without it."""
    own = _f1(confusion)[0]
    return own[:, 1] if own.shape[1] > 1 else np.zeros(len(own))


def mcc(confusion: npt.NDArray[np.int64]) -> FloatArray:
    """float64 [B] from counts [B, K + 1, K + 1]: Matthews correlation (Gorodkin 2004).

    0 where one class is never left (gold or prediction constant).
    """
    counts = confusion.astype(np.float64)
    total = counts.sum(axis=(1, 2))
    right = np.trace(counts, axis1=1, axis2=2)
    gold, chosen = counts.sum(axis=2), counts.sum(axis=1)
    covariance = right * total - (gold * chosen).sum(axis=1)
    spread = (total**2 - (chosen**2).sum(axis=1)) * (total**2 - (gold**2).sum(axis=1))
    root = np.sqrt(spread)
    result: FloatArray = np.divide(covariance, root, out=np.zeros_like(root), where=root > 0)
    return result


def ece(part: pa.Table, scored: BoolArray, seed: int) -> Pooled:
    """Expected calibration error: |accuracy - confidence| over ten bins of equal width.

    Confidence is the largest softmax share over the choices, a bin holds (low, high]; bins are
    weighted by their documents. Bootstrap over documents.
    """
    right, sure = accuracy(None)(part), confidence(part)
    keep = scored & ~np.isnan(right) & ~np.isnan(sure)
    gap, sure = (right - sure)[keep], sure[keep]
    n = len(gap)
    if n == 0:
        return _NONE
    bins = np.clip(np.ceil(sure * ECE_BINS).astype(np.int64) - 1, 0, ECE_BINS - 1)
    value = _binned(gap[None], bins[None])[0]
    if n < 2:
        return float(value), float("nan"), n
    generator = np.random.default_rng(seed)
    replicates: list[FloatArray] = []
    chunk = max(1, 1_000_000 // n)  # keeps the index array near 8 MB
    for start in range(0, BOOTSTRAP_RESAMPLES, chunk):
        pick = generator.integers(0, n, (min(chunk, BOOTSTRAP_RESAMPLES - start), n))
        replicates.append(_binned(gap[pick], bins[pick]))
    return float(value), float(np.concatenate(replicates).std(ddof=1)), n


def _binned(gap: FloatArray, bins: IntArray) -> FloatArray:
    """float64 [B] from [B, n]: sum over bins of |sum of gaps| / n."""
    many, n = gap.shape
    place = (np.arange(many)[:, None] * ECE_BINS + bins).reshape(-1)
    sums = np.bincount(place, gap.reshape(-1), many * ECE_BINS).reshape(many, ECE_BINS)
    result: FloatArray = np.abs(sums).sum(axis=1) / n
    return result


def perplexity(part: pa.Table, scored: BoolArray, seed: int) -> Pooled:
    """exp of minus the mean log-probability of a text; error by the delta method."""
    del seed
    nats = gold_logprob(part)
    mean, stderr, n = mean_stderr(nats[scored & ~np.isnan(nats)])
    value = float(np.exp(-mean))
    return value, value * stderr, n


def per_unit(weights: Callable[[pa.Table], FloatArray], *, bits: bool = False) -> CellScore:
    """Sum of log-probabilities over the sum of weights (words, bytes), as perplexity or as bits.

    The error of this ratio of sums is the delta method's: for r = sum a / sum b over n documents,
    sqrt(n / (n - 1) * sum (a - r b)^2) / sum b.
    """

    def compute(part: pa.Table, scored: BoolArray, seed: int) -> Pooled:
        del seed
        nats, sizes = gold_logprob(part), weights(part)
        keep = scored & ~np.isnan(nats) & ~np.isnan(sizes)
        nats, sizes = nats[keep], sizes[keep]
        n, total = len(nats), float(sizes.sum())
        if total <= 0:
            return _NONE
        ratio = float(nats.sum()) / total
        error = float("nan")
        if n > 1:
            error = float(np.sqrt(n / (n - 1) * ((nats - ratio * sizes) ** 2).sum())) / total
        if bits:
            return -ratio / float(np.log(2.0)), error / float(np.log(2.0)), n
        value = float(np.exp(-ratio))
        return value, value * error, n

    return compute


word_perplexity = per_unit(words)
byte_perplexity = per_unit(gold_bytes)
bits_per_byte = per_unit(gold_bytes, bits=True)

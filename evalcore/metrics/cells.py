"""Cell scores: one row per (cell, metric) with its error, and what looks odd about the cell."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from evalcore.metrics.arrays import FloatArray, IntArray, column, integers, strings
from evalcore.metrics.examples import (
    CELL_METRICS,
    EXAMPLE_METRICS,
    METRICS_VERSION,
    example_values,
    is_scored,
    predictions,
)

BOOTSTRAP_RESAMPLES = 1000
MODAL_SHARE_LIMIT = 0.95

CELL_SCORE_SCHEMA = pa.schema(
    [
        ("cell", pa.string()),
        ("metric", pa.string()),
        ("value", pa.float64()),
        ("stderr", pa.float64()),
        ("stderr_method", pa.string()),
        ("n", pa.int32()),
        ("n_overflow", pa.int32()),
        ("modal_share", pa.float64()),
        ("prediction_entropy_bits", pa.float64()),
        ("valid_share", pa.float64()),
        ("flags", pa.list_(pa.string())),
        ("metrics_version", pa.int32()),
    ]
)


def cell_scores(table: pa.Table, metrics: Sequence[str] | None = None, seed: int = 0) -> pa.Table:
    """Scores of every cell.

    Args:
        table: What ``ResultStore.read()`` gives: example rows joined with their cell's columns.
        metrics: Metric names for all cells; None takes each cell's own ``metrics`` column.
        seed: Seed of the bootstrap (metrics without an analytic error).

    Returns:
        Table with ``CELL_SCORE_SCHEMA``. ``stderr`` of a mean is the sample standard deviation
        over sqrt(n); ``modal_share`` and ``prediction_entropy_bits`` describe predictions
        (generation: distinct texts); ``n`` counts scored rows, ``n_overflow`` rows that did not
        fit and were not scored.

    Raises:
        UnknownNameError: A metric that does not exist.
    """
    rows: list[dict[str, object]] = []
    for key, start, stop, ordered in iterate_cells(table):
        part = ordered.slice(start, stop - start)
        names = list(metrics) if metrics is not None else _own_metrics(part)
        rows.extend({"cell": key, **row} for row in _score_cell(part, names, seed))
    return pa.Table.from_pylist(rows, schema=CELL_SCORE_SCHEMA)


def iterate_cells(table: pa.Table) -> list[tuple[str, int, int, pa.Table]]:
    """(cell key, first row, end row, table sorted by cell) of every cell, in order of first row."""
    if table.num_rows == 0:
        return []
    encoded = column(table, "cell").dictionary_encode()
    codes = encoded.indices.to_numpy(zero_copy_only=False)
    order = np.argsort(codes, kind="stable")
    # Rows of one cell mostly lie together; a sorted table is kept as it is.
    ordered = table if np.array_equal(order, np.arange(len(order))) else table.take(order)
    counts = np.bincount(codes, minlength=len(encoded.dictionary))
    ends = np.cumsum(counts)
    keys = encoded.dictionary.to_pylist()
    return [(k, int(e - c), int(e), ordered) for k, c, e in zip(keys, counts, ends, strict=True)]


def _own_metrics(part: pa.Table) -> list[str]:
    listed = part.column("metrics")[0].as_py() or []
    primary = part.column("primary_metric")[0].as_py()
    return list(dict.fromkeys([primary, *listed]))


def _score_cell(part: pa.Table, names: Sequence[str], seed: int) -> list[dict[str, object]]:
    scored = is_scored(part)
    shared = {**_prediction_shape(part, scored), "metrics_version": METRICS_VERSION}
    shared["n_overflow"] = int((~scored).sum())
    rows = []
    for name in names:
        if name in CELL_METRICS:
            value, stderr, n = _confusion_metric(part, scored, name, seed)
            method = "bootstrap"
        else:
            values = example_values(part, name)
            values = values[~np.isnan(values)]
            value, stderr, n = mean_stderr(values)
            method = "analytic"
        flags = list(shared["flags"])  # type: ignore[call-overload]
        missing = int(scored.sum()) - n
        if missing:
            flags.append(f"unscored:{missing}")
        rows.append(
            {
                **shared,
                "metric": name,
                "value": value,
                "stderr": stderr,
                "stderr_method": method,
                "n": n,
                "flags": flags,
            }
        )
    return rows


def mean_stderr(values: FloatArray) -> tuple[float, float, int]:
    """(mean, sample standard deviation / sqrt(n), n); NaN where n is too small."""
    n = len(values)
    if n == 0:
        return float("nan"), float("nan"), 0
    stderr = float(values.std(ddof=1) / np.sqrt(n)) if n > 1 else float("nan")
    return float(values.mean()), stderr, n


def _prediction_shape(part: pa.Table, scored: npt.NDArray[np.bool_]) -> dict[str, object]:
    """Share of the commonest prediction, entropy of predictions, valid share, flags."""
    flags: list[str] = []
    multiple_choice = part.column("output_type")[0].as_py() == "multiple_choice"
    valid = example_values(part, "valid")
    if multiple_choice:
        chosen = predictions(part)
        answers: list[object] = [int(c) for c in chosen[scored] if c >= 0]
        stored = integers(part, "prediction")
        if np.any((stored >= 0) & (chosen >= 0) & (stored != chosen)):
            flags.append("prediction_disagrees_with_logprobs")
        gold = integers(part, "gold")[scored]
        if (gold < 0).any():
            flags.append("gold_missing")
        elif len(gold) > 1 and len(np.unique(gold)) == 1:
            flags.append("gold_one_class")
    else:
        texts = strings(part, "text")
        answers = [t for t, ok in zip(texts, scored, strict=True) if ok and t is not None]
    modal, entropy = _modal_share_and_entropy(answers)
    if len(answers) > 1 and modal is not None and modal >= MODAL_SHARE_LIMIT:
        flags.append("modal_prediction")
    if not scored.all():
        flags.append("overflow")
    return {
        "modal_share": modal,
        "prediction_entropy_bits": entropy,
        "valid_share": float(np.nanmean(valid)) if np.isfinite(valid).any() else None,
        "flags": flags,
    }


def _modal_share_and_entropy(answers: Sequence[object]) -> tuple[float | None, float | None]:
    if not answers:
        return None, None
    counts = np.array([c["counts"] for c in pc.value_counts(pa.array(answers)).to_pylist()])
    share = counts / counts.sum()
    return float(share.max()), float(-(share * np.log2(share)).sum() + 0.0)


def _confusion_metric(
    part: pa.Table, scored: npt.NDArray[np.bool_], name: str, seed: int
) -> tuple[float, float, int]:
    """(value, bootstrap standard error over documents, n) of macro_f1 or mcc."""
    gold, chosen = integers(part, "gold"), predictions(part)
    keep = scored & (gold >= 0) & (chosen >= 0)
    gold, chosen = gold[keep], chosen[keep]
    n = len(gold)
    if n == 0:
        return float("nan"), float("nan"), 0
    confusion = confusion_counts(gold, chosen)
    score = macro_f1 if name == "macro_f1" else mcc
    if n < 2:
        return float(score(confusion[None])[0]), float("nan"), n
    # Resampling documents with replacement is a multinomial draw of the confusion counts.
    generator = np.random.default_rng(seed)
    flat = confusion.reshape(-1)
    drawn = generator.multinomial(n, flat / n, size=BOOTSTRAP_RESAMPLES)
    replicates = score(drawn.reshape(-1, *confusion.shape))
    return float(score(confusion[None])[0]), float(replicates.std(ddof=1)), n


def confusion_counts(gold: IntArray, chosen: IntArray) -> IntArray:
    """int64 [K, K]: rows with label k (first axis) predicted as j (second axis)."""
    size = int(max(gold.max(), chosen.max())) + 1
    return np.bincount(gold * size + chosen, minlength=size * size).reshape(size, size)


def macro_f1(confusion: npt.NDArray[np.int64]) -> FloatArray:
    """float64 [B] from counts [B, K, K]: mean F1 of the classes in gold or prediction."""
    right = np.diagonal(confusion, axis1=1, axis2=2).astype(np.float64)
    seen = confusion.sum(axis=1) + confusion.sum(axis=2)
    occurs = seen > 0
    f1 = np.divide(2 * right, seen, out=np.zeros_like(right), where=occurs)
    return f1.sum(axis=1) / np.maximum(occurs.sum(axis=1), 1)


def mcc(confusion: npt.NDArray[np.int64]) -> FloatArray:
    """float64 [B] from counts [B, K, K]: Matthews correlation for K classes (Gorodkin 2004).

    0 where one class is never left (gold or prediction constant).
    """
    counts = confusion.astype(np.float64)
    total = counts.sum(axis=(1, 2))
    right = np.trace(counts, axis1=1, axis2=2)
    gold, chosen = counts.sum(axis=2), counts.sum(axis=1)
    covariance = right * total - (gold * chosen).sum(axis=1)
    spread = (total**2 - (chosen**2).sum(axis=1)) * (total**2 - (gold**2).sum(axis=1))
    root = np.sqrt(spread)
    return np.divide(covariance, root, out=np.zeros_like(root), where=root > 0)


__all__ = ["CELL_METRICS", "CELL_SCORE_SCHEMA", "EXAMPLE_METRICS", "cell_scores"]

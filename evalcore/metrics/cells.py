"""Cell scores: one row per (cell, metric) with its error, and what looks odd about the cell."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from evalcore.metrics.arrays import BoolArray, column, integers, matches, strings
from evalcore.metrics.choices import predictions
from evalcore.metrics.examples import example_values, is_scored
from evalcore.metrics.pooled import mean_stderr
from evalcore.metrics.registry import METRICS_VERSION, cell_metrics, find_metric

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
        metrics: Metric names for all cells; None takes each cell's own ``metrics`` column, those
            that are defined for its way of answering, and what that way adds.
        seed: Seed of the bootstrap (metrics without an analytic error).

    Returns:
        Table with ``CELL_SCORE_SCHEMA``. ``stderr_method`` says how the error comes about (see
        ``metrics.registry``); ``modal_share`` and ``prediction_entropy_bits`` describe predictions
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
    answer = part.column("answer")[0].as_py() if "answer" in part.column_names else None
    output_type = part.column("output_type")[0].as_py()
    return cell_metrics([primary, *listed], output_type, answer or "choices")


def _score_cell(part: pa.Table, names: Sequence[str], seed: int) -> list[dict[str, object]]:
    scored = is_scored(part)
    shared = {**_prediction_shape(part, scored), "metrics_version": METRICS_VERSION}
    shared["n_overflow"] = int((~scored).sum())
    rows = []
    for name in names:
        metric = find_metric(name)
        if metric.cell is not None:
            value, stderr, n = metric.cell(part, scored, seed)
        else:
            values = example_values(part, name)
            value, stderr, n = mean_stderr(values[~np.isnan(values)])
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
                "stderr_method": metric.stderr,
                "n": n,
                "flags": flags,
            }
        )
    return rows


def _prediction_shape(part: pa.Table, scored: BoolArray) -> dict[str, object]:
    """Share of the commonest prediction, entropy of predictions, valid share, flags."""
    flags: list[str] = []
    valid = example_values(part, "valid")
    if _multiple_choice(part):
        chosen = predictions(part)
        stored = integers(part, "prediction")
        if np.any((stored >= 0) & (chosen >= 0) & (stored != chosen)):
            flags.append("prediction_disagrees_with_logprobs")
        gold = integers(part, "gold")[scored]
        if (gold < 0).any():
            flags.append("gold_missing")
        elif len(gold) > 1 and len(np.unique(gold)) == 1:
            flags.append("gold_one_class")
    answers = _answers(part, scored)
    modal, entropy = _modal_share_and_entropy(answers)
    if len(answers) > 1 and modal is not None and modal >= MODAL_SHARE_LIMIT:
        flags.append("modal_prediction")
    if not scored.all():
        flags.append("overflow")
    for name, flag in (("truncated_tokens", "truncated"), ("shots_dropped", "shots_dropped")):
        count = int((integers(part, name, 0) > 0).sum()) if name in part.column_names else 0
        if count:
            flags.append(f"{flag}:{count}")
    return {
        "modal_share": modal,
        "prediction_entropy_bits": entropy,
        "valid_share": float(np.nanmean(valid)) if np.isfinite(valid).any() else None,
        "flags": flags,
    }


def modal_share(part: pa.Table) -> float:
    """Share of the commonest prediction (generation: text) among a cell's scored rows.

    NaN where nothing was predicted.
    """
    share, _ = _modal_share_and_entropy(_answers(part, is_scored(part)))
    return float("nan") if share is None else share


def _multiple_choice(part: pa.Table) -> bool:
    return bool(part.column("output_type")[0].as_py() == "multiple_choice")


def _answers(part: pa.Table, scored: BoolArray) -> list[object]:
    """What was predicted for each scored row that has a prediction."""
    if _multiple_choice(part):
        chosen = predictions(part)
        free = matches(part, "answer", ["free"])  # there, "no choice" is an answer too
        return [int(c) for c in chosen[scored & (free | (chosen >= 0))]]
    texts = strings(part, "text")
    return [t for t, ok in zip(texts, scored, strict=True) if ok and t is not None]


def _modal_share_and_entropy(answers: Sequence[object]) -> tuple[float | None, float | None]:
    if not answers:
        return None, None
    counts = np.array([c["counts"] for c in pc.value_counts(pa.array(answers)).to_pylist()])
    share = counts / counts.sum()
    return float(share.max()), float(-(share * np.log2(share)).sum() + 0.0)

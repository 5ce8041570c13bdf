"""Documents on which two models, or two prompts of one model, do not agree."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from evalcore.metrics import document_metric, example_values
from evalcore.metrics.arrays import integers, strings
from evalcore.metrics.choices import predictions

FLIP_SCHEMA = pa.schema(
    [
        ("task", pa.string()), ("prompt", pa.string()), ("doc_id", pa.large_string()),
        ("doc_index", pa.int32()), ("change", pa.string()), ("metric", pa.string()),
        ("value_a", pa.float64()), ("value_b", pa.float64()), ("gold", pa.int32()),
        ("prediction_a", pa.int32()), ("prediction_b", pa.int32()),
        ("gold_prob_change", pa.float64()), ("text_a", pa.large_string()),
        ("text_b", pa.large_string()),
    ]
)  # fmt: skip
"""Columns of :func:`flips`."""


def flips(a: pa.Table, b: pa.Table, prompt: str) -> pa.Table:
    """Documents of one cell that came out otherwise in another.

    Args:
        a: Rows of one cell as ``ResultStore.read()`` gives them.
        b: Rows of the other, of the same task.
        prompt: What the column ``prompt`` says.

    Returns:
        ``FLIP_SCHEMA``, one row per document of both whose value, prediction or text differs; the
        largest change of the right answer's probability first. ``change`` is ``wrong to right``,
        ``right to wrong``, ``higher``, ``lower``, ``other answer`` or ``scored on one side``.
    """
    mine, theirs = _facts(a), _facts(b)
    rows = []
    for doc in mine.keys() & theirs.keys():
        one, two = mine[doc], theirs[doc]
        change = _change(one, two)
        if change is None:
            continue
        rows.append(
            {
                "task": one["task"], "prompt": prompt, "doc_id": doc, "doc_index": one["index"],
                "change": change, "metric": one["metric"], "value_a": _known(one["value"]),
                "value_b": _known(two["value"]), "gold": one["gold"],
                "prediction_a": one["prediction"], "prediction_b": two["prediction"],
                "gold_prob_change": _known(two["gold_prob"] - one["gold_prob"]),
                "text_a": one["text"], "text_b": two["text"],
            }
        )  # fmt: skip
    rows.sort(key=lambda r: (-abs(r["gold_prob_change"] or 0.0), r["doc_index"], r["doc_id"]))
    return pa.Table.from_pylist(rows, schema=FLIP_SCHEMA)


def _facts(cell: pa.Table) -> dict[str, dict[str, Any]]:
    """Document id -> what was answered and what it is worth."""
    if cell.num_rows == 0:
        return {}
    task = cell.column("task")[0].as_py()
    output_type = cell.column("output_type")[0].as_py()
    choice = output_type == "multiple_choice"
    primary = cell.column("primary_metric")[0].as_py()
    metric = document_metric(primary, output_type, cell.column("answer")[0].as_py() or "choices")
    values = example_values(cell, metric)
    prob = example_values(cell, "gold_prob") if choice else np.full(len(values), np.nan)
    chosen = predictions(cell) if choice else np.full(len(values), -1)
    index, gold = integers(cell, "doc_index"), integers(cell, "gold")
    texts, docs = strings(cell, "text"), strings(cell, "doc_id")
    return {
        str(doc): {
            "task": task, "metric": metric, "value": float(values[i]), "index": int(index[i]),
            "gold": int(gold[i]), "prediction": int(chosen[i]), "gold_prob": float(prob[i]),
            "text": texts[i], "right": metric in ("acc", "acc_norm", "acc_bytes", "exact_match"),
        }
        for i, doc in reversed(list(enumerate(docs)))
    }  # fmt: skip


def _change(one: dict[str, Any], two: dict[str, Any]) -> str | None:
    before, after = one["value"], two["value"]
    if before != after and not (before != before and after != after):
        if before != before or after != after:
            return "scored on one side"
        if one["right"] and {before, after} == {0.0, 1.0}:
            return "wrong to right" if after > before else "right to wrong"
        return "higher" if after > before else "lower"
    if one["prediction"] != two["prediction"] or one["text"] != two["text"]:
        return "other answer"
    return None


def _known(value: float) -> float | None:
    return None if value != value else value

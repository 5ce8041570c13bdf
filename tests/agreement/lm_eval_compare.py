"""Compares what lm-eval said of a model with what evalcore stored of it, document by document."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from evalcore.lm_eval.outcomes import read_outcomes
from evalcore.metrics import METRICS, cell_scores
from evalcore.store import EXAMPLE_SCHEMA, ResultStore
from evalcore.store.schema import NO_ADAPTER

LOGPROB_TOLERANCE = 1e-4
FLOAT32_SUM = 2.0**-22
"""lm-eval adds a text's log-probabilities in float32: sums of thousands of nats are that coarse."""
MARGIN = 2e-4
"""Two choices closer than this may change places between two float32 implementations."""
EXACT = 1e-9
# lm-eval's metric -> evalcore's, where both mean the same (with lm-eval's filter "none").
SAME = {
    "acc": "acc", "acc_norm": "acc_norm", "acc_bytes": "acc_bytes", "mcc": "mcc", "f1": "f1",
    "acc_mutual_info": "acc_mutual_info", "brier_score": "brier", "perplexity": "perplexity",
    "word_perplexity": "word_perplexity", "byte_perplexity": "byte_perplexity",
    "bits_per_byte": "bits_per_byte",
}  # fmt: skip


@dataclass
class Comparison:
    """One task and model.

    Attributes:
        documents: Documents compared.
        values: Log-probabilities compared.
        differences: evalcore's log-probability less lm-eval's, nats, in the order of the documents.
        largest: Largest difference of a log-probability, in units of what is allowed.
        near_ties: Documents whose margin is too small to compare predictions.
        predictions: Documents with another prediction in spite of their margin.
        greedy: Choices on which the two differ whether greedy decoding writes them.
        texts: Documents whose generated text differs: (index, lm-eval's, evalcore's).
        fed: Metrics of evalcore on lm-eval's numbers that differ from lm-eval's own.
        results: Metrics by lm-eval's functions on evalcore's numbers that differ from lm-eval's.
        compared: Metrics compared, either way.
    """

    documents: int = 0
    values: int = 0
    differences: list[float] = field(default_factory=list)
    largest: float = 0.0
    near_ties: list[int] = field(default_factory=list)
    predictions: list[int] = field(default_factory=list)
    greedy: list[int] = field(default_factory=list)
    texts: list[tuple[int, str, str]] = field(default_factory=list)
    fed: dict[str, tuple[float, float]] = field(default_factory=dict)
    results: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    compared: list[str] = field(default_factory=list)

    def check(self, name: str) -> None:
        """Asserts agreement; near-ties are exempt from equal predictions."""
        assert self.largest <= 1, f"{name}: off by {self.largest:g} times the tolerance"
        self.check_answers(name)

    def check_answers(self, name: str) -> None:
        """Asserts agreement of all but the log-probabilities themselves."""
        assert self.documents, f"{name}: nothing was compared"
        assert not self.predictions, f"{name}: other predictions on documents {self.predictions}"
        assert not self.greedy, f"{name}: greedy or not differs on documents {self.greedy}"
        assert not self.texts, f"{name}: other texts {self.texts[:3]}"
        assert not self.fed, f"{name}: evalcore's metrics on lm-eval's numbers differ: {self.fed}"
        if not self.near_ties:
            assert not self.results, f"{name}: results differ: {self.results}"


@dataclass(frozen=True)
class Scored:
    """Cells of a results folder: joined rows by document, and lm-eval's metrics of them."""

    cells: Mapping[tuple[str, str], list[dict[str, Any]]]
    outcomes: Mapping[tuple[str, str], Mapping[str, Any]]


def _model(row: Mapping[str, Any]) -> str:
    return row["checkpoint"] if row["adapter"] == NO_ADAPTER else row["adapter"]


def read_scored(results: Path) -> Scored:
    """By (model, task): model is the checkpoint's name, or the adapter's."""
    cells: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in ResultStore(results, read_only=True).read().to_pylist():
        cells.setdefault((_model(row), row["task"]), []).append(row)
    for rows in cells.values():
        rows.sort(key=lambda row: row["doc_index"])
    outcomes = {
        (_model(record), record["task"]): record
        for record in read_outcomes(results)
        if "task" in record
    }
    return Scored(cells, outcomes)


def compare(
    samples: Sequence[Mapping[str, Any]],
    results: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    outcome: Mapping[str, Any] | None,
) -> Comparison:
    """One task and model.

    Args:
        samples: lm-eval's samples (several filters repeat a document).
        results: lm-eval's results of the task.
        rows: evalcore's rows in order, joined with their cell.
        outcome: evalcore's record of lm-eval's metrics, if it has one.
    """
    first = samples[0]["filter"]
    theirs = {s["doc_id"]: s for s in samples if s["filter"] == first}
    assert sorted(theirs) == [row["doc_index"] for row in rows], "not the same documents"
    found = Comparison(documents=len(rows))
    fed = []
    for row in rows:
        answers = [response[0] for response in theirs[row["doc_index"]]["resps"]]
        fed.append({**row, **_compare_row(found, row, answers)})
    for name, ours, other in _fed_metrics(fed, results):
        found.compared.append(name)
        if not _close(ours, other):
            found.fed[name] = (ours, other)
    if outcome is not None:
        for key, value in results.items():
            if "," not in key or "_stderr" in key:
                continue
            found.compared.append(key)
            ours = outcome["metrics"].get(key)
            # Functions of log-probabilities differ in their last digits, counts do not.
            smooth = _smooth([sample.get(key.partition(",")[0]) for sample in samples])
            near = 1e-4 if smooth else EXACT
            if ours is None or not np.isclose(ours, value, rtol=near, atol=near, equal_nan=True):
                found.results[key] = (ours, value)
    return found


def _compare_row(
    found: Comparison, row: Mapping[str, Any], answers: Sequence[Any]
) -> dict[str, Any]:
    """Notes differences; returns lm-eval's numbers in evalcore's columns."""
    index, kind = row["doc_index"], row["output_type"]
    if kind == "generate_until":
        if answers[0] != row["text"]:
            found.texts.append((index, answers[0], row["text"]))
        return {"text": answers[0]}
    ours = row["choice_logprobs"]
    if kind == "loglikelihood_rolling":
        _note(found, [sum(ours)], [answers[0]])
        return {"choice_logprobs": [answers[0]] + [0.0] * (len(ours) - 1)}
    values, greedy = [a[0] for a in answers], [bool(a[1]) for a in answers]
    beside = row["unconditional_logprobs"] or []
    _note(found, [*ours, *beside], values)
    values, alone = values[: len(ours)], values[len(ours) :]
    if list(row["is_greedy"]) != greedy[: len(ours)]:
        found.greedy.append(index)
    if kind == "multiple_choice" and len(values) > 1:
        top = sorted(values)[-2:]
        if top[1] - top[0] <= MARGIN:
            found.near_ties.append(index)
        elif int(np.argmax(values)) != row["prediction"]:
            found.predictions.append(index)
    return {
        "choice_logprobs": values,
        "is_greedy": greedy[: len(ours)],
        "unconditional_logprobs": alone or None,
        "prediction": int(np.argmax(values)) if kind == "multiple_choice" else -1,
    }


def _note(found: Comparison, ours: Sequence[float], theirs: Sequence[float]) -> None:
    assert len(ours) == len(theirs), (ours, theirs)
    wanted = np.asarray(theirs)
    allowed = np.maximum(LOGPROB_TOLERANCE, FLOAT32_SUM * np.abs(wanted))
    found.values += len(wanted)
    found.differences += (np.asarray(ours) - wanted).tolist()
    found.largest = max(found.largest, float((np.abs(np.asarray(ours) - wanted) / allowed).max()))


def _fed_metrics(
    rows: Sequence[Mapping[str, Any]], results: Mapping[str, Any]
) -> Iterator[tuple[str, float, float]]:
    """(metric, evalcore's value on lm-eval's numbers, lm-eval's own value)."""
    kind, own = rows[0]["output_type"], not rows[0]["task"].startswith("lm-eval:")
    asked = {}
    for key, value in results.items():
        metric, _, name = key.partition(",")
        mapped = SAME.get(metric)
        if name != "none" or mapped is None or not METRICS[mapped].fits_cell(kind, "choices"):
            continue
        # A task with process_results of its own means something else by the name.
        if own or mapped in rows[0]["metrics"]:
            asked[mapped] = value
    if not asked:
        return
    scores = cell_scores(_table(rows), metrics=list(asked)).to_pylist()
    for score in scores:
        yield score["metric"], score["value"], asked[score["metric"]]


def _table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    columns = {}
    for name in rows[0]:
        kind = EXAMPLE_SCHEMA.field(name).type if name in EXAMPLE_SCHEMA.names else None
        plain = kind.value_type if kind is not None and pa.types.is_dictionary(kind) else kind
        columns[name] = pa.array([row[name] for row in rows], plain)
    return pa.table(columns)


def _close(ours: float, theirs: float) -> bool:
    return bool(np.isclose(ours, theirs, rtol=EXACT, atol=EXACT, equal_nan=True))


def _smooth(value: Any) -> bool:
    """Whether a metric's values per document hold numbers that are not whole."""
    if isinstance(value, list):
        return any(_smooth(item) for item in value)
    return isinstance(value, float) and not value.is_integer()

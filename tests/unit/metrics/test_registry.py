"""Every metric has its definition, its place and its documentation; pooled scores by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from evalcore.errors import DefinitionError, UnknownNameError
from evalcore.metrics import (
    METRICS,
    cell_scores,
    check_metrics,
    document_metric,
    example_values,
    higher_is_better,
)
from evalcore.store import EXAMPLE_SCHEMA
from evalcore.tasks import list_tasks
from evalcore.types import Task
from tests.toys.tables import SCHEMA, cell_rows, subject_columns, task_columns, to_table

DOCS = Path(__file__).resolve().parents[3] / "docs" / "metrics.md"


def table_of(rows: list[dict[str, Any]], output_type: str = "multiple_choice") -> pa.Table:
    shared = {"cell": "c", "output_type": output_type, "answer": "choices", "flags": []}
    return pa.Table.from_pylist(
        [{"doc_id": str(i), **shared, **row} for i, row in enumerate(rows)], schema=SCHEMA
    )


def score(table: pa.Table, metric: str) -> dict[str, Any]:
    (row,) = cell_scores(table, [metric]).to_pylist()
    return row


# --- the registry -------------------------------------------------------------------------------


def test_every_metric_is_whole() -> None:
    for name, metric in METRICS.items():
        assert metric.name == name
        assert metric.fits
        assert set(metric.needs) <= set(EXAMPLE_SCHEMA.names), name
        assert (metric.values is None) != (metric.cell is None), name
        assert METRICS[metric.by_document].values is not None, name
        assert (metric.by_document == name) == (metric.values is not None), name
        assert (metric.stderr == "analytic") == (metric.values is not None), name


def test_every_metric_is_documented() -> None:
    described = [
        line.split("|") for line in DOCS.read_text().splitlines() if line.startswith("| `")
    ]
    rows = {name.strip("` "): cells for _, name, *cells in described if name.strip("` ") in METRICS}
    assert set(rows) == set(METRICS)
    for name, cells in rows.items():
        assert METRICS[name].stderr in cells[1], name
        assert ("lower" in cells[2]) != METRICS[name].higher_is_better, name


def test_losses_are_known() -> None:
    losses = {name for name in METRICS if not higher_is_better(name)}
    assert losses == {
        "brier", "gold_bits_per_byte", "ece", "perplexity", "word_perplexity", "byte_perplexity",
        "bits_per_byte",
    }  # fmt: skip


def task(output_type: str, *metrics: str) -> Task:
    return Task("t", 1, "g", output_type, metrics, metrics[0])  # type: ignore[arg-type]


def test_metrics_of_a_task_are_checked() -> None:
    check_metrics(task("multiple_choice", "acc", "acc_norm", "label_mass", "valid", "mcc"))
    check_metrics(task("generate_until", "rouge_l", "rouge_lsum_raw", "gold_bits_per_byte"))
    check_metrics(task("loglikelihood", "perplexity", "acc"))
    check_metrics(task("loglikelihood_rolling", "word_perplexity", "bits_per_byte"))
    with pytest.raises(UnknownNameError, match=r"'acc_nrom'; nearest: acc_norm.*task t, key met"):
        check_metrics(task("multiple_choice", "acc", "acc_nrom"))
    with pytest.raises(DefinitionError, match="rouge_l is not defined for output_type multiple_ch"):
        check_metrics(task("multiple_choice", "acc", "rouge_l"))
    with pytest.raises(DefinitionError, match=r"acc .*but for loglikelihood, multiple_choice"):
        check_metrics(task("generate_until", "rouge_l", "acc"))


def test_metrics_of_the_tasks_that_come_along() -> None:
    for known in list_tasks():
        check_metrics(known)


def test_stand_ins_by_document() -> None:
    assert document_metric("acc_norm", "multiple_choice") == "acc_norm"
    assert document_metric("acc_norm", "multiple_choice", "free") == "acc"
    assert document_metric("mcc", "multiple_choice") == "acc"
    assert document_metric("perplexity", "loglikelihood") == "gold_bits_per_byte"
    assert document_metric("rouge_l", "generate_until") == "rouge_l"


# --- ways of answering --------------------------------------------------------------------------


def answered(way: str, chosen: list[int], gold: list[int]) -> pa.Table:
    subject, about = subject_columns(100), task_columns("pocket_nli")
    about["metrics"] = ["acc_norm", "acc", "macro_f1"]
    rows = cell_rows(subject, about, "default", np.ones(len(gold)))
    changes = zip(rows, chosen, gold, strict=True)
    return to_table([{**r, "answer": way, "prediction": c, "gold": g} for r, c, g in changes])


def test_decoded_answers_count_as_stored_and_invalid_ones_as_wrong() -> None:
    table = answered("free", [0, 1, -1, 2], [0, 2, 1, 2])
    np.testing.assert_array_equal(example_values(table, "acc"), [1, 0, 0, 1])
    np.testing.assert_array_equal(example_values(table, "valid"), [1, 1, 0, 1])
    rows = {row["metric"]: row for row in cell_scores(table).to_pylist()}
    assert list(rows) == ["acc", "macro_f1", "valid"]  # acc_norm ranks, nothing was ranked
    assert rows["acc"]["value"] == 0.5
    assert rows["valid"]["value"] == rows["acc"]["valid_share"] == 0.75
    # F1 of classes 0, 1, 2: 1, 0 (never right), 2 / 3; no class "invalid".
    assert rows["macro_f1"]["value"] == pytest.approx((1 + 0 + 2 / 3) / 3)
    assert rows["acc"]["flags"] == []
    table = answered("constrained", [0, 1, -1, 2], [0, 2, 1, 2])
    np.testing.assert_array_equal(example_values(table, "acc"), [1, 0, np.nan, 1])
    # Ranked, every one of these documents is right (that is how the rows were made).
    ranked = answered("choices", [0, 1, -1, 2], [0, 2, 1, 2])
    assert example_values(ranked, "acc").tolist() != [1, 0, 0, 1]


def test_label_mass_is_reported_for_first_tokens() -> None:
    table = answered("first_token", [0, 1], [0, 1])
    names = [row["metric"] for row in cell_scores(table).to_pylist()]
    assert names == ["acc", "macro_f1", "label_mass"]
    row = {"gold": 0, "choice_logprobs": [math.log(0.5), math.log(0.2)], "answer": "first_token"}
    assert example_values(table_of([row]), "label_mass")[0] == pytest.approx(0.7)
    assert np.isnan(example_values(table_of([{"choice_logprobs": []}]), "label_mass")[0])


# --- values by hand -----------------------------------------------------------------------------


def test_brier_by_hand() -> None:
    row = {"gold": 1, "choice_logprobs": [math.log(0.6), math.log(0.3), math.log(0.1)]}
    # Any common factor of the probabilities cancels in the softmax.
    scaled = {"gold": 1, "choice_logprobs": [v - 40 for v in row["choice_logprobs"]]}  # type: ignore[attr-defined]
    expected = 0.6**2 + 0.7**2 + 0.1**2
    found = example_values(table_of([row, scaled, {**row, "gold": -1}]), "brier")
    assert found[:2].tolist() == pytest.approx([expected, expected])
    assert np.isnan(found[2])


def test_mutual_information_takes_the_bare_probability_off() -> None:
    row = {"gold": 1, "choice_logprobs": [-1.0, -3.0], "unconditional_logprobs": [-1.0, -9.0]}
    missing = {**row, "unconditional_logprobs": None}
    values = example_values(table_of([row, {**row, "gold": 0}, missing]), "acc_mutual_info")
    np.testing.assert_array_equal(values, [1, 0, np.nan])


def slow_ece(right: list[float], sure: list[float]) -> float:
    total = 0.0
    for k in range(10):
        inside = [i for i, c in enumerate(sure) if k / 10 < c <= (k + 1) / 10]
        if inside:
            accuracy = sum(right[i] for i in inside) / len(inside)
            confidence = sum(sure[i] for i in inside) / len(inside)
            total += len(inside) / len(sure) * abs(accuracy - confidence)
    return total


def test_ece_equals_the_plain_version_and_its_error_resampling() -> None:
    rng = np.random.default_rng(0)
    rows = [
        {"gold": int(rng.integers(3)), "choice_logprobs": rng.normal(-5, 2, 3).tolist()}
        for _ in range(150)
    ]
    table = table_of(rows)
    right = example_values(table, "acc").tolist()
    shares = [np.exp(r["choice_logprobs"]) for r in rows]
    sure = [float(s.max() / s.sum()) for s in shares]
    found = score(table, "ece")
    assert found["value"] == pytest.approx(slow_ece(right, sure))
    picks = [rng.integers(0, 150, 150) for _ in range(300)]
    replicates = [slow_ece([right[i] for i in p], [sure[i] for i in p]) for p in picks]
    assert found["stderr"] == pytest.approx(np.std(replicates, ddof=1), rel=0.2)
    assert found["stderr_method"] == "bootstrap"
    assert score(table, "ece") == found


def rolled(rng: np.random.Generator, documents: int) -> list[dict[str, Any]]:
    rows = []
    for _ in range(documents):
        size = int(rng.integers(20, 400))
        text = "word " * (size // 5) + "end"
        nats = [float(-rng.gamma(size, 0.3)) for _ in range(2)]
        rows.append({"gold": -1, "choice_logprobs": nats, "choice_bytes": [len(text), 0],
                     "references": [text]})  # fmt: skip
    return rows


@pytest.mark.parametrize("metric", ["word_perplexity", "byte_perplexity", "bits_per_byte"])
def test_ratios_weigh_documents_by_length(metric: str) -> None:
    rng = np.random.default_rng(1)
    rows = rolled(rng, 80)

    def plain(chosen: list[dict[str, Any]]) -> float:
        nats = sum(sum(r["choice_logprobs"]) for r in chosen)
        if metric == "word_perplexity":
            return math.exp(-nats / sum(len(r["references"][0].split()) for r in chosen))
        size = sum(r["choice_bytes"][0] for r in chosen)
        return -nats / size / math.log(2) if metric == "bits_per_byte" else math.exp(-nats / size)

    found = score(table_of(rows, "loglikelihood_rolling"), metric)
    assert found["value"] == pytest.approx(plain(rows))
    assert (found["stderr_method"], found["n"]) == ("delta", 80)
    picks = rng.integers(0, 80, (400, 80))
    replicates = [plain([rows[i] for i in pick]) for pick in picks]
    assert found["stderr"] == pytest.approx(np.std(replicates, ddof=1), rel=0.2)


def test_perplexity_and_its_error() -> None:
    nats = np.random.default_rng(2).normal(-3, 0.4, 200)
    rows = [{"gold": -1, "choice_logprobs": [float(v)], "is_greedy": [False]} for v in nats]
    rows.append({"gold": -1, "choice_logprobs": [], "flags": ["overflow"]})
    found = score(table_of(rows, "loglikelihood"), "perplexity")
    assert found["value"] == pytest.approx(math.exp(-nats.mean()))
    assert found["stderr"] == pytest.approx(found["value"] * nats.std(ddof=1) / math.sqrt(200))
    assert (found["n"], found["n_overflow"]) == (200, 1)


def test_too_few_documents_give_no_error_or_no_value() -> None:
    for name, metric in METRICS.items():
        if metric.cell is None:
            continue
        kind = next(iter(metric.fits))
        shape = {"choices", "first_token", "constrained", "free"} & {str(kind)}
        output_type = "multiple_choice" if shape else str(kind)
        row = {"gold": 0 if shape else -1, "choice_logprobs": [-1.0, -2.0] if shape else [-1.0],
               "choice_bytes": [3], "references": ["a b"]}  # fmt: skip
        one = score(table_of([row], output_type), name)
        assert not math.isnan(one["value"]), name
        assert math.isnan(one["stderr"]), name
        none = score(table_of([{**row, "flags": ["overflow"]}], output_type), name)
        assert math.isnan(none["value"]), name
        assert none["n"] == 0

"""Cell scores: values, errors and flags."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest

from evalcore.metrics import cell_scores
from evalcore.metrics.pooled import confusion_counts, macro_f1, mcc
from tests.toys.tables import cell_rows, study_table, subject_columns, task_columns, to_table


def slow_macro_f1(gold: list[int], chosen: list[int]) -> float:
    scores = []
    for label in sorted(set(gold) | set(chosen)):
        hit = sum(g == label == c for g, c in zip(gold, chosen, strict=True))
        wrong = sum((g == label) != (c == label) for g, c in zip(gold, chosen, strict=True))
        scores.append(2 * hit / (2 * hit + wrong))
    return sum(scores) / len(scores)


def slow_mcc(gold: list[int], chosen: list[int]) -> float:
    """Correlation of one-hot vectors, summed over classes (Gorodkin's definition)."""
    labels, n = sorted(set(gold) | set(chosen)), len(gold)

    def covariance(a: list[int], b: list[int]) -> float:
        total = 0.0
        for label in labels:
            x, y = [float(v == label) for v in a], [float(v == label) for v in b]
            mx, my = sum(x) / n, sum(y) / n
            total += sum((p - mx) * (q - my) for p, q in zip(x, y, strict=True))
        return total

    spread = covariance(gold, gold) * covariance(chosen, chosen)
    return covariance(gold, chosen) / math.sqrt(spread) if spread > 0 else 0.0


def test_confusion_metrics_equal_the_plain_versions() -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        k, n = rng.integers(2, 5), rng.integers(2, 30)
        gold, chosen = rng.integers(0, k, n), rng.integers(0, k, n)
        counts = confusion_counts(gold, chosen)[None]
        assert macro_f1(counts)[0] == pytest.approx(slow_macro_f1(gold.tolist(), chosen.tolist()))
        assert mcc(counts)[0] == pytest.approx(slow_mcc(gold.tolist(), chosen.tolist()), abs=1e-12)


def one_cell(right: list[int], **changes: object) -> pa.Table:
    rows = cell_rows(subject_columns(100), task_columns("pocket_nli"), "default", np.array(right))
    return to_table([{**row, **changes} for row in rows])


def test_mean_and_error_of_a_cell() -> None:
    scores = cell_scores(one_cell([1, 1, 0, 1, 0, 0, 1, 1]), ["acc"]).to_pylist()
    assert len(scores) == 1
    row = scores[0]
    assert (row["value"], row["n"], row["n_overflow"]) == (0.625, 8, 0)
    # Sample variance of n zeros and ones is p (1 - p) n / (n - 1).
    assert row["stderr"] == pytest.approx(math.sqrt(0.625 * 0.375 / 7))
    assert row["stderr_method"] == "analytic"


def test_bootstrap_error_agrees_with_resampling_rows() -> None:
    table = one_cell(np.random.default_rng(1).integers(0, 2, 60).tolist())
    fast = cell_scores(table, ["macro_f1"], seed=3).to_pylist()[0]
    assert fast["stderr_method"] == "bootstrap"
    gold = table.column("gold").to_pylist()
    chosen = table.column("prediction").to_pylist()
    assert fast["value"] == pytest.approx(slow_macro_f1(gold, chosen))
    rng, replicates = np.random.default_rng(5), []
    for _ in range(400):
        pick = rng.integers(0, 60, 60)
        replicates.append(slow_macro_f1([gold[i] for i in pick], [chosen[i] for i in pick]))
    assert fast["stderr"] == pytest.approx(np.std(replicates, ddof=1), rel=0.15)
    assert fast == cell_scores(table, ["macro_f1"], seed=3).to_pylist()[0]


def test_overflow_is_counted_and_not_scored() -> None:
    rows = cell_rows(subject_columns(100), task_columns("pocket_nli"), "default", np.ones(4))
    rows[2] |= {"flags": ["overflow"], "choice_logprobs": []}
    row = cell_scores(to_table(rows), ["acc"]).to_pylist()[0]
    assert (row["n"], row["n_overflow"], row["value"]) == (3, 1, 1.0)
    assert "overflow" in row["flags"]


def test_a_model_that_always_says_the_same_is_flagged() -> None:
    rows = cell_rows(subject_columns(100), task_columns("pocket_nli"), "default", np.zeros(30))
    for row in rows:
        row |= {"choice_logprobs": [-1.0, -2.0, -3.0], "prediction": 0}
    row = cell_scores(to_table(rows), ["acc"]).to_pylist()[0]
    assert (row["modal_share"], row["prediction_entropy_bits"]) == (1.0, 0.0)
    assert row["flags"] == ["modal_prediction"]
    even = cell_scores(one_cell([1] * 300), ["acc"]).to_pylist()[0]
    assert even["prediction_entropy_bits"] == pytest.approx(math.log2(3), abs=0.02)
    assert even["flags"] == []


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({"gold": 1}, "gold_one_class"),
        ({"gold": -1}, "gold_missing"),
        ({"prediction": 7}, "prediction_disagrees_with_logprobs"),
    ],
)
def test_suspicious_cells_are_flagged(changes: dict[str, int], flag: str) -> None:
    row = cell_scores(one_cell([1, 0, 1], **changes), ["acc"]).to_pylist()[0]
    assert flag in row["flags"]
    if flag == "gold_missing":
        assert row["n"] == 0
        assert "unscored:3" in row["flags"]


def test_every_cell_of_a_study_gets_its_own_metrics() -> None:
    table = study_table(documents=6)
    scores = cell_scores(table)
    per_cell = {}
    for row in scores.to_pylist():
        per_cell.setdefault(row["cell"], []).append(row["metric"])
    assert len(per_cell) == len(table.column("cell").unique())
    assert sorted(map(len, per_cell.values()))[0] == 2
    shuffled = table.take(pa.array(np.random.default_rng(0).permutation(table.num_rows)))
    again = cell_scores(shuffled).sort_by([("cell", "ascending"), ("metric", "ascending")])
    expected = scores.sort_by([("cell", "ascending"), ("metric", "ascending")])
    assert again.column("metric").equals(expected.column("metric"))
    np.testing.assert_allclose(
        again.column("value").to_numpy(), expected.column("value").to_numpy(), rtol=1e-12
    )


def test_prompts_that_lost_something_are_counted() -> None:
    rows = cell_rows(subject_columns(100), task_columns("pocket_nli"), "default", np.ones(4) > 0)
    rows[0] |= {"truncated_tokens": 7}
    rows[1] |= {"truncated_tokens": 1, "shots_dropped": 2}
    row = cell_scores(to_table(rows), ["acc"]).to_pylist()[0]
    assert row["flags"] == ["truncated:2", "shots_dropped:1"]

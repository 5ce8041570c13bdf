"""Odd results: whatever is odd about them, no number misleads; each says what it is in its row."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from evalcore.analysis import Analysis, analyse, score_rows, scores_table
from evalcore.analysis.findings import FINDINGS
from evalcore.analysis.notes import contrast_notes, gain_notes
from evalcore.analysis.variation import Layout, variation
from tests.toys.tables import cell_rows, subject_columns, task_columns, to_table

NLI = task_columns("nli", tuned_by="nli", domain="in")
BASE, TUNED = subject_columns(100), subject_columns(100, "nli")
Rows = list[dict[str, Any]]


def study(base: Any, tuned: Any, prompts: tuple[str, ...] = ("default",)) -> Analysis:
    rows: Rows = []
    for prompt in prompts:
        rows += cell_rows(BASE, NLI, prompt, np.asarray(base))
        rows += cell_rows(TUNED, NLI, prompt, np.asarray(tuned))
    return analyse(to_table(rows))


@pytest.mark.parametrize("prompts", [("default",), ("default", "io", "instruct")])
def test_one_document_has_no_interval_and_no_p(prompts: tuple[str, ...]) -> None:
    analysis = study([0], [1], prompts)
    gain = analysis.gains[0].pooled
    assert gain.value == 1.0
    assert gain.claim == ""
    assert all(math.isnan(v) for v in (gain.low95, gain.high99, gain.stderr, gain.p))
    assert {r["error_of"] for r in scores_table(score_rows(analysis.book)).to_pylist()} == {"none"}
    assert all(r["gain_low95"] is None for r in scores_table(score_rows(analysis.book)).to_pylist())


@pytest.mark.parametrize(
    ("base", "tuned", "value"),
    [(np.zeros(50), np.ones(50), 1.0), (np.ones(50), np.ones(50), 0.0),
     (np.zeros(2), np.ones(2), 1.0), (np.ones(50), np.zeros(50), -1.0)],
)  # fmt: skip
def test_all_right_or_all_wrong_is_never_known_to_a_point(
    base: Any, tuned: Any, value: float
) -> None:
    analysis = study(base, tuned)
    gain = analysis.gains[0].pooled
    assert (gain.value, gain.degenerate) == (value, True)
    assert gain.high95 - gain.low95 > 0.05, "not a width of 0"
    assert -1 <= gain.low99 <= gain.low95 <= value <= gain.high95 <= gain.high99 <= 1
    for row in score_rows(analysis.book):
        assert row.score.high95 - row.score.low95 > 0.05


def test_equal_differences_without_bounds_have_no_interval() -> None:
    task = task_columns("nli", tuned_by="nli", domain="in", primary_metric="gold_logprob")
    rows = cell_rows(BASE, task, "default", np.ones(30))
    worse = [
        {**row, "choice_logprobs": [v - 0.25 for v in row["choice_logprobs"]]}
        for row in cell_rows(TUNED, task, "default", np.ones(30))
    ]
    gain = analyse(to_table([*rows, *worse])).gains[0].pooled
    assert abs(gain.value) == pytest.approx(0.25)
    assert gain.degenerate
    assert gain.claim == ""
    assert math.isnan(gain.low95)


def test_values_that_are_no_number_are_counted_on_both_sides() -> None:
    rows = cell_rows(BASE, NLI, "default", np.ones(20))
    rows += cell_rows(TUNED, NLI, "default", np.zeros(20))
    for row in rows[:5]:
        row["choice_logprobs"] = [math.nan] * 3
    analysis = analyse(to_table(rows))
    (gain,) = analysis.gains
    assert (gain.pooled.value, gain.own.n, gain.other.n, gain.missing_rows) == (-1.0, 15, 15, 5)
    notes = gain_notes(analysis.book, gain)
    assert "base: 5 not scored" in notes
    assert "5 answers on one side only" in notes


def test_a_seed_that_one_checkpoint_lacks_is_left_out_of_both() -> None:
    rows: Rows = []
    for step, seeds in ((100, (0, 1, 2)), (200, (0, 2))):
        rows += cell_rows(subject_columns(step), NLI, "default", np.arange(60) < 20)
        for seed in seeds:
            tuned = subject_columns(step, "nli", seed=seed)
            share = 30 + 6 * seed + (step == 100) * (seed == 1) * 20
            rows += cell_rows(tuned, NLI, "default", np.arange(60) < share)
    analysis = analyse(to_table(rows))
    (contrast,) = analysis.contrasts
    assert contrast.difference.value == pytest.approx(0.0), "seeds 0 and 2 did not change"
    assert contrast.later.pooled.value < contrast.earlier.pooled.value - 0.05
    notes = contrast_notes(analysis.book, contrast)
    assert "seeds that both checkpoints have: 2 of 3" in notes


def test_tunings_scored_on_different_documents_are_not_compared_with_each_other() -> None:
    rows = cell_rows(BASE, NLI, "default", np.arange(40) < 10)
    rows += cell_rows(TUNED | {"method": "lora"}, NLI, "default", np.ones(20))
    whole = subject_columns(100, "nli", seed=3) | {"method": "full"}
    rows += cell_rows(whole, NLI, "default", np.zeros(20), first_document=20)
    analysis = analyse(to_table(rows))
    assert [g.pooled.value for g in analysis.gains] == [0.5, 0.0]
    assert all("20 answers on one side only" in gain_notes(analysis.book, g)
               for g in analysis.gains)  # fmt: skip
    assert FINDINGS["methods"](analysis) == [], "no document in common: no difference is made up"


def test_clusters_of_one_to_a_thousand_documents() -> None:
    rng = np.random.default_rng(0)
    sizes = np.array([1] * 20 + [5] * 10 + [1000])
    clusters = np.repeat(np.arange(len(sizes)), sizes)
    values = (rng.random(len(clusters)) < np.repeat(rng.random(31), sizes)).astype(np.float64)
    none = np.zeros(len(clusters), dtype=np.int64)
    found = variation(Layout(values, clusters, none, none, (0.0, 1.0)))
    assert (found.clusters, found.documents) == (31, 1070)
    assert found.widest.high95 - found.widest.low95 > 0.5, "one cluster decides"
    alone = variation(Layout(values, np.arange(len(values)), none, none, (0.0, 1.0)))
    assert alone.widest.high95 - alone.widest.low95 < 0.05

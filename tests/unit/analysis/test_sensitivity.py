"""Spread over prompts with errors, its trend, ranks, what gains go with: against slow versions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from evalcore.analysis import ScoreBook, analyse
from evalcore.analysis.agreement import kendalls_w
from evalcore.analysis.findings import FINDINGS
from evalcore.analysis.relations import gain_by_base, halved_gains, method_contrasts
from evalcore.analysis.sensitivity import (
    jackknife,
    jackknife_groups,
    left_variances,
    rank_stability,
    sensitivities,
    spread_trends,
    variance_beyond_noise,
)
from evalcore.analysis.stats import prompt_spread
from tests.toys.tables import cell_rows, study_table, subject_columns, task_columns, to_table

NLI = task_columns("nli", tuned_by="nli", domain="in")


def test_sums_give_what_leaving_out_gives() -> None:
    rng = np.random.default_rng(0)
    values = (rng.random((50, 4)) < [0.9, 0.6, 0.5, 0.55]).astype(float)
    clusters = np.repeat(np.arange(10), 5)
    group = jackknife_groups(clusters)
    value, left = left_variances(values, group)
    assert value == pytest.approx(prompt_spread(values).variance)
    slow = [variance_beyond_noise(values[clusters != c]) for c in range(10)]
    assert left == pytest.approx(slow)
    found = jackknife(value, left)
    error = math.sqrt(9 / 10 * sum((v - np.mean(slow)) ** 2 for v in slow))
    assert (found.stderr, found.degrees) == (pytest.approx(error), 9)
    low, high = found.limits()
    assert high - value == pytest.approx(value - low)
    assert high - value == pytest.approx(stats.t.ppf(0.975, 9) * error)
    assert found.p == pytest.approx(2 * stats.t.sf(abs(value) / error, 9))
    assert len(np.unique(jackknife_groups(np.arange(1000)))) == 100


def test_the_interval_of_the_spread_holds() -> None:
    """95 % for these prompts, and for a population of prompts: simulated."""
    rng = np.random.default_rng(4)
    these = others = 0
    effects = np.array([-0.1, 0.0, 0.15])
    truth = float(effects.var(ddof=1))
    for _ in range(300):
        chance = np.clip(0.5 + rng.normal(0, 0.2, 300)[:, None] + effects, 0, 1)
        values = (rng.random(chance.shape) < chance).astype(float)
        low, high = jackknife(*left_variances(values, jackknife_groups(np.arange(300)))).limits()
        these += low <= truth <= high
    assert these / 300 >= 0.9
    from evalcore.analysis.sensitivity import _for_other_prompts

    for _ in range(1000):
        means = rng.normal(0, 0.1, 5) + rng.normal(0, 0.02, 5)
        low, high = _for_other_prompts(float(means.var(ddof=1)), 0.02**2, 5)
        others += low <= 0.1 <= high
    assert 0.93 <= others / 1000 <= 0.975


def rows_of(
    step: int, name: str | None, right: dict[str, np.ndarray], **more: Any
) -> list[dict[str, Any]]:
    subject = subject_columns(step, name) | more
    return [r for v, own in right.items() for r in cell_rows(subject, NLI, v, own)]


def test_every_number_of_a_row_on_a_study_that_is_known() -> None:
    rng = np.random.default_rng(1)
    n, rows = 120, []
    right: dict[tuple[int, str | None], dict[str, np.ndarray]] = {}
    for number, step in enumerate((100, 200, 400, 800)):
        for tuning in (None, "nli"):
            gap = 0.1 * number if tuning else 0.0
            chances = {"a": 0.5 + gap, "b": 0.5, "c": 0.5 - gap}
            right[(step, tuning)] = {v: (rng.random(n) < c).astype(int) for v, c in chances.items()}
            rows += rows_of(step, tuning, right[(step, tuning)])
    analysis = analyse(to_table(rows))
    found = sensitivities(analysis.book, analysis.spreads)
    row = next(s for s in found if s.subject.step == 800 and s.subject.tuning)
    own = np.stack([right[(800, "nli")][v] for v in "abc"], axis=1).astype(float)
    base = np.stack([right[(800, None)][v] for v in "abc"], axis=1).astype(float)
    means = own.mean(axis=0)
    assert row.variance.value == pytest.approx(prompt_spread(own).variance)
    assert row.range == pytest.approx(means.max() - means.min())
    assert row.choice is not None
    assert row.choice.saturation == pytest.approx(1 - (means.max() - means.mean()))
    assert row.choice.combined == pytest.approx(row.choice.saturation * means.max())
    assert row.change is not None
    assert row.change.value == pytest.approx(
        prompt_spread(own).variance - prompt_spread(base).variance
    )
    assert row.change.p < 0.01
    assert row.low95 < row.sd < row.high95
    assert row.low95_prompts < row.sd < row.high95_prompts
    # Choices: the same gold, so agreement is at least that of being right.
    assert -1 < row.kappa < 1
    tuned, untuned = sorted(
        spread_trends(analysis.book, analysis.spreads), key=lambda t: -t.slope.value
    )
    assert (tuned.tuning, untuned.tuning) == ("nli", None)
    variances = [
        prompt_spread(
            np.stack([right[(s, "nli")][v] for v in "abc"], axis=1).astype(float)
        ).variance
        for s in (100, 200, 400, 800)
    ]
    assert tuned.slope.value == pytest.approx(stats.linregress(range(4), variances).slope)
    assert tuned.slope.p < 0.01 < untuned.slope.p
    (ranks,) = rank_stability(analysis.book)
    assert (len(ranks.models), len(ranks.prompts)) == (8, 3)
    matrix = np.array([[right[k][v].mean() for k in right] for v in "abc"])
    assert ranks.w == pytest.approx(kendalls_w(matrix))


def test_held_out_halves_take_off_the_regression_to_the_mean() -> None:
    """Gains that have nothing to do with the base's score, on few documents."""
    rng = np.random.default_rng(2)
    same, held = [], []
    for study in range(12):
        rows = []
        for number in range(6):
            task = task_columns(f"t{number}", tuned_by="nli", domain="in")
            for tuning, chance in ((None, 0.4), ("nli", 0.6)):
                right = (rng.random(24) < chance).astype(int)
                rows += cell_rows(subject_columns(100 + study, tuning), task, "a", right)
        book = ScoreBook.from_table(to_table(rows))
        analysis = analyse(book)
        (line,) = gain_by_base(halved_gains(book, analysis.own_gains()))
        assert (line.points, line.tasks, line.refused) == (6, 6, "")
        same.append(line.same_documents)
        held.append(line.slope.value)
    assert np.mean(same) < -0.7
    assert abs(np.mean(held)) < 0.35


def test_the_slope_over_halves_is_that_of_a_regression() -> None:
    """Least squares and the jackknife over tasks, against scipy and leaving tasks out by hand."""
    rng, rows = np.random.default_rng(5), []
    for number in range(5):
        task = task_columns(f"t{number}", tuned_by="nli", domain="in")
        for tuning, chance in ((None, 0.2 + 0.12 * number), ("nli", 0.9 - 0.05 * number)):
            right = (rng.random(60) < chance).astype(int)
            rows += cell_rows(subject_columns(100, tuning), task, "a", right)
    analysis = analyse(to_table(rows))
    halves = halved_gains(analysis.book, analysis.own_gains())
    (line,) = gain_by_base(halves)

    def slope(of: list[Any]) -> float:
        points = [point for h in of for point in h.held_out]
        return float(stats.linregress(*zip(*points, strict=True)).slope)

    assert line.slope.value == pytest.approx(slope(halves))
    left = np.array([slope([h for h in halves if h is not out]) for out in halves])
    error = math.sqrt(4 / 5 * ((left - left.mean()) ** 2).sum())
    low, high = line.slope.limits()
    assert high - low == pytest.approx(2 * stats.t.ppf(0.975, 4) * error)


def test_few_tasks_have_no_interval_of_the_slope() -> None:
    rows = [*rows_of(100, None, {"a": np.tile([0, 1], 20)}),
            *rows_of(100, "nli", {"a": np.tile([1, 1], 20)})]  # fmt: skip
    analysis = analyse(to_table(rows))
    (line,) = gain_by_base(halved_gains(analysis.book, analysis.own_gains()))
    assert line.refused == "1 task: nothing can be said about others"
    assert math.isnan(line.slope.limits()[0])
    assert math.isnan(line.slope.p)


def test_lora_minus_full_is_paired_by_document() -> None:
    rng = np.random.default_rng(3)
    right = {k: (rng.random(80) < 0.5).astype(int) for k in ("base", "lora", "full")}
    full = {"method": "full", "tuning": "nli+full", "tuned_on": "nli",
            "subject": subject_columns(100)["subject"] + "+f", "adapter": "f"}  # fmt: skip
    rows = [
        *rows_of(100, None, {"a": right["base"]}),
        *rows_of(100, "nli", {"a": right["lora"]}, method="lora", tuned_on="nli"),
        *rows_of(100, "nli", {"a": right["full"]}, **full),
    ]
    analysis = analyse(to_table(rows))
    (found,) = method_contrasts(analysis.book, analysis.primary_gains())
    gap = (right["lora"] - right["full"]).astype(float)
    assert (found.method, found.other) == ("lora", "full")
    assert found.difference.pooled.value == pytest.approx(gap.mean())
    assert found.difference.pooled.stderr == pytest.approx(stats.sem(gap))
    (row,) = FINDINGS["methods"](analysis)
    assert (row["minus"], row["difference"]) == ("full", pytest.approx(gap.mean()))


def test_every_finding_has_rows_on_a_study() -> None:
    analysis = analyse(study_table(documents=8))
    rows = {name: make(analysis) for name, make in FINDINGS.items()}
    assert not rows.pop("methods"), "one method only"
    assert all(rows.values())
    change = next(r for r in rows["changes_by_metric"] if r["kind"] == "forgetting")
    own = [
        f for f in analysis.forgetting
        if f.gain.subject.checkpoint == change["checkpoint"]
        and f.gain.subject.adapter == change["adapter"] and f.gain.task.metric == change["metric"]
    ]  # fmt: skip
    assert change["raw"] == pytest.approx(np.mean([f.gain.pooled.value for f in own]))
    assert change["median_ratio"] == pytest.approx(np.median([f.ratio for f in own]))
    assert {r["kind"] for r in rows["changes_by_metric"]} == {"forgetting", "transfer"}

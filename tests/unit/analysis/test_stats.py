"""Intervals and variance components: plain twins, published numbers, behaviour under simulation."""

from __future__ import annotations

import math
import statistics
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from scipy.stats import t as student

from evalcore.analysis import mean_estimate, normal_range, prompt_spread
from evalcore.analysis.estimates import mean_of_estimates
from evalcore.analysis.stats import Estimate, t_quantile


def slow_spread(values: list[list[float]]) -> tuple[float, float]:
    """(variance of prompt means, mean squared residual) of documents x prompts, by loops."""
    n, p = len(values), len(values[0])
    columns = [sum(row[j] for row in values) / n for j in range(p)]
    rows = [sum(row) / p for row in values]
    grand = sum(rows) / n
    residual = sum(
        (values[i][j] - rows[i] - columns[j] + grand) ** 2 for i in range(n) for j in range(p)
    )
    return statistics.variance(columns), residual / ((n - 1) * (p - 1))


def test_mean_estimate_is_the_textbook_interval() -> None:
    values = [0.0, 1.0, 0.5, 0.25, 1.0]
    got = mean_estimate(np.array(values))
    stderr = statistics.stdev(values) / math.sqrt(5)
    assert got.value == pytest.approx(statistics.mean(values))
    assert got.stderr == pytest.approx(stderr)
    # Student's t with 4 degrees of freedom, from printed tables: 2.776 and 4.604.
    assert got.high95 - got.value == pytest.approx(2.776 * stderr, rel=2e-4)
    assert got.value - got.low99 == pytest.approx(4.604 * stderr, rel=2e-4)
    assert t_quantile(0.975, 10_000) == pytest.approx(1.960, abs=1e-3)


def test_no_document_one_document_and_no_spread() -> None:
    assert math.isnan(mean_estimate(np.array([])).value)
    one = mean_estimate(np.array([0.5]))
    assert one.value == 0.5
    assert math.isnan(one.low99)
    same = mean_estimate(np.full(7, 0.1))
    assert same.degenerate
    assert not mean_estimate(np.array([0.0, 1.0])).degenerate


def coverage(runs: int, n: int) -> tuple[float, float]:
    """Share of 95 % and 99 % intervals that hold the true mean of paired 0/1 differences."""
    rng = np.random.default_rng(11)
    hits95 = hits99 = 0
    for _ in range(runs):
        difficulty = rng.random(n)
        base, tuned = rng.random(n) < difficulty * 0.8, rng.random(n) < 0.3 + difficulty * 0.6
        truth = 0.3 + 0.5 * 0.6 - 0.5 * 0.8
        got = mean_estimate(tuned.astype(float) - base)
        hits95 += got.low95 <= truth <= got.high95
        hits99 += got.low99 <= truth <= got.high99
    return hits95 / runs, hits99 / runs


def test_t_interval_covers_as_it_says() -> None:
    share95, share99 = coverage(3000, 60)
    assert share95 == pytest.approx(0.95, abs=0.015)
    assert share99 == pytest.approx(0.99, abs=0.007)


def test_scaled_and_shifted_keep_the_interval_in_order() -> None:
    one = Estimate(0.2, 0.1, 5, 0.0, 0.4, -0.1, 0.5)
    turned = one.scaled(-2)
    assert (turned.low95, turned.high95, turned.low99, turned.high99) == (-0.8, 0, -1.0, 0.2)
    assert one.shifted(1).low99 == pytest.approx(0.9)


def test_mean_of_estimates_has_the_error_of_independent_parts() -> None:
    rng, k, n = np.random.default_rng(2), 4, 40
    means, errors = [], []
    for _ in range(800):
        parts = [mean_estimate(rng.normal(i, 1 + i, n)) for i in range(k)]
        combined = mean_of_estimates(parts)
        means.append(combined.value)
        errors.append(combined.stderr)
    assert np.mean(means) == pytest.approx(1.5, abs=0.03)
    assert np.std(means) == pytest.approx(np.mean(errors), rel=0.07)


def test_spread_equals_the_loops() -> None:
    values = np.random.default_rng(3).random((17, 5))
    got = prompt_spread(values)
    between, residual = slow_spread(values.tolist())
    means = values.mean(axis=0)
    assert got.range == pytest.approx(max(means) - min(means))
    assert got.std == pytest.approx(math.sqrt(between))
    assert got.variance == pytest.approx(between - residual / 17)
    assert got.range_noise == pytest.approx(normal_range(5) * math.sqrt(residual / 17))


def test_range_of_noise_alone() -> None:
    # Control-chart constants d2 as printed: 2, 3, 5, 10 observations.
    for count, d2 in ((2, 1.128), (3, 1.693), (5, 2.326), (10, 3.078)):
        assert normal_range(count) == pytest.approx(d2, abs=5e-4)
    # 200 documents at p = .5 without any effect: .060 at 3 prompts, .153 at 40.
    error = math.sqrt(0.25 / 200)
    assert normal_range(3) * error == pytest.approx(0.060, abs=5e-4)
    assert normal_range(40) * error == pytest.approx(0.153, abs=5e-4)


@pytest.mark.parametrize("effect", [0.0, 0.06])
def test_prompt_variance_is_unbiased_with_shared_documents(effect: float) -> None:
    """Documents differ in difficulty, some prompts are correlated: neither must leak in."""
    rng = np.random.default_rng(4)
    prompts, documents, got, ranges = 4, 80, [], []
    for _ in range(1500):
        shift = rng.normal(0, effect, prompts)
        difficulty = rng.normal(0.5, 0.25, (documents, 1))
        quirk = rng.normal(0, 0.2, (documents, prompts))
        quirk[:, 1] = quirk[:, 0] * 0.9 + quirk[:, 1] * 0.1
        spread = prompt_spread(difficulty + shift + quirk)
        got.append(spread.variance)
        ranges.append((spread.range, spread.range_noise))
    error = np.std(got) / math.sqrt(len(got))
    assert np.mean(got) == pytest.approx(effect**2, abs=4 * float(error))
    if effect == 0:
        assert any(v < 0 for v in got)
        seen, expected = np.mean(ranges, axis=0)
        assert seen == pytest.approx(expected, rel=0.08)


def test_clipping_is_said() -> None:
    flat = prompt_spread(np.array([[0.0, 1.0], [1.0, 0.0]]))
    assert flat.clipped
    assert flat.prompt_std == 0
    assert flat.variance < 0


def runs_of(values: npt.NDArray[np.float64]) -> Estimate:
    """The mean of a run of seeds, of 1,000 documents under three prompts."""
    estimate = mean_estimate(np.zeros(1000))
    sd = float(values.std(ddof=1)) if len(values) > 1 else math.nan
    return replace(estimate, value=float(values.mean()), seeds=len(values), seed_sd=sd, prompts=3)


@pytest.mark.parametrize("seeds", [3, 5])
def test_the_next_run_lies_where_it_is_said_to(seeds: int) -> None:
    rng, held, plain = np.random.default_rng(seeds), 0, 0
    quantile = float(student.ppf(0.975, seeds - 1))
    for _ in range(4000):
        one, other = rng.normal(0.3, 0.05, (2, seeds))
        low, high = runs_of(one).next_run()
        sd = math.hypot(one.std(ddof=1), 1 / 3000)  # one answer of 1,000 under three prompts
        half = quantile * sd / math.sqrt(seeds)
        assert high - low == pytest.approx(2 * math.sqrt(2) * half)
        held += low <= other.mean() <= high
        plain += abs(other.mean() - one.mean()) <= half
    assert 0.94 <= held / 4000 <= 0.96
    # The plain interval is about the true mean, not about the next run's.
    expected = 2 * float(student.cdf(student.ppf(0.975, seeds - 1) / math.sqrt(2), seeds - 1)) - 1
    assert plain / 4000 == pytest.approx(expected, abs=0.015)
    assert 0.83 < expected < 0.91


def test_a_next_run_of_few_or_equal_seeds() -> None:
    for few in (np.array([0.3]), np.array([0.3, 0.4])):
        assert all(math.isnan(v) for v in runs_of(few).next_run())
    low, high = runs_of(np.array([0.5, 0.5, 0.5])).next_run()
    assert high - low == pytest.approx(2 * 4.30265 * math.sqrt(2 / 3) / 3000, rel=1e-4)
    mean = mean_of_estimates(
        [runs_of(np.array([0.1, 0.3, 0.5])), runs_of(np.array([0.5, 0.3, 0.1]))]
    )
    assert mean.seed_sd == pytest.approx(0.2), "as if seeds moved both alike: the cautious end"

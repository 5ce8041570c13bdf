"""What a mean generalises to: against analysis of variance by hand, brute force and simulation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from bench.coverage import Point, draw, simulate
from evalcore.analysis.intervals import CLAIMS
from evalcore.analysis.stats import t_quantile
from evalcore.analysis.variation import Layout, variation, variation_of_table

THESE, RUNS, PROMPTS, SEEDS = CLAIMS


def crossed(n: int, p: int, s: int, seed: int = 0) -> np.ndarray:
    """Normal values with every effect of the crossed layout."""
    g = np.random.default_rng(seed)
    return (
        g.normal(size=(n, 1, 1)) + 0.5 * g.normal(size=(1, p, 1)) + 0.7 * g.normal(size=(1, 1, s))
        + 0.3 * g.normal(size=(1, p, s)) + 0.4 * g.normal(size=(n, p, s)) + 2.0
    )  # fmt: skip


def test_documents_only_is_the_t_interval_of_document_means() -> None:
    values = crossed(40, 3, 2)
    found = variation_of_table(values).intervals[THESE]
    means = values.mean(axis=(1, 2))
    half = t_quantile(0.975, 39) * means.std(ddof=1) / np.sqrt(40)
    assert found.value == pytest.approx(means.mean())
    assert (found.low95, found.high95) == pytest.approx((means.mean() - half, means.mean() + half))


def test_parts_are_those_of_the_analysis_of_variance() -> None:
    """Mean squares of the three-way layout, all effects large: nothing is cut off at 0."""
    n, p, s = 30, 12, 9
    values = crossed(n, p, s, 3)
    grand = values.mean()
    prompt, seed = values.mean(axis=(0, 2)), values.mean(axis=(0, 1))
    cell = values.mean(axis=0)
    doc = values.mean(axis=(1, 2))
    by_dp, by_ds = values.mean(axis=2), values.mean(axis=1)
    ms_p = n * s * ((prompt - grand) ** 2).sum() / (p - 1)
    ms_s = n * p * ((seed - grand) ** 2).sum() / (s - 1)
    rest = cell - prompt[:, None] - seed[None] + grand
    ms_ps = n * (rest**2).sum() / ((p - 1) * (s - 1))
    ms_dp = s * ((by_dp - doc[:, None] - prompt + grand) ** 2).sum() / ((n - 1) * (p - 1))
    ms_ds = p * ((by_ds - doc[:, None] - seed + grand) ** 2).sum() / ((n - 1) * (s - 1))
    e = (
        values - by_dp[:, :, None] - by_ds[:, None, :] - cell[None]
        + doc[:, None, None] + prompt[None, :, None] + seed[None, None, :] - grand
    )  # fmt: skip
    ms_e = (e**2).sum() / ((n - 1) * (p - 1) * (s - 1))
    var_p = (ms_p - ms_dp - ms_ps + ms_e) / (n * s) + (ms_dp / (n * s)) * 2 / (p - 1)
    var_s = (ms_s - ms_ds - ms_ps + ms_e) / (n * p) + (ms_ds / (n * p)) * 2 / (s - 1)
    both = (ms_ps - ms_e) / n
    parts = variation_of_table(values).intervals[SEEDS].parts
    assert parts is not None
    assert parts.prompts == pytest.approx(var_p / p + both / (p * s))
    assert parts.seeds == pytest.approx(var_s / s)
    assert parts.documents == pytest.approx(doc.var(ddof=1) / n)


def test_a_layout_with_gaps_equals_brute_force_over_pairs() -> None:
    g = np.random.default_rng(5)
    values = crossed(25, 5, 4, 6)
    values[g.random(values.shape) < 0.2] = np.nan
    values[:, 2, 1] = np.nan  # a cell that was never scored
    d, p, s = np.nonzero(~np.isnan(values))
    found = variation(Layout(values[d, p, s], d, p, s))
    cells = sorted({(a, b) for a, b in zip(p, s, strict=True)})
    means = {c: np.nanmean(values[:, c[0], c[1]]) for c in cells}
    counts = {c: np.sum(~np.isnan(values[:, c[0], c[1]])) for c in cells}
    moves = {
        c: np.nan_to_num((values[:, c[0], c[1]] - means[c]) / counts[c], nan=0.0) for c in cells
    }
    total = np.mean([moves[c] for c in cells], axis=0)
    n = len(total)
    assert found.missing == 1
    assert found.value == pytest.approx(np.mean(list(means.values())))
    parts = found.intervals[SEEDS].parts
    assert parts is not None
    assert parts.documents == pytest.approx((total**2).sum() * n / (n - 1))

    def moment(same: tuple[int, ...]) -> float:
        pairs = [
            (a, b) for a, b in itertools.combinations(cells, 2) if all(a[i] == b[i] for i in same)
        ]
        raw = sum((means[a] - means[b]) ** 2 / 2 for a, b in pairs)
        noise = sum(((moves[a] - moves[b]) ** 2).sum() / 2 for a, b in pairs)
        return raw - noise * n / (n - 1)

    def expected(same: tuple[int, ...]) -> list[float]:
        pairs = [
            (a, b) for a, b in itertools.combinations(cells, 2) if all(a[i] == b[i] for i in same)
        ]
        return [
            float(sum(a[0] != b[0] for a, b in pairs)),
            float(sum(a[1] != b[1] for a, b in pairs)),
            float(len(pairs)),
        ]

    groupings: list[tuple[int, ...]] = [(), (0,), (1,)]
    solved = np.linalg.solve(
        np.array([expected(g) for g in groupings]), np.array([moment(g) for g in groupings])
    )
    share = sum(np.sum([c[1] == v for c in cells]) ** 2 for v in {c[1] for c in cells})
    of_seed = np.array([np.mean([moves[c] for c in cells if c[1] == v], axis=0) for v in range(4)])
    noise = of_seed.var(axis=0, ddof=1).sum() * n / (n - 1)
    wanted = max(solved[1] + noise * (1 - 1 / 3), 0) * share / len(cells) ** 2
    assert parts.seeds == pytest.approx(wanted)


def test_table_and_layout_give_the_same() -> None:
    values = crossed(30, 4, 3, 7)
    clusters = np.arange(30) // 3
    d, p, s = np.nonzero(~np.isnan(values))
    one = variation_of_table(values, clusters=clusters, bounds=(-9.0, 9.0))
    other = variation(Layout(values[d, p, s], clusters[d], p, s, (-9.0, 9.0)))
    for claim in CLAIMS:
        a, b = one.intervals[claim], other.intervals[claim]
        assert (a.low95, a.high99, a.stderr) == pytest.approx((b.low95, b.high99, b.stderr))


def test_other_seeds_of_these_prompts_are_the_mirror_of_other_prompts_of_this_run() -> None:
    values = crossed(40, 4, 3, 8)
    values[3:9, 1, 2] = np.nan
    d, p, s = np.nonzero(~np.isnan(values))
    one = variation(Layout(values[d, p, s], d, p, s, (-9.0, 9.0)))
    mirror = variation(Layout(values[d, p, s], d, s, p, (-9.0, 9.0)))
    a, b = one.intervals[RUNS], mirror.intervals[PROMPTS]
    assert (a.low95, a.high99, a.stderr) == pytest.approx((b.low95, b.high99, b.stderr))
    assert a.parts is not None
    assert b.parts is not None
    assert (a.parts.seeds, a.parts.num_seeds) == (pytest.approx(b.parts.prompts), 3)
    single = variation_of_table(crossed(40, 1, 3, 8))
    assert single.widest.claim == RUNS
    assert variation_of_table(crossed(40, 2, 3, 8)).widest.claim == SEEDS


def test_one_prompt_or_one_seed_refuses_in_words() -> None:
    found = variation_of_table(crossed(20, 1, 1))
    assert found.intervals[THESE].known
    assert found.intervals[PROMPTS].refused == "one prompt: nothing can be said about other prompts"
    assert found.intervals[SEEDS].refused.startswith("one prompt")
    found = variation_of_table(crossed(20, 3, 1))
    assert found.intervals[SEEDS].refused == "one seed: nothing can be said about other seeds"
    assert found.widest.claim == PROMPTS
    assert not variation_of_table(crossed(1, 3, 2)).intervals[THESE].known
    assert not variation_of_table(np.zeros((0, 3))).intervals[THESE].known


def test_three_seeds_far_apart_are_not_known_to_a_point() -> None:
    """Gains .1, .3, .5 with document errors of .01: the seeds' own spread rules."""
    g = np.random.default_rng(1)
    values = np.array([0.1, 0.3, 0.5]) + 0.3 * g.standard_normal((1000, 2, 3))
    values -= values.mean(axis=(0, 1)) - np.array([0.1, 0.3, 0.5])
    found = variation_of_table(values)
    assert found.intervals[THESE].width95 < 0.05
    assert found.intervals[SEEDS].width95 == pytest.approx(2 * 4.303 * 0.2 / np.sqrt(3), rel=0.02)


@pytest.mark.parametrize(("up", "down", "n"), [(0, 0, 20), (3, 0, 20), (5, 1, 50)])
def test_paired_answers_get_the_interval_of_bonett_and_price(up: int, down: int, n: int) -> None:
    """Bonett and Price 2012: one count added to each discordant cell; t for the normal quantile."""
    values = np.zeros((n, 1))
    values[:up], values[up : up + down] = 1.0, -1.0
    found = variation_of_table(values, bounds=(-1.0, 1.0)).intervals[THESE]
    a, b = (up + 1) / (n + 2), (down + 1) / (n + 2)
    half = t_quantile(0.975, n + 1) * np.sqrt((a + b - (a - b) ** 2) / (n + 2))
    assert (found.low95, found.high95) == pytest.approx((a - b - half, a - b + half))
    assert found.width95 > 0


def test_a_proportion_gets_the_interval_of_agresti_and_coull() -> None:
    values = np.zeros((20, 1))
    values[0] = 1.0
    found = variation_of_table(values, bounds=(0.0, 1.0)).intervals[THESE]
    z = stats.norm.ppf(0.975)
    total = 20 + z**2
    p = (1 + z**2 / 2) / total
    half = t_quantile(0.975, total - 1) * np.sqrt(p * (1 - p) / total)
    assert found.low95 == pytest.approx(max(p - half, 0))
    assert found.high95 == pytest.approx(p + half)


@pytest.mark.parametrize("bounds", [None, (-1.0, 1.0)])
def test_p_value_is_where_the_interval_first_holds_zero(bounds: tuple[float, float] | None) -> None:
    values = np.random.default_rng(3).normal(0.05, 0.3, (80, 4)).clip(-1, 1)
    found = variation_of_table(values, bounds=bounds).intervals[PROMPTS]
    p = found.p_value()
    low, high = found.limits(1 - p)
    assert min(abs(low), abs(high)) < 1e-6
    if bounds is None:  # documents alone: Student's t test
        these = variation_of_table(values).intervals[THESE]
        assert these.p_value() == pytest.approx(stats.ttest_1samp(values.mean(axis=1), 0).pvalue)
    assert variation_of_table(values + 9).intervals[THESE].p_value() == 1e-9


def test_equal_differences_never_have_a_width_of_nothing() -> None:
    for bounds in ((-1.0, 1.0), (0.0, 1.0)):
        for value in (0.0, 0.5, 1.0):
            found = variation_of_table(np.full((50, 3), value), bounds=bounds)
            assert found.intervals[THESE].width95 > 0.01


def test_prompts_that_go_the_other_way_are_counted() -> None:
    values = np.tile(np.array([0.67, 0.66, 0.15, -0.35]), (50, 1))
    found = variation_of_table(values + 0.01 * np.random.default_rng(0).normal(size=(50, 4)))
    assert found.turned == 1
    assert found.by_prompt[3] == pytest.approx(-0.35, abs=0.01)


def test_clusters_count_once() -> None:
    """Ten copies of each document say no more than the documents."""
    values = crossed(30, 2, 1, 9)[:, :, 0]
    copies = np.repeat(values, 10, axis=0)
    once = variation_of_table(values).intervals[THESE]
    found = variation_of_table(copies, clusters=np.repeat(np.arange(30), 10)).intervals[THESE]
    assert found.stderr == pytest.approx(once.stderr)
    assert found.width95 == pytest.approx(once.width95)


def test_truth_by_quadrature_is_that_of_many_documents() -> None:
    point = Point("gain", 2, 2, 200_000, 0.3)
    values, truth = draw(point, np.random.default_rng(2))
    assert values.mean() == pytest.approx(truth[THESE], abs=0.005)


@pytest.mark.parametrize(
    "point",
    [Point("gain", 3, 3, 200, 0.5), Point("gain", 10, 3, 200, 0.98, 5)],
    ids=lambda p: p.name,
)
def test_intervals_cover(point: Point) -> None:
    """Short form of ``bench/coverage.py``: 400 studies, bounds three errors below the claim."""
    for row in simulate(point, 400, 4):
        assert row["cover95"] >= 0.95 - 3 * 0.011, row
        assert row["cover99"] >= 0.99 - 3 * 0.005, row

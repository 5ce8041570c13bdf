"""Adjusted p values, smallest effects, agreement of prompts: against scipy and brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from evalcore.analysis.agreement import PromptChoice, fleiss_kappa, kendalls_w, mean_ranks
from evalcore.analysis.families import benjamini_hochberg, holm, smallest_effect
from evalcore.analysis.intervals import CLAIMS
from evalcore.analysis.variation import variation_of_table


def test_benjamini_hochberg_is_scipys() -> None:
    p = np.random.default_rng(0).uniform(size=37) ** 3
    assert benjamini_hochberg(p) == pytest.approx(stats.false_discovery_control(p))


def test_holm_is_the_step_down_of_its_definition() -> None:
    p = np.array([0.01, 0.04, 0.03, 0.005, np.nan])
    # Sorted .005 x 4, .01 x 3, .03 x 2, .04 x 1; each at least the one before.
    assert holm(p)[:4] == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert np.isnan(holm(p)[4])
    for level in (0.01, 0.03, 0.05, 0.2):
        known = np.sort(p[:4])
        rejected = 0
        while rejected < 4 and known[rejected] <= level / (4 - rejected):
            rejected += 1
        assert (holm(p)[:4] <= level).sum() == rejected
    assert len(holm(np.zeros(0))) == len(benjamini_hochberg(np.zeros(0))) == 0


def test_smallest_effect_is_found_as_often_as_it_says() -> None:
    g = np.random.default_rng(1)
    sample = g.normal(0, 1, (200, 1))
    sample = (sample - sample.mean()) / sample.std(ddof=1)
    effect = smallest_effect(variation_of_table(sample).intervals[CLAIMS[0]])
    found = sum(
        variation_of_table(g.normal(effect, 1, (200, 1))).intervals[CLAIMS[0]].low95 > 0
        for _ in range(600)
    )
    assert found / 600 == pytest.approx(0.8, abs=0.06)


def test_fleiss_kappa_by_counting_pairs() -> None:
    answers = np.random.default_rng(2).integers(0, 3, (40, 5))
    answers[:20] = answers[:20, :1]
    pairs = list(itertools.combinations(range(5), 2))
    agree = np.mean([[row[a] == row[b] for a, b in pairs] for row in answers])
    share = np.unique(answers, return_counts=True)[1] / answers.size
    chance = (share**2).sum()
    assert fleiss_kappa(answers) == pytest.approx((agree - chance) / (1 - chance))
    assert fleiss_kappa(np.repeat(np.array([[0], [1]]), 3, axis=1)) == 1.0
    assert np.isnan(fleiss_kappa(np.zeros((5, 3), dtype=np.int64)))


def test_ranks_are_scipys() -> None:
    values = np.random.default_rng(4).integers(0, 5, 23).astype(float)
    assert mean_ranks(values).tolist() == stats.rankdata(values).tolist()


def test_kendalls_w_is_that_of_friedmans_test() -> None:
    """Friedman's chi-square is m (n - 1) W, ties included."""
    scores = np.random.default_rng(3).integers(0, 6, (7, 5)).astype(float)
    chi = stats.friedmanchisquare(*scores.T).statistic
    assert kendalls_w(scores) == pytest.approx(chi / (7 * 4))
    assert kendalls_w(np.tile(np.arange(4.0), (3, 1))) == pytest.approx(1.0)
    assert np.isnan(kendalls_w(np.ones((3, 4))))


def test_choice_of_a_prompt() -> None:
    found = PromptChoice.of(np.array([0.2, 0.6, 0.4]))
    assert (found.best, found.mean, found.worst) == pytest.approx((0.6, 0.4, 0.2))
    assert (found.saturation, found.combined) == pytest.approx((0.8, 0.48))

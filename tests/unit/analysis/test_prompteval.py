"""Scores of a hundred prompts from a twentieth of the pairs."""

from __future__ import annotations

import numpy as np
import pytest

from evalcore.analysis.prompteval import draw_pairs, estimate
from evalcore.errors import InputError


def answers(
    rng: np.random.Generator, prompts: int, documents: int, spread: float = 0.6
) -> np.ndarray:
    logits = 0.3 + spread * rng.standard_normal((prompts, 1)) + 1.5 * rng.standard_normal(documents)
    return (rng.random((prompts, documents)) < 1 / (1 + np.exp(-logits))).astype(float)


def test_pairs_are_balanced_distinct_and_grow() -> None:
    few, many = draw_pairs(7, 40, 60, seed=3), draw_pairs(7, 40, 200, seed=3)
    assert (many[:60] == few).all()
    assert len({tuple(p) for p in many.tolist()}) == 200
    for pairs in (few, many):
        for column, count in ((0, 7), (1, 40)):
            uses = np.bincount(pairs[:, column], minlength=count)
            assert uses.max() - uses.min() <= 1
    assert (draw_pairs(7, 40, 60, seed=4) != few).any()
    everything = draw_pairs(3, 5, 999)
    assert len({tuple(p) for p in everything.tolist()}) == 15


def test_quantiles_over_prompts_from_five_per_cent() -> None:
    prompts, documents, shares = 100, 1000, (0.05, 0.5, 0.95)
    errors, naive = [], []
    for seed in range(3):
        outcomes = answers(np.random.default_rng(seed), prompts, documents)
        truth = np.quantile(outcomes.mean(axis=1), shares)
        pairs = draw_pairs(prompts, documents, 5000, seed)
        seen = outcomes[pairs[:, 0], pairs[:, 1]]
        found = estimate(pairs, seen, prompts, documents, quantiles=shares)
        errors.append([abs(found.quantiles[s][0] - t) for s, t in zip(shares, truth, strict=True)])
        means = np.bincount(pairs[:, 0], seen) / np.bincount(pairs[:, 0])
        naive.append(np.abs(np.quantile(means, shares) - truth))
        assert found.scored == 5000
        assert found.pairs == 100_000
        low, high = found.mean_interval
        assert low < outcomes.mean() < high
    assert np.mean(errors) <= 0.02
    assert np.mean(errors) <= np.mean(naive) / 2


def test_prompts_that_favour_one_answer_are_seen_for_what_they_are() -> None:
    """Most prompts always answer one class, whatever the document; a few ask well."""
    prompts, documents, shares = 60, 400, (0.05, 0.5, 0.95)
    rng = np.random.default_rng(0)
    classes = rng.integers(3, size=documents)
    skill = np.where(np.arange(prompts) < 15, 3.0, 0.0)[:, None, None]
    bias = 10 * rng.standard_normal((prompts, 1, 3)) * (skill == 0)
    evidence = skill * np.eye(3)[classes] + rng.gumbel(size=(prompts, documents, 3))
    outcomes = ((bias + evidence).argmax(axis=2) == classes).astype(float)
    truth = np.quantile(outcomes.mean(axis=1), shares)
    errors = {"classes": [], "naive": [], "plain": []}
    for seed in range(2):
        pairs = draw_pairs(prompts, documents, prompts * documents // 20, seed)
        seen = outcomes[pairs[:, 0], pairs[:, 1]]
        for name, given in (("classes", classes), ("plain", None)):
            found = estimate(pairs, seen, prompts, documents, quantiles=shares, classes=given)
            errors[name].append([found.quantiles[s][0] for s in shares] - truth)
        means = np.bincount(pairs[:, 0], seen) / np.bincount(pairs[:, 0])
        errors["naive"].append(np.quantile(means, shares) - truth)
    own, naive, plain = (np.abs(errors[n]).mean() for n in ("classes", "naive", "plain"))
    assert own <= 0.7 * naive
    assert own <= 0.7 * plain
    assert own <= 0.04


def test_everything_scored_is_the_plain_table() -> None:
    outcomes = answers(np.random.default_rng(0), 6, 30)
    pairs = draw_pairs(6, 30, 180)
    found = estimate(pairs, outcomes[pairs[:, 0], pairs[:, 1]], 6, 30)
    assert found.prompts == pytest.approx(outcomes.mean(axis=1))
    assert found.worst == pytest.approx(outcomes.mean(axis=1).min())
    assert found.errors == pytest.approx(np.zeros(6), abs=1e-12)
    assert found.quantiles[0.5][0] == pytest.approx(np.median(outcomes.mean(axis=1)))


def test_the_posterior_is_that_of_a_brute_force_grid() -> None:
    """Two prompts, known variances: sums over a grid of all effects of three documents."""
    pairs = np.array([[0, 0], [0, 1], [1, 1], [1, 2], [0, 2]])
    seen = np.array([1.0, 1.0, 0.0, 0.0, 1.0])
    found = estimate(pairs, seen, 2, 3, variances=(1.0, 0.5), seed=1)
    mean = np.linspace(-12, 12, 61)  # flat
    side = np.linspace(-4, 4, 21)
    m, a, c = np.meshgrid(mean, side, side, indexing="ij")
    of_prompts = -(a**2 + c**2) / 2

    def says(logit: np.ndarray, outcome: float) -> np.ndarray:
        return outcome * logit - np.logaddexp(0, logit)

    wide = np.linspace(-3, 3, 31)[:, None, None, None]
    prior = np.exp(-(wide**2) / (2 * 0.5))

    def of_document(terms: list[tuple[np.ndarray, float]]) -> np.ndarray:
        logs = sum(says(effect + wide, y) for effect, y in terms)
        return (np.exp(logs) * prior).sum(axis=0)

    first, second = m + a, m + c
    one = of_document([(first, 1.0)])
    two = of_document([(first, 1.0), (second, 0.0)])
    three = of_document([(second, 0.0), (first, 1.0)])
    # What is not known: prompt 1 on document 0.
    unknown = (1 / (1 + np.exp(-(second + wide))) * np.exp(says(first + wide, 1.0)) * prior).sum(
        axis=0
    )
    weight = np.exp(of_prompts)
    expected = (weight * unknown * two * three).sum() / (weight * one * two * three).sum() / 3
    assert found.prompts[0] == pytest.approx(1.0)
    assert found.prompts[1] == pytest.approx(expected, abs=0.03)


def test_what_cannot_be_estimated_is_refused() -> None:
    with pytest.raises(InputError, match="nothing to estimate"):
        estimate(np.zeros((0, 2), int), np.zeros(0), 3, 3)
    with pytest.raises(InputError, match="between 0 and 1"):
        estimate(np.array([[0, 0]]), np.array([1.5]), 3, 3)

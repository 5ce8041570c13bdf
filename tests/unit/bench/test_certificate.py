"""What no test of one second scoring can do better, in small numbers."""

from __future__ import annotations

import numpy as np
import pytest

from bench.certificate import _density, _share, bound, likelihood_ratio


def test_the_law_of_the_noise() -> None:
    x = np.linspace(-40, 40, 400_001)
    assert np.trapezoid(_density(x), x) == pytest.approx(1, abs=1e-4)
    step = np.diff(_share(x)) / np.diff(x)
    np.testing.assert_allclose(step, _density((x[1:] + x[:-1]) / 2), atol=1e-6)


def test_the_likelihood_ratio_counts_pairs_and_triples() -> None:
    """Against the sum over all choices of the examples that are off, written out."""
    rng = np.random.default_rng(0)
    moved, scale = np.abs(rng.normal(size=(3, 6))), np.full((3, 6), 0.1)
    alone = [likelihood_ratio(np.array([[m, m]]), np.array([[0.1, 0.1]]), 2) for m in moved.ravel()]
    ratios = np.sqrt(np.asarray(alone)).reshape(3, 6)
    pairs = [r[i] * r[j] for r in ratios for i in range(6) for j in range(i)]
    threes = [r[i] * r[j] * r[k] for r in ratios for i in range(6) for j in range(i)
              for k in range(j)]  # fmt: skip
    assert likelihood_ratio(moved, scale, 2) == pytest.approx(sum(pairs) / 3)
    assert likelihood_ratio(moved, scale, 3) == pytest.approx(sum(threes) / 3)


def test_the_bound_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    bound(runs=4)
    two, three = capsys.readouterr().out.splitlines()
    assert two.startswith("50 examples of each of 200 subjects, 2 off: knowing all, ")
    assert "3 off: knowing all, " in three

"""Means with intervals, and the few formulas the study's quantities need. Arrays in, values out."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import erf, inf, nan, sqrt
from typing import Literal

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
Method = Literal["t", "bootstrap"]
BOOTSTRAP_RESAMPLES = 3000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over independent documents with its uncertainty.

    Attributes:
        value: The mean; NaN when there is no document.
        stderr: Standard error; NaN below two documents.
        n: Independent documents (clusters) behind it.
        low95, high95, low99, high99: Two-sided confidence intervals.
        method: ``t`` (Student) or ``bootstrap`` (percentile, over documents).
        degenerate: Every document gave the same value, so the interval has no width and says
            nothing about documents not seen.
    """

    value: float
    stderr: float
    n: int
    low95: float
    high95: float
    low99: float
    high99: float
    method: Method = "t"
    degenerate: bool = False

    def scaled(self, factor: float) -> Estimate:
        """The same estimate in other units (a negative factor turns the interval round)."""
        low95, high95 = sorted((self.low95 * factor, self.high95 * factor))
        low99, high99 = sorted((self.low99 * factor, self.high99 * factor))
        return Estimate(
            self.value * factor, self.stderr * abs(factor), self.n, low95, high95, low99, high99,
            self.method, self.degenerate,
        )  # fmt: skip

    def shifted(self, offset: float) -> Estimate:
        """The same estimate plus a constant."""
        return Estimate(
            self.value + offset, self.stderr, self.n, self.low95 + offset, self.high95 + offset,
            self.low99 + offset, self.high99 + offset, self.method, self.degenerate,
        )  # fmt: skip


EMPTY = Estimate(nan, nan, 0, nan, nan, nan, nan)


def mean_estimate(values: FloatArray, method: Method = "t", seed: int = 0) -> Estimate:
    """Mean of independent values with 95 % and 99 % intervals.

    Args:
        values: float64 [n], one per document (cluster); no NaN.
        method: ``t`` or ``bootstrap`` (3,000 resamples of whole documents, percentile).
        seed: Seed of the bootstrap.
    """
    n = len(values)
    if n == 0:
        return EMPTY
    mean = float(values.mean())
    if n == 1:
        return Estimate(mean, nan, 1, nan, nan, nan, nan, method)
    spread = float(values.std(ddof=1))
    stderr = spread / sqrt(n)
    # Rounding leaves a spread of about 1e-17 among equal values.
    flat = spread <= 1e-12 * max(1.0, abs(mean))
    if method == "bootstrap":
        low99, low95, high95, high99 = bootstrap_quantiles(
            values, (0.005, 0.025, 0.975, 0.995), seed
        )
    else:
        half95, half99 = (t_quantile(p, n - 1) * stderr for p in (0.975, 0.995))
        low95, high95, low99, high99 = mean - half95, mean + half95, mean - half99, mean + half99
    return Estimate(mean, stderr, n, low95, high95, low99, high99, method, flat)


@lru_cache(maxsize=4096)
def t_quantile(probability: float, degrees: int) -> float:
    """Quantile of Student's t."""
    from scipy.special import stdtrit  # scipy is heavy and only intervals need it

    return float(stdtrit(degrees, probability))


def bootstrap_quantiles(
    values: FloatArray, probabilities: tuple[float, ...], seed: int
) -> tuple[float, ...]:
    """Quantiles of the mean over resampled documents (percentile bootstrap)."""
    generator = np.random.default_rng(seed)
    n, means = len(values), []
    chunk = max(1, 2_000_000 // n)  # keeps the index array near 16 MB
    for start in range(0, BOOTSTRAP_RESAMPLES, chunk):
        size = min(chunk, BOOTSTRAP_RESAMPLES - start)
        means.append(values[generator.integers(0, n, (size, n))].mean(axis=1))
    return tuple(float(q) for q in np.quantile(np.concatenate(means), probabilities))


def mean_of_estimates(estimates: list[Estimate]) -> Estimate:
    """Mean of independent estimates (other tasks, other documents), tasks taken as fixed.

    The error is that of the documents alone (normal intervals): it does not say what would happen
    on other tasks. NaN estimates must be left out by the caller.
    """
    if not estimates:
        return EMPTY
    k = len(estimates)
    value = float(np.mean([e.value for e in estimates]))
    stderr = sqrt(sum(e.stderr**2 for e in estimates)) / k
    half95, half99 = 1.959963984540054 * stderr, 2.5758293035489004 * stderr
    n = sum(e.n for e in estimates)
    return Estimate(
        value, stderr, n, value - half95, value + half95, value - half99, value + half99
    )


@dataclass(frozen=True, slots=True)
class SpreadEstimate:
    """How much a score moves with the prompt, for one subject and task.

    Attributes:
        prompts: P, number of prompts compared.
        n: Documents all prompts share.
        mean: Mean over prompts.
        range: Largest minus smallest prompt mean (grows with P and with noise).
        range_noise: Expected range at this P and n if prompts made no difference.
        std: Standard deviation between prompt means (noise included).
        variance: Prompt variance minus sampling variance: unbiased, can be negative.
        prompt_std: sqrt of ``variance``, 0 where that is negative.
        clipped: Whether ``variance`` was negative.
    """

    prompts: int
    n: int
    mean: float
    range: float
    range_noise: float
    std: float
    variance: float
    prompt_std: float
    clipped: bool


def prompt_spread(values: FloatArray) -> SpreadEstimate:
    """Spread over prompts scored on the same documents.

    The documents are shared, so what they have in common cancels between prompts. With the
    two-way layout document x prompt, E[variance of prompt means] = prompt variance +
    residual mean square / n, whatever the covariance between prompts is; the difference is
    unbiased (variance components of a two-way analysis without replication).

    Args:
        values: float64 [n, P], n >= 2 documents, P >= 2 prompts, no NaN.
    """
    n, p = values.shape
    means = values.mean(axis=0)
    residual = values - values.mean(axis=1, keepdims=True) - means + values.mean()
    noise = float((residual**2).sum() / ((n - 1) * (p - 1)) / n)
    between = float(means.var(ddof=1))
    variance = between - noise
    return SpreadEstimate(
        prompts=p,
        n=n,
        mean=float(means.mean()),
        range=float(np.ptp(means)),
        range_noise=normal_range(p) * sqrt(noise),
        std=sqrt(between),
        variance=variance,
        prompt_std=sqrt(max(variance, 0.0)),
        clipped=variance < 0,
    )


@lru_cache(maxsize=256)
def normal_range(count: int) -> float:
    """Expected max - min of ``count`` independent standard normals (the d2 of control charts)."""
    x = np.linspace(-9.0, 9.0, 3601)
    below = np.array([0.5 * (1 + erf(v / sqrt(2))) for v in x])
    return float(np.trapezoid(1 - below**count - (1 - below) ** count, x))


def finite(low: float) -> float:
    """-inf for a bound that could not be computed, so that comparisons with it fail."""
    return low if low == low else -inf

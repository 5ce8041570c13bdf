"""Means with intervals, and the few formulas the study's quantities need. Arrays in, values out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from math import erf, inf, nan, sqrt

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
Limits = Callable[[float], tuple[float, float]]
"""Two-sided interval of any level."""


PREDICTED_FROM = 3
"""Seeds from which a next run is predicted; of two the standard deviation says next to nothing."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number as it is shown, with what it may be.

    Attributes:
        value: The mean; NaN when there is no document.
        stderr: Standard error under ``claim``; NaN below two documents.
        n: Documents (clusters) behind it.
        low95, high95, low99, high99: Two-sided intervals under ``claim``; NaN where there is none.
        degenerate: Every document gave the same value.
        claim: What the intervals generalise over (``intervals.CLAIMS``); empty without any.
        documents: The same mean with the intervals for these prompts and this run alone; None
            where ``claim`` is that already.
        prompts, seeds: How many are behind it.
        low_prompt, high_prompt: Smallest and largest mean under a single prompt.
        turned: Prompts whose own mean has the other sign.
        seed_sd: Standard deviation between the means of the seeds; NaN below two. Of a mean over
            tasks the largest it can be: as if seeds moved all of them together.
        smallest: True difference from 0 that such data find four times in five at 95 %.
        p: Two-sided p of no difference; NaN where it was not found yet (``estimates.p_value``).
        limits: Interval of any level; None where there is none.
    """

    value: float
    stderr: float
    n: int
    low95: float
    high95: float
    low99: float
    high99: float
    degenerate: bool = False
    claim: str = ""
    documents: Estimate | None = None
    prompts: int = 1
    seeds: int = 1
    low_prompt: float = nan
    high_prompt: float = nan
    turned: int = 0
    seed_sd: float = nan
    smallest: float = nan
    p: float = nan
    limits: Limits | None = field(default=None, compare=False, repr=False)

    @property
    def over_documents(self) -> Estimate:
        """The estimate for these prompts and this run."""
        return self.documents or self

    def next_run(self, level: float = 0.95) -> tuple[float, float]:
        """Where the mean of a next run of as many seeds will lie: same prompts, same documents.

        The prediction interval for the mean of m future normal values from the mean and standard
        deviation of k (Hahn and Meeker 1991, "Statistical Intervals", section 4.6), m = k. Seeds
        that hardly differ are taken to differ by one answer each, the finest that a mean can show.
        NaN below :data:`PREDICTED_FROM` seeds.
        """
        k = self.seeds
        if k < PREDICTED_FROM or self.seed_sd != self.seed_sd or not self.n:
            return nan, nan
        least = 1.0 / (self.n * max(self.prompts, 1))
        sd = sqrt(self.seed_sd**2 + least**2)
        half = t_quantile(0.5 + level / 2, k - 1) * sd * sqrt(2.0 / k)
        return self.value - half, self.value + half

    def scaled(self, factor: float) -> Estimate:
        """The same estimate in other units (a negative factor turns the interval round)."""
        return self._moved(factor, 0.0)

    def shifted(self, offset: float) -> Estimate:
        """The same estimate plus a constant."""
        return self._moved(1.0, offset)

    def _moved(self, factor: float, offset: float) -> Estimate:
        def move(low: float, high: float) -> tuple[float, float]:
            a, b = low * factor + offset, high * factor + offset
            return (a, b) if factor >= 0 else (b, a)

        low95, high95 = move(self.low95, self.high95)
        low99, high99 = move(self.low99, self.high99)
        low_prompt, high_prompt = move(self.low_prompt, self.high_prompt)
        limits = self.limits
        return replace(
            self, value=self.value * factor + offset, stderr=self.stderr * abs(factor),
            low95=low95, high95=high95, low99=low99, high99=high99, low_prompt=low_prompt,
            high_prompt=high_prompt, seed_sd=self.seed_sd * abs(factor),
            smallest=self.smallest * abs(factor), p=self.p if offset == 0 and factor else nan,
            documents=self.documents._moved(factor, offset) if self.documents else None,
            limits=None if limits is None else (lambda level: move(*limits(level))),
        )  # fmt: skip


EMPTY = Estimate(nan, nan, 0, nan, nan, nan, nan)


def mean_estimate(values: FloatArray) -> Estimate:
    """Mean of independent values with Student's 95 % and 99 % intervals.

    Args:
        values: float64 [n], one per document (cluster); no NaN.
    """
    n = len(values)
    if n == 0:
        return EMPTY
    mean = float(values.mean())
    if n == 1:
        return Estimate(mean, nan, 1, nan, nan, nan, nan)
    spread = float(values.std(ddof=1))
    stderr = spread / sqrt(n)
    # Rounding leaves a spread of about 1e-17 among equal values.
    flat = spread <= 1e-12 * max(1.0, abs(mean))

    def limits(level: float) -> tuple[float, float]:
        half = t_quantile(0.5 + level / 2, n - 1) * stderr
        return mean - half, mean + half

    return Estimate(mean, stderr, n, *limits(0.95), *limits(0.99), degenerate=flat, limits=limits)


@lru_cache(maxsize=4096)
def t_quantile(probability: float, degrees: float) -> float:
    """Quantile of Student's t."""
    from scipy.special import stdtrit  # scipy is heavy and only intervals need it

    return float(stdtrit(degrees, probability))


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
    if abs(variance) < 1e-15:  # what rounding leaves of 0 has a sign by chance
        variance = 0.0
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

"""An interval and what it is about: the parts of its variance, its edges, its p.

Intervals add up the parts with a t quantile of their own each, half-width^2 = sum t_i^2 V_i
(Banerjee 1960, "Approximate confidence interval for linear functions of means of k populations when
the population variances are not equal", Sankhya 22): for independent normal parts it never covers
less than it says, however few degrees a part has. ``bench/coverage.py`` measures it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from math import exp, nan, sqrt
from typing import Literal

import numpy as np
import numpy.typing as npt

from evalcore.analysis.stats import t_quantile

FloatArray = npt.NDArray[np.float64]
Claim = Literal[
    "these prompts, this run", "these prompts, other seeds", "other prompts",
    "other prompts and seeds",
]  # fmt: skip
CLAIMS: tuple[Claim, ...] = (
    "these prompts, this run", "these prompts, other seeds", "other prompts",
    "other prompts and seeds",
)  # fmt: skip
THIS_RUN, OTHER_SEEDS, OTHER_PROMPTS, OTHER_BOTH = CLAIMS


@dataclass(frozen=True, slots=True)
class Parts:
    """Parts of the variance of a mean, each with its degrees of freedom.

    Attributes:
        documents, prompts, seeds: Variance of the mean due to each (not of single values); the
            interaction of prompts and seeds is in ``prompts``. 0 where a factor is fixed.
        clusters: Documents or clusters behind it, in effect (of equal size).
        num_prompts, num_seeds: Levels of the sampled factors; 1 where fixed.
    """

    documents: float
    prompts: float
    seeds: float
    clusters: float
    num_prompts: int = 1
    num_seeds: int = 1

    @property
    def variance(self) -> float:
        return self.documents + self.prompts + self.seeds

    def half_width(self, level: float) -> float:
        """Half the width of the two-sided interval, Banerjee's sum."""
        tail = 0.5 + level / 2
        parts = (
            (self.documents, self.clusters - 1),
            (self.prompts, self.num_prompts - 1),
            (self.seeds, self.num_seeds - 1),
        )
        return sqrt(sum(t_quantile(tail, d) ** 2 * v for v, d in parts if v > 0 and d > 0))


@dataclass(frozen=True, slots=True)
class Edge:
    """Pseudo-documents for the intervals of bounded values; see :meth:`limits`.

    Attributes:
        low, high: Bounds of the values.
        rest: Where nothing happens: 0 of a difference, the nearest bound of a score.
        size: Size of an event: of the document means' distances from ``rest``, where there is any,
            the square root of the sum of fourth powers over that of squares, for it is the large
            ones that few documents miss.
    """

    low: float
    high: float
    rest: float
    size: float

    @classmethod
    def of(cls, value: float, bounds: tuple[float, float], own: FloatArray) -> Edge:
        """For a mean of document means ``own`` (float64 [C])."""
        low, high = bounds
        nearest = low if value - low <= high - value else high
        rest = 0.0 if low < 0 < high else nearest
        squares = (own - rest) ** 2
        total = float(squares.sum())
        size = sqrt(float((squares**2).sum()) / total) if total > 1e-24 else high - max(low, 0.0)
        return cls(low, high, rest, size)

    def limits(self, value: float, parts: Parts, level: float) -> tuple[float, float]:
        """The interval with pseudo-documents: a score gets z^2 / 2 of them at either end.

        A difference gets (z / 1.96)^2 at either end. With one prompt and right-or-wrong answers
        these are the intervals of Agresti and Coull (1998) and of Bonett and Price (2012), with t
        for the normal quantile.
        """
        centre, adjusted = self.adjusted(value, parts, level)
        half = adjusted.half_width(level)
        return max(centre - half, self.low), min(centre + half, self.high)

    def adjusted(self, value: float, parts: Parts, level: float) -> tuple[float, Parts]:
        """(centre, parts of the variance) with the pseudo-documents of a level."""
        z = normal_quantile(0.5 + level / 2)
        if self.low < 0 < self.high:
            pseudo, ends = (z / normal_quantile(0.975)) ** 2, (-self.size, self.size)
        else:
            far = self.rest + self.size if self.rest == self.low else self.rest - self.size
            pseudo, ends = z * z / 2, (self.rest, far)
        n = parts.clusters
        total = n + 2 * pseudo
        centre = (n * value + pseudo * sum(ends)) / total
        spread = n * (parts.documents * (n - 1) + (value - centre) ** 2)
        spread += pseudo * sum((end - centre) ** 2 for end in ends)
        return centre, replace(parts, documents=spread / total / total, clusters=total)


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and what it may be, for one claim.

    Attributes:
        claim: What is generalised over.
        value: The mean of the values: every (prompt, seed) cell counts alike.
        stderr: Square root of the variance of the mean.
        low95, high95, low99, high99: Two-sided intervals; not centred on ``value`` at the edges.
        parts: Where the variance comes from.
        edge: Pseudo-documents; None for values without bounds.
        refused: Why there is no interval (in words); empty where there is one.
    """

    claim: Claim
    value: float
    stderr: float = nan
    low95: float = nan
    high95: float = nan
    low99: float = nan
    high99: float = nan
    parts: Parts | None = None
    edge: Edge | None = None
    refused: str = ""

    @classmethod
    def of(cls, claim: Claim, value: float, parts: Parts, edge: Edge | None) -> Interval:
        bare = cls(claim, value, sqrt(parts.variance), parts=parts, edge=edge)
        (low95, high95), (low99, high99) = bare.limits(0.95), bare.limits(0.99)
        return replace(bare, low95=low95, high95=high95, low99=low99, high99=high99)

    @property
    def known(self) -> bool:
        """Whether there is an interval."""
        return not self.refused

    @property
    def width95(self) -> float:
        return self.high95 - self.low95

    def limits(self, level: float) -> tuple[float, float]:
        """The two-sided interval of any level; NaN where there is none."""
        if self.parts is None:
            return nan, nan
        if self.edge is not None:
            return self.edge.limits(self.value, self.parts, level)
        half = self.parts.half_width(level)
        return self.value - half, self.value + half

    def p_value(self, null: float = 0.0) -> float:
        """Two-sided p: one less the level at which the interval first holds ``null``; 1e-9 least.

        NaN where there is no interval.
        """
        return p_of_limits(self.limits, null) if self.parts is not None else nan


def p_of_limits(limits: Callable[[float], tuple[float, float]], null: float = 0.0) -> float:
    """Two-sided p of ``null`` from intervals of any level; at least 1e-9."""

    def holds(level: float) -> bool:
        low, high = limits(level)
        return low <= null <= high

    tail, most = 1e-9, 1.0 - 1e-9
    if not holds(1 - tail):
        return tail
    if holds(1 - most):
        return 1.0
    low, high = np.log(tail), np.log(most)  # held at low, not held at high
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(1 - exp(middle)) else (low, middle)
    return float(exp((low + high) / 2))


@lru_cache(maxsize=4096)
def normal_quantile(probability: float) -> float:
    from scipy.special import ndtri  # scipy is heavy and only intervals need it

    return float(ndtri(probability))

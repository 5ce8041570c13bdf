"""Many comparisons at once: adjusted p values, and the effect that could have been seen."""

from __future__ import annotations

from math import sqrt

import numpy as np
import numpy.typing as npt

from evalcore.analysis.intervals import Interval

FloatArray = npt.NDArray[np.float64]


def holm(p_values: FloatArray) -> FloatArray:
    """p values of a family, adjusted so that one false claim in it has at most the level's chance.

    Holm (1979), "A simple sequentially rejective multiple test procedure", Scandinavian Journal of
    Statistics 6. NaN stays NaN and does not count.

    Args:
        p_values: float64 [m].
    """
    known = ~np.isnan(p_values)
    p = p_values[known]
    order = np.argsort(p, kind="stable")
    steps = p[order] * np.arange(len(p), 0, -1)
    adjusted = np.full(len(p_values), np.nan)
    own = np.empty(len(p))
    own[order] = np.minimum(np.maximum.accumulate(steps), 1.0) if len(p) else steps
    adjusted[known] = own
    return adjusted


def benjamini_hochberg(p_values: FloatArray) -> FloatArray:
    """p values adjusted so that of what is called different the level's share is not, on average.

    Benjamini and Hochberg (1995), "Controlling the false discovery rate", Journal of the Royal
    Statistical Society B 57. NaN stays NaN and does not count.

    Args:
        p_values: float64 [m].
    """
    known = ~np.isnan(p_values)
    p = p_values[known]
    order = np.argsort(p, kind="stable")[::-1]
    steps = p[order] * len(p) / np.arange(len(p), 0, -1)
    adjusted = np.full(len(p_values), np.nan)
    own = np.empty(len(p))
    own[order] = np.minimum(np.minimum.accumulate(steps), 1.0) if len(p) else steps
    adjusted[known] = own
    return adjusted


def smallest_effect(interval: Interval, *, level: float = 0.95, power: float = 0.8) -> float:
    """The true difference that an interval as wide as this one leaves 0 out of that often.

    Half the width at ``level`` plus the normal quantile of ``power`` standard errors: the estimate
    must lie half a width from 0, and lies below the truth by less than that quantile with the
    wanted chance. Both with the pseudo-documents of the interval, where it has them: equal values
    find no difference however small. NaN where there is no interval.
    """
    from scipy.special import ndtri  # scipy is heavy and only intervals need it

    if interval.parts is None:
        return float("nan")
    parts = interval.parts
    if interval.edge is not None:
        parts = interval.edge.adjusted(interval.value, parts, level)[1]
    return parts.half_width(level) + float(ndtri(power)) * sqrt(parts.variance)

"""How far prompts agree: on single answers, on the order of models, and what the best one gives."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


def fleiss_kappa(answers: IntArray) -> float:
    """Agreement of prompts on the answer to a document, beyond that of chance (1: always).

    Fleiss (1971), "Measuring nominal scale agreement among many raters", Psychological Bulletin 76.
    NaN below two prompts, without documents, or where every answer is the same (chance itself would
    agree).

    Args:
        answers: int64 [documents, prompts], any codes.
    """
    n, p = answers.shape
    if n == 0 or p < 2:
        return float("nan")
    kinds, codes = np.unique(answers, return_inverse=True)
    codes = codes.reshape(n, p)
    counts = np.stack([(codes == k).sum(axis=1) for k in range(len(kinds))], axis=1)
    agree = float(((counts * (counts - 1)).sum(axis=1) / (p * (p - 1))).mean())
    chance = float(((counts.sum(axis=0) / (n * p)) ** 2).sum())
    return float("nan") if chance >= 1.0 else (agree - chance) / (1.0 - chance)


def mean_ranks(values: FloatArray) -> FloatArray:
    """float64 [n]: ranks from 1 on; equal values have the mean of theirs."""
    _, at, sizes = np.unique(values, return_inverse=True, return_counts=True)
    found: FloatArray = (np.cumsum(sizes) - (sizes - 1) / 2)[at]
    return found


def kendalls_w(scores: FloatArray) -> float:
    """Agreement of prompts on the order of models: 1 if all rank them alike, 0 if at random.

    Kendall and Babington Smith (1939), "The problem of m rankings", Annals of Mathematical
    Statistics 10, with the correction for ties. NaN below two prompts or two models, or where every
    prompt ties all models.

    Args:
        scores: float64 [prompts, models], no NaN.
    """
    m, n = scores.shape
    if m < 2 or n < 2:
        return float("nan")
    ranks = np.stack([mean_ranks(row) for row in scores])
    spread = float(((ranks.sum(axis=0) - m * (n + 1) / 2) ** 2).sum())
    ties = 0.0
    for row in ranks:
        sizes = np.unique(row, return_counts=True)[1].astype(np.float64)
        ties += float((sizes**3 - sizes).sum())
    most = m * m * (n**3 - n) - m * ties
    return 12.0 * spread / most if most > 0 else float("nan")


@dataclass(frozen=True, slots=True)
class PromptChoice:
    """What there is to win by choosing a prompt (Mizrahi et al. 2024, "State of what art?").

    Attributes:
        best: MaxP, the largest score under a single prompt (chosen on the same documents: an upper
            bound).
        mean: AvgP.
        saturation: Sat = 1 - (MaxP - AvgP).
        combined: CPS = Sat x MaxP.
        worst: The smallest score under a single prompt.
    """

    best: float
    mean: float
    saturation: float
    combined: float
    worst: float

    @classmethod
    def of(cls, scores: FloatArray) -> PromptChoice:
        """From float64 [prompts] scores between 0 and 1, larger is better."""
        best, mean = float(scores.max()), float(scores.mean())
        saturation = 1.0 - (best - mean)
        return cls(best, mean, saturation, saturation * best, float(scores.min()))

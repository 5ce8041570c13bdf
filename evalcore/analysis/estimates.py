"""From a table of values, or from several estimates, to one number as it is shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import nan, sqrt

import numpy as np
import numpy.typing as npt

from evalcore.analysis.families import smallest_effect
from evalcore.analysis.intervals import (
    CLAIMS,
    OTHER_BOTH,
    OTHER_PROMPTS,
    OTHER_SEEDS,
    THIS_RUN,
    Claim,
    Interval,
    p_of_limits,
)
from evalcore.analysis.stats import EMPTY, Estimate
from evalcore.analysis.variation import Layout, Variation, variation, variation_of_table

_SAMPLED: dict[Claim, frozenset[str]] = {
    THIS_RUN: frozenset(),
    OTHER_SEEDS: frozenset({"seeds"}),
    OTHER_PROMPTS: frozenset({"prompts"}),
    OTHER_BOTH: frozenset({"prompts", "seeds"}),
}


def estimate_of(layout: Layout, *, seeds: bool = True) -> Estimate:
    """The mean of a layout with the intervals of the widest claim its data support.

    Args:
        layout: The values.
        seeds: Whether its seeds are a sample; else no claim is about others.
    """
    if len(layout.values) == 0:
        return EMPTY
    found = variation(layout)
    if seeds:
        return _shown_widest(found)
    fixed = {c: i for c, i in found.intervals.items() if "seeds" not in _SAMPLED[c]}
    return replace(_shown_widest(replace(found, intervals=fixed)), seeds=1, seed_sd=nan)


def estimate_of_table(
    values: npt.NDArray[np.float64],
    clusters: npt.NDArray[np.int64],
    bounds: tuple[float, float] | None,
) -> Estimate:
    """The same of a complete float64 [documents, prompts, seeds]; quicker."""
    return _shown_widest(variation_of_table(values, clusters=clusters, bounds=bounds))


def with_p(estimate: Estimate) -> Estimate:
    """The estimate with its p value, which takes a while to find."""
    return replace(estimate, p=p_value(estimate))


def _shown_widest(found: Variation) -> Estimate:
    widest, these = found.widest, found.intervals[THIS_RUN]
    documents = None if widest is these else _shown(found, these, None)
    return _shown(found, widest, documents)


def _shown(found: Variation, interval: Interval, documents: Estimate | None) -> Estimate:
    # Without bounds and without any difference between values there would be no width.
    known = interval.known and (interval.edge is not None or interval.stderr > 1e-12)
    flat = interval.parts is not None and interval.parts.documents <= 1e-24
    singles, runs = list(found.by_prompt.values()), list(found.by_seed.values())
    return Estimate(
        found.value, interval.stderr, found.clusters,
        low95=interval.low95 if known else nan, high95=interval.high95 if known else nan,
        low99=interval.low99 if known else nan, high99=interval.high99 if known else nan,
        degenerate=flat, claim=interval.claim if known else "", documents=documents,
        prompts=found.prompts, seeds=found.seeds,
        low_prompt=min(singles), high_prompt=max(singles), turned=found.turned,
        seed_sd=float(np.std(runs, ddof=1)) if len(runs) > 1 else nan,
        smallest=smallest_effect(interval) if known else nan,
        limits=interval.limits if known else None,
    )  # fmt: skip


def p_value(estimate: Estimate) -> float:
    """Two-sided p of no difference, from the estimate's own intervals; NaN where there are none."""
    if estimate.p == estimate.p:
        return estimate.p
    return nan if estimate.limits is None else p_of_limits(estimate.limits)


def common_claim(claims: Sequence[str]) -> Claim:
    """What may be said of all: sampled is only what is sampled in every one."""
    shared = frozenset.intersection(*(_SAMPLED.get(c, frozenset()) for c in claims))  # type: ignore[call-overload]
    return next(c for c in CLAIMS if _SAMPLED[c] == shared)


def mean_of_estimates(estimates: Sequence[Estimate], *, shared: bool = False) -> Estimate:
    """Mean over tasks (or over tunings), which are taken as fixed.

    Documents of different tasks are independent: their parts of the widths are added in quadrature.
    What prompts and seeds add may be shared by all tasks (the same formats, the same tuned models):
    it is added as it is, which is the cautious end. NaN estimates must be left out by the caller.

    Args:
        estimates: What is averaged.
        shared: They are of the same documents (several tunings on one task): the documents' parts
            are added as they are, too.
    """
    if len(estimates) < 2:
        return estimates[0] if estimates else EMPTY
    k = len(estimates)
    value = sum(e.value for e in estimates) / k
    claim = common_claim([e.claim for e in estimates])
    taken = [e if e.claim == claim else e.over_documents for e in estimates]
    if len({e.claim for e in taken}) > 1:
        claim, taken = THIS_RUN, [e.over_documents for e in estimates]
    known = all(e.limits is not None for e in taken)

    def sides(documents: float, whole: float) -> tuple[float, float]:
        return documents, sqrt(max(whole**2 - documents**2, 0.0))

    def joined(parts: Sequence[tuple[float, float]]) -> float:
        own = [p[0] for p in parts]
        documents = sum(own) if shared else sqrt(sum(v * v for v in own))
        return sqrt(documents**2 + sum(p[1] for p in parts) ** 2) / k

    def limits(level: float) -> tuple[float, float]:
        below, above = [], []
        for e in taken:
            assert e.limits is not None
            low, high = e.limits(level)
            inner = e.over_documents.limits or e.limits
            doc_low, doc_high = inner(level)
            below.append(sides(e.value - doc_low, e.value - low))
            above.append(sides(doc_high - e.value, high - e.value))
        return value - joined(below), value + joined(above)

    stderr = joined([sides(e.over_documents.stderr, e.stderr) for e in taken])
    (low95, high95), (low99, high99) = (
        (limits(0.95), limits(0.99)) if known else ((nan, nan), (nan, nan))
    )
    documents = None
    if claim != THIS_RUN:
        documents = mean_of_estimates([e.over_documents for e in estimates], shared=shared)
    half95 = (high95 - low95) / 2
    return Estimate(
        value, stderr, sum(e.n for e in estimates) if not shared else min(e.n for e in estimates),
        low95, high95, low99, high99, claim=claim if known else "", documents=documents,
        prompts=max(e.prompts for e in estimates), seeds=min(e.seeds for e in estimates),
        low_prompt=min(e.low_prompt for e in estimates),
        high_prompt=max(e.high_prompt for e in estimates),
        turned=sum(e.turned for e in estimates),
        seed_sd=sum(e.seed_sd for e in estimates) / k,
        smallest=half95 + 0.8416212335729143 * stderr, limits=limits if known else None,
    )  # fmt: skip

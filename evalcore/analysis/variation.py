"""What a mean generalises to: documents, prompts and seeds, each fixed or sampled.

A comparison is a table of values by document, prompt and seed (for a gain: tuned minus base). Its
mean is one number; how far it may be from what one wanted to know depends on the question:

``these prompts, this run``
    other documents of the same kind, under exactly these prompts, of exactly these tuned models;
``these prompts, other seeds``
    also other training seeds, of exactly these prompts;
``other prompts``
    also other prompt texts of the kind that was drawn, of exactly these tuned models;
``other prompts and seeds``
    all of it.

The model is the crossed random-effects layout document x prompt x seed. Documents enter by
influence: each cluster of documents moves the mean of every (prompt, seed) cell by a known amount,
so their part of the variance is that of a sum over clusters, whatever is missing and however large
the clusters are. What is left between cells is prompts, seeds and their interaction, estimated by
moments of pairs (Gao and Owen 2017, "Efficient moment calculations for variance components in large
unbalanced crossed random effects models", Electronic Journal of Statistics 11) after the documents'
part of each moment has been taken off. In a complete layout these are the usual analysis of
variance estimators.

What comes of the parts is in ``intervals.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import nan

import numpy as np
import numpy.typing as npt

from evalcore.analysis.intervals import (
    CLAIMS,
    OTHER_BOTH,
    OTHER_PROMPTS,
    OTHER_SEEDS,
    Claim,
    Edge,
    Interval,
    Parts,
)

FloatArray = npt.NDArray[np.float64]
CodeArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Layout:
    """Values by document, prompt and seed; any part may be missing.

    Attributes:
        values: float64 [m], no NaN.
        clusters: int64 [m] documents, or the clusters (passages, premises ...) they hang together
            in. A cluster may have several values in one cell.
        prompts: int64 [m] prompt texts of one stratum.
        seeds: int64 [m] training seeds; all 0 where there is one run.
        bounds: Least and largest possible value: (0, 1) for a score, (-1, 1) for a difference of
            scores; None where there is no bound. Used at the edges only.
    """

    values: FloatArray
    clusters: CodeArray
    prompts: CodeArray
    seeds: CodeArray
    bounds: tuple[float, float] | None = None


@dataclass(frozen=True)
class Variation:
    """A mean under every claim its data can support.

    Attributes:
        value: The mean.
        intervals: One per claim of :data:`CLAIMS`; those the data cannot support say why.
        clusters, documents: How many there are.
        prompts, seeds: How many there are.
        by_prompt: Prompt code -> mean over its seeds.
        by_seed: Seed code -> mean over its prompts.
        missing: (prompt, seed) cells without a value.
    """

    value: float
    intervals: dict[Claim, Interval]
    clusters: int
    documents: int
    prompts: int
    seeds: int
    by_prompt: dict[int, float]
    by_seed: dict[int, float]
    missing: int

    @property
    def widest(self) -> Interval:
        """The interval of the widest claim the data support."""
        known = [i for i in self.intervals.values() if i.known]
        return known[-1] if known else self.intervals[CLAIMS[0]]

    @property
    def turned(self) -> int:
        """Prompts whose own mean has the other sign than the mean over prompts."""
        return sum(1 for v in self.by_prompt.values() if v * self.value < 0)


def variation(layout: Layout) -> Variation:
    """Mean and intervals of a layout under each claim; see the module's docstring.

    Where documents are few or all alike, plain intervals are too narrow, down to a width of 0. As
    in the adjusted intervals of Agresti and Coull (1998, a proportion) and of Bonett and Price
    (2012, a paired difference of proportions), pseudo-documents are added for the interval: see
    :class:`Edge`.
    """
    return _variation(_Cells.of(layout), layout.bounds)


def variation_of_table(
    table: FloatArray,
    *,
    clusters: CodeArray | None = None,
    bounds: tuple[float, float] | None = None,
) -> Variation:
    """The same from float64 [documents, prompts] or [documents, prompts, seeds]; NaN: missing.

    Args:
        table: The values.
        clusters: int64 [documents]; None: each document by itself.
        bounds: As in :class:`Layout`.
    """
    cube = table if table.ndim == 3 else table[:, :, None]
    if clusters is None:
        clusters = np.arange(len(cube))
    if np.isnan(cube).any():
        d, p, s = np.nonzero(~np.isnan(cube))
        return variation(Layout(cube[d, p, s], clusters[d], p, s, bounds))
    return _variation(_Cells.of_cube(cube, clusters), bounds)


def _variation(cells: _Cells, bounds: tuple[float, float] | None) -> Variation:
    intervals = {claim: _interval(cells, bounds, claim) for claim in CLAIMS}
    by_prompt = {int(p): float(cells.means[cells.prompt == p].mean()) for p in cells.prompt_set}
    by_seed = {int(s): float(cells.means[cells.seed == s].mean()) for s in cells.seed_set}
    whole = len(cells.prompt_set) * len(cells.seed_set)
    return Variation(
        value=intervals[CLAIMS[0]].value,
        intervals=intervals,
        clusters=len(cells.influence),
        documents=int(cells.counts.max(initial=0)),
        prompts=len(cells.prompt_set),
        seeds=len(cells.seed_set),
        by_prompt=by_prompt,
        by_seed=by_seed,
        missing=whole - len(cells.means),
    )


@dataclass(frozen=True)
class _Cells:
    """Means of the (prompt, seed) cells, and what each cluster of documents adds to them.

    Attributes:
        means: float64 [K].
        counts: int64 [K] values in each.
        prompt, seed: int64 [K] codes.
        influence: float64 [C, K]: by how much a cluster moves the mean of a cell. Columns add up to
            0.
        sizes: float64 [C]: share of all values that a cluster has.
        own: float64 [C]: mean of a cluster's values.
    """

    means: FloatArray
    counts: CodeArray
    prompt: CodeArray
    seed: CodeArray
    influence: FloatArray
    sizes: FloatArray
    own: FloatArray

    @property
    def prompt_set(self) -> CodeArray:
        return np.unique(self.prompt)

    @property
    def seed_set(self) -> CodeArray:
        return np.unique(self.seed)

    @classmethod
    def of(cls, layout: Layout) -> _Cells:
        """From any layout."""
        width = int(layout.seeds.max(initial=0)) + 1
        kinds, cell = np.unique(layout.prompts * width + layout.seeds, return_inverse=True)
        _, cluster = np.unique(layout.clusters, return_inverse=True)
        k, c = len(kinds), int(cluster.max(initial=-1)) + 1
        counts = np.bincount(cell, minlength=k)
        means = np.bincount(cell, layout.values, k) / np.maximum(counts, 1)
        parts = (layout.values - means[cell]) / counts[cell]
        moved = np.bincount(cluster * k + cell, parts, c * k).astype(np.float64)
        held = np.bincount(cluster, minlength=c)
        own = np.bincount(cluster, layout.values, c) / np.maximum(held, 1)
        sizes = held / max(len(cluster), 1)
        where = np.asarray(kinds, dtype=np.int64)
        return cls(means, counts, where // width, where % width, moved.reshape(c, k), sizes, own)

    @classmethod
    def of_cube(cls, cube: FloatArray, clusters: CodeArray) -> _Cells:
        """From a complete float64 [documents, prompts, seeds]; the same as :meth:`of`, faster."""
        n, p, s = cube.shape
        if n == 0:
            none = np.zeros(0, dtype=np.int64)
            return cls.of(Layout(np.zeros(0), none, none, none))
        means = cube.mean(axis=0).reshape(-1)
        parts = (cube.reshape(n, -1) - means) / n
        own = cube.reshape(n, -1).mean(axis=1)
        names, at = np.unique(clusters, return_inverse=True)
        held = np.bincount(at)
        if len(names) < n:
            parts = np.stack([np.bincount(at, column) for column in parts.T], axis=1)
            own = np.bincount(at, own) / held
        prompt, seed = np.repeat(np.arange(p), s), np.tile(np.arange(s), p)
        counts = np.full(p * s, n, dtype=np.int64)
        return cls(means, counts, prompt, seed, parts, held / max(n, 1), own)

    def over_seeds(self) -> _Cells:
        """One cell per prompt: the mean over its seeds."""
        names, merged = self._merged(self.prompt)
        return replace(merged, prompt=names, seed=np.zeros(len(names), dtype=np.int64))

    def over_prompts(self) -> _Cells:
        """One cell per seed: the mean over its prompts."""
        names, merged = self._merged(self.seed)
        return replace(merged, prompt=np.zeros(len(names), dtype=np.int64), seed=names)

    def _merged(self, factor: CodeArray) -> tuple[CodeArray, _Cells]:
        """(levels of a factor, one cell for each of them: the mean over its cells)."""
        names, at = np.unique(factor, return_inverse=True)
        share = np.zeros((len(self.means), len(names)))
        share[np.arange(len(at)), at] = 1.0
        share /= np.maximum(share.sum(axis=0), 1)
        merged = replace(
            self,
            means=self.means @ share,
            counts=np.bincount(at, self.counts, len(names)).astype(np.int64),
            influence=self.influence @ share,
        )
        return np.asarray(names, dtype=np.int64), merged


def _interval(cells: _Cells, bounds: tuple[float, float] | None, claim: Claim) -> Interval:
    prompts, seeds = len(cells.prompt_set), len(cells.seed_set)
    k = len(cells.means)
    value = float(cells.means.mean()) if k else nan
    if not k or len(cells.influence) < 2:
        count = len(cells.influence)
        return _refused(claim, value, f"{count} documents: nothing can be said about others")
    if claim in (OTHER_PROMPTS, OTHER_BOTH) and prompts < 2:
        return _refused(claim, value, "one prompt: nothing can be said about other prompts")
    if claim in (OTHER_SEEDS, OTHER_BOTH) and seeds < 2:
        return _refused(claim, value, "one seed: nothing can be said about other seeds")
    clusters = 1.0 / float((cells.sizes**2).sum())
    documents = _documents(cells.influence.mean(axis=1))
    parts = Parts(documents, 0.0, 0.0, clusters)
    if claim == OTHER_PROMPTS:
        one = cells.over_seeds()
        between = _between(one.means, one.influence, one.prompt, None)
        parts = replace(parts, prompts=between["prompt"] / prompts, num_prompts=prompts)
    elif claim == OTHER_SEEDS:
        one = cells.over_prompts()
        between = _between(one.means, one.influence, one.seed, None)
        parts = replace(parts, seeds=between["prompt"] / seeds, num_seeds=seeds)
    elif claim == OTHER_BOTH:
        found = _between(cells.means, cells.influence, cells.prompt, cells.seed)
        weight = _weights(cells)
        parts = replace(
            parts,
            prompts=found["prompt"] * weight["prompt"] + found["both"] / k,
            seeds=found["seed"] * weight["seed"],
            num_prompts=prompts,
            num_seeds=seeds,
        )
    edge = None if bounds is None else Edge.of(value, bounds, cells.own)
    return Interval.of(claim, value, parts, edge)


def _refused(claim: Claim, value: float, why: str) -> Interval:
    return Interval(claim, value, refused=why)


def _documents(moves: FloatArray) -> float:
    """Variance of a mean from what each cluster adds to it, float64 [C]."""
    count = len(moves)
    return float((moves**2).sum()) * count / (count - 1)


def _weights(cells: _Cells) -> dict[str, float]:
    """Sum of squared shares of the levels of each factor (1 / levels in a complete layout)."""
    k = len(cells.means)
    return {
        "prompt": float((np.unique(cells.prompt, return_counts=True)[1] ** 2).sum()) / k**2,
        "seed": float((np.unique(cells.seed, return_counts=True)[1] ** 2).sum()) / k**2,
    }


def _between(
    means: FloatArray, influence: FloatArray, prompt: CodeArray, seed: CodeArray | None
) -> dict[str, float]:
    """Variance between prompts, between seeds and of their interaction, documents' part taken off.

    For each grouping the sum of half the squared differences of all pairs within its groups is
    compared with its expectation: a component counts in every pair that does not share its levels.
    Of the documents' part a share stays where levels are few (:func:`_kept`); negative solutions
    are set to 0.

    Args:
        means: float64 [K].
        influence: float64 [C, K].
        prompt: int64 [K].
        seed: int64 [K]; None where seeds are fixed (then there is one cell per prompt).
    """
    k = len(means)
    everything = np.zeros(k, dtype=np.int64)
    scale = len(influence) / (len(influence) - 1)

    def moment(group: CodeArray) -> float:
        return _pairs(means[None], group) - scale * _pairs(influence, group)

    all_pairs = _same(everything)
    kept = _kept(influence, prompt) * scale
    if seed is None:
        between = moment(everything) / (all_pairs - k) * 2 + kept
        return {"prompt": max(between, 0.0), "seed": 0.0, "both": 0.0}
    of_prompt, of_seed = _same(prompt), _same(seed)
    # Rows: pairs of everything, of one prompt, of one seed. Columns: prompt, seed, interaction.
    system = np.array(
        [
            [all_pairs - of_prompt, all_pairs - of_seed, all_pairs - k],
            [0.0, of_prompt - k, of_prompt - k],
            [of_seed - k, 0.0, of_seed - k],
        ]
    )
    moments = np.array([moment(everything), moment(prompt), moment(seed)]) * 2
    found = np.linalg.lstsq(system, moments, rcond=None)[0]
    return {
        "prompt": max(float(found[0]) + kept, 0.0),
        "seed": max(float(found[1]) + _kept(influence, seed) * scale, 0.0),
        "both": max(float(found[2]), 0.0),
    }


def _kept(influence: FloatArray, factor: CodeArray) -> float:
    """What is left of the documents' part in the variance between the levels of a factor.

    All but a share of (k - 3) / (k - 1) of it, as in Morris (1983), "Parametric empirical Bayes
    inference: theory and applications", Journal of the American Statistical Association 78: with
    few levels the variance between them is badly known, and taking off all of the noise would make
    it too small too often.
    """
    _, at = np.unique(factor, return_inverse=True)
    levels = int(at.max()) + 1
    if levels < 2:
        return 0.0
    member = np.zeros((len(at), levels))
    member[np.arange(len(at)), at] = 1.0
    of_levels = influence @ (member / member.sum(axis=0))
    noise = _pairs(of_levels, np.zeros(levels, dtype=np.int64)) * 2 / (levels * (levels - 1))
    return noise * (1 - max(levels - 3, 0) / (levels - 1))


def _same(group: CodeArray) -> float:
    """Ordered pairs within groups, each with itself included."""
    return float((np.unique(group, return_counts=True)[1].astype(np.float64) ** 2).sum())


def _pairs(rows: FloatArray, group: CodeArray) -> float:
    """Sum over rows of half the squared differences of unordered pairs within groups.

    Args:
        rows: float64 [R, K].
        group: int64 [K].
    """
    _, at = np.unique(group, return_inverse=True)
    member = np.zeros((len(at), int(at.max()) + 1))
    member[np.arange(len(at)), at] = 1.0
    sizes = member.sum(axis=0)
    sums, squares = rows @ member, (rows**2) @ member
    return float((sizes * squares - sums**2).sum()) / 2

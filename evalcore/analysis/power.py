"""How many documents, prompts and seeds a comparison needs to find an effect of a given size.

The intervals are those of ``analysis.variation``. A design is judged by simulating what they would
be made of: the means of its (prompt, seed) cells are drawn with the variances that an earlier study
showed, the parts of the interval are estimated from them as the real ones are, and 0 is inside or
not. ``bench/power.py`` compares that with whole simulated studies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf, nan, sqrt

import numpy as np
import numpy.typing as npt

from evalcore.analysis.intervals import OTHER_BOTH, OTHER_PROMPTS, OTHER_SEEDS, THIS_RUN, Claim
from evalcore.analysis.stats import t_quantile
from evalcore.errors import InputError

FloatArray = npt.NDArray[np.float64]
SIMULATED = 4000
MOST_DOCUMENTS = 1_000_000
_SEED = 20240817  # the same designs get the same answer


@dataclass(frozen=True, slots=True)
class Components:
    """Variances of single values, by what they are shared by.

    Attributes:
        documents: Of a document, the same under all prompts and seeds.
        documents_prompts: Of a document under one prompt, the same for all seeds.
        documents_seeds: Of a document for one seed, the same under all prompts.
        rest: Of a single value.
        prompts: Between prompts; NaN where one was seen.
        seeds: Between training seeds; NaN where one was seen.
        both: Interaction of prompts and seeds; 0 where it could not be seen.
        together: Documents that hang together in one cluster, in effect (of equal size); how alike
            they are is in the variances, which stand for documents of such clusters.
    """

    documents: float
    documents_prompts: float
    documents_seeds: float
    rest: float
    prompts: float
    seeds: float
    both: float
    together: float = 1.0

    @classmethod
    def of_cube(cls, cube: FloatArray, clusters: npt.NDArray[np.int64] | None = None) -> Components:
        """From float64 [documents, prompts, seeds], NaN: missing.

        Analysis of variance of the complete part (:func:`complete_part`); estimates below 0 are set
        to 0.

        Args:
            cube: The values.
            clusters: int64 [documents] what they hang together in; None: each by itself.

        Raises:
            InputError: Fewer than two documents (or clusters of them) are complete.
        """
        kept, cube = complete_part(cube)
        n, p, s = cube.shape
        names, at = np.unique(kept if clusters is None else clusters[kept], return_inverse=True)
        c = len(names)
        if c < 2:
            raise InputError(
                f"{c} documents were scored under the same prompts and seeds: variances need two"
            )
        flat = cube.reshape(n, -1)
        moved = np.zeros((c, p * s))
        np.add.at(moved, at, flat - flat.mean(axis=0))
        # Of single documents: what n of them make of the variance of a mean, n times.
        shared = (moved.T @ moved * (c / (c - 1)) / n).reshape(p, s, p, s)
        together = n * float(((np.bincount(at) / n) ** 2).sum())
        one_prompt, one_seed = np.eye(p, dtype=bool), np.eye(s, dtype=bool)

        def mean_where(prompts: npt.NDArray[np.bool_], seeds: npt.NDArray[np.bool_]) -> float:
            chosen = prompts[:, None, :, None] & seeds[None, :, None, :]
            return float(shared[chosen].mean()) if chosen.any() else nan

        same = mean_where(one_prompt, one_seed)
        of_prompt, of_seed = mean_where(one_prompt, ~one_seed), mean_where(~one_prompt, one_seed)
        apart = mean_where(~one_prompt, ~one_seed)
        known = [v for v in (apart, of_prompt, of_seed) if v == v]
        common = max(min(known, default=same), 0.0)
        by_prompt = max(of_prompt - common, 0.0) if of_prompt == of_prompt else 0.0
        by_seed = max(of_seed - common, 0.0) if of_seed == of_seed and s > 1 else 0.0
        rest = max(same - common - by_prompt - by_seed, 0.0)
        means = cube.mean(axis=0)
        between = _variances(means[None], (by_prompt / n, by_seed / n, rest / n))
        prompts, seeds, both = (float(v[0]) for v in between)
        return cls(common, by_prompt, by_seed, rest, prompts, seeds, both, together)

    def at_least(self, prompts: float | None = None, seeds: float | None = None) -> Components:
        """With variances put in where none was seen."""
        return replace(
            self,
            prompts=prompts if prompts is not None and self.prompts != self.prompts
            else self.prompts,
            seeds=seeds if seeds is not None and self.seeds != self.seeds else self.seeds,
        )  # fmt: skip


def complete_part(cube: FloatArray) -> tuple[npt.NDArray[np.int64], FloatArray]:
    """The part of a cube that is complete: prompts and seeds that lack most are left out first.

    Args:
        cube: float64 [documents, prompts, seeds], NaN: missing.

    Returns:
        Numbers of the documents kept, int64 [n], and float64 [n, p, s] without NaN: of what one
        comes by that way the one with the most values.
    """
    best, found = -1, (np.zeros(0, dtype=np.int64), cube[:0])
    while cube.size:
        lost = np.isnan(cube)
        whole = ~lost.any(axis=(1, 2))
        size = int(whole.sum()) * cube.shape[1] * cube.shape[2]
        if size > best:
            best, found = size, (np.flatnonzero(whole), cube[whole])
        if not lost.any():
            break
        of_prompts, of_seeds = lost.mean(axis=(0, 2)), lost.mean(axis=(0, 1))
        axis = 1 if of_prompts.max() >= of_seeds.max() or cube.shape[2] == 1 else 2
        axis = 2 if cube.shape[1] == 1 else axis
        cube = np.delete(cube, int((of_prompts if axis == 1 else of_seeds).argmax()), axis=axis)
    return found


@dataclass(frozen=True, slots=True)
class Design:
    """A comparison that might be made.

    Attributes:
        documents, prompts, seeds: How many.
        claim: What its interval is to generalise over.
        power: Chance that 0 lies outside the interval.
    """

    documents: int
    prompts: int
    seeds: int
    claim: Claim
    power: float

    @property
    def examples(self) -> int:
        """Rows of one model: the tuned one; its base has as many for one seed."""
        return self.documents * self.prompts * self.seeds


def detection_rate(
    components: Components, effect: float, documents: int, prompts: int, seeds: int, claim: Claim,
    *, level: float = 0.95, simulated: int = SIMULATED,
) -> float:  # fmt: skip
    """Chance that an interval of ``claim`` leaves out 0 when the true difference is ``effect``.

    Args:
        components: Variances of single values.
        effect: True difference, averaged over what the claim generalises over.
        level: Of the two-sided interval.
        simulated: Studies drawn; the answer's own standard error is below .5 / sqrt of it.

    Raises:
        InputError: The claim needs two prompts or seeds, or a variance that nobody has seen.
    """
    over_prompts = claim in (OTHER_PROMPTS, OTHER_BOTH)
    over_seeds = claim in (OTHER_SEEDS, OTHER_BOTH)
    _check(components, documents, prompts, seeds, over_prompts, over_seeds)
    rng = np.random.default_rng(_SEED)
    r, n = simulated, documents
    noise = (components.documents_prompts / n, components.documents_seeds / n, components.rest / n)

    def drawn(variance: float, *shape: int) -> FloatArray:
        return sqrt(variance) * rng.standard_normal((r, *shape))

    # A fixed factor has a variance too, but its mean is what the claim is about.
    means = (
        drawn(noise[0], prompts, 1) + drawn(noise[1], 1, seeds) + drawn(noise[2], prompts, seeds)
    )
    if over_prompts:
        means = means + drawn(components.prompts, prompts, 1)
    if over_seeds:
        means = means + drawn(components.seeds, 1, seeds)
    if over_prompts and over_seeds:
        means = means + drawn(components.both, prompts, seeds)
    moved = effect + means.mean(axis=(1, 2)) + drawn(components.documents / n)
    of_documents = components.documents / n + noise[0] / prompts + noise[1] / seeds
    of_documents += noise[2] / (prompts * seeds)
    degrees = n / components.together - 1
    if degrees <= 0:
        return 0.0  # one cluster says nothing about others
    tail = 0.5 + level / 2
    squared = t_quantile(tail, degrees) ** 2 * of_documents * rng.chisquare(degrees, r) / degrees
    if over_prompts or over_seeds:
        if not over_seeds:
            means, noise = means.mean(axis=2, keepdims=True), _over_seeds(noise, seeds)
        elif not over_prompts:
            means, noise = means.mean(axis=1, keepdims=True), _over_prompts(noise, prompts)
        p, s = means.shape[1:]
        of_prompts, of_seeds, of_both = (np.nan_to_num(v) for v in _variances(means, noise))
        if p > 1:
            squared = squared + t_quantile(tail, p - 1) ** 2 * (of_prompts / p + of_both / (p * s))
        if s > 1:
            squared = squared + t_quantile(tail, s - 1) ** 2 * of_seeds / s
    return float((moved**2 > squared).mean())


def documents_needed(
    components: Components, effect: float, prompts: int, seeds: int, claim: Claim, *,
    power: float = 0.8, level: float = 0.95, most: int = MOST_DOCUMENTS,
) -> Design | None:  # fmt: skip
    """The least number of documents with which the effect is found that often; None: not by any.

    Raises:
        InputError: As :func:`detection_rate`; ``power`` is not between 0 and 1, or no effect.
    """
    if not 0 < power < 1:
        raise InputError(f"power {power}: expected a chance between 0 and 1")
    if not 0 < abs(effect) < inf:
        raise InputError(f"effect {effect}: expected a difference other than 0")

    def rate(documents: int) -> float:
        return detection_rate(components, effect, documents, prompts, seeds, claim, level=level)

    low, high = 1, 2
    while (found := rate(high)) < power:
        if high >= most:
            return None
        low, high = high, min(high * 2, most)
    while high - low > max(1, high // 200):
        middle = (low + high) // 2
        if (here := rate(middle)) >= power:
            high, found = middle, here
        else:
            low = middle
    return Design(high, prompts, seeds, claim, found)


def designs(
    components: Components, effect: float, *, prompts: Sequence[int] = (1, 3, 5, 10, 20, 40),
    seeds: Sequence[int] = (1, 3, 5, 10), power: float = 0.8, level: float = 0.95,
    most: int = MOST_DOCUMENTS,
) -> list[tuple[int, int, Claim, Design | None]]:  # fmt: skip
    """For each number of prompts and seeds, the widest claim it supports and what that needs.

    Seeds above one are left out where their variance is not known; so are prompts.
    """
    found: list[tuple[int, int, Claim, Design | None]] = []
    for p in prompts:
        for s in seeds:
            if (p > 1 and np.isnan(components.prompts)) or (s > 1 and np.isnan(components.seeds)):
                continue
            claim = widest_claim(p, s)
            need = documents_needed(
                components, effect, p, s, claim, power=power, level=level, most=most
            )
            found.append((p, s, claim, need))
    return found


def widest_claim(prompts: int, seeds: int) -> Claim:
    """What as many prompts and seeds can speak of."""
    if prompts > 1:
        return OTHER_BOTH if seeds > 1 else OTHER_PROMPTS
    return OTHER_SEEDS if seeds > 1 else THIS_RUN


Noise = tuple[float, float, float]
"""Documents' variance in the mean of a cell: shared by a prompt, by a seed, of the cell alone."""


def _over_seeds(noise: Noise, seeds: int) -> Noise:
    return noise[0] + noise[2] / seeds, noise[1] / seeds, 0.0


def _over_prompts(noise: Noise, prompts: int) -> Noise:
    return noise[0] / prompts, noise[1] + noise[2] / prompts, 0.0


def _variances(means: FloatArray, noise: Noise) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Between prompts, between seeds, interaction: float64 [R] each, from [R, prompts, seeds].

    As ``variation`` estimates them in a complete layout: documents' part taken off but for the
    share that few levels keep. NaN where there is one level.
    """
    r, p, s = means.shape
    centred = means - means.mean(axis=(1, 2), keepdims=True)
    rows, columns = centred.mean(axis=2), centred.mean(axis=1)
    none = np.full(r, nan)
    rest = ((centred - rows[:, :, None] - columns[:, None]) ** 2).sum(axis=(1, 2))
    both = rest / ((p - 1) * (s - 1)) if p > 1 and s > 1 else np.zeros(r)
    own = noise[2] if p > 1 and s > 1 else 0.0
    of_prompts = of_seeds = none
    if p > 1:
        level = noise[0] + noise[2] / s
        between = (rows**2).sum(axis=1) / (p - 1)
        of_prompts = np.maximum(between - both / s - (level - own / s) + _kept(level, p), 0.0)
    if s > 1:
        level = noise[1] + noise[2] / p
        between = (columns**2).sum(axis=1) / (s - 1)
        of_seeds = np.maximum(between - both / p - (level - own / p) + _kept(level, s), 0.0)
    return of_prompts, of_seeds, np.maximum(both - own, 0.0)


def _kept(noise: float, levels: int) -> float:
    return noise * (1 - max(levels - 3, 0) / (levels - 1))


def _check(
    components: Components, documents: int, prompts: int, seeds: int, over_prompts: bool,
    over_seeds: bool,
) -> None:  # fmt: skip
    if documents < 2 or prompts < 1 or seeds < 1:
        raise InputError(
            f"a design of {documents} documents, {prompts} prompts, {seeds} seeds: expected at "
            "least 2, 1 and 1"
        )
    for sampled, count, variance, what in (
        (over_prompts, prompts, components.prompts, "prompt"),
        (over_seeds, seeds, components.seeds, "seed"),
    ):
        if sampled and count < 2:
            raise InputError(f"one {what}: nothing can be said about other {what}s")
        if sampled and variance != variance:
            raise InputError(
                f"the variance between {what}s is not known: one {what} was seen; give it by hand"
            )

"""Scores over many prompts from a few per cent of the (prompt, document) pairs.

The extended Rasch model of PromptEval (Maia Polo et al. 2024, "Efficient multi-prompt evaluation of
LLMs", arXiv:2405.17202): document j under prompt i is answered rightly with probability
``sigmoid(mean + a_i + b_j)``. Here prompts ``a_i`` and documents ``b_j`` are normal with variances
of their own, which the pairs themselves tell, and everything is drawn from its posterior, so that
quantiles over prompts neither shrink (as estimates that borrow strength do) nor widen (as raw means
of few documents do), and come with an interval.

Where a question has a few classes of answers, prompts differ most in which class they favour: one
under which a model always says "entailment" is right on a third of the documents, whatever its
skill. A prompt then has a bias ``c_ik`` towards each class k as well, and document j of class g is
answered rightly with probability ``sigmoid(mean + a_i + b_j + c_ig - log sum_{k != g} exp c_ik)``:
the chance that g wins among biased classes, evidence for it added.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from evalcore.analysis.subjects import SubjectInfo
from evalcore.errors import InputError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
SWEEPS, WARM_UP = 1200, 400
# Accepted shares at which random walks of one and of some dimensions mix best (Gelman et al. 1996).
_TARGET, _TARGET_TOGETHER = 0.44, 0.3


@dataclass(frozen=True)
class PromptScores:
    """Scores of all prompts on all documents, as the pairs tell them.

    Attributes:
        prompts: float64 [prompts]: each prompt's score, posterior mean.
        errors: float64 [prompts]: its posterior standard deviation.
        mean, mean_interval: Of the scores over prompts, and its 95 % interval.
        worst, worst_interval: The lowest score of a prompt.
        quantiles: Share -> (quantile over prompts, lower, upper), 95 % intervals.
        scored: Pairs that were scored, of ``pairs``.
        naive: Mean of the scored pairs.
        spread: Standard deviations of prompts and of documents, in logits (posterior means), and of
            biases towards classes where there are some.
    """

    prompts: Floats
    errors: Floats
    mean: float
    mean_interval: tuple[float, float]
    worst: float
    worst_interval: tuple[float, float]
    quantiles: dict[float, tuple[float, float, float]]
    scored: int
    pairs: int
    naive: float
    spread: tuple[float, ...]

    def as_record(self) -> dict[str, Any]:
        """As JSON values; inverse of :meth:`of_record`."""
        record = {f.name: getattr(self, f.name) for f in fields(self)}
        record |= {"prompts": self.prompts.tolist(), "errors": self.errors.tolist()}
        record["quantiles"] = [[share, *found] for share, found in self.quantiles.items()]
        return record

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> PromptScores:
        """From :meth:`as_record`'s value, lists for tuples allowed."""
        given = dict(record)
        given["prompts"], given["errors"] = (np.array(record[n]) for n in ("prompts", "errors"))
        given["quantiles"] = {share: (v, low, high) for share, v, low, high in record["quantiles"]}
        for name in ("mean_interval", "worst_interval", "spread"):
            given[name] = tuple(record[name])
        return cls(**given)


@dataclass(frozen=True)
class PromptScoreRow:
    """What the drawn pairs say about all prompts of one model, task and way of asking.

    Attributes:
        model: Its name.
        prompts, documents: How many there are.
        scores: The estimate.
        notes: What is odd about the pairs (``notes.pair_notes``).
        subject: The model.
    """

    model: str
    task: str
    metric: str
    way: str
    numerics: str
    prompts: int
    documents: int
    scores: PromptScores
    notes: tuple[str, ...] = ()
    subject: SubjectInfo | None = None


def draw_pairs(prompts: int, documents: int, count: int, seed: int = 0) -> Ints:
    """Which (prompt, document) pairs to score: balanced, seeded, and growing.

    Prompts differ by one pair at most, and so do documents, as long as no document has been used by
    all prompts. Pairs of a larger ``count`` begin with those of a smaller one.

    Returns:
        int64 [min(count, prompts * documents), 2] of prompt and document numbers, in order.
    """
    rng = np.random.default_rng((seed, prompts, documents))
    rank = rng.permutation(documents)  # of a document among equals
    used = np.zeros((prompts, documents), np.bool_)
    uses = np.zeros(documents, np.int64)
    found: list[tuple[int, int]] = []
    count = min(count, prompts * documents)
    while len(found) < count:
        for prompt in rng.permutation(prompts)[: count - len(found)]:
            order = uses * documents + (rank + rng.integers(documents)) % documents
            order[used[prompt]] = np.iinfo(np.int64).max
            document = int(order.argmin())
            used[prompt, document] = True
            uses[document] += 1
            found.append((int(prompt), document))
    return np.array(found, np.int64).reshape(-1, 2)


class _Effects:
    """Normal effects of one side, moved one by one by random walks that find their own step."""

    def __init__(self, groups: Ints, count: int, rng: np.random.Generator) -> None:
        self.groups, self.count, self.rng = groups, count, rng
        self.values = np.zeros(count)
        self.variance, self._scale = 0.5, 1.0
        self._steps = np.ones(count)

    def move(self, other: Floats, outcomes: Floats, adapt: float) -> None:
        """A step for each effect, given the other side's part ``other`` [n] of the logits."""
        proposed = self.values + self._steps * self.rng.standard_normal(self.count)
        now = other + self.values[self.groups]
        then = other + proposed[self.groups]
        gain = _gain(outcomes, now, then)
        prior = (self.values**2 - proposed**2) / (2 * self.variance)
        log_ratio = np.bincount(self.groups, gain, self.count) + prior
        accepted = np.log(self.rng.random(self.count)) < log_ratio
        self.values = np.where(accepted, proposed, self.values)
        if adapt:
            self._steps *= np.exp(adapt * (accepted - _TARGET))

    def draw_variance(self) -> None:
        """From its posterior, given the effects."""
        self.variance, self._scale = _drawn_variance(self.values, self._scale, self.rng)


class _Biases:
    """Normal biases of each prompt towards the classes, one prompt's moved together."""

    def __init__(self, rows: Ints, classes: Ints, prompts: int, rng: np.random.Generator) -> None:
        self.rows, self.classes, self.rng = rows, classes, rng
        self.values = np.zeros((prompts, int(classes.max()) + 1))
        self.variance, self._scale = 1.0, 1.0
        self._steps = np.full((prompts, 1), 0.5)

    def logits(self, values: Floats | None = None) -> Floats:
        """float64 [prompts, classes]: what a bias adds where that class is right."""
        values = self.values if values is None else values
        top = values.max(axis=1, keepdims=True)
        mass = np.exp(values - top)
        others = mass.sum(axis=1, keepdims=True) - mass
        logits: Floats = values - top - np.log(np.maximum(others, 1e-300))
        return logits

    def of_pairs(self, seen: Ints) -> Floats:
        """float64 [n]: the same for each pair, whose document has class ``seen``."""
        return self.logits()[self.rows, seen]

    def move(self, other: Floats, seen: Ints, outcomes: Floats, adapt: float) -> None:
        """Two steps of each prompt's biases, given the rest of the logits ``other`` [n]."""
        count = len(self.values)
        for _ in range(2):
            proposed = self.values + self._steps * self.rng.standard_normal(self.values.shape)
            now = other + self.of_pairs(seen)
            then = other + self.logits(proposed)[self.rows, seen]
            gain = _gain(outcomes, now, then)
            prior = ((self.values**2).sum(axis=1) - (proposed**2).sum(axis=1)) / (2 * self.variance)
            log_ratio = np.bincount(self.rows, gain, count) + prior
            accepted = (np.log(self.rng.random(count)) < log_ratio)[:, None]
            self.values = np.where(accepted, proposed, self.values)
            if adapt:
                self._steps = self._steps * np.exp(adapt * (accepted - _TARGET_TOGETHER))

    def draw_variance(self) -> None:
        """As of other effects."""
        self.variance, self._scale = _drawn_variance(self.values, self._scale, self.rng)


def estimate(
    pairs: Ints, outcomes: Floats, prompts: int, documents: int, *, seed: int = 0,
    quantiles: Sequence[float] = QUANTILES, classes: Ints | None = None,
    variances: tuple[float, ...] | None = None,
) -> PromptScores:  # fmt: skip
    """The distribution of scores over prompts, on all documents.

    Args:
        pairs: int64 [n, 2]: prompt and document of what was scored, each pair once.
        outcomes: float64 [n] in [0, 1]. Values between are taken for shares of right answers.
        prompts, documents: How many there are.
        seed: Of the draws from the posterior; the same input gives the same numbers.
        quantiles: Shares of prompts at or below the wanted scores.
        classes: int64 [documents], from 0: the class of each document's right answer, where all
            have one of a few; None: without biases towards classes.
        variances: True variances of prompts, documents (and, with ``classes``, biases) in logits,
            where they are known.

    Raises:
        InputError: No pair was scored, or an outcome lies outside [0, 1].
    """
    outcomes = np.asarray(outcomes, np.float64)
    if not len(outcomes):
        raise InputError("no (prompt, document) pair was scored: there is nothing to estimate from")
    if not ((outcomes >= 0) & (outcomes <= 1)).all():
        raise InputError("outcomes of (prompt, document) pairs must lie between 0 and 1")
    rng = np.random.default_rng(seed)
    rows, columns = pairs[:, 0], pairs[:, 1]
    by_prompt, by_document = (
        _Effects(rows, prompts, rng),
        _Effects(columns, documents, rng),
    )
    biases = seen = None
    if classes is not None and len(np.unique(classes)) > 1:
        seen = classes[columns]
        biases = _Biases(rows, classes, prompts, rng)
    if variances is not None:
        by_prompt.variance, by_document.variance = variances[:2]
        if biases is not None:
            biases.variance = variances[2]
    known = np.zeros((prompts, documents), np.bool_)
    known[rows, columns] = True
    right = np.bincount(rows, outcomes, prompts)
    mean, step = float(_logit(np.clip(outcomes.mean(), 0.01, 0.99))), 0.1
    drawn: list[Floats] = []
    spreads: list[list[float]] = []
    for sweep in range(SWEEPS):
        adapt = 3 / (10 + sweep) ** 0.6 if sweep < WARM_UP else 0.0
        biased: Floats | float = 0.0
        if biases is not None and seen is not None:
            other = mean + by_prompt.values[rows] + by_document.values[columns]
            biases.move(other, seen, outcomes, adapt)
            biased = biases.of_pairs(seen)
        by_prompt.move(mean + by_document.values[columns] + biased, outcomes, adapt)
        by_document.move(mean + by_prompt.values[rows] + biased, outcomes, adapt)
        mean, step = _move_mean(mean, step, by_prompt, by_document, biased, outcomes, adapt, rng)
        if variances is None:
            by_prompt.draw_variance()
            by_document.draw_variance()
            if biases is not None:
                biases.draw_variance()
        if sweep >= WARM_UP and sweep % 2 == 0:
            logits = mean + by_prompt.values[:, None] + by_document.values
            if biases is not None:
                logits = logits + biases.logits()[:, classes]
            chances = np.where(known, 0.0, 1 / (1 + np.exp(-np.clip(logits, -500, 500))))
            noise = np.sqrt((chances * (1 - chances)).sum(axis=1)) * rng.standard_normal(prompts)
            drawn.append(np.clip((right + chances.sum(axis=1) + noise) / documents, 0, 1))
            sides = [side for side in (by_prompt, by_document, biases) if side is not None]
            spreads.append([side.variance**0.5 for side in sides])
    naive = float(outcomes.mean())
    size = prompts * documents
    return _told(np.array(drawn), np.array(spreads), quantiles, len(outcomes), size, naive)


def _told(
    scores: Floats, spreads: Floats, quantiles: Sequence[float], scored: int, pairs: int,
    naive: float,
) -> PromptScores:  # fmt: skip
    """What draws say: ``scores`` [draws, prompts], ``spreads`` [draws, kinds of effects]."""
    return PromptScores(
        prompts=scores.mean(axis=0), errors=scores.std(axis=0),
        mean=float(scores.mean()), mean_interval=_interval(scores.mean(axis=1)),
        worst=float(scores.min(axis=1).mean()), worst_interval=_interval(scores.min(axis=1)),
        quantiles={
            share: (float(value.mean()), *_interval(value))
            for share, value in zip(
                quantiles, np.quantile(scores, list(quantiles), axis=1), strict=True
            )
        },
        scored=scored, pairs=pairs, naive=naive,
        spread=tuple(float(sd) for sd in spreads.mean(axis=0)),
    )  # fmt: skip


def _gain(outcomes: Floats, now: Floats, then: Floats) -> Floats:
    """float64 [n]: by how much other logits raise the log-likelihood of each outcome."""
    gain: Floats = outcomes * (then - now) - np.logaddexp(0, then) + np.logaddexp(0, now)
    return gain


def _drawn_variance(values: Floats, scale: float, rng: np.random.Generator) -> tuple[float, float]:
    """(variance, scale) of normal effects from their posterior.

    Their standard deviation is half-Cauchy(1) before (Makalic & Schmidt 2016).
    """
    rate = (values**2).sum() / 2 + 1 / scale
    variance = float(rate / rng.gamma((values.size + 1) / 2))
    return variance, float((1 + 1 / variance) / rng.gamma(1.0))


def _move_mean(
    mean: float, step: float, by_prompt: _Effects, by_document: _Effects, biased: Floats | float,
    outcomes: Floats, adapt: float, rng: np.random.Generator,
) -> tuple[float, float]:  # fmt: skip
    """A step of the mean, then exact draws of what may be shifted between it and either side."""
    effects = by_prompt.values[by_prompt.groups] + by_document.values[by_document.groups] + biased
    proposed = mean + step * rng.standard_normal()
    now, then = mean + effects, proposed + effects
    gain = _gain(outcomes, now, then)
    accepted = np.log(rng.random()) < gain.sum()
    mean = float(proposed) if accepted else mean
    step *= float(np.exp(adapt * (float(accepted) - _TARGET)))
    for side in (by_prompt, by_document):  # the likelihood does not see this shift, the prior does
        shift = side.values.mean() + (side.variance / side.count) ** 0.5 * rng.standard_normal()
        side.values = side.values - shift
        mean += float(shift)
    return mean, step


def _interval(draws: Floats) -> tuple[float, float]:
    low, high = np.quantile(draws, (0.025, 0.975))
    return float(low), float(high)


def _logit(p: float) -> float:
    return float(np.log(p / (1 - p)))

"""How far estimates over many prompts from a budget of pairs are from the truth.

    python -m bench.prompteval [--draws 20]                      simulated: 100 prompts x 1,000
    python -m bench.prompteval RESULTS [--share .05]             results with whole cells

For each draw of pairs: the error of the 5th, 50th and 95th percentile over prompts, by the
estimate, by the raw means of the drawn pairs (naive), and by the same model told the true variances
(of results: those that all pairs show).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import numpy as np
import numpy.typing as npt

from evalcore.analysis.prompteval import draw_pairs, estimate

SHARES = (0.05, 0.5, 0.95)
SIMULATED = ((0.3, 0.6, 1.5), (1.5, 0.3, 2.0), (-1.0, 1.0, 1.0), (0.0, 0.1, 1.0))
"""(mean, standard deviation of prompts, of documents), in logits."""


@dataclass(frozen=True)
class Case:
    """A table of answers and the variances behind it.

    Attributes:
        outcomes: float64 [prompts, documents].
        variances: Of prompts and documents (and biases towards classes), in logits.
        classes: Of the documents' right answers; None: not used.
    """

    name: str
    outcomes: npt.NDArray[np.float64]
    variances: tuple[float, ...]
    classes: npt.NDArray[np.int64] | None = None


def simulated(seed: int) -> Iterator[Case]:
    """Tables of 100 prompts and 1,000 documents from the model itself."""
    rng = np.random.default_rng(seed)
    for mean, prompts, documents in SIMULATED:
        logits = mean + prompts * rng.standard_normal((100, 1))
        logits = logits + documents * rng.standard_normal(1000)
        outcomes = (rng.random(logits.shape) < 1 / (1 + np.exp(-logits))).astype(float)
        yield Case(f"sd {prompts}, {documents}", outcomes, (prompts**2, documents**2))


def of_results(results: Path, least: int = 10) -> Iterator[Case]:
    """The whole cells of a results folder, where a task has so many prompts in one way."""
    from evalcore.app.reduction import read_book
    from evalcore.app.report import open_results

    book = read_book(open_results(results))
    for model in book.models:
        for task in book.tasks:
            for (way, _), cells in book.strata(model, task).items():
                own = [runs[0] for runs in cells.values() if 0 in runs]
                if len(own) < least:
                    continue
                shared = sorted(set.intersection(*(set(c.docs.tolist()) for c in own)))
                outcomes = np.stack([c.values[np.isin(c.docs, shared)] for c in own])
                golds = own[0].golds[np.isin(own[0].docs, shared)]
                classes = golds if golds.min() >= 0 else None
                prompts, documents = outcomes.shape
                pairs = draw_pairs(prompts, documents, outcomes.size)
                whole = estimate(
                    pairs, outcomes[pairs[:, 0], pairs[:, 1]], prompts, documents, classes=classes
                )
                name = f"{model.label}, {task}, {way.label}"
                yield Case(name, outcomes, tuple(sd**2 for sd in whole.spread), classes)


def errors(case: Case, share: float, seed: int) -> npt.NDArray[np.float64]:
    """float64 [3 ways, 3 quantiles]: estimate, naive, given the variances."""
    outcomes = case.outcomes
    truth = np.quantile(outcomes.mean(axis=1), SHARES)
    prompts, documents = outcomes.shape
    pairs = draw_pairs(prompts, documents, ceil(share * outcomes.size), seed)
    seen = outcomes[pairs[:, 0], pairs[:, 1]]
    count = len(outcomes)
    own, told = (
        estimate(
            pairs, seen, prompts, documents, seed=seed, quantiles=SHARES, classes=case.classes,
            variances=variances,
        )
        for variances in (None, case.variances)
    )  # fmt: skip
    naive = np.bincount(pairs[:, 0], seen, count) / np.bincount(pairs[:, 0], minlength=count)
    found = [
        [own.quantiles[s][0] for s in SHARES],
        np.quantile(naive, SHARES),
        [told.quantiles[s][0] for s in SHARES],
    ]
    return np.abs(np.array(found) - truth)


def main() -> None:
    """Prints mean absolute errors, in points."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("results", type=Path, nargs="?")
    parser.add_argument("--share", type=float, default=0.05)
    parser.add_argument("--draws", type=int, default=20)
    options = parser.parse_args()
    print("5th, 50th, 95th percentile: mean absolute error in points, of the mean of the three too")
    if options.results is not None:
        cases = [(case, range(options.draws)) for case in of_results(options.results)]
    else:
        by_name: dict[str, list[npt.NDArray[np.float64]]] = {}
        for seed in range(options.draws):
            for case in simulated(seed):
                by_name.setdefault(case.name, []).append(errors(case, options.share, seed))
        for name, found in by_name.items():
            report(name, np.array(found))
        return
    for case, seeds in cases:
        scores = case.outcomes.mean(axis=1)
        spread = 100 * float(np.quantile(scores, 0.95) - np.quantile(scores, 0.05))
        found = [errors(case, options.share, seed) for seed in seeds]
        report(f"{case.name}: {len(scores)} prompts, spread {spread:.1f}", np.array(found))


def report(name: str, found: npt.NDArray[np.float64]) -> None:
    """A line per way for one case; ``found``: float64 [draws, 3 ways, 3 quantiles]."""
    print(name)
    for way, each in zip(("estimate", "naive", "true var."), found.mean(axis=0), strict=True):
        parts = "  ".join(f"{100 * e:5.2f}" for e in each)
        print(f"  {way:<10} {parts}   {100 * each.mean():5.2f}")


if __name__ == "__main__":
    main()

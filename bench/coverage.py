"""How often the intervals of ``analysis.variation`` hold what they say, by simulation.

    python -m bench.coverage -o coverage.json [--studies 2000] [--points gain-3-1-200-.5 ...]

A study is drawn from a logit model: documents (sd 1.5; in clusters of 5, 70 % of that variance is
the cluster's), prompts (sd .5 shared by base and tuned model, sd .5 on the gain), training seeds
(sd .3 on the tuned model), right-or-wrong answers. The truth of each claim is computed by
quadrature: given the prompts and seeds drawn, given the seeds, or over everything.

Beside each mean width stands that of the t interval (Satterthwaite 1946) which is *told* how the
variance of this very design is shared among documents, prompts and seeds and estimates its size
alone: no method that has to learn the shares can do better where the estimates are normal.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.special import gammaln
from scipy.stats import t as student

from evalcore.analysis.intervals import CLAIMS, Claim
from evalcore.analysis.stats import mean_estimate
from evalcore.analysis.variation import variation_of_table

FloatArray = npt.NDArray[np.float64]
DOCUMENT_SD, ALIKE, CLUSTER_SHARE = 1.5, 0.7, 0.7
PROMPT_SD, PROMPT_GAIN_SD, SEED_SD = 0.5, 0.5, 0.3
_NODES, _MASS = np.polynomial.hermite_e.hermegauss(61)
_MASS = _MASS / _MASS.sum()


@dataclass(frozen=True)
class Point:
    """A point of the simulation.

    Attributes:
        what: ``score`` of one model, or ``gain`` of a tuned model over its base.
        prompts, seeds, documents: How many.
        accuracy: Of the base (and of a score), about.
        cluster: Documents that hang together.
        gain: Of the tuned model, in logits.
    """

    what: str
    prompts: int
    seeds: int
    documents: int
    accuracy: float
    cluster: int = 1
    gain: float = 0.7

    @property
    def name(self) -> str:
        parts = [self.what, self.prompts, self.seeds, self.documents, self.accuracy, self.cluster]
        return "-".join(map(str, parts))


POINTS = (
    # what, prompts, seeds, documents, accuracy, cluster
    Point("gain", 3, 1, 20, 0.5), Point("gain", 3, 1, 200, 0.5), Point("gain", 3, 1, 1000, 0.5),
    Point("gain", 10, 1, 20, 0.5), Point("gain", 10, 1, 200, 0.5), Point("gain", 10, 1, 1000, 0.5),
    Point("gain", 40, 1, 200, 0.5), Point("gain", 40, 1, 1000, 0.5),
    Point("gain", 3, 3, 20, 0.5), Point("gain", 3, 3, 200, 0.5), Point("gain", 3, 3, 1000, 0.5),
    Point("gain", 10, 3, 200, 0.5), Point("gain", 10, 10, 200, 0.5),
    Point("gain", 10, 10, 1000, 0.5), Point("gain", 3, 10, 200, 0.5),
    Point("gain", 40, 10, 200, 0.5), Point("gain", 3, 1, 20, 0.02),
    Point("gain", 3, 3, 200, 0.02), Point("gain", 10, 3, 1000, 0.98),
    Point("gain", 3, 3, 200, 0.98), Point("score", 3, 1, 20, 0.02),
    Point("score", 10, 3, 200, 0.98),
    Point("gain", 10, 3, 200, 0.5, 5), Point("gain", 3, 3, 1000, 0.5, 5),
    Point("gain", 10, 3, 200, 0.98, 5), Point("score", 3, 3, 1000, 0.02, 5),
)  # fmt: skip


_COLUMNS = (
    "cover95", "cover99", "width95", "documents95", "documents99", "documents_width95",
)  # fmt: skip


def sigmoid(x: FloatArray) -> FloatArray:
    return 1 / (1 + np.exp(-x))


def expected(logits: FloatArray, variance: float) -> FloatArray:
    """E sigmoid(N(logit, variance)) for each of ``logits``."""
    return sigmoid(logits[..., None] + np.sqrt(variance) * _NODES) @ _MASS


def level_for(accuracy: float) -> float:
    """The logit at which a model with these effects has an accuracy."""
    variance = DOCUMENT_SD**2 + PROMPT_SD**2
    low, high = -20.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (
            (middle, high) if expected(np.array(middle), variance) < accuracy else (low, middle)
        )
    return low


def draw(point: Point, generator: np.random.Generator) -> tuple[FloatArray, dict[Claim, float]]:
    """(values [documents, prompts, seeds], truth of each claim)."""
    n, p, s = point.documents, point.prompts, point.seeds
    level = level_for(point.accuracy)

    def documents() -> FloatArray:
        groups = -(-n // point.cluster)
        own = generator.standard_normal(n)
        if point.cluster == 1:
            return own
        shared = np.repeat(generator.standard_normal(groups), point.cluster)[:n]
        return np.sqrt(CLUSTER_SHARE) * shared + np.sqrt(1 - CLUSTER_SHARE) * own

    common, mine, theirs = documents(), documents(), documents()
    base_doc = DOCUMENT_SD * (np.sqrt(ALIKE) * common + np.sqrt(1 - ALIKE) * theirs)
    own_doc = DOCUMENT_SD * (np.sqrt(ALIKE) * common + np.sqrt(1 - ALIKE) * mine)
    prompt = PROMPT_SD * generator.standard_normal(p)
    gains = PROMPT_GAIN_SD * generator.standard_normal(p)
    seed = SEED_SD * generator.standard_normal(s)
    d2 = DOCUMENT_SD**2
    if point.what == "score":
        logit = level + prompt[:, None] + seed[None]
        right = generator.random((n, p, s)) < sigmoid(own_doc[:, None, None] + logit[None])
        truth = [
            expected(logit, d2).mean(),
            expected(level + prompt, d2 + SEED_SD**2).mean(),
            expected(level + seed, d2 + PROMPT_SD**2).mean(),
            float(expected(np.array(level), d2 + PROMPT_SD**2 + SEED_SD**2)),
        ]
        return right.astype(float), dict(zip(CLAIMS, map(float, truth), strict=True))
    tuned = level + point.gain + (prompt + gains)[:, None] + seed[None]
    base = level + prompt
    own = generator.random((n, p, s)) < sigmoid(own_doc[:, None, None] + tuned[None])
    other = generator.random((n, p)) < sigmoid(base_doc[:, None] + base[None])
    both = PROMPT_SD**2 + PROMPT_GAIN_SD**2
    up = level + point.gain
    base_truth = float(expected(np.array(level), d2 + PROMPT_SD**2))
    truth = [
        expected(tuned, d2).mean() - expected(base, d2).mean(),
        expected(up + prompt + gains, d2 + SEED_SD**2).mean() - expected(base, d2).mean(),
        expected(up + seed, d2 + both).mean() - base_truth,
        float(expected(np.array(up), d2 + both + SEED_SD**2)) - base_truth,
    ]
    values = own.astype(float) - other[:, :, None]
    return values, dict(zip(CLAIMS, map(float, truth), strict=True))


def told_width(point: Point, estimates: FloatArray, truths: FloatArray, claim: Claim) -> float:
    """Mean width of the 95 % t interval that knows the shares of the variance.

    Args:
        estimates: ``[studies]``.
        truths: ``[studies, claims]``, in the order of ``CLAIMS``.
    """
    these, seeds, prompts, _ = CLAIMS
    free = {these: -(-point.documents // point.cluster) - 1}
    free[seeds], free[prompts] = point.seeds - 1, point.prompts - 1
    column = truths[:, CLAIMS.index(these)]
    parts = {these: float(np.var(estimates - column))}
    for one in (seeds, prompts):
        parts[one] = float(np.var(column - truths[:, CLAIMS.index(one)]))
    wanted = {these} if claim == these else {these, claim} if claim in parts else set(parts)
    total = sum(parts[one] for one in wanted)
    df = total**2 / sum(parts[one] ** 2 / free[one] for one in wanted if parts[one])
    mean_sd = np.sqrt(2 / df) * np.exp(gammaln((df + 1) / 2) - gammaln(df / 2))  # of sd = 1
    return float(2 * student.ppf(0.975, df) * mean_sd * np.sqrt(total))


def simulate(point: Point, studies: int, seed: int) -> Iterator[dict]:
    """One row per claim that the point's data support."""
    generator = np.random.default_rng(seed)
    bounds = (0.0, 1.0) if point.what == "score" else (-1.0, 1.0)
    clusters = np.arange(point.documents) // point.cluster
    hits: dict[Claim, list[tuple[bool, bool, float, bool, bool, float]]] = {c: [] for c in CLAIMS}
    estimates, truths = np.empty(studies), np.empty((studies, len(CLAIMS)))
    for study in range(studies):
        values, truth = draw(point, generator)
        estimates[study], truths[study] = values.mean(), [truth[c] for c in CLAIMS]
        found = variation_of_table(values, clusters=clusters, bounds=bounds)
        before = mean_estimate(values.reshape(len(values), -1).mean(axis=1))
        for claim, interval in found.intervals.items():
            if not interval.known:
                continue
            t = truth[claim]
            hits[claim].append(
                (
                    interval.low95 <= t <= interval.high95,
                    interval.low99 <= t <= interval.high99,
                    interval.width95,
                    before.low95 <= t <= before.high95,
                    before.low99 <= t <= before.high99,
                    before.high95 - before.low95,
                )
            )
    for claim, rows in hits.items():
        if not rows:
            continue
        shares = np.array(rows, dtype=float).mean(axis=0)
        row = {"point": point.name, **asdict(point), "claim": claim, "studies": studies}
        row["told_width95"] = round(told_width(point, estimates, truths, claim), 4)
        yield row | {name: round(float(v), 4) for name, v in zip(_COLUMNS, shares, strict=True)}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--studies", type=int, default=2000)
    parser.add_argument("--points", nargs="*", help="names; default: all")
    parser.add_argument("--seed", type=int, default=20)
    options = parser.parse_args()
    chosen = [p for p in POINTS if not options.points or p.name in options.points]
    rows: list[dict] = []
    for point in chosen:
        begin = time.perf_counter()
        for row in simulate(point, options.studies, options.seed):
            rows.append(row)
            print(
                f"{point.name:24} {row['claim']:24} {row['cover95']:.3f} {row['cover99']:.3f} "
                f"width {row['width95']:.3f} (told {row['told_width95']:.3f}); "
                f"documents only {row['documents95']:.3f} {row['documents99']:.3f} "
                f"{row['documents_width95']:.3f}",
                flush=True,
            )
        print(f"  {time.perf_counter() - begin:.0f} s", flush=True)
        options.output.write_text(json.dumps(rows, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()

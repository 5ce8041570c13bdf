"""Whether ``evalcore power`` promises what whole studies keep, by simulation.

    python -m bench.power [--studies 2000]

At each design whole tables of values are drawn with known variances, the intervals of
``analysis.variation`` are made of them, and the share that leaves out 0 is put beside the promise.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from evalcore.analysis.intervals import Claim
from evalcore.analysis.power import Components, detection_rate
from evalcore.analysis.variation import variation_of_table


@dataclass(frozen=True)
class Point:
    """A design, with what is true."""

    components: Components
    effect: float
    documents: int
    prompts: int
    seeds: int
    claim: Claim


POINTS = (
    Point(Components(0.15, 0.05, 0.0, 0.1, 0.0004, 0.0, 0.0), 0.04, 400, 5, 1, "other prompts"),
    Point(
        Components(0.1, 0.05, 0.02, 0.1, 0.0009, 0.0004, 0.0001), 0.05, 300, 10, 3,
        "other prompts and seeds",
    ),
    Point(
        Components(0.2, 0.0, 0.03, 0.05, 0.0, 0.001, 0.0), 0.06, 500, 1, 5,
        "these prompts, other seeds",
    ),
    Point(Components(0.2, 0.0, 0.0, 0.1, 0.0, 0.0, 0.0), 0.03, 1000, 3, 1,
          "these prompts, this run"),
)  # fmt: skip


def table(point: Point, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """One study's differences, float64 [documents, prompts, seeds]."""
    c, n, p, s = point.components, point.documents, point.prompts, point.seeds

    def drawn(variance: float, *shape: int) -> npt.NDArray[np.float64]:
        return np.sqrt(variance) * rng.standard_normal(shape)

    return (
        point.effect + drawn(c.documents, n, 1, 1) + drawn(c.documents_prompts, n, p, 1)
        + drawn(c.documents_seeds, n, 1, s) + drawn(c.rest, n, p, s) + drawn(c.prompts, 1, p, 1)
        + drawn(c.seeds, 1, 1, s) + drawn(c.both, 1, p, s)
    )  # fmt: skip


def seen(point: Point, studies: int, seed: int = 0) -> float:
    """Share of whole studies whose interval leaves out 0."""
    rng = np.random.default_rng(seed)
    found = 0
    for _ in range(studies):
        interval = variation_of_table(table(point, rng)).intervals[point.claim]
        found += not interval.low95 <= 0 <= interval.high95
    return found / studies


def promised(point: Point) -> float:
    """What ``evalcore power`` says of it."""
    return detection_rate(
        point.components, point.effect, point.documents, point.prompts, point.seeds, point.claim
    )


def main() -> None:
    """Prints a line for each design."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--studies", type=int, default=2000)
    studies = parser.parse_args().studies
    print("documents prompts seeds  promised  seen  claim")
    for point in POINTS:
        print(
            f"{point.documents:9} {point.prompts:7} {point.seeds:5}  {promised(point):8.3f}  "
            f"{seen(point, studies):.3f}  {point.claim}"
        )


if __name__ == "__main__":
    main()

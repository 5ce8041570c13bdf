"""Certificates by simulation: how often honest runs are suspected, and how often a fault is found.

``python -m bench.certificate [--runs 1000]`` prints a table. A run has 200 subjects and 10 tasks;
how far its examples move is drawn, sampled as ``--certify`` samples, and judged by the real judge.
Subjects and tasks differ in how noisy they are. The fault: of one subject, 5 % of the examples are
off by 0.5 nats.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from evalcore.scoring.certificates.judging import Rescored, judge
from evalcore.scoring.certificates.sampling import sample_sizes

SUBJECTS, TASKS, CHOICES = 200, 10, 4
SHARE = 0.02
FAULT_SHARE, FAULT_NATS = 0.05, 0.5
Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]


@dataclass(frozen=True)
class Noise:
    """How far log-probabilities move in honest runs: standard deviation 1, then scaled.

    Attributes:
        dtype: As which it is judged.
        scale: Nats, of a usual subject and task.
        draw: Numbers of a shape.
        spread: Standard deviation of the logarithm of a subject's and a task's own scale.
    """

    dtype: str
    scale: float
    draw: Draw
    spread: float = 0.15


NOISES = {
    "float32, normal": Noise("float32", 2e-5, lambda rng, shape: rng.normal(size=shape)),
    "float32, t(3)": Noise(
        "float32", 2e-5, lambda rng, shape: rng.standard_t(3, shape) / np.sqrt(3)
    ),
    "bfloat16, normal": Noise("bfloat16", 0.025, lambda rng, shape: rng.normal(size=shape)),
    "bfloat16, t(3)": Noise(
        "bfloat16", 0.025, lambda rng, shape: rng.standard_t(3, shape) / np.sqrt(3)
    ),
}


def bad_rows(rows: int) -> list[int]:
    """How many rows of a subject the fault's share is: the numbers beside it."""
    own = FAULT_SHARE * (rows // SUBJECTS)
    return sorted({math.floor(own + 1e-9), math.ceil(own - 1e-9)})


def simulate(rng: np.random.Generator, rows: int, noise: Noise, bad: int) -> Rescored:
    """The sample of a run of so many rows, ``bad`` of one subject's being off."""
    each = rows // (SUBJECTS * TASKS)
    (count,) = set(sample_sizes({0: [each] * TASKS}, SHARE)[0])
    shape = (SUBJECTS, TASKS, count)
    own = np.exp(noise.spread * rng.normal(size=(SUBJECTS, 1, 1)))
    own = own * np.exp(noise.spread * rng.normal(size=(1, TASKS, 1)))
    moved = np.zeros(shape)
    signed = np.zeros(shape)
    for choice in range(CHOICES):
        step = noise.scale * own * noise.draw(rng, shape)
        signed = step if choice == 0 else signed
        np.maximum(moved, np.abs(step), out=moved)
    if bad:
        # Of its rows, not of the sample's: which of these are among them is chance.
        wrong = np.zeros(each * TASKS, dtype=bool)
        wrong[:bad] = True
        rng.shuffle(wrong)
        hit = wrong.reshape(TASKS, each)[:, :count]
        moved[0] = np.where(hit, np.maximum(moved[0], np.abs(signed[0] + FAULT_NATS)), moved[0])
    cells = tuple(f"{s}/{t}" for s in range(SUBJECTS) for t in range(TASKS))
    at = np.repeat(np.arange(len(cells)), count)
    return Rescored(cells, at, moved.reshape(-1), np.zeros(len(at), dtype=bool))


STRATA = {f"{s}/{t}": (f"subject {s}", f"{t}") for s in range(SUBJECTS) for t in range(TASKS)}


def suspected(rows: int, noise: Noise, runs: int, bad: int, seed: int = 0) -> int:
    """How many of so many runs are not certified."""
    rng = np.random.default_rng([seed, rows, bad])
    samples = (simulate(rng, rows, noise, bad) for _ in range(runs))
    return sum(not judge(sample, noise.dtype, STRATA).holds for sample in samples)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--found-runs", type=int, help="those with the fault; else as many")
    parser.add_argument("--rows", default="10000,100000,1000000,10000000")
    options = parser.parse_args()
    print(f"{'noise':18} {'rows':>11} {'sample':>8} {'rows off':>9} {'not certified':>14}")
    for name, noise in NOISES.items():
        for rows in map(int, options.rows.split(",")):
            drawn = len(simulate(np.random.default_rng(0), rows, noise, 0).moved)
            for bad in (0, *bad_rows(rows)):
                begin = time.perf_counter()
                runs = options.found_runs if bad and options.found_runs else options.runs
                count = suspected(rows, noise, runs, bad)
                print(
                    f"{name:18} {rows:11,} {drawn:8,} {bad:9,} "
                    f"{100 * count / runs:12.1f} %   ({count} of {runs} runs, "
                    f"{time.perf_counter() - begin:.0f} s)",
                    flush=True,
                )


if __name__ == "__main__":
    main()

"""Certificates by simulation: how often honest runs are suspected, and how often a fault is found.

``python -m bench.certificate [--runs 1000]`` prints a table. A run has 200 subjects and 10 tasks;
how far its examples move is drawn, sampled as ``--certify`` samples, and judged by the real judge.
Subjects and tasks differ in how noisy they are. The fault: of one subject, 5 % of the examples are
off by 0.5 nats.

``--bound`` prints what no test of one second scoring can do better: the likelihood ratio of the
fault against none, by a judge who knows its size, how many examples of a subject are off, every
subject's and task's noise and its law (Neyman and Pearson's lemma), and what a test can do that
asks how far two or more examples of a subject moved, with a threshold that is exactly right.
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


_ROOT3 = math.sqrt(3)


def _density(x: np.ndarray) -> np.ndarray:
    """Of Student's t with 3 degrees of freedom."""
    return 2 / (math.pi * _ROOT3) / (1 + x * x / 3) ** 2


def _share(x: np.ndarray) -> np.ndarray:
    """Its distribution function."""
    return 0.5 + ((x / _ROOT3) / (1 + x * x / 3) + np.arctan(x / _ROOT3)) / math.pi


def likelihood_ratio(moved: np.ndarray, scale: np.ndarray, bad: int) -> float:
    """How much likelier a sample is with ``bad`` examples of one subject off than with none.

    Args:
        moved: float64 [subjects, examples], the most of :data:`CHOICES` choices, noise of t(3).
        scale: float64 of the same shape: of the noise, which is known.
        bad: 2 or 3; up to a factor that is the same for all samples.
    """
    own, below = 2 * _density(moved / scale) / scale, 2 * _share(moved / scale) - 1
    far, near = (moved - FAULT_NATS) / scale, (moved + FAULT_NATS) / scale
    off, off_below = (_density(far) + _density(near)) / scale, _share(far) - _share(-near)
    # One choice is off, the others are not, and the largest is seen.
    ratio = ((CHOICES - 1) * own * off_below / below + off) / (CHOICES * own)
    first, second, third = (np.sum(ratio**power, axis=1) for power in (1, 2, 3))
    pairs = (first**2 - second) / 2  # over all choices of the examples that are off
    threes = (first**3 - 3 * first * second + 2 * third) / 6
    return float((pairs if bad == 2 else threes).mean())


def bound(runs: int, examples: int = 50, seed: int = 0) -> None:
    """Prints what can be found of ``examples`` of each subject, at 1 % of false alarms."""
    noise = NOISES["bfloat16, t(3)"]
    rng = np.random.default_rng([seed, examples])

    def drawn(bad: int) -> tuple[np.ndarray, np.ndarray]:
        own = np.exp(noise.spread * rng.normal(size=(SUBJECTS, 1, 1)))
        own = own * np.exp(noise.spread * rng.normal(size=(1, TASKS, 1)))
        own = np.broadcast_to(own, (SUBJECTS, TASKS, examples // TASKS)).reshape(SUBJECTS, examples)
        scale = noise.scale / _ROOT3 * own
        steps = scale[..., None] * rng.standard_t(3, (SUBJECTS, examples, CHOICES))
        if bad:
            steps[0, rng.choice(examples, bad, replace=False), 0] += FAULT_NATS
        return np.abs(steps).max(axis=2), scale

    for bad in (2, 3):
        honest, faulty = ([drawn(count) for _ in range(runs)] for count in (0, bad))
        known = [[likelihood_ratio(*s, bad) for s in samples] for samples in (honest, faulty)]
        second = [np.sort(moved, axis=1)[:, -2].max() for moved, _ in honest]
        theirs = np.asarray([np.sort(moved[0])[-2] for moved, _ in faulty])
        least = np.quantile(second, 0.99)
        print(
            f"{examples} examples of each of {SUBJECTS} subjects, {bad} off: knowing all, "
            f"{100 * (np.asarray(known[1]) > np.quantile(known[0], 0.99)).mean():.1f} % are found; "
            f"by how far two moved, with the right threshold ({least:.2f} nats), "
            f"{100 * (theirs > least).mean():.1f} %",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--found-runs", type=int, help="those with the fault; else as many")
    parser.add_argument("--rows", default="10000,100000,1000000,10000000")
    parser.add_argument("--bound", action="store_true", help="what any test can do; see above")
    options = parser.parse_args()
    if options.bound:
        bound(options.runs)
        return
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

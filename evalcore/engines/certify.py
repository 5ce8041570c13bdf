"""How far scores move when nothing but order, batch size and cache change.

In float32 they move by rounding only. In 16-bit they move more, and where two choices are closer
than that, which one wins is chance: a certificate says how much and how often, from a sample that
is scored again cold, in another order, in small batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from evalcore.engines.protocol import Engine
from evalcore.types import FloatArray, OffsetArray, ScoreBatch, ScoreResult

CONTEXTS_PER_BATCH = 7
# What rounding can do to the log-probability of a whole continuation, in nats: a p99 above it means
# that something else than order and batch size has changed, and says nothing about near ties.
ROUNDING = {"float32": 1e-3, "bfloat16": 0.5, "float16": 0.1}


@dataclass(frozen=True, eq=False)
class Rescored:
    """A sample that was scored twice, not judged yet.

    Attributes:
        first: float64 [M], log-probability of each choice in nats, as it is reported.
        again: float64 [M], scored again.
        sizes: int64 [N], choices of each example, in order; 1 where there is nothing to choose.
        texts: Texts that were generated again.
        changed_texts: Those that came out different.
    """

    first: FloatArray = field(default_factory=lambda: np.zeros(0))
    again: FloatArray = field(default_factory=lambda: np.zeros(0))
    sizes: OffsetArray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    texts: int = 0
    changed_texts: int = 0

    @classmethod
    def together(cls, parts: Sequence[Rescored]) -> Rescored:
        """Several samples as one."""
        if not parts:
            return cls()
        return cls(
            np.concatenate([part.first for part in parts]),
            np.concatenate([part.again for part in parts]),
            np.concatenate([part.sizes for part in parts]),
            sum(part.texts for part in parts),
            sum(part.changed_texts for part in parts),
        )


@dataclass(frozen=True)
class Certificate:
    """What scoring a sample again showed.

    Attributes:
        examples: Examples scored again.
        choices: Their choices (continuations).
        max_difference: Largest difference of a choice's log-probability, in nats.
        p99_difference: 99th percentile of the differences.
        flips: Examples whose arg max changed.
        near_ties: Examples whose two best choices were closer than ``p99_difference`` at first.
        unexplained_flips: Flips that are no near ties.
        texts: Texts generated again.
        changed_texts: Those that came out different; a text has no margin, so that near ties cannot
            be told from faults.
        rounding: Largest ``p99_difference`` that rounding explains.
    """

    examples: int = 0
    choices: int = 0
    max_difference: float = 0.0
    p99_difference: float = 0.0
    flips: int = 0
    near_ties: int = 0
    unexplained_flips: int = 0
    texts: int = 0
    changed_texts: int = 0
    rounding: float = ROUNDING["float32"]

    @property
    def holds(self) -> bool:
        """Whether rounding explains what changed."""
        return not self.unexplained_flips and self.p99_difference <= self.rounding

    def lines(self) -> list[str]:
        """The certificate for a person."""
        lines = [
            f"certified on {self.examples:,} examples ({self.choices:,} choices) scored again "
            f"cold, in another order and batch size: difference max {self.max_difference:.2g}, "
            f"p99 {self.p99_difference:.2g} nats; arg max changed {self.flips} times; "
            f"{self.near_ties} near ties (margin below the p99)"
        ]
        if self.texts:
            lines.append(
                f"certified: {self.texts:,} texts generated again, {self.changed_texts} of them "
                f"different (texts have no margin: near ties cannot be told apart)"
            )
        if self.p99_difference > self.rounding:
            lines.append(
                f"NOT CERTIFIED: a p99 of {self.p99_difference:.2g} nats is more than rounding "
                f"explains ({self.rounding:g}); the engine's answers depend on something else"
            )
        elif self.unexplained_flips:
            lines.append(
                f"NOT CERTIFIED: {self.unexplained_flips} arg maxes changed where the choices "
                f"were no near ties"
            )
        else:
            lines.append("certified: no arg max changed beyond near ties")
        return lines


def continuation_sums(batch: ScoreBatch, result: ScoreResult) -> FloatArray:
    """float64 [M]: log-probability of each whole continuation."""
    if not batch.num_continuations:
        return np.zeros(0, dtype=np.float64)
    return np.add.reduceat(result.token_logprobs, batch.continuation_offsets[:-1])


def score_again(engine: Engine, batch: ScoreBatch, rng: np.random.Generator) -> FloatArray:
    """float64 [M]: scores of the loaded subject, cold, in another order, in small batches.

    Args:
        engine: Any engine; the subject is in place.
        batch: What to score.
        rng: Draws the order.
    """
    values = np.empty(batch.num_continuations)
    order = rng.permutation(batch.num_contexts)
    for begin in range(0, len(order), CONTEXTS_PER_BATCH):
        part, rows = _part(batch, order[begin : begin + CONTEXTS_PER_BATCH])
        engine.forget()
        values[rows] = continuation_sums(part, engine.score(part))
    return values


def _part(batch: ScoreBatch, contexts: OffsetArray) -> tuple[ScoreBatch, OffsetArray]:
    """Some contexts of a batch in a given order, and which continuations they bring."""
    bounds = np.searchsorted(batch.continuation_context, np.arange(batch.num_contexts + 1))
    rows = [np.arange(bounds[i], bounds[i + 1]) for i in contexts]
    items = [
        (batch.context(int(i)).tolist(), [batch.continuation(int(j)).tolist() for j in members])
        for i, members in zip(contexts, rows, strict=True)
    ]
    return ScoreBatch.from_lists(items), np.concatenate(rows)


def judge(sample: Rescored, dtype: str = "float32") -> Certificate:
    """What a sample that was scored twice in a dtype says."""
    first, again, sizes = sample.first, sample.again, sample.sizes
    difference = np.abs(first - again)
    p99 = float(np.quantile(difference, 0.99)) if len(difference) else 0.0
    flips = ties = beyond = 0
    for low, high in _groups(sizes):
        one, other = first[low:high], again[low:high]
        best = np.partition(one, len(one) - 2)[-2:]
        tie = bool(best[1] - best[0] < p99)
        flipped = int(one.argmax()) != int(other.argmax())
        ties += tie
        flips += flipped
        beyond += flipped and not tie
    return Certificate(
        examples=len(sizes),
        choices=len(first),
        max_difference=float(difference.max()) if len(difference) else 0.0,
        p99_difference=p99,
        flips=flips,
        near_ties=ties,
        unexplained_flips=beyond,
        texts=sample.texts,
        changed_texts=sample.changed_texts,
        rounding=ROUNDING[dtype],
    )


def _groups(sizes: OffsetArray) -> Iterator[tuple[int, int]]:
    """Bounds of the groups in which there is something to choose."""
    low = 0
    for size in sizes.tolist():
        if size > 1:
            yield low, low + size
        low += size

"""How far scores move when nothing but order, batch size and cache change.

In float32 they move by rounding only. In 16-bit they move more, and where two choices are closer
than that, which one wins is chance: a certificate says how much and how often, from a sample that
is scored again cold, in another order, in small batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from evalcore.engines.protocol import Engine
from evalcore.types import FloatArray, OffsetArray, ScoreBatch, ScoreResult, Subject


@dataclass(frozen=True)
class Certificate:
    """What scoring a sample again showed; log-probabilities are of whole continuations, in nats.

    Attributes:
        contexts: Context groups scored again.
        continuations: Continuations scored again.
        max_difference: Largest difference of a log-probability.
        p99_difference: 99th percentile of the differences.
        flips: Groups of several continuations whose arg max changed.
        near_ties: Groups whose two best were closer than ``p99_difference`` at first.
        unexplained_flips: Flips that are no near ties.
    """

    contexts: int = 0
    continuations: int = 0
    max_difference: float = 0.0
    p99_difference: float = 0.0
    flips: int = 0
    near_ties: int = 0
    unexplained_flips: int = 0

    def line(self) -> str:
        """The certificate for a person."""
        return (
            f"certified on {self.contexts:,} contexts ({self.continuations:,} continuations) "
            f"scored again cold, in another order and batch size: difference max "
            f"{self.max_difference:.2g}, p99 {self.p99_difference:.2g} nats; arg max changed "
            f"{self.flips} times ({self.unexplained_flips} beyond the p99); {self.near_ties} near "
            f"ties"
        )


def continuation_sums(batch: ScoreBatch, result: ScoreResult) -> FloatArray:
    """float64 [M]: log-probability of each whole continuation."""
    if not batch.num_continuations:
        return np.zeros(0, dtype=np.float64)
    return np.add.reduceat(result.token_logprobs, batch.continuation_offsets[:-1])


def certify(
    engine: Engine,
    sample: Sequence[tuple[Subject, ScoreBatch]],
    expected: Sequence[FloatArray] | None = None,
    *,
    contexts_per_batch: int = 7,
    seed: int = 0,
) -> Certificate:
    """Scores a sample again and compares.

    Args:
        engine: Any engine; subjects are loaded as they come.
        sample: Subjects, each with some of its requests.
        expected: float64 [M] per batch, log-probabilities of whole continuations as they were
            reported; None: each batch is scored as it is first.
        contexts_per_batch: Contexts scored at a time the second time.
        seed: Draws the other order.
    """
    rng = np.random.default_rng(seed)
    first: list[FloatArray] = []
    again: list[FloatArray] = []
    groups: list[OffsetArray] = []
    for k, (subject, batch) in enumerate(sample):
        engine.load(subject)
        if expected is None:
            first.append(continuation_sums(batch, engine.score(batch)))
        else:
            first.append(expected[k])
        values = np.empty(batch.num_continuations)
        order = rng.permutation(batch.num_contexts)
        for begin in range(0, len(order), contexts_per_batch):
            part, rows = _part(batch, order[begin : begin + contexts_per_batch])
            engine.forget()
            values[rows] = continuation_sums(part, engine.score(part))
        again.append(values)
        groups.append(np.bincount(batch.continuation_context, minlength=batch.num_contexts))
    if not first:
        return Certificate()
    return compare(np.concatenate(first), np.concatenate(again), np.concatenate(groups))


def _part(batch: ScoreBatch, contexts: OffsetArray) -> tuple[ScoreBatch, OffsetArray]:
    """Some contexts of a batch in a given order, and which continuations they bring."""
    bounds = np.searchsorted(batch.continuation_context, np.arange(batch.num_contexts + 1))
    rows = [np.arange(bounds[i], bounds[i + 1]) for i in contexts]
    items = [
        (batch.context(int(i)).tolist(), [batch.continuation(int(j)).tolist() for j in members])
        for i, members in zip(contexts, rows, strict=True)
    ]
    return ScoreBatch.from_lists(items), np.concatenate(rows)


def compare(first: FloatArray, again: FloatArray, sizes: OffsetArray) -> Certificate:
    """Compares two scorings.

    Args:
        first: float64 [M], as reported.
        again: float64 [M], scored again.
        sizes: int64 [N], continuations of each group, in order.
    """
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
        len(sizes),
        len(first),
        float(difference.max()) if len(difference) else 0.0,
        p99,
        flips,
        ties,
        beyond,
    )


def _groups(sizes: OffsetArray) -> Iterator[tuple[int, int]]:
    """Bounds of the groups in which there is something to choose."""
    low = 0
    for size in sizes.tolist():
        if size > 1:
            yield low, low + size
        low += size

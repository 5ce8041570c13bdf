"""How far scores move when only order, batch size and cache change, and whether that is noise.

A sample is scored again cold, in another order, in small batches. What moves by more than an
example of its kind should is *off*. Honest examples are off as well where noise has a heavy tail,
but by chance: they are spread over subjects as the sample is. A fault of one subject (a cache that
served it stale, a slot that was not its own) is not. So the examples off are ranked by how many
times the usual they moved, and the certificate asks of every subject, and of every subject and
task, whether so many of the furthest are its own by chance: which subject the next of a task
belongs to is a draw, whatever the noise looks like. All ranks are asked, so that no threshold has
to be right for the noise at hand: two examples of one subject that are the furthest of 200
subjects' are one chance in 200. The thresholds hold over all questions together, so that of a
hundred honest runs one is suspected at most; ``bench/certificate.py`` measures that, and what is
found.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from evalcore.engines.protocol import Engine
from evalcore.types import FloatArray, OffsetArray, ScoreBatch, ScoreResult

CONTEXTS_PER_BATCH = 7
FALSE_ALARM = 0.01
"""Share of honest runs that may be suspected."""
TIMES = 6.0
"""An example is off if it moved so many times as far as is usual for its subject and task ..."""
MANY_TIMES = 25.0
"""... and far off if so many times."""
LEAST_OFF = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.02}
"""... and by as many nats: what rounding may do to the log-probability of a continuation."""
MOST_MEDIAN = {"float32": 1e-3, "bfloat16": 0.25, "float16": 0.06}
"""Nats that half of a subject's examples of a task may move: above it something is wrong with all
of them, and no example is off among its like."""
MOST = {"float32": 0.1, "bfloat16": 20.0, "float16": 10.0}
"""Nats that no single example moves by rounding."""
ENOUGH = 20
"""Examples of a subject and task whose median says something."""
MOST_OFF_SHARE = 0.01
"""Of a run's examples, so many may be far off by noise; heavy tails (Student's t with 3 degrees of
freedom) give 0.0001."""
SPENT = {"subject": (0.0051, 0.0022, 0.0006), "task": (0.0004, 0.0001), "share": (0.0001,)}
"""Of :data:`FALSE_ALARM`: on the fewest examples of a subject that can tell, on the next number,
and so on, each further one a third of the one before; on subjects and tasks; on their share."""
APART = 1.5
"""Two examples tell of a subject only if they moved so many times as far as any other: what is
usual of a subject is estimated, and under heavy tails an error in that counts twice."""


@dataclass(frozen=True, eq=False)
class Rescored:
    """A sample that was scored twice, not judged yet; an example is one row.

    Attributes:
        cells: Keys of the cells the examples are of.
        cell: int64 [N], which of these.
        moved: float64 [N], the most that a log-probability of the example moved, in nats; infinite
            where one of the two was no number.
        flipped: bool [N], whether another choice came out best.
        choices: How many log-probabilities that were.
        texts: Texts that were generated again.
        changed_texts: Those that came out different.
    """

    cells: tuple[str, ...] = ()
    cell: OffsetArray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    moved: FloatArray = field(default_factory=lambda: np.zeros(0))
    flipped: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=bool))
    choices: int = 0
    texts: int = 0
    changed_texts: int = 0

    @classmethod
    def of(
        cls,
        cells: Sequence[tuple[str, int]],
        first: FloatArray,
        again: FloatArray,
        sizes: OffsetArray,
        chosen: np.ndarray,
    ) -> Rescored:
        """Compares two scorings.

        Args:
            cells: Key and number of examples of each cell, in order.
            first, again: float64 [M], log-probabilities of all examples' continuations.
            sizes: int64 [N], continuations of each example.
            chosen: bool [N], whether a choice is made among them.
        """
        with np.errstate(invalid="ignore"):
            far = np.abs(first - again)
        far[first == again] = 0.0  # both may be -inf
        far[~np.isfinite(far)] = np.inf
        bounds = np.concatenate([[0], np.cumsum(sizes)])
        moved, flipped = np.zeros(len(sizes)), np.zeros(len(sizes), dtype=bool)
        for i, (low, high) in enumerate(pairwise(bounds.tolist())):
            if high > low:
                moved[i] = far[low:high].max()
                if chosen[i]:
                    flipped[i] = first[low:high].argmax() != again[low:high].argmax()
        counts = [count for _, count in cells]
        return cls(
            tuple(key for key, _ in cells),
            np.repeat(np.arange(len(cells)), counts),
            moved,
            flipped,
            len(first),
        )

    @classmethod
    def together(cls, parts: Sequence[Rescored]) -> Rescored:
        """Several samples as one."""
        if not parts:
            return cls()
        keys = list(dict.fromkeys(key for part in parts for key in part.cells))
        at = {key: i for i, key in enumerate(keys)}
        return cls(
            tuple(keys),
            np.concatenate(
                [np.asarray([at[k] for k in part.cells], np.int64)[part.cell] for part in parts]
            ),
            np.concatenate([part.moved for part in parts]),
            np.concatenate([part.flipped for part in parts]),
            sum(part.choices for part in parts),
            sum(part.texts for part in parts),
            sum(part.changed_texts for part in parts),
        )


@dataclass(frozen=True)
class Certificate:
    """What scoring a sample again showed.

    Attributes:
        examples: Examples scored again.
        choices: Their choices (continuations).
        subjects, tasks: How many they are of.
        max_difference: The most an example moved, in nats.
        p99_difference: 99th percentile of how far they moved.
        flips: Examples whose arg max changed.
        off: Examples that moved further than noise should (see the module's docstring).
        texts: Texts generated again.
        changed_texts: Those that came out different; a text has no margin, so that near ties cannot
            be told from faults.
        faults: What is not chance, one line each: the certificate does not hold.
    """

    examples: int = 0
    choices: int = 0
    subjects: int = 0
    tasks: int = 0
    max_difference: float = 0.0
    p99_difference: float = 0.0
    flips: int = 0
    off: int = 0
    texts: int = 0
    changed_texts: int = 0
    faults: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether noise explains what changed."""
        return not self.faults

    def lines(self) -> list[str]:
        """The certificate for a person."""
        lines = [
            f"certified on {self.examples:,} examples ({self.choices:,} choices) of "
            f"{self.subjects:,} subjects and {self.tasks:,} tasks, scored again cold, in another "
            f"order and batch size: difference max {self.max_difference:.2g}, p99 "
            f"{self.p99_difference:.2g} nats; arg max changed {self.flips} times; {self.off} "
            f"examples off"
        ]
        if self.texts:
            lines.append(
                f"certified: {self.texts:,} texts generated again, {self.changed_texts} of them "
                f"different (texts have no margin: near ties cannot be told apart)"
            )
        if self.holds:
            return [*lines, "certified: no subject and no task moved more than noise explains"]
        return lines + self.fault_lines()

    def fault_lines(self) -> list[str]:
        """Why it does not hold, the first few reasons."""
        more = len(self.faults) - SHOWN_FAULTS
        rest = [f"NOT CERTIFIED: and {more:,} more of the kind"] if more > 0 else []
        return [f"NOT CERTIFIED: {fault}" for fault in self.faults[:SHOWN_FAULTS]] + rest


SHOWN_FAULTS = 5


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
        part, rows = part_of(batch, order[begin : begin + CONTEXTS_PER_BATCH])
        engine.forget()
        values[rows] = continuation_sums(part, engine.score(part))
    return values


def part_of(batch: ScoreBatch, contexts: OffsetArray) -> tuple[ScoreBatch, OffsetArray]:
    """Some contexts of a batch in a given order, and which continuations they bring."""
    bounds = np.searchsorted(batch.continuation_context, np.arange(batch.num_contexts + 1))
    rows = [np.arange(bounds[i], bounds[i + 1]) for i in contexts]
    items = [
        (batch.context(int(i)).tolist(), [batch.continuation(int(j)).tolist() for j in members])
        for i, members in zip(contexts, rows, strict=True)
    ]
    return ScoreBatch.from_lists(items), np.concatenate(rows)


def judge(
    sample: Rescored, dtype: str, strata: Mapping[str, tuple[str, str]] | None = None
) -> Certificate:
    """What a sample that was scored twice in a dtype says.

    Args:
        sample: All of a run.
        dtype: The engine's.
        strata: Cell key -> (subject, task); None: every cell is of a task of its own.
    """
    named = [(strata or {}).get(key, ("one subject", key)) for key in sample.cells]
    subjects, subject = _numbered([name for name, _ in named], sample.cell)
    tasks, task = _numbered([name for _, name in named], sample.cell)
    names = [f"{name}, task {what}" for name in subjects for what in tasks]
    stratum = subject * len(tasks) + task
    moved = sample.moved
    finite = moved[np.isfinite(moved)]
    usual, medians = _usual(subject, task, moved, (len(subjects), len(tasks)))
    faults = [
        f"{names[i]}: half of its examples moved by {medians[i]:.2g} nats or more; rounding in "
        f"{dtype} explains {MOST_MEDIAN[dtype]:g}"
        for i in np.flatnonzero(medians > MOST_MEDIAN[dtype])
    ]
    for i in np.unique(stratum[moved > MOST[dtype]]):
        far = moved[stratum == i].max()
        faults.append(f"{names[i]}: an example moved by {far:.2g} nats; rounding moves none so far")
    times = moved / np.maximum(usual[stratum], LEAST_OFF[dtype] / TIMES)
    off, far = np.flatnonzero(times > TIMES), int((times > MANY_TIMES).sum())
    furthest = off[np.argsort(-times[off], kind="stable")]
    for group, which, spent in ((subject, subjects, "subject"), (stratum, names, "task")):
        faults += _crowded(times, furthest, group, task, which, SPENT[spent])
    if len(moved) and _tail(far, len(moved), MOST_OFF_SHARE) < SPENT["share"][0]:
        faults.append(
            f"{far:,} of {len(moved):,} examples moved more than {MANY_TIMES:g} times as far as "
            f"others of their kind; the answers depend on order or batch size"
        )
    return Certificate(
        examples=len(moved),
        choices=sample.choices,
        subjects=len(subjects),
        tasks=len(tasks),
        max_difference=float(moved.max()) if len(moved) else 0.0,
        p99_difference=float(np.quantile(finite, 0.99)) if len(finite) else 0.0,
        flips=int(sample.flipped.sum()),
        off=len(off),
        texts=sample.texts,
        changed_texts=sample.changed_texts,
        faults=tuple(dict.fromkeys(faults)),
    )


def _numbered(names: Sequence[str], cell: OffsetArray) -> tuple[list[str], OffsetArray]:
    """(distinct names, int64 [N]: which of them each example has)."""
    distinct = list(dict.fromkeys(names))
    at = {name: i for i, name in enumerate(distinct)}
    return distinct, np.asarray([at[name] for name in names], dtype=np.int64)[cell]


def _usual(
    subject: OffsetArray, task: OffsetArray, moved: FloatArray, shape: tuple[int, int]
) -> tuple[FloatArray, FloatArray]:
    """float64 [subjects x tasks] twice: how far is usual for each, and the median of each.

    A usual example of a task moves as far as the task's median, and of a noisy subject some times
    that. Where a subject is noisier still in one task, what is usual there is its median.
    """
    subjects, tasks = shape
    stratum = subject * tasks + task
    of_task = _medians(task, moved, tasks)
    times = moved / np.maximum(of_task, 1e-12)[task]
    of_subject = _medians(subject, times, subjects)
    medians = _medians(stratum, moved, subjects * tasks)
    enough = np.bincount(stratum, minlength=subjects * tasks) >= ENOUGH
    return np.maximum(np.outer(of_subject, of_task).reshape(-1), medians * enough), medians


def _medians(groups: OffsetArray, values: FloatArray, count: int) -> FloatArray:
    """float64 [count]: median of each group (the lower of two); 0 of an empty one."""
    medians = np.zeros(count)
    order = np.argsort(values)
    small = groups.astype(np.uint16) if count <= 1 << 16 else groups  # sorted by counting
    order = order[np.argsort(small[order], kind="stable")]
    numbers, begins, sizes = np.unique(groups[order], return_index=True, return_counts=True)
    medians[numbers] = values[order][begins + (sizes - 1) // 2]
    return medians


def _crowded(
    times: FloatArray,
    furthest: OffsetArray,
    group: OffsetArray,
    task: OffsetArray,
    names: Sequence[str],
    spent: Sequence[float],
) -> Iterator[str]:
    """A line for each group of which more of the furthest examples are than chance puts there.

    Given which tasks the K furthest are of, those of one group are about a sum of draws, whose tail
    is at most that of a binomial with the same mean and number (Hoeffding 1956, Annals of
    Mathematical Statistics 27, theorem 4), for more than one above the mean. For each number of
    examples (2, 3, 4, 5, 6, 8, ...) there is one question of each group: at which K it has so many.

    Args:
        times: float64 [N], how many times the usual each example moved.
        furthest: Examples that are off, the furthest first.
        group, task: int64 [N], of all examples.
        names: Of the groups.
        spent: What may be suspected by chance (:data:`SPENT`).
    """
    tasks = int(task.max(initial=-1)) + 1
    sizes = np.bincount(group * tasks + task, minlength=len(names) * tasks)
    sizes = sizes.reshape(len(names), tasks)
    shares = sizes / np.maximum(sizes.sum(0), 1)
    asked = int((sizes.sum(1) > 0).sum())
    if asked < 2 or not len(furthest):
        return
    told: dict[int, tuple[float, int, int, float]] = {}  # chance, how many, of how many, expected
    count = 2
    highest = np.minimum(shares.max(1), 1 - 1e-12)
    while (highest**count).sum() > spent[0] and count < len(furthest):
        count += 1  # even if the furthest were all its own, that could be by chance
    seen = np.zeros((tasks, len(furthest) + 1))
    seen[task[furthest], np.arange(1, len(furthest) + 1)] = 1
    seen = seen.cumsum(1)
    ranks = np.searchsorted(-times[furthest], -times[furthest], side="right")  # ties count
    first = -np.sort(-np.append(times, [0.0, 0.0, 0.0]))
    apart = bool(first[1] > APART * first[2])
    own: dict[int, list[int]] = {}
    for i, rank in zip(group[furthest].tolist(), ranks.tolist(), strict=True):
        own.setdefault(i, []).append(rank)
    most = max(map(len, own.values()))
    for step in itertools.count():
        if count > most:
            break
        alpha = spent[step] if step < len(spent) else spent[-1] / 3.0 ** (step + 1 - len(spent))
        for i, places in own.items():
            if len(places) < count:
                continue
            among = places[count - 1]
            expected = float(shares[i] @ seen[:, among])
            if count > expected + 1 and (count > 2 or (among == 2 and apart)):
                chance = _tail(count, among, expected / among)
                if chance < alpha / asked and (i not in told or chance < told[i][0]):
                    told[i] = (chance, count, among, expected)
        count += max(1, count // 4)
    for i, (chance, many, among, expected) in told.items():
        yield (
            f"{names[i]}: {len(own[i]):,} of its examples are off; {many:,} of the {among:,} that "
            f"moved furthest are its own, {expected:.2g} would be by chance (probability "
            f"{chance:.1g})"
        )


def _tail(count: int, trials: int, share: float) -> float:
    """P(X >= count) of a binomial variable, summed in logarithms."""
    if count <= 0:
        return 1.0
    if share <= 0:
        return 0.0
    if share >= 1:
        return 1.0
    k = np.arange(count, min(trials, max(count + 50, int(3 * trials * share) + 50)) + 1)
    logs = (
        math.lgamma(trials + 1)
        - np.asarray([math.lgamma(x + 1) + math.lgamma(trials - x + 1) for x in k.tolist()])
        + k * math.log(share)
        + (trials - k) * math.log1p(-share)
    )
    return float(min(1.0, np.exp(logs).sum()))

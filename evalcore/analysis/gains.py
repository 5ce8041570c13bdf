"""Differences between models on the same documents: gain, control, contrast of checkpoints.

A comparison is made within one stratum (``book.Stratum``): only wordings of the prompt and training
seeds are pooled, each (prompt, seed) counting alike.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from evalcore.analysis.book import ScoreBook, require_same_numerics
from evalcore.analysis.cells import Cells, CellValues, Stratum
from evalcore.analysis.estimates import with_p
from evalcore.analysis.making import Making
from evalcore.analysis.making import apart as made_apart
from evalcore.analysis.pooling import (
    Bounds,
    Part,
    difference_bounds,
    one_estimate,
    paired_values,
    pool,
    score_of,
)
from evalcore.analysis.stats import Estimate
from evalcore.analysis.subjects import SubjectInfo, TaskInfo
from evalcore.analysis.ways import Way
from evalcore.metrics import higher_is_better, metric_bounds


@dataclass(frozen=True)
class Gain:
    """Score of a model minus score of another on the same documents and prompts.

    Attributes:
        subject: The tuned model (minuend); several training seeds of one tuning are one model.
        reference: What it is compared with: its base, or its control (subtrahend).
        task: The task.
        way, numerics: The stratum it is of.
        pooled: Mean over prompts and seeds of the paired difference, with the intervals of the
            widest claim the data support; ``pooled.over_documents`` has those for these prompts
            and this run.
        own: Score of ``subject`` on the paired documents.
        other: Score of ``reference`` on the paired documents.
        by_variant: The same difference under each single prompt.
        by_seed: Seed -> mean difference; empty for a single run.
        continuous: Difference of the task's continuous metric (bits: negative is better).
        missing_variants: Variants only one side was scored under.
        missing_rows: Rows (variant, seed, document) only one side has.
        missing_documents: Some of their ids, for a message.
        notes: What a reader must know of the number.
        made: In which ways the rows of both sides were made.
    """

    subject: SubjectInfo
    reference: SubjectInfo
    task: TaskInfo
    way: Way
    numerics: str
    pooled: Estimate
    own: Estimate
    other: Estimate
    by_variant: dict[str, Estimate]
    by_seed: dict[int, float]
    continuous: Estimate
    missing_variants: tuple[str, ...] = ()
    missing_rows: int = 0
    missing_documents: str = ""
    notes: tuple[str, ...] = ()
    made: tuple[Making, ...] = ()

    @property
    def upward(self) -> bool:
        """Whether a positive difference is the better one."""
        return higher_is_better(self.task.metric)

    @property
    def worse(self) -> bool:
        """Whether it is a loss for these prompts and this run (99 %)."""
        own = self.pooled.over_documents
        return own.high99 < 0 if self.upward else own.low99 > 0


def one_direction(gains: Sequence[Gain]) -> tuple[list[Gain], list[str]]:
    """(gains that may be averaged, why others may not): of those in which more is better, if any.

    A mean over accuracies, which rise, and bits, which fall, would say nothing.
    """
    upward = [g for g in gains if g.upward]
    if not upward or len(upward) == len(gains):
        return list(gains), []
    texts = (lower_text(g.task) for g in gains if not g.upward)
    return upward, list(dict.fromkeys(texts))


def lower_text(task: TaskInfo) -> str:
    """Why a task is not averaged with others."""
    return f"{task.name}: lower {task.metric} is better; not averaged with the others"


@dataclass(frozen=True)
class Pair:
    """One cell of each side, of one prompt and training seed."""

    prompt: str
    run: int
    reference_run: int
    own: CellValues
    other: CellValues


def paired_gain(
    book: ScoreBook,
    subject: SubjectInfo,
    reference: SubjectInfo,
    task: str,
    stratum: Stratum,
    *,
    variants: Collection[str] | None = None,
    allow_mixed: bool = False,
) -> Gain | None:
    """Gain of ``subject`` over ``reference`` on one task in one stratum, paired by document.

    Args:
        book: What was scored.
        subject: The minuend, as ``book.models`` has it (or a single run).
        reference: The subtrahend.
        task: Name of the task.
        stratum: (way of asking, numerics class) of the subject's cells.
        variants: Compare under these only; None: under all.

    Returns:
        None if the two share no variant with a common document.

    Raises:
        IncompatibleError: The two were scored in different numerics classes (and mixing is not
            allowed).
    """
    mine = _wanted(book.strata(subject, task).get(stratum, {}), variants)
    theirs = _wanted(_same_way(book, reference, task, stratum), variants)
    pairs, notes = _pairs(subject, reference, mine, theirs)
    what = f"{subject.label} against {reference.label}, {task}"
    for pair in pairs:
        require_same_numerics(pair.own, pair.other, f"{what}, {pair.prompt}", allow_mixed)
    info = book.tasks[task]
    seeds = subject.run_seeds
    found = _compared(book, pairs, info, several=len(seeds) > 1)
    if not found["shared"]:
        return None
    made, made_other = ways_made(p.own for p in pairs), ways_made(p.other for p in pairs)
    if how := made_apart(made, made_other):
        notes.append(f"the two sides were made by {how}")
    return Gain(
        subject=subject,
        reference=reference,
        task=info,
        way=stratum[0],
        numerics=stratum[1],
        pooled=found["pooled"],
        own=found["own"],
        other=found["other"],
        by_variant=found["by_variant"],
        by_seed={int(seeds[r] or 0): value for r, value in found["by_run"]},
        continuous=found["continuous"],
        missing_variants=tuple(sorted((mine.keys() | theirs.keys()) - set(found["shared"]))),
        missing_rows=found["missing_rows"],
        missing_documents=found["missing_documents"],
        notes=tuple(notes),
        made=tuple(dict.fromkeys([*made, *made_other])),
    )


def ways_made(cells: Iterable[CellValues]) -> list[Making]:
    """In which ways the rows of cells were made."""
    return list(dict.fromkeys(making for cell in cells for making in cell.made))


def _compared(
    book: ScoreBook, pairs: Sequence[Pair], task: TaskInfo, *, several: bool
) -> dict[str, Any]:
    """The numbers of :class:`Gain` from pairs of cells; ``several``: of more than one seed."""
    bounds = metric_bounds(task.metric)
    difference = difference_bounds(bounds)

    def compute() -> dict[str, Any]:
        found = [(p, *paired_values(p.own, p.other, "values")) for p in pairs]
        found = [f for f in found if len(f[1])]
        own = [(p.prompt, p.run, docs, a) for p, docs, a, _ in found]
        other = [(p.prompt, p.reference_run, docs, b) for p, docs, _, b in found]
        gaps = [(p.prompt, p.run, docs, a - b) for p, docs, a, b in found]
        more = [(p, *paired_values(p.own, p.other, "continuous")) for p in pairs]
        continuous = [(p.prompt, p.run, docs, a - b) for p, docs, a, b in more]
        shared = sorted({p.prompt for p, *_ in found})
        lost = [np.setxor1d(p.own.docs, p.other.docs, assume_unique=True) for p in pairs]
        absent = np.concatenate([np.zeros(0, np.int64), *lost])
        runs = sorted({p.run for p, *_ in found}) if several else []
        sides = {(p.prompt, p.run): p.own for p, *_ in found}
        others = {(p.prompt, p.reference_run): p.other for p, *_ in found}

        def of(parts: Sequence[Part], within: Bounds) -> Estimate:
            return pool(parts, within, book.clusters)

        def under(name: str) -> Estimate:
            """Asked for with all prompts and with this one alone: found once."""
            keys = [pair_key(p) for p in pairs if p.prompt == name]
            what = ("difference", task.metric, keys)
            return one_estimate(
                book, what, lambda: with_p(of([g for g in gaps if g[0] == name], difference))
            )

        by_variant = {name: under(name) for name in shared}
        return {
            "pooled": by_variant[shared[0]] if len(shared) == 1 else with_p(of(gaps, difference)),
            "own": score_of(book, own, sides, task.metric),
            "other": _reference_score(book, other, others, task.metric),
            "by_variant": by_variant,
            "by_run": [[r, of([g for g in gaps if g[1] == r], difference).value] for r in runs],
            "continuous": of(continuous, difference_bounds(metric_bounds(task.continuous))),
            "shared": shared,
            "missing_rows": len(absent),
            "missing_documents": book.document_names(np.unique(absent).tolist()),
        }  # fmt: skip

    keys = [pair_key(p) for p in pairs]
    found: dict[str, Any] = book.memo.get(
        ("gain", task.metric, task.continuous, several, keys), compute
    )
    return found


def _reference_score(
    book: ScoreBook, parts: Sequence[Part], cells: Mapping[tuple[str, int], CellValues], metric: str
) -> Estimate:
    """Score of the reference with the weights of the gain: each pair counts, so that the two add up
    to the own score, where seeds lack prompts or documents too."""
    first = {part[:2]: part for part in parts}
    uses = Counter(part[:2] for part in parts)
    alike = all(np.array_equal(part[2], first[part[:2]][2]) for part in parts)
    if alike and len(set(uses.values())) < 2:
        return score_of(book, list(first.values()), cells, metric)
    pairs = [(part[0], number, *part[2:]) for number, part in enumerate(parts)]
    return pool(pairs, metric_bounds(metric), book.clusters, seeds=False)


def pair_key(pair: Pair) -> tuple[Any, ...]:
    """Stands for the values of a pair."""
    return (pair.prompt, pair.run, pair.reference_run, pair.own.key, pair.other.key)


def paired_gains(
    book: ScoreBook,
    subject: SubjectInfo,
    reference: SubjectInfo,
    task: str,
    *,
    allow_mixed: bool = False,
) -> list[Gain]:
    """The gain in every stratum that has one, plainest first."""
    found = (
        paired_gain(book, subject, reference, task, stratum, allow_mixed=allow_mixed)
        for stratum in book.strata(subject, task)
    )
    return [gain for gain in found if gain is not None]


def _wanted(cells: Cells, variants: Collection[str] | None) -> Cells:
    return {n: runs for n, runs in cells.items() if variants is None or n in variants}


def _same_way(book: ScoreBook, model: SubjectInfo, task: str, stratum: Stratum) -> Cells:
    """Cells of the stratum's way; of other numerics where there are none of its own."""
    found: Cells = {}
    for (way, numerics), cells in book.strata(model, task).items():
        if way == stratum[0]:
            for name, runs in cells.items():
                if name not in found or numerics == stratum[1]:
                    found[name] = runs
    return found


def _pairs(
    subject: SubjectInfo, reference: SubjectInfo, mine: Cells, theirs: Cells
) -> tuple[list[Pair], list[str]]:
    """Cells to be compared: of one prompt, asked alike, each run with its own reference run."""
    seeds, others = subject.run_seeds, reference.run_seeds
    matched: dict[int, int] = {}
    notes = []
    what = "control" if reference.control else "reference"
    if len(others) == 1:
        matched = dict.fromkeys(range(len(seeds)), 0)
        if len(seeds) > 1 and reference.base is not None:
            notes.append(f"one {what} (seed {others[0]}) for {len(seeds)} seeds")
    else:
        matched = {i: others.index(s) for i, s in enumerate(seeds) if s in others}
        if not matched:
            matched = dict.fromkeys(range(len(seeds)), 0)
            notes.append(f"no {what} of the same seed: that of seed {others[0]} is used")
        elif len(matched) < len(seeds):
            notes.append(f"{what}s for {len(matched)} of {len(seeds)} seeds")
    pairs = []
    for name in sorted(mine.keys() & theirs.keys()):
        for run, cell in mine[name].items():
            other = theirs[name].get(matched[run]) if run in matched else None
            if other is not None and other.setting == cell.setting:
                pairs.append(Pair(name, run, matched[run], cell, other))
    return pairs, notes


@dataclass(frozen=True)
class ControlComparison:
    """A model against its format-only control (same tuning, labels shuffled).

    Attributes:
        difference: Gain of the model minus gain of the control. The base cancels, so this is
            model minus control on the documents both were scored on.
        control_gain: The control's own gain over the base (None: the base lacks the task).
    """

    difference: Gain
    control_gain: Gain | None

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of "gain over control" must know."""
        own = self.control_gain
        below = own is not None and own.worse
        side = "below" if self.difference.upward else "worse than"
        lost = [f"control {side} its own base: gain over control is no form removed"] * below
        return (*self.difference.notes, *lost)


def controls_of(book: ScoreBook, subject: SubjectInfo) -> list[SubjectInfo]:
    """Controls of a model: same base and tuning; those of its own seeds if there are any."""
    found = book.controls.get((subject.base, subject.tuning), [])
    own = set(subject.run_seeds)
    return [s for s in found if own & set(s.run_seeds)] or found


@dataclass(frozen=True)
class Contrast:
    """Gain at one checkpoint minus gain at an earlier one, paired by document.

    Attributes:
        later, earlier: The two gains.
        difference: Mean over prompts and seeds of the paired difference of the differences.
    """

    later: Gain
    earlier: Gain
    difference: Estimate


def contrast(book: ScoreBook, later: Gain, earlier: Gain) -> Contrast | None:
    """Whether a tuning gives more at a later checkpoint; None where nothing is in common.

    The same documents and prompts on all four sides; seeds are paired by their number, or all
    with the one there is.
    """
    stratum_a, stratum_b = (later.way, later.numerics), (earlier.way, earlier.numerics)
    a, b = (
        _pairs(g.subject, g.reference, book.strata(g.subject, g.task.name).get(s, {}),
               _same_way(book, g.reference, g.task.name, s))[0]
        for g, s in ((later, stratum_a), (earlier, stratum_b))
    )  # fmt: skip
    of = {(p.prompt, earlier.subject.run_seeds[p.run]): p for p in b}
    sides = []
    for p in a:
        q = of.get((p.prompt, later.subject.run_seeds[p.run]))
        if q is not None and q.own.setting == p.own.setting:
            sides.append((p, q))
    metric = later.task.metric

    def compute() -> dict[str, Any]:
        parts: list[Part] = []
        for p, q in sides:
            docs, own, other = paired_values(p.own, p.other, "values")
            before, one, two = paired_values(q.own, q.other, "values")
            shared, i, j = np.intersect1d(docs, before, assume_unique=True, return_indices=True)
            parts.append((p.prompt, p.run, shared, (own - other)[i] - (one - two)[j]))
        bounds = difference_bounds(difference_bounds(metric_bounds(metric)))
        return {"difference": with_p(pool(parts, bounds, book.clusters))}

    keys = [(p.prompt, p.run, p.own.key, p.other.key, q.own.key, q.other.key) for p, q in sides]
    found = book.memo.get(("contrast", metric, keys), compute)["difference"]
    return Contrast(later, earlier, found) if found.n else None


def gap_cube(book: ScoreBook, gain: Gain) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """The paired differences behind a gain, and what their documents hang together in.

    Returns:
        int64 [documents] codes of clusters, and float64 [documents, prompts, seeds], NaN: missing.
    """
    stratum = (gain.way, gain.numerics)
    mine = book.strata(gain.subject, gain.task.name).get(stratum, {})
    theirs = _same_way(book, gain.reference, gain.task.name, stratum)
    found = [
        (p.prompt, p.run, *paired_values(p.own, p.other, "values"))
        for p in _pairs(gain.subject, gain.reference, mine, theirs)[0]
    ]
    prompts, seeds = sorted({f[0] for f in found}), sorted({f[1] for f in found})
    docs = np.unique(np.concatenate([f[2] for f in found])) if found else np.zeros(0, np.int64)
    cube = np.full((len(docs), len(prompts), len(seeds)), np.nan)
    for prompt, run, own, a, b in found:
        cube[np.searchsorted(docs, own), prompts.index(prompt), seeds.index(run)] = a - b
    return docs if book.clusters is None else book.clusters(docs), cube

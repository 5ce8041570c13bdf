"""``power()``: what a study must have to find an effect, from the variances of one that was run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, fields
from math import ceil, nan, sqrt
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from evalcore.app.reduction import read_book
from evalcore.app.report import open_results
from evalcore.errors import InputError
from evalcore.reading import is_there

if TYPE_CHECKING:
    from evalcore.analysis.book import ScoreBook
    from evalcore.analysis.gains import Gain
    from evalcore.analysis.power import Components, Design

_PROMPTS = (1, 3, 5, 10, 20, 40)
_SEEDS = (1, 3, 5, 10)


@dataclass(frozen=True)
class Needed:
    """What one task needs.

    Attributes:
        task: Its name.
        metric: What the differences are of.
        comparisons: Gains whose variances were averaged.
        seen: (documents, prompts, seeds) that were scored, at most.
        components: Variances of single differences.
        now: Effect found with the wanted chance by what was scored; NaN where the claim has no
            variance to go by.
        designs: (prompts, seeds, claim, the least design that does; None: no number of documents).
    """

    task: str
    metric: str
    comparisons: int
    seen: tuple[int, int, int]
    components: Components
    now: float
    designs: Sequence[tuple[int, int, str, Design | None]]


@dataclass(frozen=True)
class PowerOptions:
    """What is asked of :func:`power`.

    Attributes:
        effect: Smallest difference that is to be found (of the metric: .02 is two points).
        power: With what chance.
        level: Of the two-sided interval.
        tasks: Only these; none: all that have a gain.
        sd_prompts, sd_seeds: Standard deviations of the gain between prompts and between training
            seeds, where the results have one of them and cannot tell.
        most: Documents beyond which a design is not looked at.
    """

    effect: float
    power: float = 0.8
    level: float = 0.95
    tasks: tuple[str, ...] = ()
    sd_prompts: float | None = None
    sd_seeds: float | None = None
    most: int = 100_000


@dataclass(frozen=True)
class PowerTable:
    """What :func:`power` found.

    Attributes:
        rate: Examples per second of the last run into the results; None where it is not known.
    """

    options: PowerOptions
    tasks: list[Needed]
    rate: float | None

    def lines(self) -> list[str]:
        """A table per task, and what it rests on."""
        return [line for task in self.tasks for line in _lines(task, self)] + _foot(self)


def power(place: Path, options: PowerOptions) -> PowerTable:
    """Numbers of documents, prompts and seeds that find an effect, task by task.

    Args:
        place: A results folder, the folder of a study, or a study file whose results lie beside it.
        options: What is asked.

    Raises:
        InputError: There are no results or no gain in them, or an option is absurd.
    """
    from evalcore.analysis import analyse

    _check(options)
    results = results_of(place)
    store = open_results(results)
    analysis = analyse(read_book(store))
    found: dict[str, list[Gain]] = defaultdict(list)
    for gain in analysis.own_gains() or analysis.primary_gains():
        if gain.subject.control is None and (not options.tasks or gain.task.name in options.tasks):
            found[gain.task.name].append(gain)
    lost = sorted(set(options.tasks) - set(found))
    if not found or lost:
        what = f"no gain over a base on {', '.join(lost)}" if lost else "no gain over a base"
        raise InputError(
            f"{results}: {what}; power needs models and their bases scored on the same documents"
        )
    tasks = [_needed(name, gains, options, analysis.book) for name, gains in sorted(found.items())]
    return PowerTable(options, tasks, store.runs.examples_per_s())


def results_of(place: Path) -> Path:
    """The results folder meant by a results folder, a study's folder or a study file.

    Raises:
        InputError: There is none.
    """
    folder = place.parent if place.is_file() else place
    for results in (folder, folder / "results"):
        if is_there(results / "store.json"):
            return results
    raise InputError(
        f"{place}: no results there: variances come from results; give a results folder, or score "
        "a small part of the study first (evalcore run STUDY.yaml --limit 100)"
    )


def _needed(name: str, gains: Sequence[Gain], options: PowerOptions, book: ScoreBook) -> Needed:
    from evalcore.analysis.gains import gap_cube
    from evalcore.analysis.power import Components, complete_part, designs

    cubes = [(cube, clusters) for clusters, cube in (gap_cube(book, gain) for gain in gains)]
    cubes = [found for found in cubes if len(np.unique(found[1][complete_part(found[0])[0]])) > 1]
    if not cubes:
        raise InputError(
            f"{name}: fewer than two documents (or clusters of them) were scored on both sides "
            "under one prompt"
        )
    each = [Components.of_cube(*found) for found in cubes]

    def mean(field: str) -> float:
        known = [v for v in (getattr(c, field) for c in each) if v == v]
        return float(np.mean(known)) if known else nan

    pooled = Components(*(mean(f.name) for f in fields(Components)))
    pooled = pooled.at_least(
        prompts=None if options.sd_prompts is None else options.sd_prompts**2,
        seeds=None if options.sd_seeds is None else options.sd_seeds**2,
    )
    shapes = np.array([cube.shape for cube, _ in cubes])
    seen = (int(shapes[:, 0].max()), int(shapes[:, 1].max()), int(shapes[:, 2].max()))
    return Needed(
        name, gains[0].task.metric, len(cubes), seen, pooled, _found_now(pooled, seen, options),
        designs(
            pooled, options.effect, prompts=_prompt_counts(pooled, options), seeds=_SEEDS,
            power=options.power, level=options.level, most=options.most,
        ),
    )  # fmt: skip


def _prompt_counts(components: Components, options: PowerOptions) -> list[int]:
    """Those that are looked at; where prompts differ much, about as many as must be."""
    counts = list(_PROMPTS)
    if components.prompts > 0:
        least = ceil(8.5 * components.prompts / options.effect**2)  # (1.96 + .84)^2, and a little
        if counts[-1] < least <= 1000:
            counts.append(least)
    return counts


def _found_now(components: Components, seen: tuple[int, int, int], options: PowerOptions) -> float:
    """The least effect that what was scored finds with the wanted chance."""
    from evalcore.analysis.power import detection_rate, widest_claim

    documents, prompts, seeds = seen
    claim = widest_claim(prompts, seeds)
    low, high = 0.0, 1.0

    def found(effect: float) -> bool:
        rate = detection_rate(
            components, effect, documents, prompts, seeds, claim, level=options.level
        )
        return rate >= options.power

    while not found(high):  # a metric may go beyond 1
        if high > 1e6:
            return nan
        low, high = high, high * 2
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (low, middle) if found(middle) else (middle, high)
    return high


def _lines(task: Needed, table: PowerTable) -> list[str]:
    c, (documents, prompts, seeds) = task.components, task.seen
    count = f"{task.comparisons} comparison" + "s" * (task.comparisons > 1)
    spread = [
        f"documents {sqrt(c.documents + c.documents_prompts + c.documents_seeds + c.rest):.3f}"
    ]
    spread += [
        f"{what} {sqrt(v):.3f}" if v == v else f"{what} unknown"
        for what, v in (("prompts", c.prompts), ("seeds", c.seeds))
    ]
    lines = [
        f"{task.task} ({task.metric}): {count} of up to {documents:,} documents, {prompts} "
        f"prompt{'s' * (prompts > 1)}, {seeds} seed{'s' * (seeds > 1)}; they find "
        + (f"a difference of {task.now:.3f}" if task.now == task.now else "no difference"),
        f"  standard deviations of the difference: {', '.join(spread)}",
        *([f"  {c.together:.1f} documents hang together; the documents below are such ones"]
          if c.together > 1.005 else []),
        "  prompts  seeds  documents   examples  " + ("  seconds  " if table.rate else "")
        + "speaks of",
    ]  # fmt: skip
    for prompts, seeds, claim, need in task.designs:
        if need is None:
            cost = f"{'none do':>9}  {'':>9}" + ("  " + " " * 9 if table.rate else "")
        else:
            examples = need.documents * prompts * (seeds + 1)
            cost = f"{need.documents:>9,}  {examples:>9,}"
            if table.rate:
                cost += f"  {examples / table.rate:>9,.0f}"
        lines.append(f"  {prompts:>7}  {seeds:>5}  {cost}  {claim}")
    return [*lines, ""]


def _foot(table: PowerTable) -> list[str]:
    o = table.options
    lines = [
        f"Least documents that find a true difference of {o.effect:g} {o.power:.0%} of the time, "
        f"by {o.level:.0%} intervals; up to {o.most:,}.",
        "Examples are of one tuned model and its base: documents x prompts x (seeds + 1).",
    ]
    if table.rate:
        lines.append(
            f"Seconds at {table.rate:,.0f} examples/s, as the last run scored; tuning is not in it."
        )
    if any(t.components.seeds != t.components.seeds for t in table.tasks):
        lines.append(
            "Variance between training seeds is not known (one seed): --sd-seeds says what to "
            "assume."
        )
    if any(t.components.prompts != t.components.prompts for t in table.tasks):
        lines.append(
            "Variance between prompts is not known (one prompt): --sd-prompts says what to assume."
        )
    return lines


def _check(options: PowerOptions) -> None:
    for value, name in ((options.power, "--power"), (options.level, "--level")):
        if not 0 < value < 1:
            raise InputError(f"{name} {value}: expected a share between 0 and 1")
    if not 0 < abs(options.effect) < float("inf"):
        raise InputError(
            f"--effect {options.effect}: expected a difference of the metric, such as .02"
        )

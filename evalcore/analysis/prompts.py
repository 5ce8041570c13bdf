"""What the prompt does to a score: spread beyond noise, and the best of several prompts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt

from evalcore.analysis.book import ScoreBook
from evalcore.analysis.cells import Cells, CellValues, Stratum
from evalcore.analysis.pooling import Bounds, difference_bounds, pool
from evalcore.analysis.stats import Estimate, SpreadEstimate, prompt_spread
from evalcore.analysis.subjects import SubjectInfo, TaskInfo
from evalcore.analysis.ways import Way
from evalcore.metrics import higher_is_better, metric_bounds


@dataclass(frozen=True)
class PromptSpread:
    """Spread of one model's score over prompt texts, in one stratum.

    Attributes:
        way: How all of them were asked.
        variants: The prompts compared (their number is ``spread.prompts``).
        spread: The model's spread (of its mean over training seeds).
        base: Its base's spread over the same prompts; None for a base or where it lacks some.
        above_floor: Mean score minus the trivial baseline, in the better direction: near 0, a small
            spread means nothing.
    """

    subject: SubjectInfo
    task: TaskInfo
    way: Way
    variants: tuple[str, ...]
    spread: SpreadEstimate
    base: SpreadEstimate | None
    above_floor: float


def prompt_spreads(book: ScoreBook) -> list[PromptSpread]:
    """Spread of every model and task with two prompts or more asked in one way."""
    rows = []
    for subject in book.models:
        base = book.base_of(subject)
        for task in book.tasks.values():
            upward = higher_is_better(task.metric)
            theirs = book.strata(base, task.name) if base is not None else {}
            for stratum, cells in book.strata(subject, task.name).items():
                beside = theirs.get(stratum, {})
                shared = [n for n in cells if n in beside]
                names = shared if len(shared) > 1 else list(cells)
                spread = _spread(book, cells, names)
                if spread is None:
                    continue
                of_base = _spread(book, beside, names) if all(n in beside for n in names) else None
                above = (spread.mean - task.baseline) * (1 if upward else -1)
                rows.append(
                    PromptSpread(subject, task, stratum[0], tuple(names), spread, of_base, above)
                )
    return rows


def _spread(book: ScoreBook, cells: Cells, names: Sequence[str]) -> SpreadEstimate | None:
    if len(names) < 2:
        return None

    def compute() -> dict[str, Any]:
        _, values = document_matrix([cells[n] for n in names])
        return {"spread": asdict(prompt_spread(values)) if len(values) > 1 else None}

    found = book.memo.get(("spread", cell_keys(cells, names)), compute)["spread"]
    return None if found is None else SpreadEstimate(**found)


def cell_keys(cells: Cells, names: Sequence[str]) -> list[tuple[str, int, str]]:
    """(prompt, run, key of the values) of the cells under some prompts."""
    return [(name, run, cell.key) for name in names for run, cell in sorted(cells[name].items())]


def document_matrix(
    prompts: Sequence[dict[int, CellValues]],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """(document codes [n], values [n, P]) of the documents every cell has, mean over seeds."""
    every = [cell.docs for runs in prompts for cell in runs.values()]
    docs = reduce(lambda a, b: np.intersect1d(a, b, assume_unique=True), every)
    columns = [
        np.mean([c.values[np.searchsorted(c.docs, docs)] for c in runs.values()], axis=0)
        for runs in prompts
    ]
    return docs, np.stack(columns, axis=1)


@dataclass(frozen=True)
class BestOfPrompts:
    """Gain when each side uses its own best prompt, chosen on other documents.

    Documents are split in two halves; the prompt is chosen on one half and scored on the other,
    both ways, so that every document is scored once with a prompt it did not choose.

    Attributes:
        way: How they were asked.
        prompts: Number of prompts to choose from.
        own, base: Score with the chosen prompts.
        gain: Paired difference; its interval takes the choices and this run as given.
        chosen_own, chosen_base: Prompts chosen on the two halves.
    """

    subject: SubjectInfo
    task: TaskInfo
    way: Way
    prompts: int
    own: Estimate
    base: Estimate
    gain: Estimate
    chosen_own: tuple[str, str]
    chosen_base: tuple[str, str]


def best_of_prompts(
    book: ScoreBook, subject: SubjectInfo, task: TaskInfo, stratum: Stratum, *, seed: int = 0
) -> BestOfPrompts | None:
    """Best of the prompts both model and base were scored under; None below two prompts."""
    base = book.base_of(subject)
    if base is None:
        return None
    a = book.strata(subject, task.name).get(stratum, {})
    b = book.strata(base, task.name).get(stratum, {})
    names = sorted(n for n in a.keys() & b.keys() if _asked(a[n]) == _asked(b[n]))
    if len(names) < 2:
        return None

    def compute() -> dict[str, Any]:
        docs, values = document_matrix([a[n] for n in names] + [b[n] for n in names])
        half = np.array([in_first_half(book.documents[d], seed) for d in docs], dtype=bool)
        if min(half.sum(), (~half).sum()) < 2:
            return {"gain": None}
        upward, bounds = higher_is_better(task.metric), metric_bounds(task.metric)
        own, own_choice = _cross_chosen(values[:, : len(names)], half, upward)
        other, base_choice = _cross_chosen(values[:, len(names) :], half, upward)

        def of(chosen: npt.NDArray[np.float64], within: Bounds) -> Estimate:
            return pool([("best", 0, docs, chosen)], within, book.clusters)

        return {
            "own": of(own, bounds),
            "base": of(other, bounds),
            "gain": of(own - other, difference_bounds(bounds)),
            "chosen_own": [names[i] for i in own_choice],
            "chosen_base": [names[i] for i in base_choice],
        }

    keys = [cell_keys(cells, names) for cells in (a, b)]
    found = book.memo.get(("best", task.metric, seed, keys), compute)
    if found["gain"] is None:
        return None
    (own_1, own_2), (base_1, base_2) = found["chosen_own"], found["chosen_base"]
    return BestOfPrompts(
        subject=subject,
        task=task,
        way=stratum[0],
        prompts=len(names),
        own=found["own"],
        base=found["base"],
        gain=found["gain"],
        chosen_own=(own_1, own_2),
        chosen_base=(base_1, base_2),
    )


def _asked(runs: dict[int, CellValues]) -> tuple[object, ...]:
    return next(iter(runs.values())).setting


def in_first_half(document: str, seed: int) -> bool:
    """Whether a document is of the first of two halves."""
    # By content, so that the halves stay the same when more documents are scored.
    return bool(hashlib.blake2b(f"{seed}:{document}".encode(), digest_size=1).digest()[0] & 1)


def _cross_chosen(
    values: npt.NDArray[np.float64], half: npt.NDArray[np.bool_], upward: bool
) -> tuple[npt.NDArray[np.float64], tuple[int, int]]:
    """Values [n] under the prompt chosen on the other half, and (chosen on first, on second)."""
    sign = 1.0 if upward else -1.0
    first = int(np.argmax(sign * values[half].mean(axis=0)))
    second = int(np.argmax(sign * values[~half].mean(axis=0)))
    return np.where(half, values[:, second], values[:, first]), (first, second)

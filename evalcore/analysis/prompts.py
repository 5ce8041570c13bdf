"""What the prompt does to a score: spread beyond noise, and the best of several prompts."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import numpy.typing as npt

from evalcore.analysis.book import CellValues, ScoreBook, SubjectInfo, TaskInfo
from evalcore.analysis.stats import (
    Estimate,
    Method,
    SpreadEstimate,
    mean_estimate,
    prompt_spread,
)
from evalcore.metrics import higher_is_better


@dataclass(frozen=True)
class PromptSpread:
    """Spread of one subject's score over prompts with the same number of shots.

    Attributes:
        variants: The prompts compared (their number is ``spread.prompts``).
        spread: The subject's spread.
        base: Its base's spread over the same prompts; None for a base or where it lacks some.
        above_floor: Mean score minus the trivial baseline, in the better direction: near 0, a small
            spread means nothing.
    """

    subject: SubjectInfo
    task: TaskInfo
    shots: int
    variants: tuple[str, ...]
    spread: SpreadEstimate
    base: SpreadEstimate | None
    above_floor: float


def prompt_spreads(book: ScoreBook) -> list[PromptSpread]:
    """Spread of every subject and task with two prompts or more at one number of shots."""
    rows = []
    for subject in book.ordered_subjects():
        base = book.base_of(subject)
        for task in book.tasks.values():
            upward = higher_is_better(task.metric)
            own = book.variants(subject.id, task.name)
            theirs = book.variants(base.id, task.name) if base is not None else {}
            for shots, names in sorted(_by_shots(own).items()):
                shared = [n for n in names if n in theirs] if len(theirs) > 1 else names
                names = shared if len(shared) > 1 else names
                spread = _spread(own, names)
                if spread is None:
                    continue
                beside = _spread(theirs, names) if all(n in theirs for n in names) else None
                rows.append(
                    PromptSpread(
                        subject,
                        task,
                        shots,
                        tuple(names),
                        spread,
                        beside,
                        (spread.mean - task.baseline) * (1 if upward else -1),
                    )
                )
    return rows


def _by_shots(cells: dict[str, CellValues]) -> dict[int, list[str]]:
    groups: dict[int, list[str]] = defaultdict(list)
    for name, cell in cells.items():
        groups[cell.way.shots].append(name)
    return groups


def _spread(cells: dict[str, CellValues], names: Sequence[str]) -> SpreadEstimate | None:
    if len(names) < 2:
        return None
    _, values = document_matrix([cells[n] for n in names])
    return prompt_spread(values) if len(values) > 1 else None


def document_matrix(
    cells: Sequence[CellValues],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """(document codes [n], values [n, P]) of the documents every cell has."""
    docs = reduce(lambda a, b: np.intersect1d(a, b, assume_unique=True), (c.docs for c in cells))
    columns = [c.values[np.searchsorted(c.docs, docs)] for c in cells]
    return docs, np.stack(columns, axis=1)


@dataclass(frozen=True)
class BestOfPrompts:
    """Gain when each side uses its own best prompt, chosen on other documents.

    Documents are split in two halves; the prompt is chosen on one half and scored on the other,
    both ways, so that every document is scored once with a prompt it did not choose.

    Attributes:
        prompts: Number of prompts to choose from.
        own, base: Score with the chosen prompts.
        gain: Paired difference; its interval takes the choices as given.
        chosen_own, chosen_base: Prompts chosen on the two halves.
    """

    subject: SubjectInfo
    task: TaskInfo
    prompts: int
    own: Estimate
    base: Estimate
    gain: Estimate
    chosen_own: tuple[str, str]
    chosen_base: tuple[str, str]


def best_of_prompts(
    book: ScoreBook,
    subject: SubjectInfo,
    task: TaskInfo,
    *,
    seed: int = 0,
    method: Method = "t",
) -> BestOfPrompts | None:
    """Best of the prompts both subject and base were scored under; None below two prompts."""
    base = book.base_of(subject)
    if base is None:
        return None
    a, b = book.variants(subject.id, task.name), book.variants(base.id, task.name)
    names = sorted(n for n in a.keys() & b.keys() if a[n].setting == b[n].setting)
    if len(names) < 2:
        return None
    docs, values = document_matrix([a[n] for n in names] + [b[n] for n in names])
    half = np.array([_in_first_half(book.documents[d], seed) for d in docs], dtype=bool)
    if min(half.sum(), (~half).sum()) < 2:
        return None
    upward = higher_is_better(task.metric)
    own, own_choice = _cross_chosen(values[:, : len(names)], half, upward)
    other, base_choice = _cross_chosen(values[:, len(names) :], half, upward)
    return BestOfPrompts(
        subject=subject,
        task=task,
        prompts=len(names),
        own=mean_estimate(own, method, seed),
        base=mean_estimate(other, method, seed),
        gain=mean_estimate(own - other, method, seed),
        chosen_own=(names[own_choice[0]], names[own_choice[1]]),
        chosen_base=(names[base_choice[0]], names[base_choice[1]]),
    )


def _in_first_half(document: str, seed: int) -> bool:
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

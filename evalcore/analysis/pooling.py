"""From values of cells to one number: the mean over documents, prompts and seeds of a stratum."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from evalcore.analysis.book import Clusters, ScoreBook
from evalcore.analysis.cells import Cells, CellValues
from evalcore.analysis.estimates import estimate_of, estimate_of_table
from evalcore.analysis.stats import EMPTY, Estimate
from evalcore.analysis.subjects import TaskInfo
from evalcore.analysis.variation import Layout
from evalcore.metrics import metric_bounds

FloatArray = npt.NDArray[np.float64]
CodeArray = npt.NDArray[np.int64]
Bounds = tuple[float, float] | None
Field = Literal["values", "continuous"]
Part = tuple[str, int, CodeArray, FloatArray]
"""(prompt, run, document codes, values) of one cell."""


def difference_bounds(bounds: Bounds) -> Bounds:
    """Bounds of a difference of two values with these bounds."""
    return None if bounds is None else (bounds[0] - bounds[1], bounds[1] - bounds[0])


def pool(
    parts: Sequence[Part], bounds: Bounds, clusters: Clusters | None = None, *, seeds: bool = True
) -> Estimate:
    """Mean over cells of their means over documents, with the widest interval there is.

    Args:
        parts: The cells.
        bounds: As in ``variation.Layout``.
        clusters: As ``ScoreBook.clusters``.
        seeds: Whether runs are a sample of training seeds; else they only count each by itself.
    """
    parts = [p for p in parts if len(p[2])]
    if not parts:
        return EMPTY
    whole = _cube(parts)
    if whole is not None and seeds:
        docs = parts[0][2]
        return estimate_of_table(whole, docs if clusters is None else clusters(docs), bounds)
    prompts = {name: i for i, name in enumerate(sorted({p[0] for p in parts}))}
    sizes = [len(p[2]) for p in parts]
    docs = np.concatenate([p[2] for p in parts])
    return estimate_of(
        Layout(
            values=np.concatenate([p[3] for p in parts]),
            clusters=docs if clusters is None else clusters(docs),
            prompts=np.repeat([prompts[p[0]] for p in parts], sizes),
            seeds=np.repeat([p[1] for p in parts], sizes),
            bounds=bounds,
        ),
        seeds=seeds,
    )


def _cube(parts: Sequence[Part]) -> FloatArray | None:
    """float64 [documents, prompts, runs] where every cell is there and has the same documents."""
    prompts = {name: i for i, name in enumerate(sorted({p[0] for p in parts}))}
    runs = {run: i for i, run in enumerate(sorted({p[1] for p in parts}))}
    if len({(p[0], p[1]) for p in parts}) < len(parts) or len(parts) < len(prompts) * len(runs):
        return None
    docs = parts[0][2]
    if not all(p[2] is docs or np.array_equal(p[2], docs) for p in parts):
        return None
    cube = np.empty((len(docs), len(prompts), len(runs)))
    for name, run, _, values in parts:
        cube[:, prompts[name], runs[run]] = values
    return cube


def pooled_score(
    book: ScoreBook, cells: Cells, task: TaskInfo, field: Field = "values"
) -> Estimate:
    """Score of one model on one task in one stratum (see :func:`pool`)."""
    metric = task.metric if field == "values" else task.continuous
    every = {(name, run): cell for name, runs in cells.items() for run, cell in runs.items()}
    return _pooled(book, every, metric, field)


def _pooled(
    book: ScoreBook, cells: Mapping[tuple[str, int], CellValues], metric: str, field: Field
) -> Estimate:
    def compute() -> Estimate:
        parts = [(*key, *known_values(cell, field)) for key, cell in cells.items()]
        return pool(parts, metric_bounds(metric), book.clusters)

    keys = [(*key, cell.key) for key, cell in cells.items()]
    return one_estimate(book, ("score", field, metric, keys), compute)


def score_of(
    book: ScoreBook,
    parts: Sequence[Part],
    cells: Mapping[tuple[str, int], CellValues],
    metric: str,
) -> Estimate:
    """:func:`pool` of values of cells, by (prompt, run): their score, where no value is left out.

    Both sides of many comparisons are whole cells, whose score is asked for anyhow.
    """
    whole = (len(part[2]) == len(known_values(cells[part[:2]], "values")[0]) for part in parts)
    if parts and all(whole):
        return _pooled(book, {part[:2]: cells[part[:2]] for part in parts}, metric, "values")
    return pool(parts, metric_bounds(metric), book.clusters)


def one_estimate(
    book: ScoreBook, what: tuple[Any, ...], compute: Callable[[], Estimate]
) -> Estimate:
    """An estimate of the book's memo."""
    found: Estimate = book.memo.get(what, lambda: {"estimate": compute()})["estimate"]
    return found


def known_values(cell: CellValues, field: Field) -> tuple[CodeArray, FloatArray]:
    """(document codes, values) of a cell, without those it has no value for."""
    arrays = cell.load()
    values = arrays.values if field == "values" else arrays.continuous
    lost = np.isnan(values)
    return (arrays.docs[~lost], values[~lost]) if lost.any() else (arrays.docs, values)


def paired_values(
    a: CellValues, b: CellValues, field: Field
) -> tuple[CodeArray, FloatArray, FloatArray]:
    """(document codes, values of ``a``, values of ``b``) of the documents both have a value for."""
    mine, theirs = a.load(), b.load()
    own, other = (x.values if field == "values" else x.continuous for x in (mine, theirs))
    docs = mine.docs
    if not np.array_equal(docs, theirs.docs):
        docs, i, j = np.intersect1d(docs, theirs.docs, assume_unique=True, return_indices=True)
        own, other = own[i], other[j]
    lost = np.isnan(own) | np.isnan(other)
    return (docs[~lost], own[~lost], other[~lost]) if lost.any() else (docs, own, other)

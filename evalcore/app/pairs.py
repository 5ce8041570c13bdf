"""``--budget``: a share of the (prompt, document) pairs is scored, and the rest estimated.

Which pairs are drawn hangs on the task's documents and prompts alone, so that all models are asked
the same ones. Cells scored that way are marked in the results and stand in no table of scores; what
they say about all prompts is :func:`prompt_scores`.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import replace
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np

from evalcore.app.reduction import keep_estimates, read_book
from evalcore.store import ResultStore

if TYPE_CHECKING:
    from evalcore.analysis.book import ScoreBook
    from evalcore.analysis.prompteval import PromptScoreRow, PromptScores
    from evalcore.app.cells import Grid
    from evalcore.planning import PlannedCell

log = logging.getLogger("evalcore")

MOST_CLASSES = 8
"""With more choices a bias towards each cannot be told from so few documents."""
LEAST_PROMPTS = 10
"""With fewer prompts there is no distribution to estimate: they are scored whole."""


Marks = dict[str, dict[str, Any] | None]
"""Cell -> how its documents were drawn; None: it is scored whole."""


def draw(grid: Grid, budget: float, seed: int) -> tuple[Marks, list[str]]:
    """Leaves only drawn rows of a grid to be scored.

    Args:
        grid: Its ``cells`` are changed.
        budget: Share of the pairs of each (task, way of asking), at least one of each prompt.
        seed: Of the draw.

    Returns:
        Cell -> how it was drawn, None for those that are scored whole; and lines about it.
    """
    from evalcore.analysis.prompteval import draw_pairs
    from evalcore.metrics import document_metric

    marks: Marks = {}
    chosen: dict[str, np.ndarray] = {}
    drawn: dict[tuple[int, int], np.ndarray] = {}
    whole: set[str] = set()
    unbounded: set[str] = set()
    pairs = total = 0
    for group in _groups(grid):
        names = sorted({planned.cell.variant.name for planned in group})
        documents = len(group[0].doc_ids)
        task = group[0].cell.task
        few = len(names) < LEAST_PROMPTS
        if few or not _estimable(document_metric(task.primary, task.output_type)):
            marks |= dict.fromkeys((p.cell.key for p in group), None)
            (whole if few else unbounded).add(task.name)
            continue
        size = (len(names), documents)
        if size not in drawn:
            count = max(len(names), ceil(round(budget * len(names) * documents, 6)))
            found = draw_pairs(*size, count, seed)
            drawn[size] = np.zeros(size, np.bool_)
            drawn[size][found[:, 0], found[:, 1]] = True
        how = {"prompts": size[0], "documents": size[1], "budget": budget, "seed": seed}
        for planned in group:
            wanted = drawn[size][names.index(planned.cell.variant.name)]
            chosen[planned.cell.key] = wanted
            marks[planned.cell.key] = how
            pairs += int(wanted.sum())
            total += documents
    grid.cells = replace(grid.cells, wanted=chosen)
    lines = []
    if total:
        lines.append(
            f"budget: {pairs:,} of {total:,} (prompt, document) pairs are scored "
            f"({100 * pairs / total:.1f} %); scores of all prompts are estimated from them"
        )
    if whole:
        lines.append(
            f"budget: {', '.join(sorted(whole))}: fewer than {LEAST_PROMPTS} prompts, scored whole"
        )
    if unbounded:
        lines.append(
            f"budget: {', '.join(sorted(unbounded))}: the metric does not lie between 0 and 1, "
            "scored whole"
        )
    return marks, lines


def _estimable(metric: str) -> bool:
    """Whether values of a metric are shares of right answers, which the model is of."""
    from evalcore.metrics import metric_bounds

    return metric_bounds(metric) == (0.0, 1.0)


def settle_marks(store: ResultStore, grid: Grid, marks: Marks, known: Collection[str]) -> None:
    """Marks what is scored in part; a cell of which everything is there already is not.

    Cells of the grid without a mark are asked for whole.

    Args:
        store: The results.
        grid: What is asked.
        marks: Of its cells.
        known: Cells that are marked in the results.

    Raises:
        ResultsError: The folder cannot be written.
    """
    if not marks and not known:
        return
    covered = store.coverage() if any(marks.values()) else {}
    found: Marks = {}
    for planned in grid.cells:
        key = planned.cell.key
        how = marks.get(key)
        if how is not None:
            have = covered.get(key, ())
            if len(have) >= len(planned.doc_ids) and set(planned.doc_ids) <= set(have):
                how = None
        if how is not None or key in known:
            found[key] = how
    store.mark_sampled(found)


_WAY = (
    "cell", "subject", "task", "variant", "shots", "shots_seed", "shots_order", "shots_balance",
    "chat", "listing", "answer",
)  # fmt: skip


def _groups(grid: Grid) -> list[list[PlannedCell]]:
    """Cells of one model, task and way of asking, which all show the same documents."""
    from evalcore.analysis.ways import Way

    rows = {row["cell"]: row for row in grid.rows.to_pylist(_WAY)}
    lm_eval = set() if grid.lm_eval is None else {w.cell.key for w in grid.lm_eval.cells}
    found: dict[tuple[Any, ...], list[PlannedCell]] = defaultdict(list)
    for planned in grid.cells:
        row = rows[planned.cell.key]
        way = Way.of(row, row["shots"] or 0)
        if planned.cell.key not in lm_eval:
            found[row["subject"], row["task"], way, tuple(planned.doc_ids)].append(planned)
    return list(found.values())


def prompt_scores(
    store: ResultStore, *, cells: Collection[str] | None = None
) -> list[PromptScoreRow]:
    """Scores over all prompts where only pairs were scored, from those and from whole cells.

    Args:
        store: The results.
        cells: Only models, tasks and ways of these cells; None: all.
    """
    sampled = store.sampled()
    if not sampled:
        return []
    about = store.cells(sampled=True).to_pylist()
    marked = [
        row for row in about
        if row["cell"] in sampled and (cells is None or row["cell"] in cells)
    ]  # fmt: skip
    if not marked:
        return []
    kinds = {(row["subject"], row["task"], row["numerics"]) for row in marked}
    keys = {r["cell"] for r in about if (r["subject"], r["task"], r["numerics"]) in kinds}
    book = read_book(store, cells=keys, empty=True, sampled=True)
    rows = _rows(book, {row["cell"]: sampled[row["cell"]] for row in marked})
    keep_estimates(store, book)
    return rows


def _rows(book: ScoreBook, marked: dict[str, Any]) -> list[PromptScoreRow]:
    from evalcore.analysis.notes import pair_notes
    from evalcore.analysis.prompteval import PromptScoreRow
    from evalcore.analysis.scores import model_names

    names = model_names(book.subjects.values())
    rows = []
    for (subject, task), variants in sorted(
        book.cells.items(), key=lambda item: (item[0][1], names.get(item[0][0], item[0][0]))
    ):
        ways = sorted({(cell.way, cell.numerics) for cell in variants.values()})
        for way, numerics in ways:
            own = {
                name: cell for name, cell in sorted(variants.items())
                if (cell.way, cell.numerics) == (way, numerics)
            }  # fmt: skip
            hows = [marked[cell.cell] for cell in own.values() if cell.cell in marked]
            if not hows:
                continue
            info = book.tasks[task]
            if not _estimable(info.metric) or not any(cell.n for cell in own.values()):
                why = "no drawn pair has a value" if _estimable(info.metric) else (
                    f"{info.metric} does not lie between 0 and 1"
                )  # fmt: skip
                log.warning("%s, %s: no estimate over prompts: %s", names[subject], task, why)
                continue
            prompts = max(len(own), *(how["prompts"] for how in hows))
            estimated = _estimate(book, list(own.values()), prompts, hows)
            notes = pair_notes(book.subjects[subject], info, list(own.values()))
            rows.append(
                PromptScoreRow(
                    names.get(subject, subject), task, info.metric, way.label, numerics, prompts,
                    estimated[0], estimated[1], tuple(notes), book.subjects[subject],
                )
            )  # fmt: skip
    return rows


def _estimate(
    book: ScoreBook, cells: Sequence[Any], prompts: int, hows: Sequence[Any]
) -> tuple[int, PromptScores]:
    from evalcore.analysis.prompteval import PromptScores, estimate

    sizes = [cell.n for cell in cells]
    docs = np.concatenate([cell.docs for cell in cells])
    values = np.concatenate([cell.values for cell in cells])
    known, columns = np.unique(docs, return_inverse=True)
    documents = max(len(known), *(how["documents"] for how in hows))
    pairs = np.stack([np.repeat(np.arange(len(cells)), sizes), columns], axis=1)
    what = ("prompt scores 2", prompts, documents, *sorted(cell.key for cell in cells))
    classes = _classes(cells, known, documents)
    found = book.memo.get(
        what, lambda: estimate(pairs, values, prompts, documents, classes=classes).as_record()
    )
    return documents, PromptScores.of_record(found)


def _classes(
    cells: Sequence[Any], known: np.ndarray[Any, Any], documents: int
) -> np.ndarray[Any, Any] | None:
    """int64 [documents]: number of the right choice where every document has one of a few.

    Documents that no drawn pair shows get classes as frequent as those of the others.
    """
    docs = np.concatenate([cell.docs for cell in cells])
    golds = np.concatenate([cell.golds for cell in cells])
    if not len(golds) or golds.min() < 0 or golds.max() >= MOST_CLASSES:
        return None
    classes = np.zeros(documents, np.int64)
    classes[np.searchsorted(known, docs)] = golds
    unseen = documents - len(known)
    if unseen:
        drawn = np.random.default_rng(documents).choice(classes[: len(known)], unseen)
        classes[len(known) :] = drawn
    return classes

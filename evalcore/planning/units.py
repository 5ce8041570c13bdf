"""Grid + what is covered -> ordered units of work.

Order: checkpoint outermost, then subject (the untuned checkpoint first), then requests: by rank
where cells bring ranks (see :mod:`evalcore.planning.order`), else cells as given, then rows. A
worker that takes units in order loads each subject once. Subjects whose adapters are applied beside
the weights share units: as their rows have the same ranks, a unit asks the same of each of them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import numpy.typing as npt

from evalcore.errors import InputError
from evalcore.planning.sharding import pick_shard
from evalcore.planning.unit import RowArray, Unit, UnitSlice, make_unit
from evalcore.store.coverage import Coverage
from evalcore.types import Cell, Subject

CostArray = npt.NDArray[np.int64]

MAX_EXAMPLES_PER_UNIT = 4096


@dataclass(frozen=True, eq=False)
class PlannedCell:
    """A cell of the grid and its requests.

    Attributes:
        cell: The cell.
        requests_path: Arrow file of encoded requests, one row per document.
        doc_ids: Document id of each row. Cells of one task should share the list object.
        costs: int64 [n], prompt tokens of each row.
        ranks: int64 [n], place of each row among all requests of its subject; None: as given.
        wanted: bool [n], rows that are to be scored; None: all.
    """

    cell: Cell
    requests_path: str
    doc_ids: Sequence[str]
    costs: CostArray
    ranks: CostArray | None = None
    wanted: npt.NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class PlanCounts:
    """How much a plan is.

    Attributes:
        checkpoints: Checkpoints with work left.
        subjects: Subjects with work left.
        cells: Cells of the grid (of the shard, if sharded).
        cells_planned: Cells with work left.
        units: Units.
        examples_planned: Examples left to score.
        examples_covered: Examples of the grid that are scored already.
        prompt_tokens: Prompt tokens of the examples left, as if each were computed.
        model_loads: Loads, swaps or merges of weights when one worker runs it in order; adapters
            that are loaded together beside the weights count once.
    """

    checkpoints: int
    subjects: int
    cells: int
    cells_planned: int
    units: int
    examples_planned: int
    examples_covered: int
    prompt_tokens: int
    model_loads: int

    def as_dict(self) -> dict[str, int]:
        """The counts by name, for run records."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Plan:
    """Units in order, their counts, and the cells they speak of.

    Attributes:
        units: In the order of the module's docstring.
        counts: How much it is.
        cells: Cell key -> cell, for every cell of the grid (or shard), covered ones too.
    """

    units: tuple[Unit, ...]
    counts: PlanCounts
    cells: Mapping[str, Cell] = field(repr=False)


@dataclass(frozen=True, eq=False)
class _Work:
    """Rows of one planned cell that are to be scored."""

    planned: PlannedCell
    rows: RowArray


def plan_units(
    cells: Sequence[PlannedCell],
    covered: Mapping[str, Collection[str]],
    *,
    max_examples_per_unit: int = MAX_EXAMPLES_PER_UNIT,
    max_prompt_tokens_per_unit: int | None = None,
    shard: tuple[int, int] | None = None,
    beside: Collection[str] = (),
    most_together: int = 1,
) -> Plan:
    """Plans what is not covered yet.

    Args:
        cells: The grid; order decides the order of checkpoints, adapters and cells. A (cell,
            document) that appears twice is planned once.
        covered: Cell key -> document ids (:class:`Coverage`, or any mapping).
        max_examples_per_unit: At least 1; the rows of a subject are cut evenly below it.
        max_prompt_tokens_per_unit: A unit above it has one row.
        shard: (i, n): only the i-th of n parts. The parts are cut from the whole grid, before
            covered documents are removed, so array jobs that start at different times over one
            results folder neither overlap nor leave gaps between them.
        beside: Ids of subjects whose adapters are applied beside the weights of their checkpoint.
        most_together: Such subjects in one unit; they come after the bare checkpoint and before the
            subjects whose adapters are merged into it.

    Raises:
        InputError: A limit or the shard is out of range, or a cell's arrays do not match.
    """
    limits = _Limits(max_examples_per_unit, max_prompt_tokens_per_unit)
    together = _Together(frozenset(beside), most_together)
    grid = _ordered(_without_repeats(cells), together)
    if shard is not None:
        whole = [unit for works in together.groups(grid) for unit in _cut(works, limits)]
        grid = _works_of(pick_shard(whole, *shard), {w.planned.cell.key: w for w in grid})
    todo = _uncovered(grid, covered)
    units = tuple(unit for works in together.groups(todo) for unit in _cut(works, limits))
    total = sum(len(work.rows) for work in grid)
    by_key = {work.planned.cell.key: work.planned.cell for work in grid}
    return Plan(units, _counts(units, by_key, total), by_key)


def shard(plan: Plan, i: int, n: int) -> Plan:
    """The i-th of n parts of a plan, as :func:`evalcore.planning.sharding.pick_shard` cuts it.

    Jobs that start at different times see different coverage and must not each shard what is
    *left*: they use ``plan_units(..., shard=(i, n))``.

    Raises:
        InputError: Not 0 <= i < n.
    """
    return subset(plan, pick_shard(plan.units, i, n))


def subset(plan: Plan, units: Sequence[Unit]) -> Plan:
    """A plan of some units of ``plan``, in their order there; counts follow, covered ones are 0."""
    keys = dict.fromkeys(part.cell_key for unit in units for part in unit.slices)
    cells = {key: plan.cells[key] for key in keys}
    total = sum(unit.num_examples for unit in units)
    return Plan(tuple(units), _counts(units, cells, total), cells)


@dataclass(frozen=True)
class _Limits:
    examples: int
    tokens: int | None

    def __post_init__(self) -> None:
        if self.examples < 1 or (self.tokens is not None and self.tokens < 1):
            raise InputError(
                f"unit limits must be at least 1, got {self.examples} examples, "
                f"{self.tokens} prompt tokens"
            )


@dataclass(frozen=True)
class _Together:
    """Which subjects may share units, and how many."""

    beside: frozenset[str]
    most: int

    def groups(self, works: Sequence[_Work]) -> Iterator[list[_Work]]:
        """Works of one subject, or of several siblings, in planned order."""
        waiting: list[list[_Work]] = []
        for own in _by_subject(works):
            if waiting and not self._joins(waiting[-1], own):
                yield from self._even(waiting)
                waiting = []
            waiting.append(own)
        yield from self._even(waiting)

    def _joins(self, before: list[_Work], own: list[_Work]) -> bool:
        one, other = before[0].planned.cell.subject, own[0].planned.cell.subject
        same = one.checkpoint.fingerprint == other.checkpoint.fingerprint
        return same and one.id in self.beside and other.id in self.beside

    def _even(self, subjects: Sequence[list[_Work]]) -> Iterator[list[_Work]]:
        """Groups of nearly equal size, none above ``most``."""
        groups = -(-len(subjects) // max(self.most, 1))
        for i in range(groups):
            chosen = subjects[i * len(subjects) // groups : (i + 1) * len(subjects) // groups]
            yield [work for own in chosen for work in own]


def _without_repeats(cells: Sequence[PlannedCell]) -> list[_Work]:
    """Each (cell, document) once; a cell given twice becomes one when its requests are the same."""
    works: list[_Work] = []
    seen: dict[str, PlannedCell] = {}
    distinct: dict[int, RowArray] = {}  # by list object, which cells of one task share
    for planned in cells:
        doc_ids, key = planned.doc_ids, planned.cell.key
        if len(planned.costs) != len(doc_ids):
            raise InputError(f"cell {key}: {len(planned.costs)} costs for {len(doc_ids)} documents")
        if key in seen:
            if list(seen[key].doc_ids) != list(doc_ids):
                raise InputError(
                    f"cell {key} is planned twice with different documents "
                    f"({planned.cell.subject.label}, {planned.cell.task.name}, "
                    f"{planned.cell.variant.name}); give each cell once"
                )
            continue
        seen[key] = planned
        if id(doc_ids) not in distinct:
            first = {doc_id: row for row, doc_id in reversed(list(enumerate(doc_ids)))}
            distinct[id(doc_ids)] = np.sort(np.fromiter(first.values(), dtype=np.int32))
        rows = distinct[id(doc_ids)]
        works.append(_Work(planned, rows if planned.wanted is None else rows[planned.wanted[rows]]))
    return works


def _ordered(works: Sequence[_Work], together: _Together) -> list[_Work]:
    """Stable order: checkpoint by first appearance, then base before adapters, then subject.

    Adapters beside the weights come before merged ones: the base is still in place for them.
    """
    checkpoints: dict[str, int] = {}
    subjects: dict[str, int] = {}
    for work in works:
        subject = work.planned.cell.subject
        checkpoints.setdefault(subject.checkpoint.fingerprint, len(checkpoints))
        subjects.setdefault(subject.id, len(subjects))

    def place(work: _Work) -> tuple[int, bool, bool, int]:
        subject = work.planned.cell.subject
        checkpoint = checkpoints[subject.checkpoint.fingerprint]
        merged = subject.id not in together.beside
        return checkpoint, subject.adapter is not None, merged, subjects[subject.id]

    return sorted(works, key=place)


def _uncovered(works: Sequence[_Work], covered: Mapping[str, Collection[str]]) -> list[_Work]:
    codes: dict[int, npt.NDArray[np.int64]] = {}
    left = []
    for work in works:
        key, doc_ids = work.planned.cell.key, work.planned.doc_ids
        rows = work.rows
        if key in covered:
            if isinstance(covered, Coverage):
                if id(doc_ids) not in codes:
                    codes[id(doc_ids)] = covered.encode(doc_ids)
                done = covered.mask(key, codes[id(doc_ids)][rows])
            else:
                have = frozenset(covered[key])
                done = np.fromiter((doc_ids[row] in have for row in rows), bool, len(rows))
            rows = rows[~done]
        if len(rows):
            left.append(_Work(work.planned, rows))
    return left


def _by_subject(works: Sequence[_Work]) -> Iterable[list[_Work]]:
    group: list[_Work] = []
    for work in works:
        if group and group[0].planned.cell.subject.id != work.planned.cell.subject.id:
            yield group
            group = []
        group.append(work)
    if group:
        yield group


def _cut(works: Sequence[_Work], limits: _Limits) -> list[Unit]:
    """Cuts the rows of one subject, or of one group of siblings, into units of neighbours."""
    costs = np.concatenate([np.asarray(w.planned.costs, np.int64)[w.rows] for w in works])
    rows = np.concatenate([w.rows for w in works])
    owner = np.repeat(np.arange(len(works)), [len(w.rows) for w in works])
    if all(w.planned.ranks is not None for w in works):
        ranks = [np.asarray(w.planned.ranks)[w.rows] for w in works]
        order = np.argsort(np.concatenate(ranks), kind="stable")
        costs, rows, owner = costs[order], rows[order], owner[order]
    subjects = tuple({w.planned.cell.subject.id: w.planned.cell.subject for w in works}.values())
    until = np.concatenate([[0], np.cumsum(costs)])
    total = len(costs)
    # Evenly, so that the last unit is not a crumb that still costs a whole batch.
    size = -(-total // -(-total // limits.examples)) if total else 0
    units = []
    begin = 0
    while begin < total:
        end = min(begin + size, total)
        if limits.tokens is not None:
            fits = int(np.searchsorted(until, until[begin] + limits.tokens, side="right")) - 1
            end = min(end, max(fits, begin + 1))
        slices = _slices(works, subjects, owner[begin:end], rows[begin:end])
        tokens = int(until[end] - until[begin])
        units.append(make_unit(subjects, slices, end - begin, tokens))
        begin = end
    return units


def _slices(
    works: Sequence[_Work],
    subjects: Sequence[Subject],
    owner: npt.NDArray[np.int64],
    rows: RowArray,
) -> tuple[UnitSlice, ...]:
    """A unit's rows by cell, in planned order, ascending."""
    member = {subject.id: i for i, subject in enumerate(subjects)}
    order = np.lexsort((rows, owner))
    present, starts = np.unique(owner[order], return_index=True)
    return tuple(
        UnitSlice(
            works[i].planned.cell.key,
            works[i].planned.requests_path,
            part,
            member[works[i].planned.cell.subject.id],
        )
        for i, part in zip(present, np.split(rows[order], starts[1:]), strict=True)
    )


def _works_of(units: Iterable[Unit], works: Mapping[str, _Work]) -> list[_Work]:
    """Gathers the rows of units by cell again, in planned order."""
    rows: dict[str, list[RowArray]] = {}
    for unit in units:
        for part in unit.slices:
            rows.setdefault(part.cell_key, []).append(part.rows)
    return [
        _Work(works[key].planned, np.sort(np.concatenate(rows[key])))
        for key in works
        if key in rows
    ]


def _counts(units: Sequence[Unit], cells: Mapping[str, Cell], total: int) -> PlanCounts:
    loads = sum(
        1 for i, unit in enumerate(units) if i == 0 or units[i - 1].subject.id != unit.subject.id
    )
    planned = sum(unit.num_examples for unit in units)
    return PlanCounts(
        checkpoints=len({unit.subject.checkpoint.fingerprint for unit in units}),
        subjects=len({subject.id for unit in units for subject in unit.subjects}),
        cells=len(cells),
        cells_planned=len({part.cell_key for unit in units for part in unit.slices}),
        units=len(units),
        examples_planned=planned,
        examples_covered=total - planned,
        prompt_tokens=sum(unit.prompt_tokens for unit in units),
        model_loads=loads,
    )

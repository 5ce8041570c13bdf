"""Grid + what is covered -> ordered units of work.

Order: checkpoint outermost, then subject (the untuned checkpoint first), then requests: by rank
where cells bring ranks (see :mod:`evalcore.planning.order`), else cells as given, then rows. A
worker that takes units in order loads each subject once. Subjects whose adapters are applied beside
the weights share units: as their rows have the same ranks, a unit asks the same of each of them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from evalcore.errors import InputError
from evalcore.planning.joined import Joined
from evalcore.planning.sharding import pick_shard
from evalcore.planning.unit import RowArray, Unit, UnitSlice, make_unit
from evalcore.store.coverage import Coverage
from evalcore.types import Cell, Subject

CostArray = npt.NDArray[np.int64]

MAX_EXAMPLES_PER_UNIT = 4096


@dataclass(frozen=True, eq=False, slots=True)
class PlannedCell:
    """A cell of the grid and its requests.

    Attributes:
        cell: The cell.
        requests_path: Arrow file of encoded requests, one row per document.
        doc_ids: Document id of each row. Cells of one task should share the list object, and those
            of one request file the arrays: what subjects ask alike is then planned once.
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

    def plus(self, other: Plan) -> Plan:
        """This plan and after it another one, of other subjects."""
        units, more = (*self.units, *other.units), other.counts.as_dict()
        counts = {name: count + more[name] for name, count in self.counts.as_dict().items()}
        counts["checkpoints"] = len({unit.subject.checkpoint.fingerprint for unit in units})
        cells = Joined(*(self.cells.parts if isinstance(self.cells, Joined) else [self.cells]))
        cells.add(other.cells)
        return Plan(units, PlanCounts(**counts), cells)


NO_PLAN = Plan((), PlanCounts(0, 0, 0, 0, 0, 0, 0, 0, 0), {})


@dataclass(frozen=True, eq=False, slots=True)
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
        cutter = _Cutter(limits)
        whole = [unit for works in together.groups(grid) for unit in cutter.cut(works)]
        grid = _works_of(pick_shard(whole, *shard), {w.planned.cell.key: w for w in grid})
    todo = _uncovered(grid, covered)
    cutter = _Cutter(limits)
    units = tuple(unit for works in together.groups(todo) for unit in cutter.cut(works))
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
    same = _Same()
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
        if planned.wanted is not None:
            rows = same.of(rows[planned.wanted[rows]])
        works.append(_Work(planned, rows))
    return works


def _ordered(works: Sequence[_Work], together: _Together) -> list[_Work]:
    """Stable order: checkpoint by first appearance, then base before adapters, then subject.

    Adapters beside the weights come before merged ones: the base is still in place for them.
    """
    checkpoints: dict[str, int] = {}
    subjects: dict[str, int] = {}
    places: dict[int, tuple[int, bool, bool, int]] = {}  # by object, which cells share

    def place(work: _Work) -> tuple[int, bool, bool, int]:
        subject = work.planned.cell.subject
        found = places.get(id(subject))
        if found is None:
            own = subject.id
            found = places[id(subject)] = (
                checkpoints.setdefault(subject.checkpoint.fingerprint, len(checkpoints)),
                subject.adapter is not None,
                own not in together.beside,
                subjects.setdefault(own, len(subjects)),
            )
        return found

    return sorted(works, key=place)  # asks in the order given: numbers are of first appearance


def _uncovered(works: Sequence[_Work], covered: Mapping[str, Collection[str]]) -> list[_Work]:
    codes: dict[int, npt.NDArray[np.int64]] = {}
    same = _Same()
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
            rows = same.of(rows[~done])
        if len(rows):
            left.append(_Work(work.planned, rows))
    return left


class _Same:
    """Equal rows as one array, by which :class:`_Cutter` knows that they are."""

    def __init__(self) -> None:
        self._known: dict[bytes, RowArray] = {}

    def of(self, rows: RowArray) -> RowArray:
        return self._known.setdefault(rows.tobytes(), rows)


def _by_subject(works: Sequence[_Work]) -> Iterable[list[_Work]]:
    group: list[_Work] = []
    for work in works:
        if group:
            one, other = group[0].planned.cell.subject, work.planned.cell.subject
            if one is not other and one.id != other.id:
                yield group
                group = []
        group.append(work)
    if group:
        yield group


@dataclass(frozen=True, eq=False, slots=True)
class _Cut:
    """A unit but for whose it is: (number of a work, its rows), examples, tokens."""

    parts: tuple[tuple[int, RowArray], ...]
    num_examples: int
    prompt_tokens: int


class _Cutter:
    """Cuts rows into units; subjects that ask the same are cut alike, hence once.

    They ask the same where their works share arrays, which is told by the objects.
    """

    def __init__(self, limits: _Limits) -> None:
        self._limits = limits
        self._known: dict[tuple[Any, ...], tuple[Sequence[_Work], list[_Cut]]] = {}

    def cut(self, works: Sequence[_Work]) -> list[Unit]:
        """Cuts the rows of one subject, or of one group of siblings, into units of neighbours."""
        planned = [work.planned for work in works]
        alike = tuple(
            [
                (id(work.rows), id(own.costs), id(own.ranks))
                for work, own in zip(works, planned, strict=True)
            ]
        )
        if alike not in self._known:
            self._known[alike] = (works, _cut(works, self._limits))  # kept, or ids come again
        subjects: dict[int, Subject] = {id(own.cell.subject): own.cell.subject for own in planned}
        members: dict[str, int] = {}
        numbers = {at: members.setdefault(s.id, len(members)) for at, s in subjects.items()}
        together = tuple({s.id: s for s in subjects.values()}.values())
        slices = [
            (own.cell.key, own.requests_path, numbers[id(own.cell.subject)]) for own in planned
        ]
        units = []
        for cut in self._known[alike][1]:
            parts = []
            for i, rows in cut.parts:
                key, path, member = slices[i]
                parts.append(UnitSlice(key, path, rows, member))
            units.append(make_unit(together, tuple(parts), cut.num_examples, cut.prompt_tokens))
        return units


def _cut(works: Sequence[_Work], limits: _Limits) -> list[_Cut]:
    """Cuts the rows of works into what is neighbours."""
    costs = np.concatenate([np.asarray(w.planned.costs, np.int64)[w.rows] for w in works])
    rows = np.concatenate([w.rows for w in works])
    owner = np.repeat(np.arange(len(works)), [len(w.rows) for w in works])
    if all(w.planned.ranks is not None for w in works):
        ranks = [np.asarray(w.planned.ranks)[w.rows] for w in works]
        order = np.argsort(np.concatenate(ranks), kind="stable")
        costs, rows, owner = costs[order], rows[order], owner[order]
    until = np.concatenate([[0], np.cumsum(costs)])
    total = len(costs)
    # Evenly, so that the last unit is not a crumb that still costs a whole batch.
    size = -(-total // -(-total // limits.examples)) if total else 0
    cuts = []
    begin = 0
    while begin < total:
        end = min(begin + size, total)
        if limits.tokens is not None:
            fits = int(np.searchsorted(until, until[begin] + limits.tokens, side="right")) - 1
            end = min(end, max(fits, begin + 1))
        parts = _parts(owner[begin:end], rows[begin:end])
        cuts.append(_Cut(parts, end - begin, int(until[end] - until[begin])))
        begin = end
    return cuts


def _parts(owner: npt.NDArray[np.int64], rows: RowArray) -> tuple[tuple[int, RowArray], ...]:
    """A unit's rows by work, in planned order, ascending."""
    order = np.lexsort((rows, owner))
    present, starts = np.unique(owner[order], return_index=True)
    return tuple(zip(present.tolist(), np.split(rows[order], starts[1:]), strict=True))


def _works_of(units: Iterable[Unit], works: Mapping[str, _Work]) -> list[_Work]:
    """Gathers the rows of units by cell again, in planned order."""
    rows: dict[str, list[RowArray]] = {}
    for unit in units:
        for part in unit.slices:
            rows.setdefault(part.cell_key, []).append(part.rows)
    same = _Same()
    return [
        _Work(works[key].planned, same.of(np.sort(np.concatenate(rows[key]))))
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

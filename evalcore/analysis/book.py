"""Reduced cells arranged for comparison: subject x task x variant -> values by document."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from evalcore.analysis.cells import Cells, CellValues, Load, Stratum, cell_values, task_of
from evalcore.analysis.making import UNRECORDED, Making, making_of, record_of, unlike
from evalcore.analysis.memo import Memo
from evalcore.analysis.reduction import CellFacts, arrays_of, reduce_cells
from evalcore.analysis.subjects import (
    Flag,
    SubjectInfo,
    TaskInfo,
    flag_subjects,
    models_of,
    names_apart,
    settle_tuned,
    subject_of,
    subject_order,
    with_parents,
)
from evalcore.analysis.ways import Way, ranked
from evalcore.errors import IncompatibleError, InputError, UnknownNameError
from evalcore.metrics.arrays import column
from evalcore.store.schema import MAKER_COLUMN

CELL_COLUMNS = (
    "cell", "checkpoint", "step", "subject", "base", "adapter", "tuning", "tuned_on", "method",
    "control", "seed", "tuning_step", "labels_from", "untrained", "task",
    "task_fingerprint", "group", "tuned_by", "domain", "output_type",
    "primary_metric", "baseline", "variant", "variant_fingerprint", "shots_seed",
    "shots_order", "shots_balance", "chat", "listing", "answer", "max_length", "numerics",
    "findings", "recorded",
)  # fmt: skip
# How a cell was asked; null in results that were made before it was recorded.
_ASKED = ("chat_template", "end_tokens")
# What tables show beside the scores, where it is there.
OPTIONAL_COLUMNS = (*_ASKED, "evalcore_version", "versions")


Clusters = Callable[[npt.NDArray[np.int64]], npt.NDArray[np.int64]]
Key = tuple[str, str, str]
"""(subject id, task name, variant name)"""


@dataclass(frozen=True)
class ReducedCell:
    """A cell that was reduced: its record, what its rows say, and its arrays on demand.

    Attributes:
        key: Stands for the values (``CellValues.key``).
        about: Its columns of the cells table.
        facts: See ``reduction.CellFacts``.
        load: Gives its arrays, with document codes of the book it goes into.
        made: In which ways its rows were made; see :func:`makings_of`.
    """

    key: str
    about: Mapping[str, Any]
    facts: CellFacts
    load: Load
    made: tuple[Making, ...] = ()


@dataclass(frozen=True)
class ScoreBook:
    """Everything the analysis asks for. Build with :meth:`of`, or :meth:`from_table`.

    Attributes:
        subjects: By id.
        tasks: By name.
        cells: (subject id, task name) -> variant name -> values.
        documents: Document id of each code.
        flags: What is odd about what was read.
        preferred: Ways of asking that headlines are about, the first that a task has.
        read: The reduced cells it was built from.
        clusters: Document codes -> codes of what they hang together in; None: each by itself.
        memo: What was computed of its values (see ``analysis.memo``).
        noted: What is odd about cells, by which they are (see ``scores.notes_of``).
    """

    subjects: dict[str, SubjectInfo]
    tasks: dict[str, TaskInfo]
    cells: dict[tuple[str, str], dict[str, CellValues]]
    documents: Sequence[str]
    flags: list[Flag] = field(default_factory=list)
    preferred: tuple[Way, ...] = ()
    read: tuple[ReducedCell, ...] = ()
    clusters: Clusters | None = None
    memo: Memo = field(default_factory=Memo, compare=False, repr=False)
    noted: dict[Any, list[str]] = field(default_factory=dict, compare=False, repr=False)
    _strata: dict[tuple[str, str], dict[Stratum, Cells]] = field(
        default_factory=dict, compare=False, repr=False
    )
    _main: dict[tuple[str, str], Stratum | None] = field(
        default_factory=dict, compare=False, repr=False
    )

    @classmethod
    def from_table(
        cls,
        table: pa.Table,
        *,
        numerics: str | None = None,
        tasks: Sequence[str] | None = None,
        preferred: Sequence[Way] = (),
        scores: bool = False,
    ) -> ScoreBook:
        """Arranges a table as ``ResultStore.read()`` gives it, all of it in memory.

        Args:
            table: Example rows joined with their cell's columns.
            numerics, tasks, preferred: See :meth:`of`.
            scores: Compute every metric of every cell, too (``scores.metric_table``).

        Raises:
            InputError: The table lacks columns or rows.
            UnknownNameError: ``numerics`` or a task that is not in the table.
        """
        missing = [c for c in (*CELL_COLUMNS, "doc_id", "flags") if c not in table.column_names]
        if missing:
            raise InputError(
                f"results table: no column {', '.join(missing)}; "
                "give what ResultStore.read() returns"
            )
        known = column(table, "subject").is_valid()
        lost = 0
        if not pc.all(known, min_count=0).as_py():
            lost = len(column(table.filter(pc.invert(known)), "cell").unique())
            table = table.filter(known)
        reduced = reduce_cells(table, scores=scores)
        first = pc.index_in(
            pa.array([facts.cell for facts, _ in reduced], pa.string()),
            value_set=column(table, "cell"),
        )
        names = [n for n in (*CELL_COLUMNS, *OPTIONAL_COLUMNS) if n in table.column_names]
        about = table.select(names).take(first).to_pylist()
        documents = reduced[0][1].column("doc").dictionary.to_pylist() if reduced else []
        made = _made_by_line(table)
        cells = [
            ReducedCell(
                facts.cell, row, facts, _loaded(arrays),
                makings_of(facts, row["numerics"], made.get(facts.cell, {})),
            )
            for row, (facts, arrays) in zip(about, reduced, strict=True)
        ]  # fmt: skip
        return cls.of(
            cells, documents, numerics=numerics, tasks=tasks, preferred=preferred, lost=lost
        )

    @classmethod
    def of(
        cls,
        reduced: Sequence[ReducedCell],
        documents: Sequence[str],
        *,
        numerics: str | None = None,
        tasks: Sequence[str] | None = None,
        preferred: Sequence[Way] = (),
        lost: int = 0,
        clusters: Clusters | None = None,
        memo: Memo | None = None,
    ) -> ScoreBook:
        """Arranges reduced cells.

        Args:
            reduced: The cells; those without rows are not among them.
            documents: Document id of each code that their arrays have.
            numerics: Keep only this numerics class (label); None keeps all.
            tasks: Keep only these tasks.
            preferred: Ways of asking that headlines are about, the first that a task has.
            lost: Cells that have rows but no record of whose they are.
            clusters: Document codes -> codes of what they hang together in; None: each by itself.
            memo: What is known of such values.

        Raises:
            InputError: There are no cells.
            UnknownNameError: ``numerics`` or a task that no cell has.
        """
        reduced = _keep(_keep(reduced, "numerics", numerics), "task", tasks)
        flags: list[Flag] = []
        text = f"{lost} cells have rows but no description; not used"
        if lost:
            flags.append(Flag("missing", "results", text, lost))
        if not reduced:
            if lost:
                raise InputError(f"results table: {text}, and there are no others")
            raise InputError("results table: no rows; score something first")
        subjects: dict[str, SubjectInfo] = {}
        infos: dict[str, TaskInfo] = {}
        found: dict[Key, list[tuple[dict[str, Any], CellValues]]] = defaultdict(list)
        versions: dict[str, set[str]] = defaultdict(set)
        data_findings: Counter[tuple[str, str]] = Counter()
        for cell in reduced:
            about: dict[str, Any] = {
                name: cell.about.get(name) for name in (*CELL_COLUMNS, *_ASKED)
            }
            subjects.setdefault(about["subject"], subject_of(about))
            task = infos.setdefault(about["task"], task_of(about, flags))
            versions[task.name].add(about["task_fingerprint"])
            data_findings.update((task.name, text) for text in about["findings"] or ())
            values = cell_values(cell.key, about, cell.facts, task, cell.load, flags, cell.made)
            if values is not None:
                key = (about["subject"], about["task"], about["variant"])
                found[key].append((about, values))
        cells = _settle_doubled(found, subjects, flags)
        subjects = with_parents(subjects)
        settle_tuned(subjects, infos)
        flag_subjects(subjects, flags)
        flags += [Flag("data", name, text, n) for (name, text), n in data_findings.items()]
        flags += [
            Flag(
                "task",
                name,
                f"scored under {len(v)} definitions of the task; pairs are by document",
            )
            for name, v in versions.items()
            if len(v) > 1
        ]
        flags += _made_flags(reduced)
        return cls(
            subjects, infos, cells, documents, flags, tuple(preferred), tuple(reduced),
            clusters, Memo() if memo is None else memo,
        )  # fmt: skip

    @property
    def num_rows(self) -> int:
        """Stored rows behind it, those without a value too."""
        facts = [cell.facts for cell in self.read]
        return sum(f.n + f.overflow + f.valueless + f.doubled for f in facts)

    def variants(self, subject: str, task: str) -> dict[str, CellValues]:
        """Variant name -> values of the cells scored, sorted by name; empty if there are none."""
        return self.cells.get((subject, task), {})

    @cached_property
    def models(self) -> list[SubjectInfo]:
        """Subjects in order, training seeds of one tuning taken together (``models_of``)."""
        return models_of(self.subjects.values())

    @cached_property
    def apart(self) -> dict[str, str]:
        """``names_apart`` of the models."""
        return names_apart(self.models)

    @cached_property
    def controls(self) -> dict[tuple[str | None, str | None], list[SubjectInfo]]:
        """(base, tuning) -> its controls."""
        found: dict[tuple[str | None, str | None], list[SubjectInfo]] = defaultdict(list)
        for s in self.models:
            if s.control is not None:
                found[(s.base, s.tuning)].append(s)
        return dict(found)

    def strata(self, subject: SubjectInfo, task: str) -> dict[Stratum, Cells]:
        """A model's cells on a task by what may be averaged, plainest first.

        Of several seeds those cells are left out that were asked otherwise than the first.
        """
        known = self._strata.get((subject.id, task))
        if known is not None:
            return known
        found: dict[Stratum, Cells] = defaultdict(dict)
        for number, run in enumerate(subject.run_ids):
            for name, cell in self.variants(run, task).items():
                runs = found[(cell.way, cell.numerics)].setdefault(name, {})
                if all(other.setting == cell.setting for other in runs.values()):
                    runs[number] = cell
        ordered = {key: dict(sorted(found[key].items())) for key in sorted(found)}
        self._strata[(subject.id, task)] = ordered
        return ordered

    @cached_property
    def _ranked(self) -> list[Way]:
        every = (c.way for cells in self.cells.values() for c in cells.values())
        return [*self.preferred, *ranked(every)]

    def primary(self, task: str) -> Way:
        """The way of asking that headlines about a task are about.

        A preferred one, else the one most cells of the table have (of equals the plainest),
        among those the task was asked in.
        """
        here = self._ways.get(task, set())
        return next((way for way in self._ranked if way in here), Way())

    @cached_property
    def _ways(self) -> dict[str, set[Way]]:
        found: dict[str, set[Way]] = defaultdict(set)
        for (_, task), cells in self.cells.items():
            found[task].update(c.way for c in cells.values())
        return found

    def primary_stratum(self, subject: SubjectInfo, task: str) -> Stratum | None:
        """The stratum of the primary way that a model has most cells in."""
        known = (subject.id, task)
        if known not in self._main:
            self._main[known] = self._primary_stratum(subject, task)
        return self._main[known]

    def _primary_stratum(self, subject: SubjectInfo, task: str) -> Stratum | None:
        way = self.primary(task)
        sizes = {
            key: sum(map(len, cells.values()))
            for key, cells in self.strata(subject, task).items()
            if key[0] == way
        }
        return max(sizes, key=lambda key: (sizes[key], key), default=None)

    def ordered_subjects(self) -> list[SubjectInfo]:
        """By pre-training step, then base before adapters, then name."""
        return sorted(self.subjects.values(), key=subject_order)

    def base_of(self, subject: SubjectInfo) -> SubjectInfo | None:
        return self.subjects.get(subject.base) if subject.base is not None else None

    def document_names(self, codes: Iterable[int], limit: int = 5) -> str:
        """A few document ids for a message."""
        listed = sorted(self.documents[c][:12] for c in codes)
        return ", ".join(listed[:limit]) + (" ..." if len(listed) > limit else "")


def require_same_numerics(a: CellValues, b: CellValues, what: str, allow_mixed: bool) -> None:
    """Refuses a difference between scores computed with other arithmetic.

    Raises:
        IncompatibleError: The numerics classes differ and ``allow_mixed`` is False.
    """
    if a.numerics != b.numerics and not allow_mixed:
        raise IncompatibleError(
            f"{what}: numerics classes differ ({a.numerics} and {b.numerics}); a difference would "
            "mix model and arithmetic: score both alike, choose one class, or allow mixing"
        )


def _keep(
    cells: Sequence[ReducedCell], name: str, wanted: str | Sequence[str] | None
) -> Sequence[ReducedCell]:
    if wanted is None:
        return cells
    names = [wanted] if isinstance(wanted, str) else list(wanted)
    known = {cell.about[name] for cell in cells}
    for value in names:
        if value not in known:
            raise UnknownNameError(name, value, known)
    return [cell for cell in cells if cell.about[name] in names]


def makings_of(
    facts: CellFacts, numerics: str, records: Mapping[str, Mapping[str, Any]]
) -> tuple[Making, ...]:
    """In which ways a cell's rows were made.

    Args:
        facts: The cell's.
        numerics: Label of its class.
        records: Id of a maker -> its record; one that is not there counts as not recorded.
    """
    found = {
        making_of(records[maker], numerics) if maker in records else UNRECORDED
        for maker in facts.makers
    }
    return tuple(sorted(found | ({UNRECORDED} if facts.unmade else set())))


def _made_by_line(table: pa.Table) -> dict[str, dict[str, dict[str, Any]]]:
    """Cell -> id of a maker -> its record, from a joined table's column of lines."""
    names = ["cell", "made_by", MAKER_COLUMN]
    if not set(names) <= set(table.column_names):
        return {}
    columns = [column(table, name).cast(pa.string()) for name in names]
    found: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for row in pa.table(columns, names).group_by(names).aggregate([]).to_pylist():
        if row["made_by"] and row[MAKER_COLUMN] not in (None, row["made_by"]):
            found[row["cell"]][row["made_by"]] = record_of(row[MAKER_COLUMN])
    return found


def _made_flags(cells: Sequence[ReducedCell]) -> list[Flag]:
    """Whether all numbers of a class were made alike."""
    made: dict[str, set[Making]] = defaultdict(set)
    for cell in cells:
        made[cell.about["numerics"]].update(cell.made)
    texts = {numerics: unlike(ways) for numerics, ways in made.items()}
    return [
        Flag("made by", "results", f"{numerics}: rows were made by {text}", len(made[numerics]))
        for numerics, text in sorted(texts.items())
        if text
    ]


def _loaded(arrays: pa.RecordBatch) -> Load:
    made = arrays_of(arrays)
    return lambda: made


def _settle_doubled(
    found: dict[Key, list[tuple[dict[str, Any], CellValues]]],
    subjects: dict[str, SubjectInfo],
    flags: list[Flag],
) -> dict[tuple[str, str], dict[str, CellValues]]:
    """One cell per (subject, task, variant): several are flagged, never averaged.

    Of one numerics class the definition that was asked for last is taken (a store's readers leave
    the others out already); of several classes, the one most cells have. Where that leaves
    several, nobody can say which is meant, and the key is left out.
    """
    popular = Counter(v.numerics for entries in found.values() for _, v in entries)
    cells: dict[tuple[str, str], dict[str, CellValues]] = defaultdict(dict)
    for key, entries in sorted(found.items()):
        if len(entries) == 1:
            cells[key[:2]][key[2]] = entries[0][1]
            continue
        number = len(entries)
        last: dict[str, str] = {}
        for about, values in entries:
            last[values.numerics] = max(last.get(values.numerics, ""), about["recorded"] or "")
        entries = [e for e in entries if (e[0]["recorded"] or "") == last[e[1].numerics]]
        classes = [v.numerics for _, v in entries]
        where = f"{subjects[key[0]].label}, {key[1]}, {key[2]}"
        if len(entries) == 1:
            cells[key[:2]][key[2]] = entries[0][1]
            text = f"{number} definitions of it were scored; the newest is used"
        elif len(set(classes)) == len(classes):
            chosen = min(entries, key=lambda e: (-popular[e[1].numerics], e[1].numerics))[1]
            cells[key[:2]][key[2]] = chosen
            text = f"scored in {len(entries)} numerics classes; {chosen.numerics} is used"
        else:
            differ = [c for c in CELL_COLUMNS if len({repr(a[c]) for a, _ in entries}) > 1]
            text = (
                f"{len(entries)} entries for one key (they differ in {', '.join(differ)}); "
                "none is used"
            )
        flags.append(Flag("doubled", where, text, number))
    return dict(cells)

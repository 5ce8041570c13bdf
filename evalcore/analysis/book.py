"""Stored rows arranged for comparison: subject x task x variant -> values by document."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from evalcore.analysis.cells import Cells, CellValues, Stratum, cell_values, task_of
from evalcore.analysis.subjects import (
    Flag,
    SubjectInfo,
    TaskInfo,
    flag_subjects,
    models_of,
    settle_tuned,
    subject_of,
    subject_order,
    with_parents,
)
from evalcore.analysis.ways import Way, ranked
from evalcore.errors import IncompatibleError, InputError, UnknownNameError
from evalcore.metrics.arrays import column
from evalcore.metrics.cells import iterate_cells

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


Key = tuple[str, str, str]
"""(subject id, task name, variant name)"""


@dataclass(frozen=True)
class ScoreBook:
    """Everything the analysis asks for, from one read table. Build with :meth:`from_table`."""

    subjects: dict[str, SubjectInfo]
    tasks: dict[str, TaskInfo]
    cells: dict[tuple[str, str], dict[str, CellValues]]
    documents: list[str]
    flags: list[Flag] = field(default_factory=list)
    preferred: tuple[Way, ...] = ()
    _strata: dict[tuple[str, str], dict[Stratum, Cells]] = field(
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
    ) -> ScoreBook:
        """Arranges a table as ``ResultStore.read()`` gives it.

        Args:
            table: Example rows joined with their cell's columns.
            numerics: Keep only this numerics class (label); None keeps all.
            tasks: Keep only these tasks.
            preferred: Ways of asking that headlines are about, the first that a task has.

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
        table = _keep(_keep(table, "numerics", numerics), "task", tasks)
        if table.num_rows == 0:
            raise InputError("results table: no rows; score something first")
        flags: list[Flag] = []
        known = column(table, "subject").is_valid()
        if not pc.all(known, min_count=0).as_py():
            lost = table.filter(pc.invert(known))
            count = len(column(lost, "cell").unique())
            text = f"{count} cells have rows but no description; not used"
            flags.append(Flag("missing", "results", text, count))
            table = table.filter(known)
            if table.num_rows == 0:
                raise InputError(f"results table: {text}, and there are no others")
        encoded = column(table, "doc_id").dictionary_encode()
        codes = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
        table = table.append_column("_doc", pa.array(codes))
        subjects: dict[str, SubjectInfo] = {}
        infos: dict[str, TaskInfo] = {}
        found: dict[Key, list[tuple[dict[str, Any], CellValues]]] = defaultdict(list)
        versions: dict[str, set[str]] = defaultdict(set)
        data_findings: Counter[tuple[str, str]] = Counter()
        for key, start, stop, ordered in iterate_cells(table):
            part = ordered.slice(start, stop - start)
            about = {name: part.column(name)[0].as_py() for name in CELL_COLUMNS}
            for name in _ASKED:
                about[name] = part.column(name)[0].as_py() if name in part.column_names else None
            subjects.setdefault(about["subject"], subject_of(about))
            task = infos.setdefault(about["task"], task_of(about, flags))
            versions[task.name].add(about["task_fingerprint"])
            data_findings.update((task.name, text) for text in about["findings"] or ())
            values = cell_values(key, part, task, about, flags)
            found[(about["subject"], about["task"], about["variant"])].append((about, values))
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
        return cls(subjects, infos, cells, encoded.dictionary.to_pylist(), flags, tuple(preferred))

    def variants(self, subject: str, task: str) -> dict[str, CellValues]:
        """Variant name -> values of the cells scored, sorted by name; empty if there are none."""
        return self.cells.get((subject, task), {})

    @cached_property
    def models(self) -> list[SubjectInfo]:
        """Subjects in order, training seeds of one tuning taken together (``models_of``)."""
        return models_of(self.subjects.values())

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
        listed = [self.documents[c][:12] for c in codes]
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


def _keep(table: pa.Table, name: str, wanted: str | Sequence[str] | None) -> pa.Table:
    if wanted is None:
        return table
    names = [wanted] if isinstance(wanted, str) else list(wanted)
    values = column(table, name)
    known = set(values.unique().to_pylist())
    for value in names:
        if value not in known:
            raise UnknownNameError(name, value, known)
    return table.filter(pc.is_in(values, value_set=pa.array(names)))


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

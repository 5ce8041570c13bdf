"""Stored rows arranged for comparison: subject x task x variant -> values by document."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from evalcore.analysis.subjects import (
    Flag,
    SubjectInfo,
    TaskInfo,
    flag_subjects,
    settle_tuned,
    subject_of,
    subject_order,
    with_parents,
)
from evalcore.analysis.ways import Way
from evalcore.errors import IncompatibleError, InputError, UnknownNameError
from evalcore.metrics import document_metric, example_values, is_scored
from evalcore.metrics.arrays import column, integers
from evalcore.metrics.cells import iterate_cells, modal_share

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


@dataclass(frozen=True)
class CellValues:
    """Values of one cell's scored documents.

    Attributes:
        cell: Cell key.
        way: How it was asked; ``way.shots`` is the nominal number of worked examples.
        numerics: Label of the numerics class.
        setting: What two cells must share to be compared, beside task and variant name:
            (variant fingerprint, maximum length).
        docs: int64 [n] document codes of this book, ascending.
        values: float64 [n] of the task's metric.
        continuous: float64 [n] of the task's continuous metric (NaN where unknown).
        unscored: Documents recorded but not scored (prompt too long, no gold).
        modal_share: Share of the commonest answer; NaN where nothing was answered.
    """

    cell: str
    way: Way
    numerics: str
    setting: tuple[Any, ...]
    docs: npt.NDArray[np.int64]
    values: npt.NDArray[np.float64]
    continuous: npt.NDArray[np.float64]
    unscored: int
    modal_share: float


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

    @classmethod
    def from_table(
        cls, table: pa.Table, *, numerics: str | None = None, tasks: Sequence[str] | None = None
    ) -> ScoreBook:
        """Arranges a table as ``ResultStore.read()`` gives it.

        Args:
            table: Example rows joined with their cell's columns.
            numerics: Keep only this numerics class (label); None keeps all.
            tasks: Keep only these tasks.

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
            task = infos.setdefault(about["task"], _task(about, flags))
            versions[task.name].add(about["task_fingerprint"])
            data_findings.update((task.name, text) for text in about["findings"] or ())
            values = _cell_values(key, part, task, about, flags)
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
        return cls(subjects, infos, cells, encoded.dictionary.to_pylist(), flags)

    def variants(self, subject: str, task: str) -> dict[str, CellValues]:
        """Variant name -> values of the cells scored, sorted by name; empty if there are none."""
        return self.cells.get((subject, task), {})

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


def _task(about: dict[str, Any], flags: list[Flag]) -> TaskInfo:
    multiple_choice = about["output_type"] == "multiple_choice"
    primary, baseline = about["primary_metric"], about["baseline"]
    metric = document_metric(primary, about["output_type"])
    if metric != primary:
        text = f"{primary} has no value per document; {metric} is compared"
        flags.append(Flag("metric", about["task"], text))
        baseline = None  # it is in units of the primary metric
    return TaskInfo(
        name=about["task"], group=about["group"], tuned_by=about["tuned_by"],
        domain=about["domain"] or "none", output_type=about["output_type"], metric=metric,
        continuous="gold_prob" if multiple_choice else "gold_bits_per_byte",
        baseline=float("nan") if baseline is None else float(baseline),
    )  # fmt: skip


def _cell_values(
    key: str, part: pa.Table, task: TaskInfo, about: dict[str, Any], flags: list[Flag]
) -> CellValues:
    where = f"{subject_of(about).label}, {task.name}, {about['variant']}"
    docs = integers(part, "_doc")
    _, first = np.unique(docs, return_index=True)
    if len(first) < len(docs):
        doubled = len(docs) - len(first)
        flags.append(
            Flag("doubled", where, f"{doubled} rows repeat a document; the first is kept", doubled)
        )
    part, docs = part.take(pa.array(first)), docs[first]
    metric = document_metric(task.metric, task.output_type, about["answer"] or "choices")
    if metric != task.metric:
        text = f"{task.metric} is not defined for answer={about['answer']}; {metric} is used"
        flags.append(Flag("metric", where, text))
    values = example_values(part, metric)
    continuous = example_values(part, task.continuous)
    overflow = int((~is_scored(part)).sum())
    if overflow:
        flags.append(
            Flag("overflow", where, f"{overflow} prompts did not fit and are not scored", overflow)
        )
    keep = ~np.isnan(values)
    other = len(docs) - int(keep.sum()) - overflow
    if other:
        flags.append(Flag("unscored", where, f"{other} rows have no value of {metric}", other))
    dropped = int((integers(part, "shots_dropped", 0) > 0).sum())
    if dropped:
        flags.append(
            Flag("shots_dropped", where, f"{dropped} prompts lost shots to fit the length", dropped)
        )
    cut = int((integers(part, "truncated_tokens", 0) > 0).sum())
    if cut:
        flags.append(
            Flag("truncated", where, f"{cut} prompts lost their beginning to fit the length", cut)
        )
    # In the joined table the cell's own number of shots is called cell_shots.
    nominal = "cell_shots" in part.column_names
    shots = integers(part, "cell_shots" if nominal else "shots", 0)
    if not nominal:
        shots = shots + integers(part, "shots_dropped", 0)
    return CellValues(
        cell=key, way=Way.of(about, int(shots.max())), numerics=about["numerics"],
        setting=(
            about["variant_fingerprint"], about["max_length"], about["chat_template"],
            tuple(about["end_tokens"] or ()),
        ), docs=docs[keep],
        values=values[keep], continuous=continuous[keep], unscored=len(docs) - int(keep.sum()),
        modal_share=modal_share(part),
    )  # fmt: skip


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

"""What a cell is made of: its requests on disk, its row of the cells table."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from evalcore.app.unasked import unasked_lines
from evalcore.identity import (
    CELL_KEY_VERSION,
    KeyMaker,
    NumericsClass,
    canonical_json,
    cell_key,
)
from evalcore.metrics import needs_unconditional
from evalcore.planning import PlannedCell
from evalcore.prompting import (
    cached_requests,
    check_requests,
    read_requests,
    request_costs,
    shots_fingerprint,
)
from evalcore.store.cell_rows import CellRows, Codes
from evalcore.store.schema import CellFacts
from evalcore.tasks import Finding
from evalcore.types import (
    Cell,
    Checkpoint,
    Document,
    EncodingSettings,
    Subject,
    Task,
    Variant,
)

if TYPE_CHECKING:
    from evalcore.lm_eval import Built
    from evalcore.lm_eval.outcomes import LmEvalWork


NO_TEMPLATE = (
    "a chat needs a tokenizer with a chat template, and there is none: leave chats out for it, or "
    "give a tokenizer with --tokenizer PATH"
)
"""Why a chat cannot be asked of a subject."""


@dataclass(frozen=True)
class RequestFile:
    """Requests of a (task, variant, tokenizer) on disk.

    Attributes:
        path: The file.
        doc_ids: Documents, in the file's order.
        costs: int64 [documents]: prompt tokens, every context and continuation once.
        shots: Fingerprint of the worked examples shown, if any.
        findings: What the checks of the requests found.
    """

    path: Path
    doc_ids: list[str]
    costs: np.ndarray
    shots: str | None = None
    findings: list[Finding] = field(default_factory=list)

    @cached_property
    def where(self) -> str:
        """Its path as text."""
        return str(self.path)

    @classmethod
    def of(
        cls,
        cache: Path,
        task: Task,
        variant: Variant,
        documents: Sequence[Document],
        pool: Sequence[Document],
        checkpoint: Checkpoint,
        settings: EncodingSettings,
        drawn: Sequence[Document] | None = None,
    ) -> RequestFile:
        """Encodes the documents for a checkpoint's tokenizer, unless that was done before.

        Args:
            pool: What worked examples are drawn from.
            drawn: The worked examples, where the variant shows any.
        """
        tokenizer = Path(checkpoint.tokenizer)
        path = cached_requests(
            cache, task, variant, documents, pool, tokenizer, settings, drawn=drawn,
            unconditional=needs_unconditional(task),
        )  # fmt: skip
        shown = None if drawn is None else shots_fingerprint(drawn)
        table = read_requests(path)
        findings = check_requests(
            task, variant, table, documents=documents, max_length=settings.max_length
        )
        findings += _template_notes(task, variant, checkpoint)
        return cls(path, table["doc_id"].to_pylist(), request_costs(table), shown, findings)


def _template_notes(task: Task, variant: Variant, checkpoint: Checkpoint) -> list[Finding]:
    """What a chat template does besides writing messages, for the record."""
    texts = {}
    if variant.chat and checkpoint.template_dated:
        texts["template_date"] = (
            f"the chat template of {checkpoint.name} writes the date: {variant.chat_date} is given "
            "(--template-date)"
        )
    if variant.chat and checkpoint.think_end and not variant.chat_args:
        texts["template_thinks"] = (
            f"the chat template of {checkpoint.name} knows a thinking part ({checkpoint.think_end})"
            "; it is asked as it is by default (--chat-template-args)"
        )
    where = f"task {task.name}, prompt {variant.name}"
    return [
        Finding("note", code, f"{where}: {text}", 0, task=task.name) for code, text in texts.items()
    ]


@dataclass(frozen=True, eq=False)
class Question:
    """A cell but for whose it is and for the numbers it is computed in, which decide its key too.

    Attributes:
        file: Its requests.
        baseline: What a trivial answer scores.
        documents: Those to score.
        data: Fingerprint of all documents' content, whatever the limit.
        versions: Of the packages that decide numbers, as JSON.
        findings: What the checks found; None where they are told apart from the cell.
        keeps_answers: Whether answers to documents outlast a change of the others.
        built: What lm-eval made of one of its tasks.
    """

    task: Task
    variant: Variant
    settings: EncodingSettings
    file: RequestFile
    baseline: float
    documents: Sequence[Document]
    data: str
    versions: str
    findings: Sequence[Finding] | None = None
    keeps_answers: bool = True
    built: Built | None = None

    def maker(self, data: str = "") -> KeyMaker:
        """Of its cells' keys; without data of the keys they have whatever their data are."""
        return KeyMaker(
            self.task, self.variant, self.settings, data=data, shots=self.file.shots,
            unconditional=needs_unconditional(self.task),
        )  # fmt: skip

    def key(self, subject: Subject, numerics: NumericsClass, data: str = "") -> str:
        """The key of its cell of a subject, made by itself."""
        return cell_key(
            subject, self.task, self.variant, self.settings, numerics, data=data,
            shots=self.file.shots, unconditional=needs_unconditional(self.task),
        )  # fmt: skip

    def facts(self, cell: Cell, numerics: NumericsClass, asked: str | None) -> CellFacts:
        """What is recorded of one of its cells; ``asked``: its key whatever its data are."""
        found = self.findings
        return CellFacts(
            cell, self.settings, numerics, self.baseline, self.documents, self.data, asked,
            self.versions, self.file.path.name, CELL_KEY_VERSION,
            None if found is None else [finding.message for finding in found],
        )  # fmt: skip


class Asked:
    """Who is asked what: numbers of subjects and questions, one of each for a cell.

    Attributes:
        subjects: Each once.
        questions: Each once.
    """

    def __init__(self) -> None:
        self.subjects: list[Subject] = []
        self.questions: list[Question] = []
        self._subject, self._question = array("i"), array("i")
        self._known: dict[int, int] = {}  # id of a subject that is kept -> its number
        self._equal: dict[Subject, int] = {}
        self._last: int | None = None

    def __len__(self) -> int:
        return len(self._subject)

    def ask(self, question: Question) -> int:
        """Takes in a question; its number."""
        self.questions.append(question)
        return len(self.questions) - 1

    def add(self, subject: Subject, question: int) -> None:
        """A cell: a subject is asked a question."""
        number = self._known.get(id(subject))
        if number is None:
            number = self._equal.setdefault(subject, len(self.subjects))
            if number == len(self.subjects):
                self.subjects.append(subject)  # kept, so that no other gets its id
                self._known[id(subject)] = number
        self._subject.append(number)
        self._question.append(question)

    def numbers(self) -> tuple[Codes, Codes]:
        """(int64 [cells] numbers of their subjects, of their questions)."""
        own = (self._subject, self._question)
        subject, question = (np.array(each, dtype=np.int64) for each in own)
        return subject, question


@dataclass(frozen=True, eq=False)
class GridCells(Sequence[PlannedCell]):
    """Cells of a grid as numbers; each is made when it is looked at.

    Attributes:
        keys: Of the cells; empty in an outline (:meth:`Grid.outline`).
        subject: int64 [cells], numbers of their subjects.
        question: int64 [cells], numbers of their questions.
        asked: What the numbers count in.
        wanted: Key -> which rows are to be scored, where not all are.
        ranks: Id of a question (the object, which ``asked`` keeps) -> places of its rows among all
            requests of a subject. (All subjects of a question have one tokenizer.)
    """

    keys: list[str]
    subject: Codes
    question: Codes
    asked: Asked
    wanted: Mapping[str, npt.NDArray[np.bool_]] = field(default_factory=dict)
    ranks: Mapping[int, npt.NDArray[np.int64]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.subject)

    @overload
    def __getitem__(self, index: int) -> PlannedCell: ...
    @overload
    def __getitem__(self, index: slice) -> list[PlannedCell]: ...
    def __getitem__(self, index: int | slice) -> PlannedCell | list[PlannedCell]:
        if isinstance(index, slice):
            return [self._cell(i) for i in range(*index.indices(len(self)))]
        return self._cell(range(len(self))[index])

    def __iter__(self) -> Iterator[PlannedCell]:
        return map(self._cell, range(len(self)))

    def _cell(self, i: int) -> PlannedCell:
        question = self.asked.questions[self.question[i]]
        subject, key, file = self.asked.subjects[self.subject[i]], self.keys[i], question.file
        cell = Cell(key, subject, question.task, question.variant)
        return PlannedCell(
            cell, file.where, file.doc_ids, file.costs, self.ranks.get(id(question)),
            self.wanted.get(key),
        )  # fmt: skip

    def examples(self) -> list[tuple[Subject, Question]]:
        """Every question, as they come, with the first subject it is put to."""
        _, first = np.unique(self.question, return_index=True)
        return [
            (self.asked.subjects[self.subject[i]], self.asked.questions[self.question[i]])
            for i in np.sort(first).tolist()
        ]

    def subjects(self) -> list[Subject]:
        """Whose cells they are, each once, as they come."""
        return [self.asked.subjects[i] for i in _firsts(self.subject)]

    def questions(self) -> list[Question]:
        """What they ask, each once, as they come."""
        return [question for _, question in self.examples()]

    def tokens_of(self, subjects: Collection[str]) -> int:
        """Prompt tokens asked of subjects, by their ids."""
        told = np.array([each.id in subjects for each in self.asked.subjects], dtype=np.bool_)
        each = np.array([int(q.file.costs.sum()) for q in self.asked.questions], dtype=np.int64)
        return int(each[self.question[told[self.subject]]].sum()) if len(self) else 0

    def chosen(self, subjects: Callable[[Subject], bool]) -> GridCells:
        """Those of some subjects."""
        told = np.array([subjects(each) for each in self.asked.subjects], dtype=np.bool_)
        if told.all():
            return self
        at = np.flatnonzero(told[self.subject])
        keys = [self.keys[i] for i in at.tolist()]
        return replace(self, keys=keys, subject=self.subject[at], question=self.question[at])


def _shared(things: Sequence[Hashable]) -> npt.NDArray[np.bool_]:
    """Which of some things are there more than once; bool [things]."""
    count = Counter(things)
    return np.array([count[each] > 1 for each in things], dtype=np.bool_)


def _firsts(numbers: Codes) -> list[int]:
    """Distinct numbers in the order in which they come."""
    found, first = np.unique(numbers, return_index=True)
    distinct: list[int] = found[np.argsort(first)].tolist()
    return distinct


@dataclass
class Grid:
    """The cells of a run.

    Attributes:
        asked: One per subject, task and variant; the same weights may be among them twice.
        cells: Those of them that are cells of their own, with their keys.
        rows: Of the store's cells table: of all cells, also of those that were left out of
            ``cells`` since.
        findings: What the checks of the data found.
        lm_eval: What is to be done for lm-eval's tasks after scoring, if there are any.
        documents: By (task name, data as in ``rows``).
        unasked: What cannot be asked: (kind of reason, subject) -> its cells left out.
        apart: Fingerprint of a checkpoint -> class of its scores, where it is another than the
            run's.
    """

    asked: Asked = field(default_factory=Asked)
    cells: GridCells = field(init=False)
    rows: CellRows = field(init=False)
    findings: list[Finding] = field(default_factory=list)
    lm_eval: LmEvalWork | None = None
    documents: dict[tuple[str, str], Sequence[Document]] = field(default_factory=dict)
    unasked: dict[tuple[str, str], int] = field(default_factory=dict)
    apart: Mapping[str, NumericsClass] = field(default_factory=dict)

    def leave_out(self, reason: str, subject: Subject) -> None:
        """Notes that one cell of a subject is left out."""
        at = (reason, subject.label)
        self.unasked[at] = self.unasked.get(at, 0) + 1

    def problems(self) -> list[tuple[str, str]]:
        """(what, why) of the cells left out, one line for each kind of reason."""
        return unasked_lines(self.unasked)

    def give_keys(self, numerics: NumericsClass) -> None:
        """Makes the cells of what is asked, in a class of numbers; again where it changes."""
        subject, question = self.asked.numbers()
        classes = [self._class(each, numerics) for each in self.asked.subjects]
        keys, whatever = self._keys(subject, question, classes)
        if len(set(keys)) < len(keys):
            # The same weights, asked differently, but not here: the first of them is the cell.
            first: dict[str, int] = {}
            for i, key in enumerate(keys):
                first.setdefault(key, i)
            at = np.array(list(first.values()), dtype=np.int64)
            keys, whatever = list(first), [whatever[i] for i in at.tolist()]
            subject, question = subject[at], question[at]
        self.cells = GridCells(keys, subject, question, self.asked)
        checkpoints: dict[int, int] = {}
        homes = [
            checkpoints.setdefault(id(each.checkpoint), len(checkpoints))
            for each in self.asked.subjects
        ]
        home = np.array(homes, dtype=np.int64)[subject]
        self.rows = CellRows.of_cells(
            {
                "cell": pa.array(keys, pa.string()),
                "asked": pa.array(whatever, pa.string()),
            },
            {
                "subject": subject,
                "question": question,
                "pair": home * max(len(self.asked.questions), 1) + question,
            },
            lambda i: self._facts(i, classes, whatever),
        )
        if self.lm_eval is not None:
            self.lm_eval.cells.clear()
            theirs = [i for i, q in enumerate(self.asked.questions) if q.built is not None]
            for i in np.flatnonzero(np.isin(question, theirs)).tolist():
                built = self.asked.questions[question[i]].built
                assert built is not None
                self.lm_eval.add(self.cells[i].cell, built)

    def outline(self, numerics: NumericsClass) -> None:
        """The cells of :meth:`give_keys`, without keys and rows: those are told apart as they are.

        A key holds the fingerprints of a subject and what is asked, so that only subjects with
        equal fingerprints, questions with equal parts, or what is there twice has equal keys.
        """
        subject, question = self.asked.numbers()
        who = [(s.checkpoint.fingerprint, s.adapter and s.adapter.fingerprint)
               for s in self.asked.subjects]  # fmt: skip
        what = [canonical_json(own.maker(own.data).parts) for own in self.asked.questions]
        twice = _shared(list(zip(subject.tolist(), question.tolist(), strict=True)))
        doubted = np.flatnonzero(_shared(who)[subject] | _shared(what)[question] | twice)
        keep = np.ones(len(subject), dtype=np.bool_)
        if len(doubted):
            classes = [self._class(each, numerics) for each in self.asked.subjects]
            keys, _ = self._keys(subject[doubted], question[doubted], classes)
            first = dict(zip(reversed(keys), reversed(doubted.tolist()), strict=True))
            keep[doubted] = False
            keep[list(first.values())] = True
        self.cells = GridCells([], subject[keep], question[keep], self.asked)

    def _facts(
        self, i: int, classes: Sequence[NumericsClass], whatever: Sequence[str | None]
    ) -> CellFacts:
        cells = self.cells
        own: Question = self.asked.questions[int(cells.question[i])]
        return own.facts(cells[i].cell, classes[int(cells.subject[i])], whatever[i])

    def _class(self, subject: Subject, numerics: NumericsClass) -> NumericsClass:
        return self.apart.get(subject.checkpoint.fingerprint, numerics)

    def _keys(
        self, subject: Codes, question: Codes, classes: Sequence[NumericsClass]
    ) -> tuple[list[str], list[str | None]]:
        """Keys of all that is asked, and the keys whatever the data are."""
        keys: list[str] = []
        whatever: list[str | None] = []
        adapters = [s.adapter and s.adapter.fingerprint for s in self.asked.subjects]
        number = -1
        for who, what in zip(subject.tolist(), question.tolist(), strict=True):
            if what != number:
                number, own = what, self.asked.questions[what]
                maker, plain = own.maker(own.data), own.maker()
                stems: dict[tuple[int, NumericsClass], tuple[str, str]] = {}
            checkpoint = self.asked.subjects[who].checkpoint
            at = (id(checkpoint), classes[who])
            if at not in stems:
                stems[at] = (
                    maker.stem(checkpoint, classes[who]),
                    plain.stem(checkpoint, classes[who]) if own.keeps_answers else "",
                )
            with_data, without = stems[at]
            keys.append(maker.key(with_data, adapters[who]))
            whatever.append(plain.key(without, adapters[who]) if without else None)
        return keys, whatever

"""From options to cells: subjects x tasks x prompt variants, with their request files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from evalcore.app.asking import asked_of
from evalcore.app.cells import NO_TEMPLATE, Grid, Question, RequestFile
from evalcore.app.learned import LearnedRows
from evalcore.app.lengths import Lengths
from evalcore.app.lm_eval import LmEvalAsking
from evalcore.app.versions import installed_versions
from evalcore.config import GridConfig
from evalcore.errors import DataError, InputError, ResultsError
from evalcore.identity import (
    NumericsClass,
    parse_template_args,
    parse_template_date,
    rows_fingerprint,
    tokenizer_facts,
)
from evalcore.lm_eval.names import split_selection
from evalcore.metrics import check_metrics
from evalcore.prompting import (
    control_pattern,
    draw_shots,
    holds,
    load_variants,
)
from evalcore.tasks import (
    Finding,
    RowLimit,
    check_control_tokens,
    check_counts,
    check_pool,
    check_sample,
    check_selection,
    check_source,
    load_documents_counted,
    select_tasks,
    trivial_baseline,
)
from evalcore.types import (
    Checkpoint,
    Document,
    EncodingSettings,
    Subject,
    Task,
    Variant,
    generation_of,
)

Selected = list[tuple[Task, list[Variant]]]


class GridMaker:
    """Makes the cells of any of a run's subjects; what they share is made once.

    Documents are loaded at once, each (task, variant, tokenizer) is encoded when it is needed.

    Args:
        options: What to ask.
        cache: Folder of encoded requests.
        asked: What :func:`selected` gives, where it is known.

    Raises:
        UnknownNameError: Unknown task or prompt.
        DataError: A data set is missing or its rows are not what the task says.
    """

    def __init__(self, options: GridConfig, cache: Path, asked: Selected | None = None) -> None:
        self._versions = json.dumps(installed_versions())
        asked = selected(options) if asked is None else asked
        self._checked = check_selection(task for task, _ in asked)
        self._tasks: list[_Asking] = []
        for task, variants in asked:
            work = _TaskWork.load(task, variants, options)
            lengths = Lengths(options.max_length)
            files = [(variant, _Files(work, variant, lengths, cache)) for variant in variants]
            learned = LearnedRows(task, work.documents, work.pool)
            self._tasks.append(_Asking(work, files, learned, self._versions))
        theirs = [name for tasks, _ in options.blocks for name in split_selection(tasks)[1]]
        self._theirs = LmEvalAsking(theirs, options, cache, self._versions) if theirs else None

    def grid(
        self,
        subjects: Sequence[Subject],
        numerics: NumericsClass,
        apart: Mapping[str, NumericsClass] | None = None,
    ) -> Grid:
        """The cells of some subjects.

        Args:
            subjects: Whom to ask, with all whose tokenizers or parents bear upon them.
            numerics: The class of the scores.
            apart: Fingerprint of a checkpoint -> class of its scores, where it is another.
        """
        grid = self._asked(subjects, apart)
        grid.give_keys(numerics)
        return grid

    def outline(
        self,
        subjects: Sequence[Subject],
        numerics: NumericsClass,
        apart: Mapping[str, NumericsClass] | None = None,
    ) -> Grid:
        """Like :meth:`grid`, but its cells have no keys yet, and there are no rows of them."""
        grid = self._asked(subjects, apart)
        grid.outline(numerics)
        return grid

    def _asked(
        self, subjects: Sequence[Subject], apart: Mapping[str, NumericsClass] | None
    ) -> Grid:
        grid = Grid(apart=apart or {})
        for task in self._tasks:
            task.ask(grid, subjects)
        if self._theirs is not None:
            grid.lm_eval = self._theirs.ask(grid, subjects)
        return grid

    def require(self, subjects: Sequence[Subject]) -> None:
        """Raises InputError where something of what is asked can be asked of no subject."""
        for task in self._tasks:
            for _, files in task.files:
                files.require(subjects)

    def findings(self) -> list[Finding]:
        """What the checks of the data have found so far."""
        found = list(self._checked)
        for task in self._tasks:
            found += task.findings()
        return found if self._theirs is None else [*found, *self._theirs.findings]


def build_grid(
    subjects: Sequence[Subject],
    options: GridConfig,
    numerics: NumericsClass,
    cache: Path,
    *,
    apart: Mapping[str, NumericsClass] | None = None,
) -> Grid:
    """The cells of all subjects at once, with what was found; see :class:`GridMaker`.

    Raises:
        UnknownNameError: Unknown task or prompt.
        DataError: A data set is missing or its rows are not what the task says.
        InputError: Not one cell can be asked.
    """
    maker = GridMaker(options, cache)
    maker.require(subjects)
    grid = maker.grid(subjects, numerics, apart)
    require_cells(grid)
    grid.findings = maker.findings()
    return grid


def require_cells(grid: Grid) -> None:
    """Raises InputError where all that was asked for cannot be asked."""
    if not grid.asked and grid.unasked:
        raise InputError("; ".join(f"{what}: {why}" for what, why in grid.problems()))


@dataclass(frozen=True)
class _Asking:
    """One task: its documents and, for each variant, its request files."""

    work: _TaskWork
    files: list[tuple[Variant, _Files]]
    learned: LearnedRows
    versions: str

    def ask(self, grid: Grid, subjects: Sequence[Subject]) -> None:
        """Adds what is asked of the subjects."""
        work, task = self.work, self.work.task
        grid.documents[task.name, work.data] = work.documents
        for variant, files in self.files:
            questions: dict[tuple[int, ...], int] = {}
            for subject in asked_of(
                files.askable(subjects, grid),
                chat=variant.chat,
                generates=generation_of(task, variant) is not None,
                encode=files.path,
            ):
                if variant.chat and not subject.checkpoint.template_fingerprint:
                    grid.leave_out(NO_TEMPLATE, subject)
                    continue
                settings, file = files.of(subject.checkpoint)
                own = self.learned.findings(subject)
                control = files.control[id(file)]
                at = (id(file), id(control), *map(id, own))
                if at not in questions:
                    found = (*work.findings, *control, *file.findings, *own)
                    questions[at] = grid.asked.ask(
                        Question(
                            task,
                            variant,
                            settings,
                            file,
                            work.baseline,
                            work.documents,
                            work.data,
                            self.versions,
                            found,
                        )
                    )  # fmt: skip
                grid.asked.add(subject, questions[at])

    def findings(self) -> list[Finding]:
        """What was found so far."""
        of_files = [finding for _, files in self.files for finding in files.findings]
        control = [finding for found in self.work.looked_for.values() for finding in found]
        return [*of_files, *self.work.findings, *control, *self.learned.all()]


def selected(options: GridConfig) -> Selected:
    """Tasks with their variants, each (task, variant) once, over all blocks of the grid."""
    chosen: dict[str, tuple[Task, dict[str, Variant]]] = {}
    for selection, prompts in options.blocks:
        tasks, theirs = split_selection(selection)
        if theirs and not tasks:
            continue
        for task in select_tasks(tasks, search=options.task_path):
            check_metrics(task)
            variants = chosen.setdefault(task.name, (task, {}))[1]
            for variant in load_variants(
                task.group,
                prompts,
                num_fewshot=options.num_fewshot,
                shots_seed=options.seed or 0,
                chat=options.chat or None,
                system=options.system,
                chat_args=parse_template_args(options.chat_template_args),
                chat_date=parse_template_date(options.template_date),
                search=options.prompt_path,
            ):
                variants.setdefault(variant.name, variant)
    return [(task, list(variants.values())) for task, variants in chosen.values()]


@dataclass(frozen=True)
class _TaskWork:
    """A task's documents, checked.

    Attributes:
        documents: Those to score.
        pool: Those worked examples are drawn from; empty if no variant shows any.
        baseline: What a trivial answer scores on them.
        data: Fingerprint of the content of all documents, whatever the limit.
    """

    task: Task
    documents: list[Document]
    pool: list[Document]
    baseline: float
    findings: list[Finding]
    data: str
    looked_for: dict[tuple[str, ...], list[Finding]] = field(default_factory=dict)

    @classmethod
    def load(cls, task: Task, variants: Sequence[Variant], options: GridConfig) -> _TaskWork:
        """Loads and checks all documents: a limit would hide faults."""
        root = options.data_root
        everything, counts = load_documents_counted(task, "score", data_root=root)
        findings = check_source(task) + check_counts(task, "score", counts)
        pool: list[Document] = []
        if any(variant.shots for variant in variants):
            pool, counts = load_documents_counted(task, "shots", data_root=root, scored=everything)
            findings += check_counts(task, "shots", counts) + check_pool(task, pool)
        limit = RowLimit.of(options.limit)
        documents = limit.take(everything) if limit is not None else everything
        findings += check_sample(task, documents, everything, pool)
        baseline = trivial_baseline(task, documents)
        data = rows_fingerprint(document.id for document in everything)
        return cls(task, documents, pool, baseline, findings, data)

    def control_tokens(self, checkpoint: Checkpoint) -> list[Finding]:
        """Rows that name control tokens of a checkpoint's tokenizer; looked for once for each."""
        texts = tokenizer_facts(checkpoint.tokenizer).specials
        if texts not in self.looked_for:
            pattern = control_pattern(texts)
            rows = [d.index for d in self.documents if pattern is not None and holds(d, pattern)]
            self.looked_for[texts] = check_control_tokens(self.task, rows, len(self.documents))
        return self.looked_for[texts]

    def requests(
        self, cache: Path, variant: Variant, checkpoint: Checkpoint, settings: EncodingSettings
    ) -> RequestFile:
        """The requests under a variant, for a checkpoint's tokenizer."""
        task, documents, pool = self.task, self.documents, self.pool
        drawn = None
        if variant.shots:
            scored = {document.id for document in documents}
            drawn = draw_shots(task, variant, pool, scored, scored=documents)
        return RequestFile.of(cache, task, variant, documents, pool, checkpoint, settings, drawn)


@dataclass
class _Files:
    """Request files of a (task, variant), one for each way the subjects are asked."""

    work: _TaskWork
    variant: Variant
    lengths: Lengths
    cache: Path
    findings: list[Finding] = field(default_factory=list)
    known: dict[tuple[str, str, int], RequestFile] = field(default_factory=dict)
    control: dict[int, list[Finding]] = field(default_factory=dict)  # by id of a file of known
    faults: dict[tuple[str, str, int], InputError] = field(default_factory=dict)
    told: dict[str, InputError | None] = field(default_factory=dict)  # by id of a checkpoint

    def require(self, subjects: Sequence[Subject]) -> None:
        """Raises InputError where the tokenizers and templates of none of the subjects can ask."""
        ways = _ways(subjects)
        self.told |= {way.id: self._fault(way) for way in ways}
        faults = [fault for way in ways if (fault := self.told[way.id]) is not None]
        if len(faults) == len(ways):
            raise faults[0]

    def askable(self, subjects: Sequence[Subject], grid: Grid) -> list[Subject]:
        """The subjects whose tokenizers and templates can ask; the others are left out."""
        faults, ways = self.told, {way.id: way for way in _ways(subjects)}
        for name, way in ways.items():
            if name not in faults:
                faults[name] = self._fault(way)
        if not any(faults[name] for name in ways):
            return list(subjects)
        asked = []
        for subject in subjects:
            way = subject.own if subject.own is not None else subject.checkpoint
            fault = faults[subject.checkpoint.id] or faults[way.id]
            if fault is None:
                asked.append(subject)
            else:
                grid.leave_out(str(fault), subject)
        return asked

    def _fault(self, checkpoint: Checkpoint) -> InputError | None:
        """Why a checkpoint cannot ask; None where it can, or has no template for a chat."""
        if self.variant.chat and not checkpoint.template_fingerprint:
            return None
        try:
            at = self._at(checkpoint)
        except InputError as error:
            return error
        if at not in self.known and at not in self.faults:
            try:
                self.of(checkpoint)
            except ResultsError:  # not the checkpoint's fault: the next one finds no room either
                raise
            except InputError as error:
                self.faults[at] = error
        return self.faults.get(at)

    def _at(self, checkpoint: Checkpoint) -> tuple[str, str, int]:
        template = checkpoint.template_fingerprint if self.variant.chat else ""
        length = self.lengths.of(checkpoint).max_length
        return checkpoint.tokenizer_fingerprint, template, length

    def path(self, checkpoint: Checkpoint) -> Path:
        """The file of requests for a checkpoint."""
        return self.of(checkpoint)[1].path

    def of(self, checkpoint: Checkpoint) -> tuple[EncodingSettings, RequestFile]:
        """Settings and requests for a checkpoint, encoded once for each tokenizer."""
        settings, at = self.lengths.of(checkpoint), self._at(checkpoint)
        if at not in self.known:
            control = self.work.control_tokens(checkpoint)
            file = self.work.requests(self.cache, self.variant, checkpoint, settings)
            self.known[at], self.control[id(file)] = file, control
            self.findings += file.findings
        return settings, self.known[at]


def _ways(subjects: Sequence[Subject]) -> list[Checkpoint]:
    """How subjects are or may be asked, each way once."""
    ways = {way.id: way for s in subjects for way in (s.checkpoint, s.own) if way is not None}
    return list(ways.values())


def require_documents(findings: Sequence[Finding]) -> None:
    """``--strict``: the first findings become the error (notes are for the record only)."""
    serious = [finding for finding in findings if finding.level != "note"]
    if serious:
        shown = "; ".join(finding.message for finding in serious[:3])
        more = f" (+{len(serious) - 3} more)" if len(serious) > 3 else ""
        raise DataError(f"--strict: {shown}{more}; drop --strict to score all the same")

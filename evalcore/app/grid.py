"""From options to cells: subjects x tasks x prompt variants, with their request files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from evalcore.app.asking import asked_of
from evalcore.app.cells import (
    NO_TEMPLATE,
    Grid,
    Lengths,
    Question,
    RequestFile,
    installed_versions,
)
from evalcore.app.learned import LearnedRows
from evalcore.app.lm_eval import ask_lm_eval
from evalcore.config import GridConfig
from evalcore.errors import DataError, InputError
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


def build_grid(
    subjects: Sequence[Subject],
    options: GridConfig,
    numerics: NumericsClass,
    cache: Path,
    *,
    apart: Mapping[str, NumericsClass] | None = None,
) -> Grid:
    """Loads documents, encodes each (task, variant, tokenizer) once, and lists every cell.

    Args:
        subjects: Whom to ask.
        options: What to ask.
        numerics: The class of the scores.
        cache: Folder of encoded requests.
        apart: Fingerprint of a checkpoint -> class of its scores, where it is another.

    Raises:
        UnknownNameError: Unknown task or prompt.
        DataError: A data set is missing or its rows are not what the task says.
        InputError: Not one cell can be asked.
    """
    grid = Grid(apart=apart or {})
    versions = json.dumps(installed_versions())
    asked = selected(options)
    grid.findings += check_selection(task for task, _ in asked)
    for task, variants in asked:
        _ask(grid, _TaskWork.load(task, variants, options), variants, subjects, options, cache)
    theirs = [name for tasks, _ in options.blocks for name in split_selection(tasks)[1]]
    if theirs:
        grid.lm_eval = ask_lm_eval(grid, theirs, subjects, options, cache, versions)
    if not grid.asked and grid.unasked:
        raise InputError("; ".join(f"{what}: {why}" for what, why in grid.problems()))
    grid.give_keys(numerics)
    return grid


def _ask(
    grid: Grid,
    work: _TaskWork,
    variants: Sequence[Variant],
    subjects: Sequence[Subject],
    options: GridConfig,
    cache: Path,
) -> None:
    """Adds what is asked of the subjects in one task."""
    task, versions = work.task, json.dumps(installed_versions())
    grid.documents[task.name, work.data] = work.documents
    learned = LearnedRows(task, work.documents, work.pool)
    lengths = Lengths(options.max_length)
    for variant in variants:
        files = _Files(work, variant, lengths, cache)
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
            own = learned.findings(subject)
            # Findings are only ever added to, so that their number tells which they are.
            at = (id(file), len(work.findings), len(file.findings), *map(id, own))
            if at not in questions:
                found = (*work.findings, *file.findings, *own)
                questions[at] = grid.asked.ask(
                    Question(
                        task,
                        variant,
                        settings,
                        file,
                        work.baseline,
                        work.documents,
                        work.data,
                        versions,
                        found,
                    )
                )  # fmt: skip
            grid.asked.add(subject, questions[at])
        grid.findings += files.findings
    grid.findings += [*work.findings, *learned.all()]


def selected(options: GridConfig) -> list[tuple[Task, list[Variant]]]:
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
    looked_for: set[tuple[str, ...]] = field(default_factory=set)

    @classmethod
    def load(cls, task: Task, variants: Sequence[Variant], options: GridConfig) -> _TaskWork:
        """Loads and checks all documents: a limit would hide faults."""
        root = options.data_root
        everything, counts = load_documents_counted(task, "score", data_root=root)
        findings = check_source(task) + check_counts(task, "score", counts)
        pool: list[Document] = []
        if any(variant.shots for variant in variants):
            pool, counts = load_documents_counted(task, "shots", data_root=root, scored=everything)
            findings += check_counts(task, "shots", counts)
        limit = RowLimit.of(options.limit)
        documents = limit.take(everything) if limit is not None else everything
        findings += check_sample(task, documents, everything, pool)
        baseline = trivial_baseline(task, documents)
        data = rows_fingerprint(document.id for document in everything)
        return cls(task, documents, pool, baseline, findings, data)

    def _count_control_tokens(self, checkpoint: Checkpoint) -> None:
        """Finds rows that name control tokens of a tokenizer, once for each."""
        texts = tokenizer_facts(checkpoint.tokenizer).specials
        if texts in self.looked_for:
            return
        self.looked_for.add(texts)
        pattern = control_pattern(texts)
        rows = [d.index for d in self.documents if pattern is not None and holds(d, pattern)]
        self.findings.extend(check_control_tokens(self.task, rows, len(self.documents)))

    def requests(
        self, cache: Path, variant: Variant, checkpoint: Checkpoint, settings: EncodingSettings
    ) -> RequestFile:
        """The requests under a variant, for a checkpoint's tokenizer."""
        task, documents, pool = self.task, self.documents, self.pool
        self._count_control_tokens(checkpoint)
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

    def askable(self, subjects: Sequence[Subject], grid: Grid) -> list[Subject]:
        """The subjects whose tokenizers and templates can ask; the others are left out.

        Raises:
            InputError: None can.
        """
        faults: dict[str, InputError] = {}
        ways = {way.id: way for s in subjects for way in (s.checkpoint, s.own) if way is not None}
        for own, checkpoint in ways.items():
            if self.variant.chat and not checkpoint.template_fingerprint:
                continue
            try:
                self.of(checkpoint)
            except InputError as error:
                faults[own] = error
        if len(faults) == len(ways):
            raise next(iter(faults.values()))
        asked = []
        for subject in subjects:
            way = subject.own if subject.own is not None else subject.checkpoint
            fault = faults.get(subject.checkpoint.id) or faults.get(way.id)
            if fault is None:
                asked.append(subject)
            else:
                grid.leave_out(str(fault), subject)
        return asked

    def path(self, checkpoint: Checkpoint) -> Path:
        """The file of requests for a checkpoint."""
        return self.of(checkpoint)[1].path

    def of(self, checkpoint: Checkpoint) -> tuple[EncodingSettings, RequestFile]:
        """Settings and requests for a checkpoint, encoded once for each tokenizer."""
        settings = self.lengths.of(checkpoint)
        template = checkpoint.template_fingerprint if self.variant.chat else ""
        at = (checkpoint.tokenizer_fingerprint, template, settings.max_length)
        if at not in self.known:
            self.known[at] = self.work.requests(self.cache, self.variant, checkpoint, settings)
            self.findings += self.known[at].findings
        return settings, self.known[at]


def require_documents(findings: Sequence[Finding]) -> None:
    """``--strict``: the first findings become the error (notes are for the record only)."""
    serious = [finding for finding in findings if finding.level != "note"]
    if serious:
        shown = "; ".join(finding.message for finding in serious[:3])
        more = f" (+{len(serious) - 3} more)" if len(serious) > 3 else ""
        raise DataError(f"--strict: {shown}{more}; drop --strict to score all the same")

"""What is looked at before anything is trained: names of the study, and the rows to be learned."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from evalcore.errors import DataError, InputError, UnknownNameError
from evalcore.identity import numeric_config
from evalcore.lm_eval.names import split_selection
from evalcore.prompting import (
    MergedBorderError,
    PromptError,
    PromptFault,
    check_variant,
    load_tokenizer,
    load_variants,
    turns_field,
)
from evalcore.tasks import open_documents
from evalcore.types import Checkpoint, Document, Task, Variant
from finetune.data import row_encoders
from finetune.faults import DataFault, DataFinding, StudyError, StudyFault, TuningDataError
from finetune.fitting import EmptyCompletionError, RowEncoder
from finetune.jobs import MixPart, TuneJob, known_task, training_variants
from finetune.method import MethodSpec
from finetune.rows import TooFewRowsError, choose_rows
from finetune.search import Search, own_tasks
from finetune.study import Study

Mistake = tuple[StudyFault, str]
LM_EVAL = "lm-eval:"
CHECKED_ROWS = 2000
"""Rows of each task rendered and encoded here; training treats the rest by the same rules."""
ONE_ANSWER_FROM = 10
"""So few rows may well have one answer."""
CHARACTERS_PER_TOKEN = 4
"""Of English text, for tokenizers that are not at hand."""
DEFAULT_MAX_LENGTH = 2048


@dataclass(frozen=True, slots=True)
class DataReport:
    """What is known about the rows of a tuning.

    Attributes:
        rows: Rows to learn; None where the data is not at hand.
        tokens_per_row: Mean of prompt and completion, rows that are left out not counted.
        by_tokenizer: Whether tokens were counted by the base's own tokenizer; else they are
            characters over four.
        checked: Rows that were rendered (and encoded).
        findings: What the checks found.
    """

    rows: int | None
    tokens_per_row: float | None
    by_tokenizer: bool
    checked: int
    findings: tuple[DataFinding, ...] = ()


def check_names(study: Study) -> None:
    """Whether every task and prompt variant a study names is there.

    Raises:
        StudyError: One line for each that is not.
    """
    mistakes: list[Mistake] = []
    for tuning in study.expanded():
        for name, _, _ in tuning.parts:
            where = f"tuning {tuning.name}"
            try:
                task = known_task(name, study.search)
            except InputError as error:
                mistakes.append((StudyFault.UNKNOWN_TASK, f"{where}: {error}"))
                continue
            if not task.spec.get("splits", {}).get("train"):
                text = f"{where}: task {name} has no split to train on (key splits.train)"
                mistakes.append((StudyFault.NO_TRAIN_SPLIT, text))
            try:
                mistakes += _unfit(task, training_variants(task, tuning.variants, study.search),
                                   where)  # fmt: skip
            except InputError as error:
                mistakes.append((StudyFault.UNKNOWN_VARIANT, f"{where}: {error}"))
    asked: dict[str, list[Variant]] = {}
    for tasks, prompts in study.evaluation.blocks if study.evaluation is not None else []:
        try:
            for task in own_tasks(tasks, study.search):
                try:
                    own = _variants(study, task, prompts)
                    asked.setdefault(task.name, []).extend(own)
                    mistakes += _unfit(task, own, "evaluation")
                except InputError as error:
                    text = f"evaluation, task {task.name}: {error}"
                    mistakes.append((StudyFault.UNKNOWN_VARIANT, text))
        except InputError as error:
            mistakes.append((StudyFault.UNKNOWN_TASK, f"evaluation: {error}"))
    if not mistakes:
        mistakes = _declared(study, asked)
    if mistakes:
        raise StudyError(study.file, list(dict.fromkeys(mistakes)))


def _unfit(task: Task, variants: Sequence[Variant], where: str) -> Iterator[Mistake]:
    """Prompts that do not fit a task they are chosen for."""
    for variant in variants:
        try:
            check_variant(task, variant)
        except PromptError as error:
            yield StudyFault.UNFIT_VARIANT, f"{where}: {error}"


def _variants(study: Study, task: Task, prompts: str) -> list[Variant]:
    """The prompts a task is asked under."""
    assert study.evaluation is not None
    shots = study.evaluation.said.get("num_fewshot")
    folders = [Path(folder) for folder in study.search.prompts]
    return load_variants(task.group, prompts, num_fewshot=shots, search=folders)


def _declared(study: Study, asked: Mapping[str, Sequence[Variant]]) -> list[Mistake]:
    """What the study declares of its report and no run would ever fill.

    Of tasks of lm-eval (names that begin with ``lm-eval:``) nothing is known here.
    """
    spec = study.evaluation
    if spec is None:
        return []
    mistakes: list[Mistake] = []
    theirs = any(split_selection(tasks)[1] for tasks, _ in spec.blocks)
    every = [variant for variants in asked.values() for variant in variants]
    primary = spec.primary
    if primary is not None and not theirs and not any(primary.fits(v) for v in every):
        there = ", ".join(dict.fromkeys(v.name for v in every))
        text = f"evaluation.primary: no prompt asks in this way; there are {there[:300]}"
        mistakes.append((StudyFault.UNKNOWN_VARIANT, text))
        primary = None
    tuned = {known_task(name, study.search).tuned_by
             for tuning in study.tunings for name, _, _ in tuning.parts}  # fmt: skip
    for name, group in spec.groups.items():
        where = f"evaluation.groups.{name}"
        if group.tuned_by is not None and group.tuned_by not in tuned:
            known = ", ".join(sorted(t for t in tuned if t is not None))
            text = f"{where}.tuned_by: nothing is tuned on {group.tuned_by!r}; there are {known}"
            mistakes.append((StudyFault.UNKNOWN_TUNING, text))
        for task in group.tasks:
            if task not in asked:
                if not (theirs and task.startswith(LM_EVAL)):
                    text = f"{where}.tasks: {UnknownNameError('scored task', task, asked)}"
                    mistakes.append((StudyFault.UNKNOWN_TASK, text))
                continue
            own = [v for v in asked[task] if primary is None or primary.fits(v)]
            if not any(group.asks(variant) for variant in own):
                there = ", ".join(dict.fromkeys(v.name for v in asked[task]))
                wanted = f"prompts {', '.join(group.prompts)}" if group.prompts else "prompts"
                way = " in the primary way" if primary is not None else ""
                text = f"{where}: task {task} has no {wanted}{way}; it has {there[:300]}"
                mistakes.append((StudyFault.UNKNOWN_VARIANT, text))
    return mistakes


def check_data(
    jobs: Sequence[TuneJob], *, strict: bool = False, required: bool = True
) -> dict[str, DataReport]:
    """Checks the rows of every job; jobs with the same rows and tokenizer share one look.

    Args:
        jobs: What is to be trained.
        strict: Rows that stand in the evaluation set are an error instead of being left out.
        required: Whether data that is not at hand is an error (else a finding).

    Returns:
        Reports by job id.

    Raises:
        TuningDataError: If rows of some tuning are unfit to be learned; all such findings.
    """
    _at_hand.cache_clear()  # what was not there a moment ago may be there now
    reports: dict[str, DataReport] = {}
    by_rows: dict[Any, DataReport] = {}
    for job in jobs:
        key = (
            job.tuning.partition("+")[0], job.tasks, job.variants, job.data_seed, job.held_out,
            job.data_root, job.checkpoint.tokenizer_fingerprint, job.method.overlong,
            longest_row(job.checkpoint, job.method),
        )  # fmt: skip
        if key not in by_rows:
            by_rows[key] = check_rows(job, strict=strict, required=required)
        reports[job.id] = by_rows[key]
    findings = dict.fromkeys(f for report in by_rows.values() for f in report.findings if f.fatal)
    if findings:
        raise TuningDataError(list(findings))
    return reports


def check_rows(job: TuneJob, *, strict: bool = False, required: bool = True) -> DataReport:
    """Checks the rows of one job; without its checkpoint at hand, their text alone."""
    tokenizer = load_tokenizer(job.checkpoint.path) if job.checkpoint.path else None
    look = _Look(job, tokenizer, longest_row(job.checkpoint, job.method), strict, required)
    return look.report()


def longest_row(checkpoint: Checkpoint, method: MethodSpec) -> int:
    """Longest row in tokens: as asked, else what the base can take, 2,048 at most."""
    if method.max_length is not None:
        return method.max_length
    config = numeric_config(Path(checkpoint.path)) if checkpoint.path else {}
    return min(DEFAULT_MAX_LENGTH, config.get("max_position_embeddings") or DEFAULT_MAX_LENGTH)


@lru_cache(maxsize=64)
def _at_hand(task: str, root: Path | None, search: Search) -> bool:
    """Whether the scored rows of a task can be read."""
    try:
        open_documents(known_task(task, search), "score", data_root=root)
    except DataError:
        return False
    return True


@dataclass
class _Look:
    """One pass over the rows of a job."""

    job: TuneJob
    tokenizer: Any
    max_length: int
    strict: bool
    required: bool
    findings: list[DataFinding] = field(default_factory=list)
    rows: int = 0
    checked: int = 0
    tokens: int = 0
    kept: int = 0
    known: bool = True
    answers: dict[int, str] = field(default_factory=dict)
    """Of the prompts of a task, by hash: the answer of the first row that has it."""

    def report(self) -> DataReport:
        for part in self.job.tasks:
            try:
                self._part(part)
            except DataError as error:
                self.known = False
                self._find(DataFault.MISSING_DATA, str(error), fatal=self.required)
        mean = self.tokens / self.kept if self.kept and self.known else None
        rows = self.rows if self.known else None
        by_tokenizer = self.tokenizer is not None
        return DataReport(rows, mean, by_tokenizer, self.checked, tuple(self.findings))

    def _find(self, code: DataFault, message: str, *, fatal: bool, count: int = 0) -> None:
        self.findings.append(DataFinding(code, self.job.tuning, message, fatal, count))

    def _part(self, part: MixPart) -> None:
        root = Path(self.job.data_root) if self.job.data_root else None
        task = known_task(part.task, self.job.search)
        held_out = self._held_out(root)
        try:
            chosen = choose_rows(part, self.job.data_seed, held_out, root, self.job.search)
        except TooFewRowsError as error:
            self._find(DataFault.TOO_FEW_ROWS, str(error), fatal=True, count=error.usable)
            return
        counts = chosen.counts
        leaked = counts["in_scored_split"] + counts["in_evaluation"]
        if leaked:
            where = ", ".join(f"{count} of {name}" for name, count in chosen.found.items())
            what = (
                f"task {task.name}: {leaked} of {counts['looked_at']} rows of the train split are "
                f"scored in this study ({where})"
            )
            done = "--strict refuses them" if self.strict else "they are left out"
            self._find(
                DataFault.EVALUATION_ROWS, f"{what}; {done}", fatal=self.strict, count=leaked
            )
        if counts["unusable"]:
            self._find(
                DataFault.UNUSABLE_ROWS,
                f"task {task.name}: {counts['unusable']} of {counts['looked_at']} rows of the "
                "train split lack a value (of conversations: an answer); they are left out",
                fatal=False,
                count=counts["unusable"],
            )
        if chosen.shots_learned:
            self._find(
                DataFault.SHOTS_TRAINED,
                f"task {task.name}: worked examples are drawn from the rows to tune on: a tuned "
                f'model has learned some that it is shown; cut the split (shots: "train[:500]", '
                f'train: "train[500:]")',
                fatal=self.strict,
            )
        self.rows += len(chosen.documents)
        golds = {document.gold for document in chosen.documents}
        alike = len(golds) == 1 and min(golds) >= 0  # others are refused one by one
        if task.choices and alike and len(chosen.documents) >= ONE_ANSWER_FROM:
            label = task.choices[golds.pop()]
            self._find(
                DataFault.ONE_ANSWER,
                f"task {task.name}: all {len(chosen.documents)} rows to learn have the answer "
                f"{label!r}: nothing but that is learned; take a split (or a cut) with all labels",
                fatal=False,
                count=len(chosen.documents),
            )
        self._texts(task, chosen.documents, root)

    def _held_out(self, root: Path | None) -> tuple[str, ...]:
        """Tasks whose rows may not be learned; those at hand, where data is not required."""
        if self.required:
            return self.job.held_out
        there = tuple(name for name in self.job.held_out if _at_hand(name, root, self.job.search))
        away = [name for name in self.job.held_out if name not in there]
        if away:
            text = f"scored rows not at hand, so not looked for here: {', '.join(away)}"
            self._find(DataFault.MISSING_DATA, text, fatal=False, count=len(away))
        return there

    def _texts(self, task: Task, chosen: Sequence[Document], root: Path | None) -> None:
        counts: Counter[str] = Counter()
        example: dict[str, int] = {}
        looked_at = chosen[:CHECKED_ROWS]
        encoders = row_encoders(self.job, task, chosen, self.tokenizer, self.max_length)
        self.answers = {}
        for i, document in enumerate(looked_at):
            for code in self._faults(task, encoders[i % len(encoders)], document):
                counts[code] += 1
                example.setdefault(code, document.index)
        self.checked += len(looked_at)
        if len(self.answers) == len(encoders) and counts[DataFault.CONTRADICTORY_ROWS]:
            counts[DataFault.SAME_PROMPT] = counts.pop(DataFault.CONTRADICTORY_ROWS)
            example[DataFault.SAME_PROMPT] = example[DataFault.CONTRADICTORY_ROWS]
        for code, count in counts.items():
            self._judge(task, DataFault(code), count, len(looked_at), example[code])

    def _faults(self, task: Task, encoder: RowEncoder, document: Document) -> Iterator[str]:
        try:
            turns = encoder.texts(document)
        except EmptyCompletionError:
            yield DataFault.EMPTY_COMPLETION
            return
        except PromptError as error:
            if turns_field(task) is None or error.fault is not PromptFault.CHAT_REFUSED:
                raise
            yield DataFault.REFUSED_BY_TEMPLATE
            return
        prompt, answer = turns[0]
        if self.answers.setdefault(hash(prompt), answer) != answer:
            yield DataFault.CONTRADICTORY_ROWS
        # What is for tuning only is never generated for: its stops and limits say nothing.
        scored = task.spec.get("splits", {}).get("score") is not None
        generated = scored and task.output_type == "generate_until"
        if generated and any(stop in turns[0][1].strip() for stop in task.generation.stops):
            yield DataFault.STOP_IN_COMPLETION
        if self.tokenizer is None:
            characters = sum(len(asked) + len(answer) for asked, answer in turns)
            self._keep(characters // CHARACTERS_PER_TOKEN)
            return
        try:
            row = encoder.encoded(turns)
        except MergedBorderError:
            yield DataFault.MERGED_BORDER
            return
        if generated and len(row.completion) > task.generation.max_tokens:
            yield DataFault.BEYOND_MAX_TOKENS
        if row.answers_end[0] >= self.max_length:
            yield DataFault.TRUNCATED_COMPLETION
        elif len(row) > self.max_length and self.job.method.overlong == "leave_out":
            yield DataFault.LEFT_OUT_TOO_LONG
        else:
            if len(row) > self.max_length:
                yield DataFault.PROMPTS_CUT
            self._keep(len(row))

    def _keep(self, tokens: int) -> None:
        self.kept += 1
        self.tokens += min(tokens, self.max_length)

    def _judge(self, task: Task, code: DataFault, count: int, of: int, first: int) -> None:
        where = f"task {task.name}, train split: {count} of {of} rows (first: row {first})"
        limit = task.generation.max_tokens
        texts: dict[DataFault, str] = {
            DataFault.SAME_PROMPT: "are asked as another row is, all in the same words; the "
            "template has to show the task's fields",
            DataFault.CONTRADICTORY_ROWS: "are asked as an earlier row is and answered otherwise",
            DataFault.EMPTY_COMPLETION: "have an empty completion; remove them or mend the variant",
            DataFault.TRUNCATED_COMPLETION: f"have a completion of {self.max_length} tokens or "
            f"more, which would be cut; they are left out, or raise method.max_length",
            DataFault.LEFT_OUT_TOO_LONG: f"are longer than {self.max_length} tokens; left out "
            f"(overlong: truncate shortens their longest text)",
            DataFault.PROMPTS_CUT: f"are longer than {self.max_length} tokens; their longest text "
            f"loses its end (a conversation: its last exchanges)",
            DataFault.REFUSED_BY_TEMPLATE: "are conversations that the chat template refuses; they "
            "are left out",
            DataFault.MERGED_BORDER: "have an answer that shares a token with the end of the "
            "prompt (ids would spell neither); they are left out: give the prompt a delimiter, or "
            "end it with a sign",
            DataFault.STOP_IN_COMPLETION: "hold a stop string inside the completion: scoring ends "
            "there, training does not",
            DataFault.BEYOND_MAX_TOKENS: f"have a completion above the {limit} tokens that scoring "
            f"lets a model write",
        }
        left_out = (
            DataFault.TRUNCATED_COMPLETION, DataFault.LEFT_OUT_TOO_LONG,
            DataFault.REFUSED_BY_TEMPLATE, DataFault.MERGED_BORDER,
        )  # fmt: skip
        never = (DataFault.EMPTY_COMPLETION, DataFault.SAME_PROMPT)
        fatal = code in never or (code in left_out and count == of)
        if fatal and code is DataFault.LEFT_OUT_TOO_LONG:
            code = DataFault.NOTHING_FITS
            text = f"are longer than {self.max_length} tokens: none is left; raise max_length"
        else:
            text = texts[code]
        self._find(code, f"{where} {text}", fatal=fatal, count=count)

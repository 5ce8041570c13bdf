"""The rows one adapter learns: chosen, cleaned, dealt out, and encoded exactly as scored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from evalcore.errors import DataError
from evalcore.identity import text_fingerprint
from evalcore.prompting import PromptError, PromptFault, draw_shots, turns_field
from evalcore.tasks import load_documents, texts_key
from evalcore.types import Document, Task, Variant
from finetune.fitting import EncodedRow, RowEncoder
from finetune.jobs import TuneJob, known_task, training_variants
from finetune.rows import Chosen, choose_rows


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """Encoded rows, in no particular order.

    Attributes:
        prompts: Token ids of each prompt; as scored.
        completions: Token ids of each completion, the end token included; the loss is on these.
        row_ids: Document ids, one per row; those of one task stand together.
        fingerprint: 32 hex digits over ids, prompts and completions.
        counts: What was left out or cut and why (``in_scored_split``, ``in_evaluation``,
            ``in_shots``, ``unusable``, ``too_long``, ``truncated``, ``merged_border``).
        parts: (task, rows) of a mix, in the order of ``row_ids``.
        row_keys: What each row asks, whatever its task (``evalcore.tasks.texts_key``).
        compared: For each (learned task, scored task): how they were compared, rows found.
        borders: What is not learned of each completion: questions of a conversation (see
            :class:`finetune.fitting.EncodedRow`); empty if there is none.
    """

    prompts: list[list[int]]
    completions: list[list[int]]
    row_ids: tuple[str, ...]
    fingerprint: str
    counts: dict[str, int] = field(default_factory=dict)
    parts: tuple[tuple[str, int], ...] = ()
    row_keys: tuple[str, ...] = ()
    compared: tuple[dict[str, Any], ...] = ()
    borders: list[tuple[int, ...]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.row_ids)

    def subset(self, rows: Sequence[int]) -> TrainingSet:
        """Some of the rows, by number."""
        return _with_fingerprint(
            TrainingSet(
                [self.prompts[i] for i in rows],
                [self.completions[i] for i in rows],
                tuple(self.row_ids[i] for i in rows),
                "",
                row_keys=tuple(self.row_keys[i] for i in rows),
                borders=[self.borders[i] for i in rows] if self.borders else [],
            )
        )

    def content_fingerprint(self) -> str:
        """The fingerprint, computed from the rows."""
        content = {
            "ids": list(self.row_ids), "prompts": self.prompts, "completions": self.completions,
        }  # fmt: skip
        if self.borders:
            content["borders"] = [list(borders) for borders in self.borders]
        return text_fingerprint(content)

    def learned(self) -> Iterator[tuple[list[int], list[int], tuple[int, ...]]]:
        """(prompt, completion, borders) of each row."""
        borders = self.borders or [()] * len(self)
        return zip(self.prompts, self.completions, borders, strict=True)


def _with_fingerprint(rows: TrainingSet) -> TrainingSet:
    return replace(rows, fingerprint=rows.content_fingerprint())


def build_training_set(job: TuneJob, tokenizer: Any, max_length: int) -> TrainingSet:
    """Chooses and encodes the rows of a job, task by task.

    Rows that hold a document scored anywhere in the study, or by the task itself, are left out
    while choosing. What becomes of a row longer than ``max_length`` is ``method.overlong``'s to
    say: left out whole, or shortened (see :meth:`finetune.fitting.RowEncoder.fitted`).

    Raises:
        DataError: If there are too few rows, an empty completion, or no row that fits.
    """
    rows: list[EncodedRow] = []
    documents: list[Document] = []
    keys: list[str] = []
    counts: Counter[str] = Counter(in_scored_split=0, in_evaluation=0, in_shots=0, unusable=0)
    compared: list[dict[str, Any]] = []
    parts = []
    for part in job.tasks:
        before = len(documents)
        data_root = Path(job.data_root) if job.data_root else None
        chosen = choose_rows(part, job.data_seed, job.held_out, data_root, job.search)
        for code in ("in_scored_split", "in_evaluation", "in_shots", "unusable"):
            counts[code] += chosen.counts[code]
        compared += [
            {"learned": part.task, **asdict(one), "found": chosen.found[one.task]}
            for one in chosen.compared
        ]
        task = known_task(part.task, job.search)
        for document, row in _encoded(job, task, chosen, tokenizer, max_length, counts):
            rows.append(row)
            documents.append(document)
            keys.append(texts_key(task, document))
        parts.append((part.task, len(documents) - before))
    if not documents:
        refused, merged = counts["refused_by_template"], counts["merged_border"]
        more = f"; the chat template refuses {refused}" if refused else ""
        more += (
            f"; answers of {merged} share a token with the end of their prompt" if merged else ""
        )
        raise DataError(
            f"tuning {job.tuning}: none of {counts['too_long'] + refused + merged} rows fits into "
            f"{max_length} tokens{more}; raise method.max_length"
        )
    return _with_fingerprint(
        TrainingSet(
            [row.prompt for row in rows],
            [row.completion for row in rows],
            tuple(document.id for document in documents),
            "",
            dict(counts),
            tuple(parts),
            tuple(keys),
            tuple(compared),
            [row.borders for row in rows] if any(row.borders for row in rows) else [],
        )
    )


def _encoded(
    job: TuneJob, task: Task, rows: Chosen, tokenizer: Any, max_length: int, counts: Counter[str]
) -> Iterator[tuple[Document, EncodedRow]]:
    """(document, row) of one task's rows that fit."""
    chosen: Sequence[Document] = rows.documents
    if job.control is not None:  # shuffled_labels, format_only
        chosen = deal_out_answers(chosen, job.seed)
    encoders = row_encoders(job, task, chosen, tokenizer, max_length)
    for i, document in enumerate(chosen):
        try:
            row = encoders[i % len(encoders)].fitted(document, counts)
        except PromptError as error:
            if turns_field(task) is None or error.fault is not PromptFault.CHAT_REFUSED:
                raise
            counts["refused_by_template"] += 1
            continue
        if row is not None:
            yield document, row


def row_encoders(
    job: TuneJob, task: Task, chosen: Sequence[Document], tokenizer: Any, max_length: int
) -> list[RowEncoder]:
    """What encodes the rows of a task, one for each variant; rows take turns in them."""
    variants = training_variants(task, job.variants, job.search)
    data_root = Path(job.data_root) if job.data_root else None
    shots = _shots_of(task, variants, chosen, data_root)
    return [
        RowEncoder(task, variant, own, tokenizer, max_length, job.method.overlong)
        for variant, own in zip(variants, shots, strict=True)
    ]


def deal_out_answers(documents: Sequence[Document], seed: int) -> list[Document]:
    """Gives every row the answer of another row: one random cycle through all of them.

    How often each answer occurs stays the same; answers become independent of inputs (an answer may
    by chance equal the right one, as it should: never being right would be information). Where rows
    have choices of their own, positions are dealt, modulo the row's number of choices.
    """
    n = len(documents)
    if n < 2:
        raise DataError(f"a control: {n} rows, at least 2 are needed to deal out answers")
    cycle = np.random.default_rng([seed, 2]).permutation(n)
    dealt = list(documents)
    for here, giver in zip(cycle, np.roll(cycle, -1), strict=True):
        document, other = documents[here], documents[giver]
        gold = other.gold % len(document.choices) if document.choices else other.gold
        dealt[here] = replace(document, gold=gold, references=other.references)
    return dealt


def batch_order(
    lengths: Sequence[int], batch_size: int, batches: int, seed: int, *, group_by_length: bool
) -> list[int]:
    """Row numbers in the order they are learned: ``batches * batch_size`` of them.

    Every pass over the rows is a new seeded permutation; the last one is cut. With
    ``group_by_length`` blocks of 8 batches are sorted by length and their batches shuffled.
    """
    rng = np.random.default_rng([seed, 3])
    wanted = batches * batch_size
    passes = -(-wanted // len(lengths))
    order = np.concatenate([rng.permutation(len(lengths)) for _ in range(passes)])[:wanted]
    if not group_by_length:
        return [int(i) for i in order]
    sizes = np.asarray(lengths)
    grouped: list[int] = []
    block_rows = 8 * batch_size
    for start in range(0, wanted, block_rows):
        block = order[start : start + block_rows]
        block = block[np.argsort(sizes[block], kind="stable")].reshape(-1, batch_size)
        grouped += [int(i) for i in block[rng.permutation(len(block))].ravel()]
    return grouped


def _shots_of(
    task: Task, variants: Sequence[Variant], chosen: Sequence[Document], data_root: Path | None
) -> list[list[Document]]:
    """Worked examples of each variant; never rows that are learned."""
    if not any(variant.shots for variant in variants):
        return [[]] * len(variants)
    pool = load_documents(task, "shots", data_root=data_root)
    return [draw_shots(task, variant, pool, scored=chosen) for variant in variants]

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
from evalcore.prompting import draw_shots, encode_training, training_pair
from evalcore.tasks import load_documents, texts_key
from evalcore.types import Document, EncodingSettings, Task, Variant
from finetune.jobs import MixPart, TuneJob, known_task, training_variants
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
            ``in_shots``, ``too_long``, ``truncated``).
        parts: (task, rows) of a mix, in the order of ``row_ids``.
        row_keys: What each row asks, whatever its task (``evalcore.tasks.texts_key``).
        compared: For each (learned task, scored task): how they were compared, rows found.
    """

    prompts: list[list[int]]
    completions: list[list[int]]
    row_ids: tuple[str, ...]
    fingerprint: str
    counts: dict[str, int] = field(default_factory=dict)
    parts: tuple[tuple[str, int], ...] = ()
    row_keys: tuple[str, ...] = ()
    compared: tuple[dict[str, Any], ...] = ()

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
            )
        )

    def content_fingerprint(self) -> str:
        """The fingerprint, computed from the rows."""
        return text_fingerprint(
            {"ids": list(self.row_ids), "prompts": self.prompts, "completions": self.completions}
        )


def _with_fingerprint(rows: TrainingSet) -> TrainingSet:
    return replace(rows, fingerprint=rows.content_fingerprint())


def build_training_set(job: TuneJob, tokenizer: Any, max_length: int) -> TrainingSet:
    """Chooses and encodes the rows of a job, task by task.

    Rows that hold a document scored anywhere in the study, or by the task itself, are left out
    while choosing. What becomes of a row longer than ``max_length`` is ``method.overlong``'s to
    say: left out whole (cutting it would train on a prompt nobody scores), or cut at the beginning
    of its prompt.

    Raises:
        DataError: If there are too few rows, an empty completion, or no row that fits.
    """
    prompts: list[list[int]] = []
    completions: list[list[int]] = []
    documents: list[Document] = []
    keys: list[str] = []
    counts: Counter[str] = Counter(in_scored_split=0, in_evaluation=0, in_shots=0)
    compared: list[dict[str, Any]] = []
    parts = []
    for part in job.tasks:
        before = len(documents)
        data_root = Path(job.data_root) if job.data_root else None
        chosen = choose_rows(part, job.data_seed, job.held_out, data_root, job.search)
        for code in ("in_scored_split", "in_evaluation", "in_shots"):
            counts[code] += chosen.counts[code]
        compared += [
            {"learned": part.task, **asdict(one), "found": chosen.found[one.task]}
            for one in chosen.compared
        ]
        for document, prompt_ids, completion_ids in _encoded(job, part, chosen, tokenizer):
            fitted = fit_row(prompt_ids, completion_ids, max_length, job.method.overlong, counts)
            if fitted is not None:
                prompts.append(fitted)
                completions.append(completion_ids)
                documents.append(document)
                keys.append(texts_key(known_task(part.task, job.search), document))
        parts.append((part.task, len(documents) - before))
    if not documents:
        raise DataError(
            f"tuning {job.tuning}: none of {counts['too_long']} rows fits into {max_length} "
            f"tokens; raise method.max_length"
        )
    ids = tuple(document.id for document in documents)
    rows = TrainingSet(
        prompts, completions, ids, "", dict(counts), tuple(parts), tuple(keys), tuple(compared)
    )
    return _with_fingerprint(rows)


def fit_row(
    prompt: list[int], completion: list[int], max_length: int, overlong: str, counts: Counter[str]
) -> list[int] | None:
    """The prompt of a row that fits; None if the row is to be left out. Counts what it does."""
    room = max_length - len(completion)
    if len(prompt) <= room:
        return prompt
    if overlong == "leave_out" or room < 1:  # a completion is never cut, nor without a prompt
        counts["too_long"] += 1
        return None
    counts["truncated"] += 1
    return prompt[-room:]


def _encoded(
    job: TuneJob, part: MixPart, rows: Chosen, tokenizer: Any
) -> Iterator[tuple[Document, list[int], list[int]]]:
    """(document, prompt ids, completion ids) of one task's rows, whatever their length."""
    data_root = Path(job.data_root) if job.data_root else None
    task = known_task(part.task, job.search)
    chosen: Sequence[Document] = rows.documents
    if job.control == "shuffled_labels":
        chosen = deal_out_answers(chosen, job.seed)
    variants = training_variants(task, job.variants, job.search)
    shots = _shots_of(task, variants, chosen, data_root)
    settings = EncodingSettings()  # ids do not depend on its length limit
    for i, document in enumerate(chosen):
        variant = variants[i % len(variants)]
        prompt, completion = training_pair(
            task, variant, document, shots[i % len(variants)], tokenizer
        )
        if not completion.strip():
            raise DataError(
                f"task {task.name}, train split, row {document.index}: the completion is empty; "
                f"remove the row or mend the variant {variant.name!r}"
            )
        prompt_ids, completion_ids = encode_training(
            tokenizer, prompt, completion, settings, chat=variant.chat
        )
        yield document, list(prompt_ids), list(completion_ids)


def deal_out_answers(documents: Sequence[Document], seed: int) -> list[Document]:
    """Gives every row the answer of another row: one random cycle through all of them.

    How often each answer occurs stays the same; answers become independent of inputs (an answer may
    by chance equal the right one, as it should: never being right would be information). Where rows
    have choices of their own, positions are dealt, modulo the row's number of choices.
    """
    n = len(documents)
    if n < 2:
        raise DataError(f"shuffled_labels: {n} rows, at least 2 are needed to deal out answers")
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

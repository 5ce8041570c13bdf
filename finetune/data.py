"""The rows one adapter learns: chosen, cleaned, dealt out, and encoded exactly as scored."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from evalcore.errors import DataError
from evalcore.identity import text_fingerprint
from evalcore.prompting import draw_shots, encode_training, training_pair
from evalcore.tasks import load_documents, load_documents_counted, load_task
from evalcore.types import Document, EncodingSettings, Task, Variant
from finetune.jobs import MixPart, TuneJob, training_variants

_SPACES = re.compile(r"\s+")


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """Encoded rows, in no particular order.

    Attributes:
        prompts: Token ids of each prompt; as scored.
        completions: Token ids of each completion, the end token included; the loss is on these.
        row_ids: Document ids, one per row; those of one task stand together.
        fingerprint: 32 hex digits over ids, prompts and completions.
        counts: What was left out or cut and why (``in_scored_split``, ``in_evaluation``,
            ``too_long``, ``truncated``).
        parts: (task, rows) of a mix, in the order of ``row_ids``.
    """

    prompts: list[list[int]]
    completions: list[list[int]]
    row_ids: tuple[str, ...]
    fingerprint: str
    counts: dict[str, int] = field(default_factory=dict)
    parts: tuple[tuple[str, int], ...] = ()

    def __len__(self) -> int:
        return len(self.row_ids)

    def subset(self, rows: Sequence[int]) -> TrainingSet:
        """Some of the rows, by number."""
        return _training_set(
            [self.prompts[i] for i in rows],
            [self.completions[i] for i in rows],
            [self.row_ids[i] for i in rows],
        )


def build_training_set(job: TuneJob, tokenizer: Any, max_length: int) -> TrainingSet:
    """Chooses and encodes the rows of a job, task by task.

    Documents whose text is scored anywhere in the study are left out before choosing. What becomes
    of a row longer than ``max_length`` is ``method.overlong``'s to say: left out whole (cutting it
    would train on a prompt nobody scores), or cut at the beginning of its prompt.

    Raises:
        DataError: If there are too few rows, an empty completion, or no row that fits.
    """
    prompts: list[list[int]] = []
    completions: list[list[int]] = []
    row_ids: list[str] = []
    counts: Counter[str] = Counter()
    parts = []
    for part in job.tasks:
        before = len(row_ids)
        for document, prompt_ids, completion_ids in _encoded(job, part, tokenizer, counts):
            fitted = fit_row(prompt_ids, completion_ids, max_length, job.method.overlong, counts)
            if fitted is not None:
                prompts.append(fitted)
                completions.append(completion_ids)
                row_ids.append(document.id)
        parts.append((part.task, len(row_ids) - before))
    if not row_ids:
        raise DataError(
            f"tuning {job.tuning}: none of {counts['too_long']} rows fits into {max_length} "
            f"tokens; raise method.max_length"
        )
    return _training_set(prompts, completions, row_ids, dict(counts), tuple(parts))


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
    job: TuneJob, part: MixPart, tokenizer: Any, counts: Counter[str]
) -> Iterator[tuple[Document, list[int], list[int]]]:
    """(document, prompt ids, completion ids) of one task's rows, whatever their length."""
    data_root = Path(job.data_root) if job.data_root else None
    task = load_task(part.task)
    documents, loaded = load_documents_counted(task, "train", data_root=data_root)
    scored = scored_inputs(job.held_out, data_root)
    clean = [document for document in documents if input_key(document) not in scored]
    counts["in_scored_split"] += loaded.leaked
    counts["in_evaluation"] += len(documents) - len(clean)
    where = f"tuning {job.tuning}, task {task.name}"
    chosen = choose(clean, part.examples, job.data_seed, where=where)
    if job.control == "shuffled_labels":
        chosen = deal_out_answers(chosen, job.seed)
    variants = training_variants(task, job.variants)
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
        prompt_ids, completion_ids = encode_training(tokenizer, prompt, completion, settings)
        yield document, list(prompt_ids), list(completion_ids)


def _training_set(
    prompts: list[list[int]],
    completions: list[list[int]],
    row_ids: Sequence[str],
    counts: dict[str, int] | None = None,
    parts: tuple[tuple[str, int], ...] = (),
) -> TrainingSet:
    content = {"ids": list(row_ids), "prompts": prompts, "completions": completions}
    digest = text_fingerprint(content)
    return TrainingSet(prompts, completions, tuple(row_ids), digest, counts or {}, parts)


def choose(
    documents: Sequence[Document], examples: int | None, seed: int, *, where: str
) -> list[Document]:
    """A seeded sample without replacement; asking for all keeps the order of the file.

    A larger sample of the same seed contains the smaller one.

    Raises:
        DataError: If there are fewer documents than asked for.
    """
    if examples is None:
        return list(documents)
    if examples > len(documents):
        raise DataError(
            f"{where}: examples: {examples} asked for, {len(documents)} usable rows in the train "
            f"split; ask for fewer (or null for all)"
        )
    order = np.random.default_rng([seed, 1]).permutation(len(documents))[:examples]
    return [documents[i] for i in order]


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


@lru_cache(maxsize=4)
def scored_inputs(tasks: tuple[str, ...], data_root: Path | None) -> frozenset[tuple[str, ...]]:
    """Normalised inputs of every scored document of the named tasks."""
    return frozenset(
        input_key(document)
        for name in tasks
        for document in load_documents(load_task(name), "score", data_root=data_root)
    )


def input_key(document: Document) -> tuple[str, ...]:
    """A document's field values in lower case and single spaces, sorted.

    Names and order of fields are left out: the same pair of sentences has other names in another
    task.
    """
    return tuple(
        sorted(_SPACES.sub(" ", str(value)).strip().lower() for value in document.fields.values())
    )


def _shots_of(
    task: Task, variants: Sequence[Variant], chosen: Sequence[Document], data_root: Path | None
) -> list[list[Document]]:
    """Worked examples of each variant; never rows that are learned."""
    if not any(variant.shots for variant in variants):
        return [[]] * len(variants)
    pool = load_documents(task, "shots", data_root=data_root)
    return [draw_shots(task, variant, pool, scored=chosen) for variant in variants]

"""What lm-eval's tasks ask: their documents as a run wants them, and one of them to look at."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evalcore.config import GridConfig
from evalcore.errors import InputError
from evalcore.identity import (
    load_tokenizer,
    parse_template_args,
    parse_template_date,
    template_values,
)
from evalcore.lm_eval.building import Asked, Built, build
from evalcore.lm_eval.harness import chat_renderer
from evalcore.lm_eval.loading import LoadedTask, load
from evalcore.lm_eval.names import split_selection
from evalcore.prompting import Example, document_example, parse_selection
from evalcore.tasks import Finding, RowLimit, check_documents, trivial_baseline
from evalcore.types import Task


def ask(
    task: LoadedTask, options: GridConfig, checkpoint: str
) -> tuple[Built, float, list[Finding]]:
    """(the task's documents, its trivial baseline, what the checks of the data found).

    Args:
        task: One of lm-eval's.
        options: What is asked of it.
        checkpoint: Folder of the tokenizer whose template a chat is written in.
    """
    args = parse_template_args(options.chat_template_args)
    date = parse_template_date(options.template_date)
    tokenizer = load_tokenizer(checkpoint) if options.chat else None
    limit = RowLimit.of(options.limit)  # a number is lm-eval's: its first documents
    asked = Asked(
        num_fewshot=options.num_fewshot,
        seed=options.seed,
        system=options.system,
        chat=chat_renderer(tokenizer, template_values(args, date)) if options.chat else None,
        chat_args=args,
        chat_date=date,
        multiturn=options.multiturn,
        limit=limit.count if limit is not None else None,
    )
    built = build(task, asked)
    findings = [*check_documents(built.task, built.documents), *_outside(built)]
    answers = any(doc.choices or doc.references for doc in built.documents)
    baseline = trivial_baseline(built.task, built.documents) if answers else math.nan
    return built, baseline, findings


def _outside(built: Built) -> list[Finding]:
    """Targets that are none of the choices: lm-eval counts every answer to them as wrong."""
    count = sum(doc.gold >= len(doc.choices) for doc in built.documents if doc.choices)
    if not count:
        return []
    of = f"{count} of {len(built.documents)}"
    text = f"task {built.task.name}: {of} targets are none of the choices and count as wrong"
    return [Finding("error", "gold_outside", text, count)]


def examples_of(
    name: str,
    selection: str,
    tokenizer: Any,
    index: int,
    data_root: Path | None,
    include_path: Sequence[Path],
) -> list[tuple[Task, Example]]:
    """One document of each task a name stands for, as lm-eval writes it."""
    options = parse_selection(selection)[0][1]
    if options.get("chat") and tokenizer is None:
        raise InputError("chat=1 needs a tokenizer: give -m CHECKPOINT")
    asked = Asked(
        num_fewshot=int(options["shots"]) if "shots" in options else None,
        seed=int(options["seed"]) if "seed" in options else None,
        chat=chat_renderer(tokenizer, template_values()) if options.get("chat") else None,
        limit=index + 1,
    )
    loaded = load(split_selection(name)[1], include_path, data_root=data_root)
    shown = []
    for task in loaded.tasks.values():
        built = build(task, asked)
        if not 0 <= index < len(built.documents):
            raise InputError(f"task {built.task.name}: there is no document {index}")
        document = built.documents[index]
        each = document_example(built.task, built.variant, document, (), tokenizer)
        shown.append((built.task, each))
    return shown

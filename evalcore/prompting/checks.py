"""Checks of prompts as they are asked, before anything is scored.

Codes (``Finding.code``) are stable:

=================  =======  ====================================================================
overflow           error    prompts that do not fit even without shots: recorded, never scored
shots_dropped      warning  prompts that lost shots to fit
truncated          warning  prompts whose beginning was cut
border_merged      warning  answers that share a token with the end of the prompt
same_prompt        warning  documents that differ are asked alike (error: all of them)
equal_choices      warning  two choices of a document are written alike
prefix_choices     warning  a choice's tokens begin with another's (error: of labels)
out_of_reach       warning  choices that no free answer can be, references longer than one
=================  =======  ====================================================================
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from evalcore.prompting.rendering import shown_fields, varying_fields
from evalcore.shown import caseless
from evalcore.tasks import Finding, content_key
from evalcore.tasks.finding import Level, if_any
from evalcore.tasks.texts import (
    PREFIX_CONSEQUENCE,
    begins_another,
    goes_on,
    has_equal_texts,
    prefix_level,
)
from evalcore.types import Document, Task, Variant, generation_of


def check_requests(
    task: Task,
    variant: Variant,
    table: pa.Table,
    *,
    documents: Sequence[Document] = (),
    max_length: int | None = None,
) -> list[Finding]:
    """Looks at how prompts fitted: what was not scored, and what lost shots or its beginning; for
    choices that a prompt writes alike, that begin as another's tokens do or that no free answer
    can be; and for documents that are asked alike.

    Args:
        task: The task.
        variant: The prompt variant.
        table: Its requests (``prompting.REQUEST_SCHEMA``).
        documents: Those asked about, in the order of the rows: choices that are one text in the
            data were found there.
        max_length: Longest prompt and answer in tokens, for the message.
    """
    flags = table["flags"].to_pylist()
    indices = table["doc_index"].to_pylist()
    total, found = len(flags), []
    room = f" into {max_length} tokens" if max_length else ""
    texts: dict[str, tuple[Level, str, str]] = {
        "overflow": (
            "error", f"do not fit{room} even without shots",
            "they are recorded and not scored, so the score is of the shorter documents only",
        ),
        "shots_dropped": (
            "warning", f"lost shots to fit{room}",
            "they are answered with fewer shots than the variant names",
        ),
        "border_merged": (
            "warning", "have an answer that shares a token with the end of the prompt",
            "what is scored does not spell it (the rule of lm-evaluation-harness); give the prompt "
            "a delimiter, or end it with a sign",
        ),
        "truncated": (
            "warning", f"lost their beginning to fit{room}",
            "they are answered without a part of the shots or of the question",
        ),
    }  # fmt: skip
    for flag, (level, what, consequence) in texts.items():
        rows = [index for index, own in zip(indices, flags, strict=True) if flag in (own or ())]
        share = len(rows) / total if total else 0.0
        found += if_any(
            task, level, flag, rows,
            f"{len(rows)} of {total} prompts ({share:.1%}) under {variant.name} {what}",
            consequence,
        )  # fmt: skip
    return [
        *found,
        *_asked_alike(task, variant, table, documents),
        *_written_alike(task, variant, table, documents),
        *_prefixes(task, variant, table),
        *_out_of_reach(task, variant, table, documents),
    ]


def _written_alike(
    task: Task, variant: Variant, table: pa.Table, documents: Sequence[Document]
) -> list[Finding]:
    """Rows with choices of their own, two of which the prompt's target writes alike."""
    free = variant.answer == "free"
    if task.output_type != "multiple_choice" or not (free or variant.target != "{{ choice }}"):
        return []
    known = {doc.index for doc in documents if has_equal_texts(doc)}
    columns = (table[name].to_pylist() for name in ("doc_index", "choices", "choice_owners"))
    rows = []
    for index, texts, owners in zip(*columns, strict=True):
        told = [caseless(text) for text in texts] if free else texts
        owned = set(zip(told, owners or range(len(told)), strict=True))
        if len(owned) > len(set(told)) and index not in known:
            rows.append(index)
    return if_any(
        task, "warning", "equal_choices", rows,
        f"{len(rows)} of {len(table)} documents have two choices that {variant.name} writes alike",
        "of equal choices the first wins, right or wrong; the target has to tell them apart",
    )  # fmt: skip


def _asked_alike(
    task: Task, variant: Variant, table: pa.Table, documents: Sequence[Document]
) -> list[Finding]:
    """Documents that differ and whose prompts do not."""
    asked = [doc for doc in documents if doc.prebuilt is None]
    if len(asked) < 2 or len(asked) < len(documents) or task.output_type.startswith("loglik"):
        return []
    if _all_the_same(table) and len({content_key(doc) for doc in asked}) > 1:
        return if_any(
            task, "error", "same_prompt", [doc.index for doc in asked],
            f"all {len(asked)} documents are asked the same under {variant.name}",
            "the score is about the choices alone; the template has to show the fields "
            f"({', '.join(sorted(varying_fields(task)))})",
        )  # fmt: skip
    shown = sorted(shown_fields(task, variant))
    hidden = sorted(varying_fields(task) - set(shown))
    if not hidden:
        return []
    first: dict[tuple[object, ...], str] = {}
    rows = []
    for doc in asked:
        own = () if task.choices else tuple(doc.choices)
        key = (*(str(doc.fields[name]) for name in shown), *own)
        content = content_key(doc)
        if first.setdefault(key, content) != content:
            rows.append(doc.index)
    return if_any(
        task, "warning", "same_prompt", rows,
        f"{len(rows)} of {len(asked)} documents are asked under {variant.name} as another one is "
        "that differs",
        f"the template leaves out {', '.join(hidden)}, so that one answer stands for both",
    )  # fmt: skip


def _all_the_same(table: pa.Table) -> bool:
    """Whether all rows have one and the same context."""
    contexts = table["contexts"]
    first = contexts[0]
    return bool(first.as_py()) and all(contexts[i] == first for i in range(1, len(contexts)))


def _prefixes(task: Task, variant: Variant, table: pa.Table) -> list[Finding]:
    """Choices whose tokens begin with those of another choice, where whole choices are scored."""
    if task.output_type != "multiple_choice" or variant.answer != "choices":
        return []
    rows = []
    for i, texts in enumerate(table["choices"].to_pylist()):
        # few are: their ids alone are looked at; after contexts of their own they do not compete
        if begins_another(texts) and len(table["contexts"][i]) == 1:
            owners = table["choice_owners"][i].as_py() or range(len(texts))
            ids = [tuple(own) for own in table["continuations"][i].as_py()]
            if _token_prefix(ids, owners):
                rows.append(table["doc_index"][i].as_py())
    return if_any(
        task, prefix_level(task), "prefix_choices", rows,
        f"{len(rows)} of {len(table)} documents have a choice under {variant.name} whose tokens "
        "begin with those of another", PREFIX_CONSEQUENCE,
    )  # fmt: skip


def _token_prefix(ids: Sequence[tuple[int, ...]], owners: Sequence[int]) -> bool:
    both = list(zip(ids, owners, strict=False))
    return any(
        len(short) < len(long) and long[: len(short)] == short and mine != other
        for short, mine in both
        for long, other in both
    )


def _out_of_reach(
    task: Task, variant: Variant, table: pa.Table, documents: Sequence[Document]
) -> list[Finding]:
    """Answers that generation cannot write: more tokens than it has, or behind a stop string."""
    settings = generation_of(task, variant)
    if settings is None or not len(table) or any(doc.prebuilt for doc in documents):
        return []
    most, free = settings.max_tokens, task.output_type == "multiple_choice"
    sizes = _longest(table)
    beyond = sizes > most
    if free:
        texts = table["choices"].to_pylist()
        beyond |= np.array([any(goes_on(t, settings.stops) for t in own) for own in texts], bool)
    rows = [table["doc_index"][int(i)].as_py() for i in np.flatnonzero(beyond)]
    count = f"{len(rows)} of {len(table)} documents have a"
    if free:
        level: Level = "error" if task.choices else "warning"
        text = f"{count} choice that no free answer under {variant.name} can be"
        why = (
            f"it has more than the {most} tokens that are written, or goes on after a stop string; "
            "give the task generation.max_tokens, or ask with answer=choices"
        )
    else:
        level = "warning" if task.primary == "exact_match" else "note"
        text = f"{count} reference of more than the {most} tokens that an answer may have"
        why = "no answer is all of it; raise generation.max_tokens if it should be"
    return if_any(task, level, "out_of_reach", rows, text, why)


def _longest(table: pa.Table) -> np.ndarray:
    """int64 [rows]: tokens of each row's longest continuation; 0 where there is none."""
    lists = table["continuations"].combine_chunks()
    found = np.zeros(len(table), dtype=np.int64)
    sizes = pc.list_value_length(pc.list_flatten(lists)).to_numpy(zero_copy_only=False)
    np.maximum.at(found, pc.list_parent_indices(lists).to_numpy(), sizes)
    return found

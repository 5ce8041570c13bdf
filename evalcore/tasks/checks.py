"""Checks of the data before anything is scored: each fault here has spoilt a published number.

Those of prompts are in :mod:`evalcore.prompting.checks`. Codes (``Finding.code``) are stable:

=================  =======  ====================================================================
no_documents       error    nothing to score
gold_outside       error    gold values outside the choices: hidden labels, or a wrong mapping
one_class          error    every gold is one label (warning where choices are the rows' own)
class_missing      warning  a label that no document has
shots_leak         error    shots stand in the scored rows (warning where loading took them out)
shots_one_class    warning  all rows to draw shots from have one label
shots_without_..   warning  rows to draw shots from with a gold outside the choices
train_leak         warning  rows to tune on stand in the scored rows (loading takes them out)
unusable_rows      warning  rows left out because a value is missing
empty_choices      error    a choice without text
equal_choices      warning  two choices of a document are the same text
prefix_choices     warning  a choice is the beginning of another (error: of labels; note: acc_norm)
answer_shown       error    a field is the right answer
list_as_text       warning  lists written as text: "['a', 'b']"
numbers_as_floats  warning  whole numbers as answers, written as 5.0
letters_in_parts   warning  answers with letters in parts (NFD); note where they are few
stop_in_reference  warning  references that go on after a stop string (note: but exact_match)
duplicates         warning  documents repeat another's text
contradictory      warning  documents repeat another's text with another right answer
empty_fields       warning  a field without text
unseen_references  warning  references without a word that the metric sees (other scripts, signs)
counted_twice      warning  a data set stands twice in a group's mean
trained_rows_*     warning  a tuned model learned rows it is scored on, or may be shown
not_pinned         note     rows of a revision that can move; the commit they came from
not_comparable     note     why scores cannot be put beside those of a published study
=================  =======  ====================================================================
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from evalcore.identity import is_commit, text_fingerprint
from evalcore.tasks.documents import LoadCounts, Role, asked_key, content_key
from evalcore.tasks.finding import Finding, Level, if_any, make_finding
from evalcore.tasks.hub import data_resolution
from evalcore.tasks.rouge import rouge_kind
from evalcore.tasks.texts import check_texts, has_equal_texts
from evalcore.tasks.wording import sees
from evalcore.types import Document, Task

ONE_CLASS_FROM = 10  # so few documents may well be of one class


def check_documents(
    task: Task, docs: Sequence[Document], shots: Sequence[Document] = ()
) -> list[Finding]:
    """Looks for hidden labels, leaked shots, copies, empty fields and equal choices.

    Args:
        task: The task.
        docs: Its scored documents (all of them: a limit hides faults).
        shots: The pool shots are drawn from.
    """
    if not docs:
        return [
            make_finding(task, "error", "no_documents", "no documents", "there is no score", [], 1)
        ]
    found = _gold_findings(task, docs) if task.output_type == "multiple_choice" else []
    total = len(docs)
    keys: defaultdict[str, list[Document]] = defaultdict(list)
    for doc in docs:
        keys[content_key(doc)].append(doc)
    copies = sorted(doc.index for same in keys.values() for doc in same[1:])
    found += if_any(
        task, "warning", "duplicates", copies,
        f"{len(copies)} of {total} documents repeat another's text",
        "they count more than once and standard errors come out too small",
    )  # fmt: skip
    unlike = [same for same in keys.values() if len({_right(doc) for doc in same}) > 1]
    rows = sorted(doc.index for same in unlike for doc in same[1:])
    found += if_any(
        task, "warning", "contradictory", rows,
        f"{len(rows)} of {total} documents repeat another's text with another right answer",
        "one of the two is wrong whatever is answered; mend the data or the gold column",
    )  # fmt: skip
    constant = {
        name
        for name, part in task.spec.get("fields", {}).items()
        if isinstance(part, dict) and part.get("text") is not None
    }
    empty = [
        doc.index
        for doc in docs
        if any(not str(v).strip() for k, v in doc.fields.items() if k not in constant)
    ]
    found += if_any(
        task, "warning", "empty_fields", empty,
        f"{len(empty)} of {total} documents have an empty field",
        "their prompts lack a part of the question",
    )  # fmt: skip
    found += _unseen_references(task, docs)
    found += check_texts(task, docs)
    asked = {asked_key(doc): doc.index for doc in reversed(docs)} if shots else {}
    leaked = sorted(asked[key] for shot in shots if (key := asked_key(shot)) in asked)
    found += if_any(
        task, "error", "shots_leak", leaked,
        f"{len(leaked)} of {len(shots)} shots stand in the scored rows",
        "the answer is in the prompt; draw shots from another split",
    )  # fmt: skip
    return found


def _right(document: Document) -> str | None:
    """Text of the right choice; None where none is known or asked for."""
    known = 0 <= document.gold < len(document.choices)
    return document.choices[document.gold] if known else None


def _unseen_references(task: Task, docs: Sequence[Document]) -> list[Finding]:
    """Documents whose references hold no word that a metric of the task can see."""
    blind: defaultdict[tuple[int, ...], list[str]] = defaultdict(list)
    for metric in task.metrics:
        seen = sees(metric)
        if seen is not None:
            # one reference without a word is enough for token_f1: it agrees with an empty answer
            some = all if metric == "token_f1" else any
            rows = [d.index for d in docs if d.references and not some(map(seen, d.references))]
            blind[tuple(rows)].append(metric)
    return [
        finding
        for rows, metrics in blind.items()
        for finding in if_any(
            task, "warning", "unseen_references", rows,
            f"{len(rows)} of {len(docs)} documents have references without a word that "
            f"{', '.join(metrics)} can see", _unseen_consequence(metrics),
        )
    ]  # fmt: skip


def _unseen_consequence(metrics: Sequence[str]) -> str:
    rouge = [metric for metric in metrics if rouge_kind(metric)]
    latin = any(kind[1] != "unicode" for m in rouge if (kind := rouge_kind(m)))
    advice = "use rouge_l_unicode, or exact_match for signs" if latin else "use exact_match"
    said = [f"{', '.join(rouge)} give 0 for any answer to them; {advice}"] if rouge else []
    if "token_f1" in metrics:
        said.append("token_f1 gives 1 to an answer without words and 0 to the others; use "
                    "exact_match")  # fmt: skip
    return "; ".join(said)


def check_sample(
    task: Task,
    scored: Sequence[Document],
    everything: Sequence[Document],
    shots: Sequence[Document] = (),
) -> list[Finding]:
    """The findings of the documents scored, and what only the whole split shows.

    Args:
        task: The task.
        scored: Its documents within the limit.
        everything: All its documents: a limit hides faults.
        shots: The pool shots are drawn from.
    """
    found = check_documents(task, scored, shots)
    if len(scored) == len(everything):
        return found
    codes = {finding.code for finding in found}
    whole = check_documents(task, everything, shots)
    return found + [finding for finding in whole if finding.code not in codes]


def _gold_findings(task: Task, docs: Sequence[Document]) -> list[Finding]:
    total, found = len(docs), []
    outside = [doc.index for doc in docs if doc.gold < 0]
    found += if_any(
        task, "error", "gold_outside", outside,
        f"{len(outside)} of {total} gold values are outside the choices (hidden labels?)",
        "accuracy would be a share of predictions, not of right answers; take a labelled split",
    )  # fmt: skip
    classes = {doc.gold for doc in docs if doc.gold >= 0}
    if len(classes) == 1 and not outside and total >= ONE_CLASS_FROM:
        found += if_any(
            task, "error" if task.choices else "warning", "one_class", [d.index for d in docs],
            f"all {total} gold values are choice {next(iter(classes))}",
            "hidden labels, or the right choice always in one place: a model that always says it "
            "scores 1.0",
        )  # fmt: skip
    labels = [label for i, label in enumerate(task.choices) if i not in classes]
    if labels and len(classes) > 1 and total >= ONE_CLASS_FROM * len(task.choices):
        found.append(
            make_finding(
                task, "warning", "class_missing",
                f"none of {total} documents has the gold {', '.join(map(repr, labels))}",
                "another data set, a part of one, or a wrong mapping: the floor is of the other "
                "labels", [], total,
            )
        )  # fmt: skip
    equal = [doc.index for doc in docs if has_equal_texts(doc)]
    found += if_any(
        task, "warning", "equal_choices", equal,
        f"{len(equal)} of {total} documents have two equal choices",
        "of equal choices the first wins, right or wrong",
    )  # fmt: skip
    blank = [doc.index for doc in docs if any(not choice.strip() for choice in doc.choices)]
    found += if_any(
        task, "error", "empty_choices", blank,
        f"{len(blank)} of {total} documents have an empty choice",
        "a choice without tokens has no log-probability",
    )  # fmt: skip
    return found


def check_pool(task: Task, pool: Sequence[Document]) -> list[Finding]:
    """Looks at the rows that worked examples are drawn from.

    Args:
        task: The task.
        pool: Its documents for shots.
    """
    if task.output_type != "multiple_choice":
        return []
    hidden = [doc.index for doc in pool if doc.gold < 0]
    found = if_any(
        task, "warning", "shots_without_answer", hidden,
        f"{len(hidden)} of {len(pool)} rows of the shots split have a gold outside the choices",
        "they are never shown; take a labelled split",
    )  # fmt: skip
    known = [doc for doc in pool if doc.gold >= 0]
    if task.choices and len(known) >= ONE_CLASS_FROM and len({doc.gold for doc in known}) == 1:
        label = task.choices[known[0].gold]
        found += if_any(
            task, "warning", "shots_one_class", [doc.index for doc in known],
            f"all {len(known)} rows of the shots split have the gold {label!r}",
            "every worked example shows the same answer; take a split (or a cut) with all labels",
        )  # fmt: skip
    return found


def check_counts(task: Task, role: Role, counts: LoadCounts) -> list[Finding]:
    """What loading a split left out: rows that leak, rows without values.

    Leaked rows never reach a prompt or a tuning, but a split that holds them is not the split
    somebody meant.
    """
    where = f"{counts.leaked} of {counts.rows} rows of the {role} split"
    found = []
    if counts.leaked:
        consequence = "they were taken out, or the answer would be known; check splits of the task"
        what = {"shots": "shots_leak", "train": "train_leak"}[role]
        found.append(
            make_finding(
                task, "warning", what, f"{where} stand in the scored rows", consequence,
                counts.leaked_rows, counts.leaked,
            )
        )  # fmt: skip
    if counts.unusable:
        found.append(
            make_finding(
                task, "warning", "unusable_rows",
                f"{counts.unusable} of {counts.rows} rows of the {role} split lack a value",
                "they are left out, so the score is of the others only",
                counts.unusable_rows, counts.unusable,
            )
        )  # fmt: skip
    return found


def check_control_tokens(task: Task, rows: Sequence[int], total: int) -> list[Finding]:
    """Says how many documents hold text that a tokenizer reads as a control token.

    Args:
        task: The task.
        rows: Numbers of those documents.
        total: Documents looked at.
    """
    return if_any(
        task, "warning", "special_tokens", list(rows),
        f"{len(rows)} of {total} documents hold text that the tokenizer reads as control tokens",
        "their prompts hold those tokens, as lm-evaluation-harness has it; training reads letters",
    )  # fmt: skip


def check_selection(tasks: Iterable[Task]) -> list[Finding]:
    """Looks for data that would count twice in the mean of one tuning's group.

    Two tasks do when they belong to one tuning and domain, and read the same split of the same
    source through the same fields; or when two names stand for one definition.
    """
    groups: defaultdict[tuple[Any, ...], list[Task]] = defaultdict(list)
    for task in {task.name: task for task in tasks}.values():
        source, splits = task.spec.get("source"), task.spec.get("splits") or {}
        if source is None:
            continue
        columns = sorted(str(part) for part in (task.spec.get("fields") or {}).values())
        read = text_fingerprint([source, splits.get("score"), columns])
        groups[(task.tuned_by, task.domain, read)].append(task)
    found = []
    for (tuned_by, _, _), several in groups.items():
        if len(several) < 2:
            continue
        names = ", ".join(task.name for task in several)
        where = f"the group of {tuned_by}" if tuned_by else "the tasks of no tuning"
        consequence = "its rows count twice in every mean over them; leave one out"
        found.append(
            Finding(
                "warning", "counted_twice",
                f"tasks {names} read the same rows and both stand in {where}: {consequence}",
                len(several), names, (), consequence,
            )
        )  # fmt: skip
    return found


def check_source(task: Task) -> list[Finding]:
    """Notes rows that came from a revision that can move, with the commit they came from; and why
    scores are not comparable with published ones."""
    told = _published(task)
    hub = (task.spec.get("source") or {}).get("hub")
    found = data_resolution(task)
    if hub is None or found is None or is_commit(hub.get("revision")):
        return told
    consequence = "a later run may read other rows; pin this commit to keep them"
    text = f"data set {hub['repo']} is not pinned, resolved to {found.commit}"
    if found.note is not None:
        text += f" ({found.note})"
    level: Level = "warning" if found.note is not None else "note"
    return [
        Finding(level, "not_pinned", f"task {task.name}: {text}: {consequence}", 0, task.name, (),
                consequence),
        *told,
    ]  # fmt: skip


def _published(task: Task) -> list[Finding]:
    why = task.spec.get("published")
    if not why:
        return []
    text = f"task {task.name}: scores are not comparable with published ones: {why}"
    return [Finding("note", "not_comparable", text, 0, task.name, (), why)]

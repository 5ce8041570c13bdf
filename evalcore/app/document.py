"""``show``: one document as one cell saw it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from evalcore.app.report import open_results
from evalcore.errors import InputError
from evalcore.store import ResultStore


def document_lines(results: Path, cell: str, document: str) -> list[str]:
    """The prompt as sent, choices with their log-probabilities, gold, prediction and text.

    Args:
        results: The results folder.
        cell: The beginning of the cell's key.
        document: Its number in the task, or the beginning of its id.

    Raises:
        InputError: No such cell or document, or several cells begin so.
    """
    from evalcore.prompting.sent import SentPrompts
    from evalcore.report.documents import OR
    from evalcore.report.words import visible

    store = open_results(results)
    about = _cell(store, cell)
    row = _row(store, about["cell"], document)
    documents = {r["doc_id"]: r for r in store.documents(about["task"]).to_pylist()}
    known, sent = documents.get(row["doc_id"]), SentPrompts(store)
    adapter, task = about["adapter"], about["task"]
    lines = [
        f"{about['checkpoint']}, {adapter}, {task}, {about['variant']}: cell {about['cell']}",
        f"document {row['doc_index']} ({row['doc_id']})",
    ]
    contexts = sent.contexts(about, [row["doc_id"]]).get(row["doc_id"])
    if contexts is None:
        why = "; ".join(sorted(sent.lost)) or "it is not kept"
        lines.append(f"--- no prompt as sent ({why}); template and fields:")
        lines += [about["template"] or "(not recorded)", (known or {}).get("fields") or "(unknown)"]
    else:
        lines += ["--- prompt as sent", OR.join(contexts)]
    lines += _answer(row, (known or {}).get("choices") or [])
    return [visible(line) for line in lines]


def _cell(store: ResultStore, key: str) -> dict[str, Any]:
    rows = store.cells(every=True).to_pylist()
    found: list[dict[str, Any]] = [row for row in rows if key and row["cell"].startswith(key)]
    if len(found) != 1:
        many = "no cell" if not found else f"{len(found)} cells"
        raise InputError(
            f"{store.path}: {many} whose key begins with {key!r}; keys: evalcore cells "
            f"{store.path} list --all"
        )
    return found[0]


def _row(store: ResultStore, cell: str, document: str) -> dict[str, Any]:
    rows = store.read(cells=[cell]).to_pylist()
    found = [row for row in rows if str(row["doc_index"]) == document]
    if not found:
        found = [row for row in rows if len(document) > 3 and row["doc_id"].startswith(document)]
    if len(found) != 1:
        numbers = [row["doc_index"] for row in rows if row["doc_index"] is not None]
        span = f"; there are {min(numbers)} to {max(numbers)}" if numbers else ""
        raise InputError(f"{store.path}: {len(found)} documents {document!r} in cell {cell}{span}")
    row: dict[str, Any] = found[0]
    return row


def _answer(row: dict[str, Any], choices: list[str]) -> list[str]:
    lines = []
    logprobs = row["choice_logprobs"] or []
    if row["output_type"] == "multiple_choice" and logprobs:
        golds = row["golds"] or [row["gold"]]
        lines.append("--- choices (* the right one, > the one chosen)")
        for i, value in enumerate(logprobs):
            marks = ("*" if i in golds else " ") + (">" if i == row["prediction"] else " ")
            number = "–" if value is None else f"{value:.4f}"
            lines.append(f"{marks} {number:>10}  {choices[i] if i < len(choices) else ''}")
    if row["references"]:
        lines += ["--- references", *row["references"]]
    if row["text"] is not None:
        lines += [f"--- text ({row['finish_reason']})", row["text"]]
    if row["flags"]:
        lines.append(f"--- flags: {', '.join(row['flags'])}")
    return lines

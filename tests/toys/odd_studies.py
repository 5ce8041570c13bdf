"""Odd studies, and how they are written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from evalcore.store import CELL_SCHEMA, EXAMPLE_SCHEMA, ResultStore
from tests.toys.tables import cell_rows, digest, subject_columns, task_columns, to_table

Rows = list[dict[str, Any]]
NLI = task_columns("nli", tuned_by="nli", domain="in")
TALES = task_columns("tales", tuned_by="tales", domain="in", output_type="generate_until")
BIDI, ZERO = "\u202e", "\u200b"
NAMES = (
    "<img src=x onerror=alert(1)>", f"{BIDI}gnp.exe{ZERO}", "n" * 3000, "👩‍👧 emoji", "two\nlines",
    "a/b\\c:*?", "'; DROP TABLE x; --", "=1+1", "{{ 7 * 7 }}", "%s &amp; “quotes”", " ", "-", "..",
)  # fmt: skip


def right(seed: int, share: float = 0.5) -> np.ndarray:
    return np.random.default_rng(seed).random(8) < share


def grid(steps: tuple[int, ...] = (100, 200), tasks: tuple[dict[str, Any], ...] = (NLI, TALES),
         tunings: tuple[str | None, ...] = (None, "nli")) -> Rows:  # fmt: skip
    rows: Rows = []
    for step in steps:
        for tuning in tunings:
            subject = subject_columns(step, tuning)
            for n, task in enumerate(tasks):
                for m, prompt in enumerate(("plain", "other")):
                    rows += cell_rows(subject, task, prompt, right(step + n + m, 0.4))
    return rows


def renamed(column: str) -> Rows:
    """A grid whose values of a column are odd."""
    rows = grid((100, 200, 300, 400), tunings=(None, "nli", "tales"))
    values = sorted({row[column] for row in rows if row[column] is not None})
    names = dict(zip(values, NAMES, strict=False))
    if column in ("task", "variant"):
        names = {v: f"{v}{n}" for v, n in zip(values, NAMES[1::2], strict=False)}
    for row in rows:
        if row[column] is not None:
            row[column] = names.get(row[column], row[column])
    return rows


def same_names() -> Rows:
    """Two checkpoints and two adapters that are called alike."""
    rows = grid((100, 200))
    for row in rows:
        row["checkpoint"], row["step"] = "model", None
    return rows


def without_values() -> Rows:
    rows = grid()
    for n, row in enumerate(rows):
        if row["task"] == "nli" and n % 3 == 0:
            row["choice_logprobs"] = [float("nan")] * len(row["choice_logprobs"])
        if row["task"] == "tales" and n % 2:
            row["text"] = None
    return rows


def unlabelled() -> Rows:
    rows = grid()
    for row in rows:
        if row["adapter"] is not None:
            row |= {"tuning": None, "tuned_on": None, "seed": None, "method": None}
    return rows


def one_cell() -> Rows:
    return cell_rows(subject_columns(100), NLI, "plain", right(0))


def nothing_scored() -> Rows:
    rows = grid((100,), (NLI,))
    for row in rows:
        row["choice_logprobs"] = [float("nan")] * len(row["choice_logprobs"])
    return rows


def one_document() -> Rows:
    models = (subject_columns(100), subject_columns(100, "nli"))
    return [r for model in models for prompt in ("plain", "other")
            for r in cell_rows(model, NLI, prompt, np.array([True]))]  # fmt: skip


ODD: dict[str, Callable[[], Rows]] = {
    "no base": lambda: grid(tunings=("nli",)),
    "base alone": lambda: grid((100,), tunings=(None,)),
    "one checkpoint, one task": lambda: grid((100,), (NLI,)),
    "generated alone": lambda: grid(tasks=(TALES,)),
    "names of checkpoints": lambda: renamed("checkpoint"),
    "names of adapters": lambda: renamed("adapter"),
    "names of tunings": lambda: renamed("tuning"),
    "names of tasks": lambda: renamed("task"),
    "names of prompts": lambda: renamed("variant"),
    "equal names": same_names,
    "no values": without_values,
    "no labels": unlabelled,
    "one cell": one_cell,
    "nothing scored": nothing_scored,
    "one document": one_document,
}


def write(folder: Path, rows: Rows, documents: bool = False) -> ResultStore:
    store, table = ResultStore(folder), to_table(rows)
    known = {row["cell"]: row for row in table.to_pylist()}
    store.write_cells([
        {k: r[k] for k in CELL_SCHEMA.names if k in r} | {"shots": r["cell_shots"]}
        for r in known.values()
    ])  # fmt: skip
    with store.open_writer("one") as writer:
        writer.add(table.select(EXAMPLE_SCHEMA.names))
    if documents:
        for task in {row["task"] for row in rows}:
            store.write_documents(task, "data", [
                {"doc_id": digest("document", task, i), "doc_index": i, "gold": 0,
                 "fields": json.dumps({"question": NAMES[0]}), "choices": list(NAMES[:3])}
                for i in range(8)
            ])  # fmt: skip
    return store

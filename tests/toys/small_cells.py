"""Cells of a few rows, as small as a results folder takes them."""

from __future__ import annotations

from typing import Any

from evalcore.store import ResultStore

DAY = "20260101T000000.000000Z"


def make_cell(cell: str, **others: Any) -> dict[str, Any]:
    row = {
        "cell": cell, "subject": "s", "checkpoint": "step-1", "adapter": "(base)", "task": "nli",
        "variant": "default", "numerics": "n", "variant_fingerprint": cell,
    }  # fmt: skip
    return row | others


def score(store: ResultStore, cell: str, docs: int = 3, **others: Any) -> None:
    with store.open_writer("w") as writer:
        writer.add([{"cell": cell, "doc_id": f"d{i}", **others} for i in range(docs)])

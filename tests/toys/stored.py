"""Rows and cells as results hold them."""

from __future__ import annotations

import hashlib


def key(text: str) -> str:
    return hashlib.md5(text.encode()).hexdigest()


def make_row(cell: str, doc_id: str, prediction: int = 0, **others: object) -> dict:
    row = {
        "cell": cell,
        "doc_id": doc_id,
        "doc_index": 3,
        "gold": 1,
        "prediction": prediction,
        "choice_logprobs": [-1.5, -0.25],
        "choice_tokens": [1, 2],
        "choice_bytes": [5, 6],
        "choice_chars": [5, 6],
        "is_greedy": [False, True],
        "references": [],
        "prompt_tokens": 40,
        "computed_tokens": 30,
        "cached_tokens": 10,
        "shots": 2,
        "shots_dropped": 0,
        "flags": [],
    }
    return row | others


def make_cell(cell: str, **others: object) -> dict:
    return {"cell": cell, "checkpoint": "step-1", "task": "nli", "metrics": ["acc"]} | others

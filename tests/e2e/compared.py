"""What two results folders hold, side by side."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from evalcore.store import ResultStore

TASKS = "pocket_nli,pocket_describe"


def keys(results: Path) -> set[tuple[str, str]]:
    table = ResultStore(results).examples(columns=["cell", "doc_id"])
    return set(zip(table["cell"].to_pylist(), table["doc_id"].to_pylist(), strict=True))


def rows(results: Path) -> dict[tuple[str, str], dict]:
    columns = ["cell", "doc_id", "prediction", "choice_logprobs", "text"]
    table: pa.Table = ResultStore(results).examples(columns=columns)
    return {(row["cell"], row["doc_id"]): row for row in table.to_pylist()}


def assert_same_scores(
    left: Path, right: Path, tolerance: float = 1e-5, *, only: set[tuple[str, str]] | None = None
) -> None:
    """``only``: of (cell, document) pairs, where one side has more."""
    a, b = rows(left), rows(right)
    if only is not None:
        a, b = ({key: found[key] for key in only if key in found} for found in (a, b))
        assert a
    assert a.keys() == b.keys()
    for key, row in a.items():
        other = b[key]
        assert row["prediction"] == other["prediction"], key
        assert row["text"] == other["text"], key
        assert row["choice_logprobs"] == pytest.approx(other["choice_logprobs"], abs=tolerance)

"""Random examples and the request tables made of them."""

from __future__ import annotations

import pyarrow as pa
from hypothesis import strategies as st

from evalcore.prompting import REQUEST_SCHEMA

TOKENS = st.lists(st.integers(0, 3), min_size=1, max_size=3)


@st.composite
def examples(draw: st.DrawFn) -> dict:
    """One row of a request table; few token values, so that requests repeat often."""
    continuations = draw(st.lists(TOKENS, min_size=1, max_size=3))
    own_contexts = draw(st.booleans())
    count = len(continuations) if own_contexts else 1
    overflow = draw(st.integers(0, 5)) == 0
    return {
        "doc_id": f"d{draw(st.integers(0, 10**6))}",
        "doc_index": draw(st.integers(0, 99)),
        "gold": 0,
        "golds": [],
        "contexts": [draw(TOKENS) for _ in range(count)],
        "continuations": continuations,
        "unconditional_context": [0],
        "unconditional": continuations if draw(st.booleans()) else [],
        "prompt": draw(TOKENS),
        "choice_chars": [len(c) for c in continuations],
        "choice_bytes": [len(c) + 1 for c in continuations],
        "choices": ["x"] * len(continuations),
        "references": [],
        "shots": 0,
        "shots_dropped": 0,
        "truncated_tokens": draw(st.integers(0, 3)),
        "flags": ["overflow"] if overflow else [],
    }


def table_of(rows: list[dict]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=REQUEST_SCHEMA)

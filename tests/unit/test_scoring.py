"""Requests to batches to rows, against a version that does one example at a time."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalcore.prompting import REQUEST_SCHEMA
from evalcore.scoring import example_rows, generate_requests, score_requests
from evalcore.store import EXAMPLE_SCHEMA
from evalcore.types import GenerateResult, GenerationSettings, ScoreBatch, ScoreResult

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
        "contexts": [draw(TOKENS) for _ in range(count)],
        "continuations": continuations,
        "choice_chars": [len(c) for c in continuations],
        "choice_bytes": [len(c) + 1 for c in continuations],
        "choices": ["x"] * len(continuations),
        "references": [],
        "shots": 0,
        "shots_dropped": 0,
        "flags": ["overflow"] if overflow else [],
    }


def table_of(rows: list[dict]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=REQUEST_SCHEMA)


def pairs_of(row: dict) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """What one example asks for, one choice at a time."""
    if "overflow" in row["flags"]:
        return []
    shared = len(row["contexts"]) == 1
    return [
        (tuple(row["contexts"][0 if shared else j]), tuple(continuation))
        for j, continuation in enumerate(row["continuations"])
    ]


def logprob(context: tuple[int, ...], continuation: tuple[int, ...]) -> float:
    """Stands for a model: any function of the tokens, few different values so that ties occur."""
    return -float((sum(context) + 2 * sum(continuation)) % 3)


def answer(batch: ScoreBatch) -> ScoreResult:
    """The stand-in's answer; each token carries an equal part of its continuation's value."""
    parts: list[float] = []
    for i in range(batch.num_continuations):
        tokens = batch.continuation(i)
        context = batch.context(int(batch.continuation_context[i]))
        value = logprob(tuple(context.tolist()), tuple(tokens.tolist()))
        parts += [value / len(tokens)] * len(tokens)
    n = batch.num_contexts
    return ScoreResult(
        np.asarray(parts, dtype=np.float64),
        np.arange(batch.num_continuations) % 2 == 0,
        np.arange(1, n + 1, dtype=np.int64),
        np.zeros(n, dtype=np.int64),
    )


@given(st.lists(examples(), max_size=12))
def test_every_distinct_request_stands_once_and_finds_its_choices(rows: list[dict]) -> None:
    found = score_requests(table_of(rows))
    batch = found.batch
    contexts = [tuple(batch.context(i).tolist()) for i in range(batch.num_contexts)]
    assert contexts == sorted(set(contexts)), "each context once, in prefix order"
    owners = batch.continuation_context
    assert (np.diff(owners) >= 0).all()
    have = [
        (contexts[owners[i]], tuple(batch.continuation(i).tolist()))
        for i in range(batch.num_continuations)
    ]
    wanted = [pairs_of(row) for row in rows]
    assert len(have) == len(set(have))
    assert set(have) == {pair for pairs in wanted for pair in pairs}
    for e, pairs in enumerate(wanted):
        own = found.slots[found.choice_offsets[e] : found.choice_offsets[e + 1]]
        assert [have[slot] for slot in own] == pairs
    for i, context in enumerate(contexts):
        users = [e for e, pairs in enumerate(wanted) if any(context == c for c, _ in pairs)]
        assert found.context_owner[i] == users[0]


@given(st.lists(examples(), min_size=1, max_size=8), st.integers(0, 8))
def test_rows_equal_one_example_at_a_time(rows: list[dict], cut: int) -> None:
    """Two cells in one unit: the rows of each, wherever the unit is cut."""
    cut = min(cut, len(rows))
    found = score_requests(table_of(rows))
    answers = answer(found.batch)
    out = []
    for cell, first, part in (("a", 0, rows[:cut]), ("b", cut, rows[cut:])):
        made = example_rows(cell, table_of(part), found, answers, first, predict=True)
        assert made.schema == EXAMPLE_SCHEMA
        out += made.to_pylist()
    assert [row["cell"] for row in out] == ["a"] * cut + ["b"] * (len(rows) - cut)
    for row, made in zip(rows, out, strict=True):
        pairs = pairs_of(row)
        values = [logprob(*pair) for pair in pairs]
        assert made["choice_logprobs"] == pytest.approx(values)
        assert made["choice_tokens"] == [len(continuation) for _, continuation in pairs]
        # Sums of equal thirds round: an arg max is compared where the margin is real.
        clear = len(values) == 1 or len(set(values)) == len(values)
        if not values:
            assert made["prediction"] == -1
        elif clear:
            assert made["prediction"] == max(range(len(values)), key=values.__getitem__)
        assert made["doc_id"] == row["doc_id"]
        assert made["text"] is None
    assert sum(row["computed_tokens"] for row in out) == int(answers.computed_tokens.sum())


def test_the_first_of_tied_choices_wins() -> None:
    row = {
        "doc_id": "d", "doc_index": 0, "gold": 1, "contexts": [[1]], "continuations": [[2], [2]],
        "choice_chars": [1, 1], "choice_bytes": [1, 1], "choices": ["x", "x"], "references": [],
        "shots": 0, "shots_dropped": 0, "flags": [],
    }  # fmt: skip
    found = score_requests(table_of([row]))
    assert found.batch.num_continuations == 1
    made = example_rows("c", table_of([row]), found, answer(found.batch), 0, predict=True)
    assert made["prediction"].to_pylist() == [0]


@given(st.lists(examples(), min_size=1, max_size=8))
def test_generated_texts_find_their_examples(rows: list[dict]) -> None:
    table = table_of(rows)
    requests = generate_requests(table, GenerationSettings())
    contexts = [
        tuple(requests.batch.context(i).tolist()) for i in range(requests.batch.num_contexts)
    ]
    assert contexts == sorted(set(contexts))
    n = len(contexts)
    result = GenerateResult(
        [str(context) for context in contexts],
        [len(context) for context in contexts],
        ["stop"] * n,
        np.ones(n, dtype=np.int64),
        np.zeros(n, dtype=np.int64),
    )
    scored = score_requests(table)
    made = example_rows(
        "c", table, scored, answer(scored.batch), 0, predict=False, generated=(requests, result)
    ).to_pylist()
    for row, example in zip(rows, made, strict=True):
        usable = "overflow" not in row["flags"]
        assert example["text"] == (str(tuple(row["contexts"][0])) if usable else None)
        assert example["finish_reason"] == ("stop" if usable else None)
        assert example["prediction"] == -1


def test_an_empty_table_is_an_empty_batch() -> None:
    found = score_requests(table_of([]))
    assert found.batch.num_contexts == 0
    assert found.batch.num_continuations == 0
    made = example_rows("c", table_of([]), found, answer(found.batch), 0, predict=True)
    assert made.num_rows == 0

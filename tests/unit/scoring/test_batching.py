"""Requests to batches to rows, against a version that does one example at a time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evalcore.engines.protocol import OneByOne
from evalcore.scoring import example_rows, generate_requests, score_requests
from evalcore.scoring.answers import constrained_choice, written_choice
from evalcore.scoring.generating import score_and_generate
from evalcore.store import EXAMPLE_SCHEMA
from evalcore.types import (
    GenerateBatch,
    GenerateResult,
    GenerationSettings,
    ScoreBatch,
    ScoreResult,
    flatten,
)
from tests.toys.requests import TOKENS, examples, table_of


def pairs_of(row: dict) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """What one example asks for, one choice at a time."""
    if "overflow" in row["flags"]:
        return []
    shared = len(row["contexts"]) == 1
    return [
        (tuple(row["contexts"][0 if shared else j]), tuple(continuation))
        for j, continuation in enumerate(row["continuations"])
    ]


def bare_pairs_of(row: dict) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """What it asks for after an empty context."""
    if "overflow" in row["flags"]:
        return []
    return [((0,), tuple(continuation)) for continuation in row["unconditional"]]


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


@settings(max_examples=50, deadline=None)
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
    bare = [bare_pairs_of(row) for row in rows]
    assert len(have) == len(set(have))
    assert set(have) == {pair for pairs in wanted + bare for pair in pairs}
    for e, pairs in enumerate(bare):
        start, stop = found.unconditional_offsets[e : e + 2]
        assert [have[slot] for slot in found.unconditional_slots[start:stop]] == pairs
    for e, pairs in enumerate(wanted):
        own = found.slots[found.choice_offsets[e] : found.choice_offsets[e + 1]]
        assert [have[slot] for slot in own] == pairs
    for i, context in enumerate(contexts):
        users = [
            e
            for e, (pairs, alone) in enumerate(zip(wanted, bare, strict=True))
            if any(context == c for c, _ in pairs + alone)
        ]
        assert found.context_owner[i] == users[0]


@settings(max_examples=50, deadline=None)
@given(st.lists(examples(), min_size=1, max_size=8), st.integers(0, 8))
def test_rows_equal_one_example_at_a_time(rows: list[dict], cut: int) -> None:
    """Two cells in one unit: the rows of each, wherever the unit is cut."""
    cut = min(cut, len(rows))
    found = score_requests(table_of(rows))
    answers = answer(found.batch)
    out = []
    for cell, first, part in (("a", 0, rows[:cut]), ("b", cut, rows[cut:])):
        made = example_rows(cell, table_of(part), found, answers, first, answer="choices")
        assert made.schema == EXAMPLE_SCHEMA
        out += made.to_pylist()
    assert [row["cell"] for row in out] == ["a"] * cut + ["b"] * (len(rows) - cut)
    for row, made in zip(rows, out, strict=True):
        pairs = pairs_of(row)
        values = [logprob(*pair) for pair in pairs]
        assert made["choice_logprobs"] == pytest.approx(values)
        bare = [logprob(*pair) for pair in bare_pairs_of(row)]
        assert made["unconditional_logprobs"] in (None, []) or bare
        assert (made["unconditional_logprobs"] or []) == pytest.approx(bare)
        assert made["truncated_tokens"] == row["truncated_tokens"]
        everything = row["contexts"] + row["continuations"] + row["unconditional"]
        assert made["prompt_tokens"] == sum(map(len, everything))
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
    made = example_rows("c", table_of([row]), found, answer(found.batch), 0, answer="choices")
    assert made["prediction"].to_pylist() == [0]


@settings(max_examples=50, deadline=None)
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
        [f"raw {context}" for context in contexts],
    )
    scored = score_requests(table)
    made = example_rows(
        "c", table, scored, answer(scored.batch), 0, generated=(requests, result)
    ).to_pylist()
    for row, example in zip(rows, made, strict=True):
        usable = "overflow" not in row["flags"]
        assert example["text"] == (str(tuple(row["prompt"])) if usable else None)
        assert example["raw_text"] == (f"raw {tuple(row['prompt'])}" if usable else None)
        assert example["finish_reason"] == ("stop" if usable else None)
        assert example["prediction"] == -1


def test_an_empty_table_is_an_empty_batch() -> None:
    found = score_requests(table_of([]))
    assert found.batch.num_contexts == 0
    assert found.batch.num_continuations == 0
    made = example_rows("c", table_of([]), found, answer(found.batch), 0, answer="choices")
    assert made.num_rows == 0


# --- ways of answering --------------------------------------------------------------------------


def slow_constrained(choices: list[tuple[int, ...]], step: dict[tuple[int, ...], float]) -> int:
    """The brute-force twin: writes token by token, looking every possible next text up.

    ``step`` maps a text (token ids so far and the next one) to the probability of its last token.
    """
    written: tuple[int, ...] = ()
    while True:
        nexts = []  # (probability, order) of what may be written
        for token in dict.fromkeys(
            choice[len(written)]
            for choice in choices
            if choice[: len(written)] == written and len(choice) > len(written)
        ):
            nexts.append((step[(*written, token)], token))
        best = max((p for p, _ in nexts), default=0.0)
        if written in choices and 1.0 - sum(p for p, _ in nexts) >= best:
            return choices.index(written)
        written = (*written, next(token for p, token in nexts if p == best))


@settings(max_examples=100, deadline=None)
@given(st.lists(TOKENS.map(tuple), min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_constrained_answers_equal_brute_force(choices: list[tuple[int, ...]], random: Any) -> None:
    step: dict[tuple[int, ...], float] = {}
    for choice in choices:
        for end in range(1, len(choice) + 1):
            # Four tokens share at most the whole probability; few values, so that ties occur.
            step.setdefault(choice[:end], random.choice([0.05, 0.1, 0.2, 0.25]))
    values = [[math.log(step[c[:end]]) for end in range(1, len(c) + 1)] for c in choices]
    assert constrained_choice(choices, values) == slow_constrained(choices, step)


def test_constrained_answers_are_written_not_ranked() -> None:
    # The best first token leads to the choice with the smaller whole probability.
    tokens = [[1, 2], [3, 4]]
    values = [[-0.5, -5.0], [-1.0, -0.1]]
    assert constrained_choice(tokens, values) == 0
    assert sum(values[0]) < sum(values[1])
    # "1" is complete, going on to "1 2" has most of the probability, or little of it.
    assert constrained_choice([[1], [1, 2]], [[-0.1], [-0.1, -0.2]]) == 1
    assert constrained_choice([[1], [1, 2]], [[-0.1], [-0.1, -2.0]]) == 0
    assert constrained_choice([], []) == -1


def test_constrained_rows_use_the_tokens_of_the_batch() -> None:
    row = {
        "doc_id": "d", "doc_index": 0, "gold": 1, "contexts": [[1]],
        "continuations": [[2, 2], [3, 3]], "choice_chars": [1, 1], "choice_bytes": [1, 1],
        "choices": ["x", "y"], "references": [], "shots": 0, "shots_dropped": 0, "flags": [],
    }  # fmt: skip
    found = score_requests(table_of([row, {**row, "flags": ["overflow"]}]))
    values = np.array([-1.0, -1.0, -0.5, -9.0])
    one = np.ones(1, dtype=np.int64)
    result = ScoreResult(values, np.zeros(2, dtype=bool), one, one)
    table = table_of([row, {**row, "flags": ["overflow"]}])
    chosen = {
        way: example_rows("c", table, found, result, 0, answer=way)["prediction"].to_pylist()
        for way in ("choices", "first_token", "constrained", None)
    }
    assert chosen == {
        "choices": [0, -1], "first_token": [0, -1], "constrained": [1, -1], None: [-1, -1]
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (" yes", 0),
        ("Yes, it is", 0),
        ("**YES**", 0),
        ("yesterday", -1),
        ("no", 1),
        ("not entailment", 2),
        ("Not  entailment", -1),
        ("notes", -1),
        ("", -1),
        ("\n", -1),
        ("the answer is yes", -1),
        ('"no".', 1),
    ],
)
def test_free_answers(text: str, found: int) -> None:
    choices = ["yes", "no", "not entailment"]
    assert written_choice(text, choices) == found


def test_free_answers_by_letter_and_by_sign() -> None:
    letters = ["A", "B", "C"]
    assert [written_choice(t, letters) for t in (" B.", "b) the", "(C)", "Apple", "A dog")] == [
        1, 1, 2, -1, 0,
    ]  # fmt: skip
    assert written_choice("+ 3", ["-", "+"]) == 1
    assert written_choice("yes", ["Yes", "yes"]) == 0
    assert written_choice("yes", []) == -1


@pytest.mark.parametrize(
    ("choices", "texts"),
    [
        (["C", "C++", "C#"], {"C++": 1, "**C++**": 1, "c# is": 2, "C": 0, "C.": 0, "(C)": 0}),
        (["1", "-1"], {"-1": 1, "**-1**": 1, " 1": 0, "- 1": 0, "1.": 0, "--1": -1, "\u22121": -1}),
        (["2", "3"], {"2.5": -1, "2,000": -1, "-2": -1, ".2": -1, "2. So": 0, "3, 2": 1, "$3": 1}),
        (["2", "2.5", ".5"], {"2.5": 1, "2": 0, ".5": 2, "5": -1}),
        (["-1", "-2"], {"1": -1, "-2": 1}),
        (["(a)", "(b)"], {"b": 1, "(B)": 1, "a) x": 0}),
        (
            ["yes", "no"],
            {"\u200fyes": 0, "\ufeffno": 1, "“no”": 1, "«yes»": 0, "\x00yes": 0, "、no": 1},
        ),
        (["sí", "no"], {"¿sí?": 0, "¡No!": 1, "sín": -1, "\u00a0\u2060sí\u200b": 0}),
        (["👍", "👎\ufe0f"], {"👎": 1, "👍\ufe0f": 0, "no 👍": -1}),
        (["是", "不是"], {"是的": 0, "不是": 1, "不是。": 1, "「是」": 0, "不": -1, "好": -1}),
        (["ใช่", "ไม่"], {"ใช่ครับ": 0, "ไม่ใช่": 1}),
        (["はい", "いいえ"], {"はいそうです": 0}),
        (["예", "아니오"], {"예": 0, "예입니다": -1}),
        (["-", "1"], {"- 1": 0, "1 -": 1, "*-": -1}),
    ],
)
def test_free_answers_as_they_are_written(choices: list[str], texts: dict[str, int]) -> None:
    assert {text: written_choice(text, choices) for text in texts} == texts


def test_free_rows_take_the_written_choice() -> None:
    rows = [
        {"doc_id": f"d{i}", "doc_index": i, "gold": 0, "contexts": [[i]], "continuations": [[2]],
         "prompt": [i], "choice_chars": [1], "choice_bytes": [1], "choices": ["yes", "no"],
         "references": [], "shots": 0, "shots_dropped": 0, "flags": flags}
        for i, flags in enumerate([[], [], ["overflow"]])
    ]  # fmt: skip
    table = table_of(rows)
    scored = score_requests(table)
    requests = generate_requests(table, GenerationSettings(5))
    two = np.ones(2, dtype=np.int64)
    result = GenerateResult([" No.", "maybe"], [2, 2], ["stop", "length"], two, two)
    made = example_rows(
        "c", table, scored, answer(scored.batch), 0, answer="free", generated=(requests, result)
    )
    assert made["prediction"].to_pylist() == [1, -1, -1]
    assert made["raw_text"].to_pylist() == [None] * 3


class Parrot(OneByOne):
    """Says what it is told to, past any stop string; remembers what it was asked."""

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts
        self.asked: list[GenerationSettings] = []

    def score(self, batch: ScoreBatch) -> ScoreResult:
        none = np.zeros(0, dtype=np.int64)
        return ScoreResult(np.zeros(0), np.zeros(0, dtype=bool), none, none)

    def generate(self, batch: GenerateBatch) -> GenerateResult:
        self.asked.append(batch.settings)
        n = len(self.texts)
        none = np.zeros(n, dtype=np.int64)
        return GenerateResult(list(self.texts), [7] * n, ["length"] * n, none, none)


def test_running_on_keeps_both_texts() -> None:
    engine = Parrot(["one\ntwo", "three"])
    contexts = flatten([[1], [2]])
    batches = [
        GenerateBatch(*contexts, GenerationSettings(8, ("\n",), run_on=True)),
        GenerateBatch(*contexts, GenerationSettings(8, ("\n",))),
    ]
    _, (cut, plain) = score_and_generate(engine, ScoreBatch.from_lists([]), batches)  # type: ignore[arg-type]
    assert engine.asked == [batch.settings for batch in batches]  # engines know what runs on
    assert cut.texts == ["one", "three"]
    assert cut.raw_texts == ["one\ntwo", "three"]
    assert cut.finish_reasons == ["run_on", "length"]
    assert cut.token_counts == [7, 7]
    assert plain.texts == ["one\ntwo", "three"]
    assert plain.raw_texts == []


def test_thinking_is_no_answer() -> None:
    engine = Parrot(
        ["<think>\nwell\n</think>\n\nyes\nno", "maybe\nnot", "\n<think>so\nmuch", "a</think>"]
    )
    how = GenerationSettings(8, ("\n",), think_end="</think>")
    batch = GenerateBatch(*flatten([[1], [2], [3], [4]]), how)
    _, (cut,) = score_and_generate(engine, ScoreBatch.from_lists([]), [batch])  # type: ignore[arg-type]
    assert cut.texts == ["yes", "maybe", "", ""]
    assert cut.raw_texts == engine.texts
    assert cut.finish_reasons == ["run_on", "run_on", "empty", "empty"]

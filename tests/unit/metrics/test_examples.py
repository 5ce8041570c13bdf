"""Per-document values against slow, plain versions of the same definitions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evalcore.errors import UnknownNameError
from evalcore.metrics import METRICS, example_values
from evalcore.metrics.text import rouge_pair

COLUMNS = pa.schema(
    [
        ("gold", pa.int32()),
        ("choice_logprobs", pa.list_(pa.float64())),
        ("choice_bytes", pa.list_(pa.int32())),
        ("choice_chars", pa.list_(pa.int32())),
        ("is_greedy", pa.list_(pa.bool_())),
        ("unconditional_logprobs", pa.list_(pa.float64())),
        ("prediction", pa.int32()),
        ("raw_text", pa.string()),
        ("text", pa.string()),
        ("references", pa.list_(pa.string())),
        ("finish_reason", pa.string()),
        ("flags", pa.list_(pa.string())),
    ]
)


def table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=COLUMNS)


def slow_argmax(values: list[float]) -> int:
    best = 0
    for i, value in enumerate(values):
        if value > values[best]:
            best = i
    return best


def slow_value(row: dict[str, Any], metric: str) -> float:
    """What one row is worth, one row at a time, in plain Python."""
    if "overflow" in (row["flags"] or []):
        return math.nan
    logprobs, gold = row["choice_logprobs"] or [], row["gold"]
    if metric in ("acc", "acc_norm", "acc_bytes"):
        if not logprobs or gold < 0:
            return math.nan
        sizes = {"acc": None, "acc_norm": "choice_chars", "acc_bytes": "choice_bytes"}[metric]
        per = [1.0] * len(logprobs) if sizes is None else row[sizes]
        return float(slow_argmax([a / b for a, b in zip(logprobs, per, strict=True)]) == gold)
    if metric == "gold_prob":
        if not 0 <= gold < len(logprobs):
            return math.nan
        top = max(logprobs)
        return math.exp(logprobs[gold] - top) / sum(math.exp(v - top) for v in logprobs)
    index = 0 if gold < 0 and len(logprobs) == 1 else gold
    if not 0 <= index < len(logprobs):
        return math.nan
    if metric == "gold_logprob":
        return logprobs[index]
    return -logprobs[index] / math.log(2) / row["choice_bytes"][index]


choice_rows = st.integers(0, 5).flatmap(
    lambda k: st.fixed_dictionaries(
        {
            "gold": st.integers(-1, max(k - 1, -1)),
            # Few distinct values, so that ties happen.
            "choice_logprobs": st.lists(
                st.sampled_from([-1.0, -2.0, -3.5, -40.0]), min_size=k, max_size=k
            ),
            "choice_bytes": st.lists(st.integers(1, 9), min_size=k, max_size=k),
            "choice_chars": st.lists(st.integers(1, 9), min_size=k, max_size=k),
            "flags": st.sampled_from([[], None, ["overflow"], ["shots_dropped"]]),
        }
    )
)


@settings(max_examples=60, deadline=None)
@given(st.lists(choice_rows, max_size=12))
def test_choice_metrics_equal_the_plain_version(rows: list[dict[str, Any]]) -> None:
    for metric in ("acc", "acc_norm", "acc_bytes", "gold_prob", "gold_logprob",
                   "gold_bits_per_byte"):  # fmt: skip
        expected = [slow_value(row, metric) for row in rows]
        np.testing.assert_allclose(
            example_values(table(rows), metric), expected, rtol=1e-12, err_msg=metric
        )


def test_slices_and_chunks_change_nothing() -> None:
    rows = [
        {"gold": i % 3, "choice_logprobs": [-1.0 - i, -2.0, -3.0 + i], "choice_bytes": [1, 2, 3],
         "choice_chars": [1, 2, 3], "flags": ["overflow"] if i == 4 else []}
        for i in range(9)
    ]  # fmt: skip
    whole = table(rows)
    chunked = pa.concat_tables([whole.slice(0, 2), whole.slice(2, 0), whole.slice(2)])
    for metric in ("acc", "acc_norm", "gold_prob"):
        wanted = example_values(whole, metric)
        np.testing.assert_array_equal(example_values(chunked, metric), wanted)
        np.testing.assert_array_equal(example_values(whole.slice(3, 5), metric), wanted[3:8])
    assert example_values(whole.slice(0, 0), "acc").shape == (0,)


def test_first_of_tied_choices_wins_and_lengths_decide_acc_norm() -> None:
    tie = {"gold": 1, "choice_logprobs": [-2.0, -2.0], "choice_chars": [2, 1], "flags": []}
    assert example_values(table([tie]), "acc").tolist() == [0.0]
    # Per character the first choice has -1.0, the second -2.0.
    assert example_values(table([{**tie, "gold": 0}]), "acc_norm").tolist() == [1.0]


def test_an_unknown_logprob_is_not_scored_as_wrong() -> None:
    row = {"gold": 0, "choice_logprobs": [math.nan, -1.0], "choice_bytes": [1, 1], "flags": []}
    assert np.isnan(example_values(table([row]), "acc")).all()
    assert np.isnan(example_values(table([row]), "gold_prob")).all()


def test_gold_prob_survives_very_small_probabilities() -> None:
    row = {"gold": 0, "choice_logprobs": [-5000.0, -5001.0], "flags": []}
    assert example_values(table([row]), "gold_prob")[0] == pytest.approx(1 / (1 + math.exp(-1)))


def generated(text: str | None, references: list[str], **more: Any) -> pa.Table:
    return table([{"gold": -1, "text": text, "references": references, "flags": [], **more}])


def test_rouge_is_the_library_on_raw_text_best_reference() -> None:
    from rouge_score import rouge_scorer

    text, references = "The cats were running home", ["a dog sat", "the cat ran to its home"]
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    for metric, name in (("rouge_1", "rouge1"), ("rouge_2", "rouge2"), ("rouge_l", "rougeL")):
        best = max(scorer.score(r, text)[name].fmeasure for r in references)
        assert example_values(generated(text, references), metric)[0] == pytest.approx(best)
    assert example_values(generated(text, references), "rouge_l")[0] > 0.3


def test_rouge_l_by_hand() -> None:
    # Longest common subsequence "a c e" = 3 of 4 and 5 words: 2 * 3 / 9.
    assert rouge_pair("xa xc xq xe", "xa xb xc xd xe")["rouge_l"] == pytest.approx(2 * 3 / 9)
    nothing = {"rouge_1": 0.0, "rouge_2": 0.0, "rouge_l": 0.0}
    assert rouge_pair("", "xa") == rouge_pair("  ", "xa") == nothing


def test_rouge_lsum_joins_lines_where_rouge_l_takes_one_sequence() -> None:
    # Lines in another order: the longest common subsequence of the whole is one line.
    text, references = "xd xe xf\nxa xb xc", ["xa xb xc\nxd xe xf"]
    table = generated(text, references)
    assert example_values(table, "rouge_l")[0] == pytest.approx(0.5)
    assert example_values(table, "rouge_lsum")[0] == pytest.approx(1.0)
    one_line = generated(text.replace("\n", " "), [references[0].replace("\n", " ")])
    assert example_values(one_line, "rouge_lsum")[0] == pytest.approx(0.5)


def test_raw_rouge_sees_what_the_stop_cut_off() -> None:
    table = generated("a cat", ["a cat"], raw_text="a cat\na dog\na horse")
    assert example_values(table, "rouge_l")[0] == 1
    assert example_values(table, "rouge_l_raw")[0] == pytest.approx(2 * 2 / (2 + 6))
    assert np.isnan(example_values(generated("a cat", ["a cat"]), "rouge_1_raw")[0])


def test_text_metrics() -> None:
    assert example_values(generated(" Yes\n", ["no", "Yes"]), "exact_match")[0] == 1
    assert example_values(generated("yes", ["Yes"]), "exact_match")[0] == 0
    # Articles and punctuation go; shared {big, cat} of 3 and 2 words: 2 * 2 / 5.
    got = example_values(generated("the big, fat cat!", ["A big cat"]), "token_f1")[0]
    assert got == pytest.approx(0.8)
    assert np.isnan(example_values(generated(None, ["a"]), "rouge_l")[0])
    assert np.isnan(example_values(generated("a", []), "rouge_l")[0])
    assert example_values(generated("", ["word"]), "token_f1")[0] == 0


def test_valid_and_greedy() -> None:
    reasons = ["stop", "length", None]
    rows = [{"gold": -1, "finish_reason": r, "flags": []} for r in reasons]
    np.testing.assert_array_equal(example_values(table(rows), "valid"), [1, 0, np.nan])
    row = {"gold": -1, "choice_logprobs": [-3.0], "is_greedy": [True], "flags": []}
    assert example_values(table([row]), "greedy_match")[0] == 1


def test_overflow_rows_are_never_scored() -> None:
    row = {"gold": 0, "choice_logprobs": [-1.0, -2.0], "choice_bytes": [1, 1],
           "choice_chars": [1, 1], "is_greedy": [True, False], "text": "a", "raw_text": "a b",
           "references": ["a"], "unconditional_logprobs": [-1.0, -1.0], "finish_reason": "stop",
           "flags": ["shots_dropped", "overflow"]}  # fmt: skip
    for metric in (name for name, found in METRICS.items() if found.values is not None):
        assert np.isnan(example_values(table([row]), metric)[0]), metric
        assert not np.isnan(example_values(table([{**row, "flags": []}]), metric)[0]), metric


def test_unknown_metric_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="acc_norm"):
        example_values(table([]), "acc_nrom")
    with pytest.raises(UnknownNameError, match="per cell only"):
        example_values(table([]), "mcc")


def test_rouge_in_three_readings() -> None:
    """rouge-score's own, without its stemmer, and with the letters of every script."""
    from rouge_score import rouge_scorer

    from evalcore.metrics.text import rouge

    text, reference = "The dogs were running.", "a dog runs"
    plain = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)
    assert rouge(text, [reference], "rouge_l") > 0
    assert rouge(text, [reference], "rouge_l", "plain") == 0.0
    for one, other in ((text, "The dogs ran"), ("a b c d", "a c d e")):
        wanted = plain.score(other, one)["rougeL"].fmeasure
        assert rouge(one, [other], "rouge_l", "plain") == pytest.approx(wanted)
        assert rouge(one, [other], "rouge_l", "unicode") == pytest.approx(wanted)
    for written, said in (
        ("Собака бежит", "собака спит"), ("कुत्ता दौड़ता है", "कुत्ता सोता है"), ("狗在跑", "狗在睡"),
        ("สุนัขวิ่ง", "สุนัขนอน"), ("الكلب يجري", "الكلب ينام"), ("ΣΚΎΛΟΣ", "σκύλος"),
    ):  # fmt: skip
        assert rouge(written, [said], "rouge_l") == 0.0
        assert 0 < rouge(written, [said], "rouge_l", "unicode") <= 1
        assert rouge(written, [written], "rouge_l", "unicode") == 1.0


def test_words_of_scripts_with_marks_and_without_spaces() -> None:
    from evalcore.tasks.rouge import UnicodeWords

    words = UnicodeWords().tokenize
    assert words("कुत्ता दौड़ता है।") == ["कुत्ता", "दौड़ता", "है"]
    assert words("犬は走る, Tokyo-2") == ["犬", "は", "走", "る", "tokyo", "2"]
    assert words("Don’t ｆｕｌｌ") == ["don", "t", "full"]

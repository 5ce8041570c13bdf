"""Choices that stand for several texts: put together as they should be, by hand and end to end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from evalcore.errors import DefinitionError, InputError
from evalcore.identity import load_tokenizer
from evalcore.prompting import encode_task, gold_target, load_variants, render
from evalcore.scoring.batching import score_requests
from evalcore.scoring.rows import example_rows
from evalcore.tasks import select_tasks
from evalcore.types import Document, EncodingSettings, ScoreResult

RTE = select_tasks("rte")[0]
DOCS = [
    Document(
        id=f"doc{i}", index=i, fields={"premise": f"The mill {i}.", "hypothesis": f"A wheel {i}."},
        choices=("entailment", "not_entailment"), gold=i % 2,
    )
    for i in range(6)
]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory, make_tokenizer: Callable[..., Path]) -> Any:
    return load_tokenizer(make_tokenizer(tmp_path_factory.mktemp("tokenizer"), "bpe"))


def variant(name: str = "default") -> Any:
    return load_variants("nli", name)[0]


def answered(table: pa.Table, logprob: dict[str, float], tokenizer: Any, **more: Any) -> pa.Table:
    """Rows of a table whose engine gives each text (stripped) a log-probability."""
    scored = score_requests(table)
    batch = scored.batch
    values = np.zeros(len(batch.continuation_tokens))
    for m in range(len(batch.continuation_offsets) - 1):
        text = tokenizer.decode(batch.continuation(m)).strip()
        begin, end = batch.continuation_offsets[m : m + 2]
        values[begin:end] = logprob[text] / (end - begin)
    count = len(batch.continuation_offsets) - 1
    zeros = np.zeros(batch.num_contexts, dtype=np.int64)
    result = ScoreResult(values, np.zeros(count, dtype=bool), zeros, zeros)
    return example_rows("cell", table, scored, result, 0, **more)


def test_a_perfect_inference_model_is_right_about_rte(tokenizer: Any) -> None:
    """It never says not_entailment; neutral and contradiction together are what it means."""
    table = encode_task(RTE, variant(), DOCS, [], tokenizer, EncodingSettings())
    assert table["choice_owners"].to_pylist() == [[0, 1, 1]] * 6
    says = {"entailment": np.log(0.4), "neutral": np.log(0.35), "contradiction": np.log(0.25)}
    rows = answered(table, says, tokenizer, answer="choices")
    assert rows["prediction"].to_pylist() == [1] * 6  # .60 against .40, though .40 is the largest
    logprobs = np.array(rows["choice_logprobs"].to_pylist())
    assert np.exp(logprobs) == pytest.approx(np.tile([0.4, 0.6], (6, 1)))
    # Lengths are those of the most probable text.
    assert rows["choice_chars"].to_pylist() == [[10, 7]] * 6
    literal = encode_task(RTE, variant("literal"), DOCS, [], tokenizer, EncodingSettings())
    assert literal["choice_owners"].null_count == 6
    rows = answered(literal, {"entailment": -1.0, "not_entailment": -20.0}, tokenizer,
                    answer="choices")  # fmt: skip
    assert rows["prediction"].to_pylist() == [0] * 6


def test_decoded_answers_name_the_choice_a_text_is_of(tokenizer: Any) -> None:
    way = replace(variant(), answer="constrained")
    table = encode_task(RTE, way, DOCS, [], tokenizer, EncodingSettings())
    says = {"entailment": -3.0, "neutral": -2.0, "contradiction": -0.5}
    rows = answered(table, says, tokenizer, answer="constrained")
    assert rows["prediction"].to_pylist() == [1] * 6


def test_texts_with_the_same_tokens_count_once(tokenizer: Any) -> None:
    """answer=first_token: texts of one choice may begin alike; of two choices they may not."""
    words = (("entailment", "yes"), ("not_entailment", ("no", "nobody")))
    way = replace(variant(), label_words=words, answer="first_token")
    heads = {
        w: tokenizer(f" {w}", add_special_tokens=False)["input_ids"][0] for w in ("no", "nobody")
    }
    if heads["no"] != heads["nobody"]:
        pytest.skip("this tokenizer tells them apart")
    table = encode_task(RTE, way, DOCS, [], tokenizer, EncodingSettings())
    scored = score_requests(table)
    slots = scored.slots[:3]
    assert slots[1] == slots[2]
    count = len(scored.batch.continuation_offsets) - 1
    zeros = np.zeros(scored.batch.num_contexts, dtype=np.int64)
    result = ScoreResult(np.full(count, -1.0), np.zeros(count, dtype=bool), zeros, zeros)
    rows = example_rows("cell", table, scored, result, 0, answer="first_token")
    assert rows["choice_logprobs"].to_pylist()[0] == pytest.approx([-1.0, -1.0])
    wrong = replace(way, label_words=(("entailment", "nobody"), ("not_entailment", ("no", "yes"))))
    with pytest.raises(InputError, match="cannot tell"):
        encode_task(RTE, wrong, DOCS, [], tokenizer, EncodingSettings())


def test_shots_and_training_show_one_text_by_the_rows_own_draw() -> None:
    many = [replace(DOCS[1], id=f"row{i}") for i in range(60)]
    shown = [gold_target(RTE, variant(), doc) for doc in many]
    assert set(shown) == {"neutral", "contradiction"}
    assert shown == [gold_target(RTE, variant(), doc) for doc in many]
    assert 15 < shown.count("neutral") < 45
    assert gold_target(RTE, variant(), DOCS[0]) == "entailment"
    text = render(RTE, variant("letters"), DOCS[0]).context
    assert "neutral or contradiction" in text
    assert render(RTE, variant("letters"), DOCS[0]).owners == ()


def test_no_text_may_stand_for_two_labels(tmp_path: Path) -> None:
    definition = """
name: t
version: 1
group: nli
output_type: multiple_choice
source: {generator: pocket, dataset: nli}
splits: {score: test}
fields: {premise: a, hypothesis: b}
choices: {labels: [yes_, no_], words: {no_: %s}}
gold: {column: label}
metrics: [acc]
primary: acc
"""
    for words, wrong in (('["yes_"]', "stand for two"), ("[]", "at least one"), ('[" "]', "empty")):
        file = tmp_path / "t.yaml"
        file.write_text(definition % words)
        with pytest.raises(DefinitionError, match=wrong):
            select_tasks("t", search=[file])

"""Checks of prompts as they are asked: what no score tells afterwards."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from evalcore.prompting import REQUEST_SCHEMA, check_requests, encode_task, load_tokenizer
from evalcore.tasks import Finding, documents_from_rows
from evalcore.types import Document, EncodingSettings, Task, Variant
from tests.toys.small_tasks import WRITER, toy

VARIANT = Variant("default:shots=4", "toys", "{{ text }}", shots=4)
PLAIN = Variant("default", "toys", "{{ text }}\nAnswer:")


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer_dir: Path) -> Any:
    return load_tokenizer(tiny_tokenizer_dir)


def found(
    tokenizer: Any, task: Task, rows: list[dict[str, Any]], variant: Variant = PLAIN
) -> list[Finding]:
    documents = documents_from_rows(task, rows, "rows")
    table = encode_task(task, variant, documents, [], tokenizer, EncodingSettings())
    return check_requests(task, variant, table, documents=documents)


def labelled(*choices: str, count: int = 3) -> list[dict[str, Any]]:
    return [{"sentence": f"s{i}", "options": choices, "label": i % 2} for i in range(count)]


def requests(flags: list[list[str] | None], **columns: list[Any]) -> pa.Table:
    """Requests of rows 10, 11, ... with these flags; of choices nothing, but for ``columns``."""
    known = {
        "doc_index": [10 + i for i in range(len(flags))], "flags": flags,
        "choices": [[]] * len(flags), "choice_owners": [None] * len(flags),
        "contexts": [[[i]] for i in range(len(flags))], "continuations": [[]] * len(flags),
    } | columns  # fmt: skip
    return pa.table({n: pa.array(v, REQUEST_SCHEMA.field(n).type) for n, v in known.items()})


def test_prompts_that_do_not_fit() -> None:
    table = requests(
        [[], ["shots_dropped"], ["overflow", "shots_dropped"], None, ["truncated", "border_merged"]]
    )
    found = {f.code: f for f in check_requests(toy(), VARIANT, table, max_length=2048)}
    assert {code: (f.level, f.count, f.rows) for code, f in found.items()} == {
        "overflow": ("error", 1, (12,)),
        "shots_dropped": ("warning", 2, (11, 12)),
        "border_merged": ("warning", 1, (14,)),
        "truncated": ("warning", 1, (14,)),
    }
    assert "1 of 5 prompts (20.0%) under default:shots=4 do not fit into 2048 tokens even" in (
        found["overflow"].message
    )
    assert check_requests(toy(), VARIANT, requests([[], []])) == []


def test_choices_that_a_prompt_writes_alike() -> None:
    own = toy(choices={"column": "options"})
    choices = [["x", "y"], ["n", "n"], ["n", "n", "y"], ["s", "s"], []]
    owners = [None, None, [0, 0, 1], None, None]
    table = requests([[]] * 5, choices=choices, choice_owners=owners)
    same = Document("0" * 32, 13, {}, ("Same", "same "), 0)  # found in the data already
    variant = replace(VARIANT, target="{{ choice[:1] }}")
    (found,) = check_requests(own, variant, table, documents=[same])
    assert (found.level, found.code, found.rows) == ("warning", "equal_choices", (11,))
    assert "1 of 5 documents have two choices that default:shots=4 writes alike" in found.message
    assert check_requests(own, VARIANT, table) == []
    choices = [["a\u200f", "A"], ["C", "C++"]]
    table = requests([[], []], choices=choices)
    (found,) = check_requests(own, replace(VARIANT, answer="free"), table)
    assert (found.code, found.rows) == ("equal_choices", (10,))


def test_a_choice_that_begins_as_another_is_never_chosen(tokenizer: Any) -> None:
    """Of " A" and " A and B" the second has the smaller probability whatever is asked."""
    own = toy(choices={"column": "options"})
    for texts in (("A", "A and B"), ("yes", "yesterday"), ("b", "x", "b c")):
        (one,) = found(tokenizer, own, labelled(*texts))
        assert (one.level, one.code, one.rows) == ("warning", "prefix_choices", (0, 1, 2)), texts
        assert "acc never chooses it; answer=constrained" in one.message
    assert found(tokenizer, own, labelled("A and B", "A or B")) == []
    task = toy(choices={"labels": ["new", "new and good"]})
    rows = labelled()
    assert [f.level for f in found(tokenizer, task, rows)] == ["error"]
    by_length = toy(choices={"column": "options"}, metrics=["acc_norm"], primary="acc_norm")
    assert [f.level for f in found(tokenizer, by_length, labelled("A", "A and B"))] == ["note"]
    for other in (replace(PLAIN, answer="constrained"), replace(PLAIN, listing="letters"),
                  replace(PLAIN, target="{{ index }} {{ choice }}")):  # fmt: skip
        assert found(tokenizer, own, labelled("A", "A and B"), other) == []


def test_texts_of_one_label_may_begin_alike(tokenizer: Any) -> None:
    words = (("no", ("not", "nothing")), ("yes", "yes"))
    task = toy()
    assert found(tokenizer, task, labelled(), replace(PLAIN, label_words=words)) == []
    words = (("no", ("not", "no")), ("yes", "nothing"))
    (one,) = found(tokenizer, task, labelled(), replace(PLAIN, label_words=words))
    assert one.code == "prefix_choices"


def test_what_no_free_answer_can_be(tokenizer: Any) -> None:
    """Five tokens are written: of a longer choice its beginning, which may be another choice."""
    free = replace(PLAIN, answer="free")
    own = toy(choices={"column": "options"})
    long = "the old mill by the harbour and its baker"
    (one,) = found(tokenizer, own, labelled(long, "b"), free)
    assert (one.level, one.code, one.count) == ("warning", "out_of_reach", 3)
    assert "more than the 5 tokens that are written" in one.message
    wide = toy(choices={"column": "options"}, generation={"max_tokens": 64, "stops": [","]})
    assert found(tokenizer, wide, labelled(long, "b"), free) == []
    (one,) = found(tokenizer, wide, labelled("a, b", "c"), free)
    assert (one.code, one.count) == ("out_of_reach", 3)
    task = toy(choices={"labels": [long, "b"]})
    assert [f.level for f in found(tokenizer, task, labelled(), free)] == ["error"]


def test_references_longer_than_an_answer_may_be(tokenizer: Any) -> None:
    rows = [{"sentence": f"s{i}", "said": said} for i, said in enumerate(["a", "a b c d e f g h"])]
    short = {"generation": {"max_tokens": 4, "stops": ["\n"]}}
    (one,) = found(tokenizer, toy(WRITER, **short), rows)
    assert (one.level, one.code, one.rows) == ("warning", "out_of_reach", (1,))
    rouge = toy(WRITER, **short, metrics=["rouge_l"], primary="rouge_l")
    assert [f.level for f in found(tokenizer, rouge, rows)] == ["note"]
    assert found(tokenizer, toy(WRITER), rows) == []


def test_documents_that_are_asked_alike(tokenizer: Any) -> None:
    pair = toy(fields={"text": "sentence", "other": "second"})
    rows = [{"sentence": f"s{i // 2}", "second": f"t{i}", "label": i % 2} for i in range(6)]
    both = replace(PLAIN, template="{{ text }} {{ other }}")
    assert found(tokenizer, pair, rows, both) == []
    assert found(tokenizer, pair, rows, replace(PLAIN, template="{{ other }}")) == []
    (one,) = found(tokenizer, pair, rows, PLAIN)
    assert (one.level, one.code, one.rows) == ("warning", "same_prompt", (1, 3, 5))
    assert "leaves out other" in one.message
    (one,) = found(tokenizer, pair, rows, replace(PLAIN, template="{{ text[:0] }}Answer:"))
    assert (one.level, one.code, one.count) == ("error", "same_prompt", 6)
    assert "has to show the fields (other, text)" in one.message
    assert found(tokenizer, pair, [rows[0]] * 3, replace(PLAIN, template="{{ text }}")) == []


def test_choices_of_the_rows_tell_documents_apart(tokenizer: Any) -> None:
    own = toy(choices={"column": "options"}, fields={"text": "sentence", "topic": "topic"})
    rows = [{**row, "sentence": "s", "options": [f"a{i}", f"b{i}"], "topic": f"t{i}"}
            for i, row in enumerate(labelled())]  # fmt: skip
    (one,) = found(tokenizer, own, rows)
    assert (one.level, one.code) == ("error", "same_prompt"), "one question, whatever is asked"
    listed = replace(PLAIN, template="{{ text }}\n{{ listing }}", listing="letters")
    assert found(tokenizer, own, rows, listed) == []

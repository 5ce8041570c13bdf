"""What documents say, as far as text alone tells: answers nobody can give, or must."""

from __future__ import annotations

import unicodedata
from typing import Any

import pytest

from evalcore.tasks import Finding, check_documents, check_prefixes, documents_from_rows
from evalcore.types import Task
from tests.toys.small_tasks import WRITER, toy

OWN = {"choices": {"column": "options"}}


def found(task: Task, rows: list[dict[str, Any]]) -> dict[str, Finding]:
    documents = documents_from_rows(task, rows, "rows")
    both = [*check_documents(task, documents), *check_prefixes(task, documents)]
    return {finding.code: finding for finding in both}


def rows(count: int = 12, **columns: Any) -> list[dict[str, Any]]:
    """Rows in two classes; a column may be made of a row's number."""
    made = []
    for i in range(count):
        own = {k: v(i) if callable(v) else v for k, v in columns.items()}
        made.append({"sentence": f"s{i}", "label": i % 2, **own})
    return made


@pytest.mark.parametrize(
    ("texts", "hit"),
    [(["A", "A and B"], True), (["yes", "yesterday"], True), (["b", "x", "b c"], True),
     ([" a", "a b"], True), (["a b", "a c"], False), (["ab", "b"], False)],
)  # fmt: skip
def test_choices_that_begin_as_another(texts: list[str], hit: bool) -> None:
    """The shorter one has the larger probability, whatever is asked."""
    codes = found(toy(**OWN), rows(4, options=texts))
    assert ("prefix_choices" in codes) == hit
    if hit:
        assert (codes["prefix_choices"].level, codes["prefix_choices"].count) == ("warning", 4)
    labels = [text.strip() for text in texts]
    fixed = found(toy(choices={"labels": labels}), rows(2))
    assert [f.level for f in fixed.values() if f.code == "prefix_choices"] == ["error"] * hit
    normed = toy(**OWN, metrics=["acc_norm"], primary="acc_norm")
    codes = found(normed, rows(4, options=texts))
    assert [f.level for f in codes.values()] == ["note"] * hit


def test_words_of_labels_are_what_is_compared() -> None:
    labels = {"labels": ["a", "ab"], "words": {"a": ["one", "two"], "ab": ["three"]}}
    assert found(toy(choices=labels), rows(4)) == {}
    labels["words"] = {"a": ["one"], "ab": ["ones"]}
    assert set(found(toy(choices=labels), rows(4))) == {"prefix_choices"}


def test_a_field_that_is_the_answer() -> None:
    """The gold column stood among the fields, and every prompt told what it asked."""
    told = toy(fields={"text": "sentence", "label": "label"})
    for name in (lambda i: i % 2, lambda i: ["no", "yes"][i % 2]):
        one = found(told, rows(label=name))["answer_shown"]
        assert (one.level, one.count) == ("error", 12)
        assert "field label is the right answer in all of 12 documents" in one.message
    assert found(told, rows(9)) == {}, "so few may be so by chance"
    other = toy(fields={"text": "sentence", "hint": "hint"})
    assert found(other, rows(hint=lambda i: i % 3)) == {}
    written = toy(WRITER, fields={"text": "said"})
    assert set(found(written, rows(said=lambda i: f"a{i}"))) == {"answer_shown"}
    assert found(toy(WRITER), rows(said=lambda i: f"a{i}")) == {}


@pytest.mark.parametrize(
    ("text", "hit"),
    [('["a", "b"]', True), ("['a', \"b\"]", True), ("['a' 'b']", True), ("[{'a': 1}]", True),
     ("[1]", False), ("[a]", False), ("[sic] he said", False), ("[" * 5000 + "]" * 5000, False)],
)  # fmt: skip
def test_lists_that_were_written_as_text(text: str, hit: bool) -> None:
    """A list went through CSV: its brackets were asked and scored."""
    expected = {"list_as_text"} if hit else set()
    said = rows(said=lambda i: f"{text[:-1]}{text[-1]}")
    assert set(found(toy(WRITER), said)) - {"stop_in_reference"} == expected
    shown = rows(6, sentence=text) + rows(5)
    assert set(found(toy(), shown)) - {"duplicates", "contradictory"} == expected
    assert "list_as_text" not in found(toy(), rows(1, sentence=text) + rows(1)), "one may be so"


def test_whole_numbers_that_became_floats() -> None:
    said = rows(said=lambda i: float(i))
    assert set(found(toy(WRITER), said)) == {"numbers_as_floats"}
    for other in (lambda i: i, lambda i: i + 0.5, lambda i: f"version {i}.0"):
        assert found(toy(WRITER), rows(said=other)) == {}


def test_letters_in_parts() -> None:
    """Two texts that look alike: no answer of a model equals the reference."""
    apart = [unicodedata.normalize("NFD", text) for text in ("é", "ü", "ok")]
    one = found(toy(WRITER), rows(3, said=lambda i: f"{apart[i]}{i}"))["letters_in_parts"]
    assert (one.level, one.rows) == ("warning", (0, 1))
    few = rows(3, said=lambda i: f"{apart[max(i, 1)] if i == 1 else 'a'}{i}")
    assert found(toy(WRITER), few)["letters_in_parts"].level == "note"
    assert found(toy(WRITER), rows(3, said=lambda i: f"é{i}")) == {}
    assert found(toy(choices={"labels": apart[:2]}), rows(4))["letters_in_parts"].count == 4


def test_references_behind_a_stop_string() -> None:
    """An answer ends at the stop: of a reference of several lines none is ever all."""
    said = ["a\nb", "\na", "a\n ", "a"]
    task = toy(WRITER, generation={"max_tokens": 8, "stops": ["\n", "##"]})
    one = found(task, rows(4, said=lambda i: said[i]))["stop_in_reference"]
    assert (one.level, one.rows) == ("warning", (0,))
    assert "go on after '\\n' or '##'" in one.message
    rouge = toy(WRITER, metrics=["rouge_l"], primary="rouge_l")
    assert found(rouge, rows(4, said=lambda i: said[i]))["stop_in_reference"].level == "note"
    assert found(task, rows(2, said=["a\nb", "a"])) == {}, "one of several is enough"

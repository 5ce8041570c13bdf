"""Rows with another schema than the published one: one line, or a finding, never a wrong score."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evalcore.prompting import draw_shots, load_variants
from evalcore.tasks import (
    DataFault,
    TaskDataError,
    TaskDefinition,
    check_documents,
    documents_from_rows,
    load_documents,
    load_documents_counted,
    load_task,
    open_documents,
    task_from_definition,
)
from evalcore.types import Document, Task


def made(name: str, *rows: dict[str, Any]) -> list[Document]:
    return documents_from_rows(load_task(name), rows, "rows")


def refused(fault: DataFault, name: str, row: dict[str, Any]) -> str:
    with pytest.raises(TaskDataError) as caught:
        made(name, row)
    assert caught.value.fault == fault
    assert "\n" not in str(caught.value)
    assert "rows, row 0" in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "row", "words"),
    [
        ("xsum", {"document": "d", "summary": {"text": ["a"]}}, "holds a dict .*summary.text"),
        ("xsum", {"document": "d", "summary": [["a"], ["b"]]}, "column summary holds a list"),
        ("xsum", {"document": "d", "summary": b"a"}, "column summary holds a bytes"),
        ("hellaswag", {"ctx": "c", "endings": [{"a": 1}, {"a": 2}], "label": "0",
                       "activity_label": "x"}, "column endings holds a dict"),
        ("tweetqa_qg_answers", {"Tweet": "t", "Question": "q", "Answer": [["a"]]},
         "column Answer holds a list"),
        ("tulu_v2", {"messages": ["a", "b"]}, "keys none, where role and content .* are expected"),
        ("tulu_v2", {"messages": [{"who": "human", "value": "a"}]}, "keys who, value"),
        ("tulu_v2", {"messages": [{"role": None, "content": "a"}]}, "keys role, content"),
        ("tulu_v2", {"messages": [{"role": "narrator", "content": "a"}]},
         "'narrator', which is no role .system, .*rename it in the file"),
        ("tulu_v2", {"messages": '[{"role": "user", "content": "a"}]'}, "a text where a list"),
        ("tulu_v2", {"messages": [{"role": "assistant", "content": "", "tool_calls": [{"id": 1}]}]},
         "calls a tool, which is no text"),
    ],
)  # fmt: skip
def test_what_is_no_text_is_no_text(name: str, row: dict[str, Any], words: str) -> None:
    """Its Python spelling stood in references, choices and prompts."""
    with pytest.raises(TaskDataError, match=words):
        made(name, row)
    refused(DataFault.NOT_TEXT, name, row)


def test_golds_of_another_kind() -> None:
    pair = {"premise": "p", "hypothesis": "h"}
    for value in (True, 0.5, [0]):
        assert "3 choices" in refused(DataFault.GOLD_KIND, "mnli_matched", {**pair, "label": value})
    for none in (-1, 3, "Entailment", "true", "-1"):
        assert made("mnli_matched", {**pair, "label": none})[0].gold == -1
    assert made("mnli_matched", {**pair, "label": "contradiction"})[0].gold == 2
    asked = {"question": "q", "answerKey": "B"}
    for texts, labels, gold in (
        (["a", "b"], ["A", "B"], 1),
        (["a", "b"], ["B", "B"], -1),  # which of the two?
        (["a", "b", "c"], ["A", "B"], -1),  # not one to a choice
    ):
        row = {**asked, "choices": {"text": texts, "label": labels}}
        assert made("arc_easy", row)[0].gold == gold


def about(choices: dict[str, Any], **gold: Any) -> Task:
    words = {"name": "t", "group": "nli", "source": {"path": "x"}, "metrics": ["acc"],
             "version": 1, "output_type": "multiple_choice", "splits": {"score": "test"},
             "fields": {"premise": "p", "hypothesis": "h"}, "primary": "acc",
             "gold": {"column": "label", **gold}, "choices": choices}  # fmt: skip
    return task_from_definition(TaskDefinition.model_validate(words))


@pytest.mark.parametrize(
    ("labels", "value", "gold"),
    [
        (["no", "yes"], True, 1), (["yes", "no"], True, 0), (["yes", "no"], "true", 0),
        (["true", "false"], False, 1), (["True", "False"], "true", 0),
        ([" False", "TRUE"], "true", 1),
        (["a", "b"], True, "gold.map"), (["wrong", "right"], "False", "gold.map"),
        (["yes", "true"], True, "gold.map"),
        (["1", "2", "3"], 1, "gold.reading"), (["1", "0"], 0, "gold.reading"),
        (["0", "1"], 1, 1), (["1", "2", "3"], 3, 2), (["a", "b"], 1, 1), (["a", "b"], "1", 1),
        (["a", "1"], "b", -1),
    ],
)  # fmt: skip
def test_what_a_gold_may_mean_is_not_guessed(labels: list[str], value: Any, gold: Any) -> None:
    """A truth value was an index, whatever the labels say; a number, whichever came first."""
    task, row = about({"labels": labels}), {"p": "p", "h": "h", "label": value}
    if isinstance(gold, int):
        assert documents_from_rows(task, [row], "rows")[0].gold == gold
        return
    with pytest.raises(TaskDataError, match=gold) as caught:
        documents_from_rows(task, [row], "rows")
    assert caught.value.fault == DataFault.GOLD_KIND


def test_a_number_among_texts_of_a_row() -> None:
    row = {"p": "p", "h": "h", "c": ["3", "1", "2", "0"]}
    plain = {"column": "c"}
    assert documents_from_rows(about(plain), [{**row, "label": 0}], "rows")[0].gold == 0
    with pytest.raises(TaskDataError, match=r"number of choice '3'.*gold.reading"):
        documents_from_rows(about(plain), [{**row, "label": "0"}], "rows")
    for reading, gold in (("index", 0), ("text", 3)):
        task = about(plain, reading=reading)
        assert documents_from_rows(task, [{**row, "label": "0"}], "rows")[0].gold == gold
    same = {**row, "c": ["0", "1"], "label": "1"}
    assert documents_from_rows(about(plain), [same], "rows")[0].gold == 1, "both mean the same"


def test_shuffled_choices_have_a_text_as_gold() -> None:
    """An index is one of the order in the data, which is not the order that is scored."""
    task = about({"column": "c", "order": "shuffled"})
    row = {"p": "p", "h": "h", "c": ["aa", "bb", "cc", "1"]}
    for value in ("aa", "cc", "1"):
        made = documents_from_rows(task, [{**row, "label": value}], "rows")[0]
        assert made.choices[made.gold] == value
    with pytest.raises(TaskDataError, match="the text of one of 4 choices, not 0"):
        documents_from_rows(task, [{**row, "label": 0}], "rows")
    assert documents_from_rows(task, [{**row, "label": "0"}], "rows")[0].gold == -1


def test_conversations_with_odd_turns() -> None:
    def talk(*turns: tuple[str, Any]) -> list[Document]:
        return made("tulu_v2", {"messages": [{"role": r, "content": c} for r, c in turns]})

    assert talk(("system", "s")) == []
    assert talk(("user", "a")) == []
    assert talk(("user", ""), ("assistant", "c")) == []  # nothing was asked
    assert talk(("user", "a"), ("assistant", None)) == []
    (two,) = talk(("user", "a"), ("user", "b"), ("assistant", "c"))
    assert two.fields["prompt"] == "User: a\n\nUser: b"
    (silent,) = talk(("user", "a"), ("assistant", " "), ("user", "b"), ("assistant", "c"))
    assert [turn["role"] for turn in silent.fields["messages"]] == ["user", "user"]
    (ended,) = talk(("user", "a"), ("assistant", "c"), ("user", "b"), ("assistant", ""))
    assert (ended.fields["prompt"], ended.references) == ("a", ("c",))
    (parts,) = talk(("user", [{"type": "text", "text": "a"}]), ("assistant", "c"))
    assert parts.fields["prompt"] == "a"


def test_roles_and_keys_of_other_tools_are_read() -> None:
    """Turns of "Assistant" were no answers: the row was gone, or ended at an earlier answer."""
    plain = made(
        "tulu_v2",
        {
            "messages": [
                {"role": role, "content": text}
                for role, text in (
                    ("system", "s"),
                    ("user", "a"),
                    ("assistant", "b"),
                    ("user", "c"),
                    ("assistant", "d"),
                )
            ]
        },
    )
    for names in (("System", " User", "ASSISTANT"), ("developer", "human", "gpt"),
                  ("system", "Human", "model")):  # fmt: skip
        for keys in (("role", "content"), ("from", "value")):
            roles = (names[0], *names[1:] * 2)
            turns = [
                dict(zip(keys, pair, strict=True)) for pair in zip(roles, "sabcd", strict=True)
            ]
            assert made("tulu_v2", {"messages": turns}) == plain
    called = made("tulu_v2", {"messages": [{"role": r, "content": t} for r, t in (
        ("user", "a"), ("observation", "12"), ("assistant", "b"))]})  # fmt: skip
    assert called[0].fields["prompt"] == "User: a\n\nTool: 12"


def codes(name: str, rows: list[dict[str, Any]]) -> dict[str, int]:
    found = check_documents(load_task(name), made(name, *rows))
    return {finding.code: finding.count for finding in found}


def test_a_label_that_no_row_has_and_rows_that_contradict_each_other() -> None:
    rows = [{"premise": f"p{i}", "hypothesis": "h", "label": i % 2} for i in range(30)]
    assert codes("mnli_matched", rows) == {"class_missing": 30}
    assert codes("mnli_matched", rows[:29]) == {}  # so few may lack one by chance
    assert codes("mnli_matched", [*rows, {**rows[0], "premise": "q", "label": 2}]) == {}
    twice = [*rows[:4], {**rows[0], "label": 1}]
    assert codes("mnli_matched", twice) == {"duplicates": 1, "contradictory": 1}
    assert codes("mnli_matched", [*rows[:4], rows[0]]) == {"duplicates": 1}


def nli(**changes: Any) -> Task:
    definition = {
        "name": "toy", "version": 1, "group": "nli", "output_type": "multiple_choice",
        "source": {"path": "toy"}, "splits": {"score": "test", "shots": "dev", "train": "train"},
        "fields": {"premise": "one", "hypothesis": "two"},
        "choices": {"labels": ["entailment", "neutral", "contradiction"]},
        "gold": {"column": "label"}, "metrics": ["acc"], "primary": "acc",
    }  # fmt: skip
    return task_from_definition(TaskDefinition.model_validate({**definition, **changes}))


def write(root: Path, names: list[str] | None, *rows: tuple[str, str, int]) -> None:
    table = pa.Table.from_pylist([{"one": a, "two": b, "label": n} for a, b, n in rows])
    if names is not None:
        features = {"label": {"names": names, "_type": "ClassLabel"}, "one": {"dtype": "string"}}
        about = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": about})
    (root / "toy").mkdir(exist_ok=True)
    for split in ("test", "dev", "train"):
        pq.write_table(table, root / "toy" / f"{split}.parquet")


def test_label_ids_in_another_order_are_refused_by_the_files_own_names(tmp_path: Path) -> None:
    """Files made by ``datasets`` say what their ids stand for."""
    write(tmp_path, ["contradiction", "Neutral", "entailment"], ("a", "b", 0))
    said = "labels 0 contradiction, 1 Neutral, 2 entailment, the task reads 0 as entailment; give"
    wanted = r'gold.map \({"0": 2, "1": 1, "2": 0}\)'
    for read in (lambda: load_documents(nli(), data_root=tmp_path),
                 lambda: open_documents(nli(), "train", data_root=tmp_path)):  # fmt: skip
        with pytest.raises(TaskDataError, match=f"{said} {wanted}") as caught:
            read()
        assert caught.value.fault == DataFault.GOLD_NAMES
    mapped = nli(gold={"column": "label", "map": {"0": 2, "1": 1, "2": 0}})
    assert load_documents(mapped, data_root=tmp_path)[0].gold == 2
    for names in (["entailment", "neutral", "contradiction"], ["0", "1", "2"], None):
        write(tmp_path, names, ("a", "b", 0))
        assert load_documents(nli(), data_root=tmp_path)[0].gold == 0


def test_a_pair_shown_the_other_way_round_is_no_shot(tmp_path: Path) -> None:
    write(tmp_path, None, ("He left.", "She stayed.", 0), ("It rained.", "It was wet.", 1))
    pairs = [("she stayed", "He  left.", 0), ("Other.", "Another.", 1)]
    table = pa.Table.from_pylist([{"one": a, "two": b, "label": n} for a, b, n in pairs])
    pq.write_table(table, tmp_path / "toy/dev.parquet")
    documents, counts = load_documents_counted(nli(), "shots", data_root=tmp_path)
    assert (counts.leaked, [d.fields["premise"] for d in documents]) == (1, ["Other."])
    pool = documents_from_rows(nli(), table.to_pylist(), "rows")
    scored = load_documents(nli(), data_root=tmp_path)
    (finding,) = check_documents(nli(), scored, pool)
    assert (finding.code, finding.rows) == ("shots_leak", (0,))
    (variant,) = load_variants("nli", "default:shots=1")
    assert [d.fields["premise"] for d in draw_shots(nli(), variant, pool, scored=scored)] == [
        "Other."
    ]

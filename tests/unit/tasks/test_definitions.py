"""The study's tasks, on small rows of the true hub schemas (tests/data/root, invented texts)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evalcore.errors import DefinitionError
from evalcore.identity import is_commit
from evalcore.tasks import (
    check_counts,
    check_documents,
    check_selection,
    content_key,
    is_scorable,
    list_tasks,
    load_documents,
    load_documents_counted,
    load_task,
    select_tasks,
    trivial_baseline,
)
from evalcore.tasks.documents import Role
from evalcore.tasks.model import split_range
from evalcore.types import Task

ROOT = Path(__file__).resolve().parents[2] / "data" / "root"
STUDY = {
    "summarization": {"xsum", "xlsum_english", "cnn_dailymail"},
    "question_generation": {"socialiqa_qg", "sciq_qg", "tweetqa_qg"},
    "question_generation_answers": {
        "socialiqa_qg_answers", "sciq_qg_answers", "tweetqa_qg_answers",
    },
    "nli": {"mnli_matched", "mnli_mismatched", "rte", "gpt3nli"},
    "paraphrase": {"paws", "qqp", "stsb"},
    "multiple_choice": {
        "arc_easy", "arc_challenge", "openbookqa", "sciq", "socialiqa", "sciq_validation",
    },
    "completion": {"hellaswag"},
    "boolean": {"boolq"},
    "instruction": {"tulu_v2"},
}  # fmt: skip
FIELDS = {
    "summarization": {"document"},
    "question_generation": {"context", "answer"},
    "question_generation_answers": {"context", "answers"},
    "nli": {"premise", "hypothesis"},
    "paraphrase": {"sentence1", "sentence2"},
    "multiple_choice": {"question", "context"},
    "completion": {"context", "activity"},
    "boolean": {"passage", "question"},
    "instruction": {"prompt", "messages"},
}
TASKS = [task for task in list_tasks() if task.group in STUDY]
# rows whose supporting text is empty in the real data too
MAY_BE_EMPTY = {"sciq", "sciq_qg", "sciq_qg_answers", "sciq_validation"}


def ids(task: Task) -> str:
    return task.name


def test_every_task_of_the_study_is_defined() -> None:
    found: dict[str, set[str]] = {}
    for task in TASKS:
        found.setdefault(task.group, set()).add(task.name)
    assert found == STUDY
    assert len(list_tasks()) >= 20


@pytest.mark.parametrize("task", TASKS, ids=ids)
def test_definitions_say_what_a_person_needs(task: Task) -> None:
    spec = task.spec
    for key in ("description", "licence", "citation", "home"):
        assert spec[key], key
    hub = spec["source"]["hub"]
    assert "/" in hub["repo"]
    if not is_commit(hub.get("revision")):
        assert "ot pinned" in spec["home"]  # said, never hidden
    assert "test" not in (split_range(spec["splits"]["score"] or "x")[0],) or task.name not in {
        "qqp", "stsb", "rte", "mnli_matched", "hellaswag", "boolq", "socialiqa", "tweetqa_qg",
        "tweetqa_qg_answers",
    }, "that test split has no labels"  # fmt: skip
    assert set(spec["fields"]) == FIELDS[task.group]


@pytest.mark.parametrize("task", [t for t in TASKS if is_scorable(t)], ids=ids)
def test_every_field_is_filled_and_the_data_is_sound(task: Task) -> None:
    documents, counts = load_documents_counted(task, "score", data_root=ROOT)
    shots, shot_counts = load_documents_counted(task, "shots", data_root=ROOT, scored=documents)
    assert len(documents) >= 6
    assert counts.unusable == shot_counts.unusable == shot_counts.leaked == 0
    assert len(shots) >= 6
    for document in documents:
        for name, value in document.fields.items():
            empty_by_design = name == "context" and task.group == "multiple_choice"
            assert empty_by_design or task.name in MAY_BE_EMPTY or str(value).strip(), name
        if task.output_type == "multiple_choice":
            assert 0 <= document.gold < len(document.choices)
        else:
            assert all(document.references)
    findings = check_documents(task, documents, shots) + check_counts(task, "shots", shot_counts)
    allowed = {"empty_fields"} if task.name in MAY_BE_EMPTY else set()
    assert {finding.code for finding in findings} <= allowed, findings
    baseline = trivial_baseline(task, documents)
    assert 0 < baseline < 0.9


@pytest.mark.parametrize("task", TASKS, ids=ids)
def test_shots_and_training_rows_never_leak(task: Task) -> None:
    scored = load_documents(task, data_root=ROOT) if is_scorable(task) else []
    texts = {content_key(document) for document in scored}
    for role in ("shots", "train"):
        if task.spec["splits"].get(role):
            pool = load_documents(task, role, data_root=ROOT)
            assert pool
            assert not texts & {content_key(document) for document in pool}


# Facts of the small rows, read off the files by hand.
FACTS = [
    ("arc_easy", 3, {"question": "Which animal breathes with gills (part 1)?", "context": ""}, 2,
     "a trout"),
    ("openbookqa", 0, {"context": ""}, 1, "an ice cube"),
    ("hellaswag", 3, {"context": "How to water a house plant. Feel the soil first. Put a finger "
     "into the pot as far as the first joint."}, 3, "If it is dry, give a cup of water. Let the "
     "rest drain away."),
    ("boolq", 2, {"question": "can you swim in the upper lake"}, 1, "yes"),
    ("boolq", 0, {}, 0, "no"),
    ("socialiqa", 1, {"question": "Why did Sam do this?"}, 1, "to help Noor go on"),
    ("rte", 0, {}, None, "not_entailment"),
    ("mnli_matched", 0, {"premise": "The baker opens at five and sells out by nine."}, 0,
     "entailment"),
    ("gpt3nli", 0, {}, 2, "contradiction"),
    ("paws", 1, {}, 1, "yes"),
    ("qqp", 1, {"sentence1": "How do I get to the moon?"}, 0, "no"),
    ("stsb", 4, {"sentence1": "The train is late again."}, 0, "no"),  # 3.5 is not above 3.5
    ("stsb", 7, {}, 1, "yes"),
    ("sciq", 2, {}, None, "a thermometer"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "index", "fields", "gold", "answer"), FACTS)
def test_gold_is_right(
    name: str, index: int, fields: dict[str, str], gold: int | None, answer: str
) -> None:
    document = load_documents(load_task(name), data_root=ROOT)[index]
    assert {key: document.fields[key] for key in fields} == fields
    assert document.choices[document.gold] == answer
    if gold is not None:
        assert document.gold == gold


def test_generation_tasks_take_the_right_columns() -> None:
    document = load_documents(load_task("socialiqa_qg"), data_root=ROOT)[1]
    assert document.fields["answer"] == "to help Noor go on"
    assert document.references == ("Why did Sam do this?",)
    tweet = load_documents(load_task("tweetqa_qg"), data_root=ROOT)[0]
    assert tweet.fields["answer"] == "on the chapel roof"
    asked = load_documents(load_task("socialiqa_qg_answers"), data_root=ROOT)[1]
    assert asked.fields["answers"] == (
        "Answer A: to spoil the play Answer B: to help Noor go on Answer C: to hear himself talk"
    )
    assert asked.references == document.references
    several = load_documents(load_task("tweetqa_qg_answers"), data_root=ROOT)[0]
    assert several.fields["answers"] == "Answer A: on the chapel roof Answer B: the chapel roof"
    four = load_documents(load_task("sciq_qg_answers"), data_root=ROOT)[0]
    assert four.fields["answers"].startswith("Answer A: an ice cube Answer B: ")
    summary = load_documents(load_task("cnn_dailymail"), data_root=ROOT)[0]
    assert summary.references[0].count("\n") == 1
    assert load_task("cnn_dailymail").generation.stops == ("\n\n",)
    assert load_task("xsum").generation.run_on


def test_instructions_are_rendered_from_messages() -> None:
    documents = load_documents(load_task("tulu_v2"), "train", data_root=ROOT)
    assert documents[0].fields["prompt"] == "Name three things one can do with a plank."
    assert documents[0].references == ("Make a shelf, bridge a ditch, or draw on it.",)
    assert documents[1].fields["prompt"] == "System: Answer in one word.\n\nUser: Is rain wet?"
    assert documents[2].references == ("Frost signs the windows before dawn.",)
    assert [turn["role"] for turn in documents[2].fields["messages"]] == [
        "user", "assistant", "user",
    ]  # fmt: skip


def test_tuning_only_tasks_are_listed_and_not_scored() -> None:
    task = load_task("tulu_v2")
    assert task.name not in {t.name for t in select_tasks("all")}
    assert [t.name for t in select_tasks("tulu_v2")] == ["tulu_v2"]
    with pytest.raises(DefinitionError, match="tulu_v2 is for tuning only") as caught:
        load_documents(task, data_root=ROOT)
    assert "\n" not in str(caught.value)


def test_the_study_counts_nothing_twice() -> None:
    assert check_selection(select_tasks("all")) == []


def test_shuffled_choices_hang_on_the_row_alone() -> None:
    task = load_task("sciq")
    documents = load_documents(task, data_root=ROOT)
    assert len({document.gold for document in documents}) > 1
    again = load_documents(task, data_root=ROOT, limit=3)
    assert again == documents[:3]


def _parquet(rows: list[dict], file: Path) -> None:
    pq.write_table(pa.Table.from_pylist(rows), file.with_suffix(".parquet"))


def _arrow(rows: list[dict], file: Path) -> None:
    table = pa.Table.from_pylist(rows)
    with pa.ipc.new_stream(str(file.with_suffix(".arrow")), table.schema) as out:
        out.write_table(table)


def _csv(rows: list[dict], file: Path) -> None:
    import pyarrow.csv

    pyarrow.csv.write_csv(pa.Table.from_pylist(rows), file.with_suffix(".csv"))


@pytest.mark.parametrize(
    ("name", "write"),
    [("arc_easy", _parquet), ("hellaswag", _arrow), ("openbookqa", _arrow), ("tulu_v2", _parquet),
     ("stsb", _csv), ("qqp", _csv), ("boolq", _csv), ("sciq", _csv)],
)  # fmt: skip
def test_other_kinds_of_files_give_the_same_documents(
    name: str, write: object, tmp_path: Path
) -> None:
    task = load_task(name)
    hub = task.spec["source"]["hub"]
    folder = tmp_path / hub["repo"] / (hub.get("config") or "")
    shutil.copytree(ROOT / hub["repo"] / (hub.get("config") or ""), folder)
    for file in folder.glob("*.jsonl"):
        rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
        write(rows, file)  # type: ignore[operator]
        file.unlink()
    role: Role = "score" if is_scorable(task) else "train"
    assert load_documents(task, role, data_root=tmp_path) == load_documents(
        task, role, data_root=ROOT
    )

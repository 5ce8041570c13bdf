"""Task files, their rows and documents, and the checks of the data."""

from __future__ import annotations

import gzip
import itertools
import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from rouge_score import rouge_scorer

from evalcore.errors import DataError, DefinitionError, InputError, UnknownNameError
from evalcore.tasks import (
    RowLimit,
    check_documents,
    check_sample,
    content_key,
    documents_from_rows,
    floor_by_document,
    list_tasks,
    load_documents,
    load_documents_counted,
    load_task,
    read_task,
    select_tasks,
    trivial_baseline,
)
from evalcore.tasks.published import TASK_SCHEMA_FILE, task_schema_text
from evalcore.tasks.sample import sample_rank
from evalcore.types import Document, Task

BASE: dict[str, Any] = {
    "name": "toy",
    "version": 1,
    "group": "toys",
    "output_type": "multiple_choice",
    "source": {"path": "toy"},
    "splits": {"score": "test", "shots": "shots"},
    "fields": {"text": "sentence"},
    "choices": {"labels": ["no", "yes"]},
    "gold": {"column": "label"},
    "metrics": ["acc"],
    "primary": "acc",
}
WRITER: dict[str, Any] = {
    **{key: BASE[key] for key in ("version", "group", "source", "splits", "fields")},
    "name": "writer",
    "output_type": "generate_until",
    "references": {"column": "summary"},
    "metrics": ["rouge_l", "exact_match"],
    "primary": "rouge_l",
}
ROWS = [{"sentence": f"Sentence {i}.", "label": i % 2} for i in range(6)]


def make_task(folder: Path, base: dict[str, Any] = BASE, **changes: Any) -> Task:
    definition = {**base, **changes}
    file = folder / f"{definition['name']}.yaml"
    file.write_text(yaml.safe_dump({k: v for k, v in definition.items() if v is not ...}))
    return read_task(file)


def write_rows(root: Path, split: str, rows: list[dict[str, Any]]) -> None:
    (root / "toy").mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (root / "toy" / f"{split}.jsonl").write_text(text)


def test_built_in_tasks_are_sound() -> None:
    tasks = [task for task in list_tasks() if task.spec["source"].get("generator")]
    assert len(tasks) >= 4
    for task in tasks:
        documents, shots = load_documents(task), load_documents(task, "shots")
        errors = [f for f in check_documents(task, documents, shots) if f.level == "error"]
        assert not errors, errors
        assert 0 <= trivial_baseline(task, documents) < 1
        train = {content_key(doc) for doc in load_documents(task, "train")}
        assert not train & {content_key(doc) for doc in documents}


def test_golden_task(tmp_path: Path) -> None:
    """Changes only with a new task version or identity version."""
    task = make_task(tmp_path)
    document = documents_from_rows(task, ROWS, "rows")[1]
    assert task.fingerprint == "b8f7204237cece62bd52ac54d0cfbe32"
    assert document.id == "3028f1e691dfc835392dcd72f614f349"
    assert (document.fields, document.choices, document.gold) == (
        {"text": "Sentence 1."},
        ("no", "yes"),
        1,
    )


def test_selection(tmp_path: Path) -> None:
    make_task(tmp_path)
    make_task(tmp_path, name="toy_two")
    search = [tmp_path]
    assert [t.name for t in select_tasks("toys", search)] == ["toy", "toy_two"]
    assert [t.name for t in select_tasks("toy_two, toys", search)] == ["toy_two", "toy"]
    assert [t.name for t in select_tasks("toy*", search)] == ["toy", "toy_two"]
    assert [t.name for t in select_tasks(str(tmp_path / "toy.yaml"))] == ["toy"]
    assert {t.name for t in select_tasks("all", search)} > {"toy", "pocket_nli"}
    assert load_task("toy", search).group == "toys"
    with pytest.raises(UnknownNameError, match=r"unknown task 'pocket_nil'; nearest: pocket_nli"):
        select_tasks("pocket_nil")
    with pytest.raises(DefinitionError, match="no tasks given"):
        select_tasks(" , ")
    (tmp_path / "copy.yaml").write_text((tmp_path / "toy.yaml").read_text())
    with pytest.raises(DefinitionError, match="toy is defined twice"):
        list_tasks(search)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"colour": 1}, "key colour: is not a known key"),
        ({"primary": ...}, "key primary: is missing"),
        ({"version": "one"}, "key version: .*integer.*'one'"),
        ({"output_type": "chat"}, "key output_type: .*'multiple_choice'.*'chat'"),
        ({"source": {}}, "key source: expected exactly one of generator, path, hub"),
        ({"source": {"path": "a", "hub": {"repo": "b"}}}, "found path, hub"),
        ({"source": {"generator": "pocket"}}, "dataset goes with generator"),
        ({"splits": {"score": "test", "shots": "test"}}, "key splits: shots may not be the scored"),
        ({"choices": None}, "multiple_choice needs choices and gold"),
        ({"choices": {"labels": ["a", "a"]}}, "key choices: expected at least two different"),
        ({"choices": {"labels": [False, True]}}, "key choices.labels: quote yes/no"),
        ({"primary": "f1"}, "primary 'f1' should be one of metrics"),
        ({"fields": {"choice": "x"}}, "key fields: 'choice' cannot be a template variable"),
        ({"generation": {"max_tokens": 0}}, "key generation.max_tokens"),
        ({"references": {"column": "x"}}, "takes no references"),
        ({"name": "../evil"}, "key name"),
    ],
)
def test_wrong_definitions_are_one_line(
    tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    with pytest.raises(DefinitionError, match=expected) as caught:
        make_task(tmp_path, **{"name": "toy", **changes}) if "name" not in changes else (
            make_named(tmp_path, changes)
        )
    assert "\n" not in str(caught.value)
    assert ".yaml" in str(caught.value)


def make_named(folder: Path, changes: dict[str, Any]) -> Task:
    file = folder / "named.yaml"
    file.write_text(yaml.safe_dump({**BASE, **changes}))
    return read_task(file)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: [a", r"line 1, column \d+: broken YAML"),
        ("- a\n- b\n", "expected key: value lines, found a list"),
        ("", "found nothing"),
        ("a: !!python/object/apply:os.system ['true']", "broken YAML"),
    ],
)
def test_broken_yaml(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(DefinitionError, match=expected) as caught:
        read_task(tmp_path / "x.yaml")
    assert "\n" not in str(caught.value)


def test_rows_from_every_kind_of_file(tmp_path: Path) -> None:
    task = make_task(tmp_path)
    folder = tmp_path / "toy"
    folder.mkdir()
    table = pa.Table.from_pylist(ROWS)
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)

    def arrow_file() -> None:
        with pa.ipc.new_file(str(folder / "test.arrow"), table.schema) as out:
            out.write_table(table)

    def arrow_stream() -> None:  # as `datasets` saves them, in a folder
        (folder / "test").mkdir(exist_ok=True)
        (folder / "test/state.json").write_text("{}")
        with pa.ipc.new_stream(str(folder / "test/data-00000-of-00001.arrow"), table.schema) as out:
            out.write_table(table)

    csv = "sentence,label\n" + "".join(f"{row['sentence']},{row['label']}\n" for row in ROWS)
    writers = {
        "test.parquet": lambda: pq.write_table(table, folder / "test.parquet"),
        "test.jsonl": lambda: (folder / "test.jsonl").write_text(lines),
        "test.jsonl.gz": lambda: (folder / "test.jsonl.gz").write_bytes(
            gzip.compress(lines.encode())
        ),
        "test.json": lambda: (folder / "test.json").write_text(json.dumps(ROWS)),
        "test.csv": lambda: (folder / "test.csv").write_text(csv),
        "test.arrow": arrow_file,
        "test/data-00000-of-00001.arrow": arrow_stream,
        "test-00000-of-00001.parquet": lambda: pq.write_table(
            table, folder / "test-00000-of-00001.parquet"
        ),
    }
    expected = documents_from_rows(task, ROWS, "rows")
    for name, write in writers.items():
        write()
        assert load_documents(task, data_root=tmp_path) == expected, name
        (folder / name).unlink()


def test_hub_data_comes_from_the_data_root_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = {"repo": "org/set", "config": "mnli", "revision": "c0ffee"}
    task = make_task(tmp_path, source={"hub": hub})
    folder = tmp_path / "data/org/set/mnli"
    folder.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(ROWS), folder / "test.parquet")
    assert len(load_documents(task, data_root=tmp_path / "data")) == 6


def test_missing_hub_data_says_where_to_put_it(tmp_path: Path) -> None:
    import subprocess
    import sys

    task_file = tmp_path / "toy.yaml"
    task_file.write_text(
        yaml.safe_dump({**BASE, "source": {"hub": {"repo": "org/no-such-set", "config": "c"}}})
    )
    script = (
        "import sys; from pathlib import Path\n"
        "from evalcore.tasks import read_task, load_documents\n"
        "from evalcore.errors import DataError\n"
        "try:\n    load_documents(read_task(Path(sys.argv[1])))\n"
        "except DataError as error:\n    print(error)\n"
    )
    # The library reads HF_HUB_OFFLINE when it is imported: a process of its own.
    result = subprocess.run(
        [sys.executable, "-c", script, str(task_file)],
        capture_output=True,
        text=True,
        timeout=120,
        env={"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PYTHONPATH": ":".join(sys.path)},
    )
    assert "org/no-such-set/c/test.parquet" in result.stdout, result.stderr
    assert "--data-root" in result.stdout
    assert result.stdout.count("\n") == 1


def test_missing_data_and_columns(tmp_path: Path) -> None:
    task = make_task(tmp_path)
    with pytest.raises(DataError, match="give --data-root"):
        load_documents(task)
    with pytest.raises(DataError, match=r"no rows of split 'test'.*toy/test"):
        load_documents(task, data_root=tmp_path)
    write_rows(tmp_path, "test", [{"text": "x", "label": 0}])
    with pytest.raises(DataError, match=r"no column 'sentence'; columns are label, text"):
        load_documents(task, data_root=tmp_path)
    write_rows(tmp_path, "test", [{"sentence": None, "label": 0}, {"sentence": "x"}])
    with pytest.raises(DataError, match="none of 2 rows is usable"):
        load_documents(task, data_root=tmp_path)
    (tmp_path / "toy/test.jsonl").write_text('{"sentence": "x", "label": 0}\n{oops\n')
    with pytest.raises(DataError, match="line 2"):
        load_documents(task, data_root=tmp_path)
    with pytest.raises(DefinitionError, match=r"splits\.train is missing"):
        load_documents(task, "train", data_root=tmp_path)


def test_a_limit_is_a_prefix_and_unusable_rows_do_not_shift_ids(tmp_path: Path) -> None:
    task = make_task(tmp_path)
    write_rows(tmp_path, "test", [*ROWS[:2], {"sentence": None, "label": 1}, *ROWS[2:]])
    everything = load_documents(task, data_root=tmp_path)
    assert [doc.index for doc in everything] == [0, 1, 3, 4, 5, 6]
    for limit in range(8):
        part = load_documents(task, limit=limit, data_root=tmp_path)
        assert part == everything[:limit]
    assert load_documents_counted(task, "score", data_root=tmp_path)[1].unusable == 1


@given(st.lists(st.integers(0, 3), max_size=12))
def test_exact_copies_get_their_own_stable_ids(which: list[int]) -> None:
    task = _toy_task()
    rows = [ROWS[i] for i in which]
    documents = documents_from_rows(task, rows, "rows")
    assert len({doc.id for doc in documents}) == len(rows)
    # Adding rows never changes the ids of those before.
    longer = documents_from_rows(task, [*rows, ROWS[0], ROWS[1]], "rows")
    assert [doc.id for doc in longer[: len(rows)]] == [doc.id for doc in documents]


def _toy_task() -> Task:
    from evalcore.tasks import TaskDefinition, task_from_definition

    return task_from_definition(TaskDefinition.model_validate(BASE))


def test_gold_and_choices_in_every_form(tmp_path: Path) -> None:
    def gold(row: dict[str, Any], **changes: Any) -> tuple[Any, Any]:
        task = make_task(tmp_path, **changes)
        (document,) = documents_from_rows(task, [{"sentence": "x", **row}], "rows")
        return document.choices, document.gold

    labels = ("no", "yes")
    assert gold({"label": "yes"}) == (labels, 1)
    assert gold({"label": True}) == (labels, 1)
    assert gold({"label": "1"}) == (labels, 1)
    assert gold({"label": 1.0}) == (labels, 1)
    assert gold({"label": -1}) == (labels, -1)  # hidden label: kept, so that it is found
    assert gold({"label": "maybe"}) == (labels, -1)
    arc = {
        "choices": {"column": "choices.text"},
        "gold": {"column": "key", "map": {"A": 0, "B": 1, "1": 0}},
    }
    row = {"choices": {"text": ["x", "y"]}, "key": "B"}
    assert gold(row, **arc) == (("x", "y"), 1)
    assert gold({**row, "key": 1}, **arc) == (("x", "y"), 0)
    columns = {"choices": {"columns": ["a", "b"]}, "gold": {"column": "label"}}
    assert gold({"a": "x", "b": "y", "label": 0}, **columns) == (("x", "y"), 0)
    with pytest.raises(DataError, match="gold should be an index or a label"):
        gold({"label": [1]})


def test_references(tmp_path: Path) -> None:
    task = make_task(tmp_path, WRITER)
    rows: list[dict[str, Any]] = [
        {"sentence": "a", "summary": "one"},
        {"sentence": "b", "summary": ["one", "", None, "two"]},
        {"sentence": "c", "summary": ""},
        {"sentence": "d", "summary": []},
    ]
    documents = documents_from_rows(task, rows, "rows")
    assert [doc.references for doc in documents] == [("one",), ("one", "two")]


def test_shots_that_stand_in_the_scored_split_are_left_out_whatever_the_limit(
    tmp_path: Path,
) -> None:
    task = make_task(tmp_path)
    write_rows(tmp_path, "test", ROWS)
    write_rows(
        tmp_path,
        "shots",
        [{"sentence": " sentence  5. ", "label": 0}, {"sentence": "Other.", "label": 1}],
    )
    documents, counts = load_documents_counted(task, "shots", data_root=tmp_path)
    assert [doc.fields["text"] for doc in documents] == ["Other."]
    assert counts.leaked == 1


def test_checks_find_what_spoilt_studies(tmp_path: Path) -> None:
    task = make_task(tmp_path)

    def codes(rows: list[dict[str, Any]], shots: list[dict[str, Any]] | None = None) -> set[str]:
        documents = documents_from_rows(task, rows, "rows")
        pool = documents_from_rows(task, shots, "shots") if shots else []
        return {f"{f.level}:{f.code}" for f in check_documents(task, documents, pool)}

    many = [{"sentence": f"S {i}", "label": i % 2} for i in range(30)]
    assert codes(many) == set()
    assert codes([{**row, "label": -1} for row in many]) == {"error:gold_outside"}
    assert codes([{**row, "label": 1} for row in many]) == {"error:one_class"}
    assert codes([*many, many[0]]) == {"warning:duplicates"}
    assert codes([*many, {"sentence": " ", "label": 0}]) == {"warning:empty_fields"}
    assert codes(many, [{"sentence": "s 3", "label": 0}]) == {"error:shots_leak"}
    own = make_task(tmp_path, choices={"column": "options"})
    rows = [{**row, "options": ["a", "A "]} for row in many]
    found = check_documents(own, documents_from_rows(own, rows, "rows"))
    assert [f.code for f in found] == ["equal_choices"]
    assert found[0].count == 30
    assert [f.code for f in check_documents(task, [])] == ["no_documents"]


def test_trivial_baselines(tmp_path: Path) -> None:
    rows = [{"sentence": f"S {i}", "label": int(i < 7)} for i in range(10)]
    task = make_task(tmp_path)
    assert trivial_baseline(task, documents_from_rows(task, rows, "rows")) == 0.7
    own = make_task(tmp_path, choices={"column": "options"})
    rows = [
        {**row, "options": ["a", "b", "c", "d"][: 2 + 2 * (i % 2)]} for i, row in enumerate(rows)
    ]
    assert trivial_baseline(own, documents_from_rows(own, rows, "rows")) == pytest.approx(0.375)
    writer = make_task(tmp_path, WRITER)
    texts = ["a b c d", "a b c e", "x", "x"] * 3
    documents = documents_from_rows(
        writer, [{"sentence": f"{i}", "summary": text} for i, text in enumerate(texts)], "rows"
    )
    exact = make_task(tmp_path, WRITER, primary="exact_match")
    for own_task, kind in ((writer, "rouge"), (exact, "match")):
        assert trivial_baseline(own_task, documents) == pytest.approx(by_hand(documents, kind))
    assert math.isnan(trivial_baseline(exact, []))
    assert math.isnan(trivial_baseline(exact, documents[:1]))  # nothing to choose on


def by_hand(documents: list[Document], kind: str) -> float:
    """Each half under the best answer of the other, one pair at a time."""

    def score(answer: str, doc: Document) -> float:
        if kind == "match":
            return float(answer == doc.references[0])
        shared = len(set(answer.split()) & set(doc.references[0].split()))
        # of equally long texts with words that differ by place only, recall is precision
        return shared / len(answer.split())

    ordered = sorted(documents, key=lambda doc: sample_rank(doc.id))
    found = []
    for own, other in ((ordered[::2], ordered[1::2]), (ordered[1::2], ordered[::2])):
        answers = [doc.references[0] for doc in other]
        best = max(answers, key=lambda a: (sum(score(a, doc) for doc in other), -answers.index(a)))
        if kind == "match":
            counts = {a: answers.count(a) for a in sorted(answers)}
            best = max(counts, key=counts.__getitem__)
        found += [score(best, doc) for doc in own]
    return sum(found) / len(found)


def test_a_floor_does_not_profit_from_its_own_documents(tmp_path: Path) -> None:
    """Texts without a common pattern: the best of many was as good as its luck."""
    rng = random.Random(0)
    words = [f"w{i}" for i in range(60)]
    rows = [{"sentence": f"{i}", "summary": " ".join(rng.choices(words, k=8))} for i in range(400)]
    writer = make_task(tmp_path, WRITER)
    documents = documents_from_rows(writer, rows, "rows")
    floor = trivial_baseline(writer, documents)
    others = documents_from_rows(
        writer,
        [{"sentence": "o", "summary": " ".join(rng.choices(words, k=8))} for _ in range(400)],
        "rows",
    )
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)
    texts = [doc.references[0] for doc in others]
    mean = sum(scorer.score(a, b)["rougeL"].fmeasure for a, b in itertools.pairwise(texts)) / (
        len(texts) - 1
    )
    assert floor == pytest.approx(mean, abs=0.03)


@pytest.mark.parametrize("metric", ["rouge_l", "rouge_l_unicode", "rouge_1_raw", "exact_match"])
def test_a_text_floor_by_document(tmp_path: Path, metric: str) -> None:
    """The best answer of the other half, document by document; its mean is the floor told."""
    rng = random.Random(1)
    words = [f"w{i}" for i in range(6)]
    rows = [{"sentence": f"S {i}", "summary": " ".join(rng.choices(words, k=3))} for i in range(90)]
    task = make_task(tmp_path, WRITER | {"primary": metric, "metrics": [metric]})
    documents = documents_from_rows(task, rows, "rows")
    ids = tuple(doc.id for doc in documents)
    references = tuple(doc.references for doc in documents)
    found = floor_by_document(metric, ids, references)
    assert found is not None
    assert sum(found) / len(found) == pytest.approx(trivial_baseline(task, documents))
    turned = floor_by_document(metric, ids[::-1], references[::-1])
    assert turned == found[::-1]  # a matter of the documents, not of their order
    assert floor_by_document("token_f1", ids, references) is None
    assert floor_by_document(metric, ids[:1], references[:1]) is None
    assert floor_by_document(metric, ids, ((), *references[1:])) is None


def test_a_limit_is_a_random_sample_that_grows(tmp_path: Path) -> None:
    """A file ordered by label: its first rows are of one class."""
    rows = [{"sentence": f"S {i}", "label": int(i >= 30)} for i in range(60)]
    documents = documents_from_rows(make_task(tmp_path), rows, "rows")

    def sample(limit: int | str) -> list[Document]:
        found = RowLimit.of(limit)
        assert found is not None
        return found.take(documents)

    small, large = sample(20), sample(40)
    assert len(small) == 20
    assert {doc.id for doc in small} < {doc.id for doc in large}
    assert [doc.index for doc in small] == sorted(doc.index for doc in small)
    assert {doc.gold for doc in small} == {0, 1}
    assert sample(100) == documents
    assert sample("first:20") == documents[:20]
    task = make_task(tmp_path)
    first = check_sample(task, sample("first:20"), documents)
    assert [finding.code for finding in first] == ["one_class"]
    assert trivial_baseline(task, sample("first:20")) == 1.0
    assert check_sample(task, small, documents) == []
    hidden = [*documents[:59], replace(documents[59], gold=-1)]
    assert [f.code for f in check_sample(task, documents[:5], hidden)] == ["gold_outside"]
    for wrong in ("0", "-1", "last:3", "first:", "1e3"):
        with pytest.raises(InputError, match=r"a random sample\), or first:N"):
            RowLimit.of(wrong)


def test_the_published_schema_is_current() -> None:
    assert TASK_SCHEMA_FILE.read_text("utf-8") == task_schema_text(), (
        "run: python -m evalcore.tasks.published"
    )


def test_several_texts_as_one_field(tmp_path: Path) -> None:
    def fields(rows: list[dict[str, Any]], **join: Any) -> list[Any]:
        task = make_task(tmp_path, WRITER, fields={"text": "sentence", "all": {"join": join}})
        found = documents_from_rows(task, rows, "rows")
        return [document.fields["all"] for document in found]

    row = {"sentence": "s", "summary": "t", "a": " one ", "b": "two", "c": ["three", "four"]}
    assert fields([row], columns=["a", "b"]) == ["(A) one (B) two"]
    assert fields([row], columns=["b", "c"], each="{number}: {text}", between=" | ") == [
        "1: two | 2: three | 3: four"
    ]
    assert fields([row], columns=["c"], each="{text}", between=", ") == ["three, four"]
    many = {**row, "c": [str(i) for i in range(28)]}
    assert fields([many], columns=["c"])[0].endswith("(Z) 25 (AA) 26 (AB) 27")
    # a row that lacks one of them is left out, as for every field
    gone: list[dict[str, Any]] = [{**row, "a": None}, {**row, "c": []}, {**row, "c": ["x", None]}]
    assert fields([*gone, row], columns=["a", "c"]) == ["(A) one (B) three (C) four"]
    assert fields([*gone[1:], row], columns=["c"]) == ["(A) three (B) four"]
    with pytest.raises(DataError, match=r"key fields.all.join.columns.1: no column 'd'"):
        fields([row], columns=["a", "d"])
    for each in ("{letter}", "{text} {text}", "{word} {text}", "{text", "{text.x}", "{0}",
                 "{text:>999999999}", "{text!r}"):  # fmt: skip
        with pytest.raises(
            DefinitionError, match=r"key fields.all.join.each: expected \{text\} once"
        ):
            fields([row], columns=["a"], each=each)
    with pytest.raises(DefinitionError, match=r"key fields.all.join.columns: list should have"):
        fields([row], columns=[])

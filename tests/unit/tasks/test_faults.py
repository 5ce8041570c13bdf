"""Every way a task file or its data can be refused: one line, a stable code, nothing executed."""

from __future__ import annotations

import pickle
import random
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import TypeAdapter
from pydantic_core import ValidationError

from evalcore.errors import DataError, EvalcoreError
from evalcore.tasks import (
    DataFault,
    FileFault,
    TaskDataError,
    TaskError,
    TaskFault,
    UniqueKeyLoader,
    load_documents,
    load_task,
    read_task,
    select_tasks,
)
from evalcore.tasks.registry import DEFINITIONS, list_tasks
from tests.toys.task_files import read, read_text, rows_of

FUZZ_SECONDS = 2.0


# fault -> (what the file says, what the line says)
IN_KEYS: dict[FileFault | TaskFault, tuple[dict[str, Any], str]] = {
    FileFault.UNKNOWN_KEY: ({"metric": ["acc"]}, "key metric: is not a known key; did you mean m"),
    FileFault.MISSING_KEY: ({"version": ...}, "key version: is missing; add it"),
    FileFault.WRONG_TYPE: ({"version": "one"}, "key version: .*integer.*'one'"),
    FileFault.WRONG_VALUE: ({"output_type": "chat"}, "key output_type: .*'multiple_choice'"),
    TaskFault.SOURCE_KIND: ({"source": {}}, "key source: expected exactly one of generator, path"),
    TaskFault.GENERATOR_DATASET: ({"source": {"generator": "pocket"}}, "dataset goes with"),
    TaskFault.HUB_FILES: (
        {"source": {"hub": {"repo": "a/b", "files": "../x.parquet"}}},
        r"source.hub.files: expected a pattern of parquet files with \{split\}",
    ),
    TaskFault.SPLIT_NAME: ({"splits": {"score": "../test"}}, "key splits.score: expected a name"),
    TaskFault.SCORED_SPLIT_REUSED: (
        {"splits": {"score": "test[5:]", "shots": "test[:6]"}}, "would leak; name another, or cut"
    ),
    TaskFault.TUNING_WITHOUT_TRAIN: ({"splits": {"score": None}}, "or train where score is null"),
    TaskFault.FIELD_NAME: ({"fields": {"choices": "x"}}, "'choices' cannot be a template variable"),
    TaskFault.FIELD_KIND: ({"fields": {"a": {"clean": "headings"}}}, "one of column, columns"),
    TaskFault.CHOICES_KIND: (
        {"choices": {"labels": ["a", "b"], "column": "c"}}, "one of .*; found labels, column"
    ),
    TaskFault.CHOICES_SAME: ({"choices": {"labels": ["a", "a"]}}, "two different entries"),
    TaskFault.LABELS_NOT_TEXT: ({"choices": {"labels": [False, True]}}, "quote yes/no labels"),
    TaskFault.GOLD_READING: (
        {"gold": {"column": "x", "above": 1, "map": {"a": 0}}}, "found map and above"
    ),
    TaskFault.GOLD_OUT_OF_RANGE: ({"gold": {"column": "x", "map": {"a": 2}}}, "from 0 to 1"),
    TaskFault.REFERENCE_KIND: ({"references": {}}, "expected exactly one of column, messages"),
    TaskFault.EMPTY_STOP: ({"generation": {"stops": [""]}}, "may not be empty; take it out"),
    TaskFault.PARTS_MISSING: ({"gold": ...}, "multiple_choice needs choices and gold; add gold"),
    TaskFault.PARTS_UNWANTED: ({"references": {"column": "x"}}, "takes no references; remove it"),
    TaskFault.PRIMARY_NOT_A_METRIC: ({"primary": "f1"}, "primary 'f1' should be one of metrics"),
    TaskFault.METRIC_TWICE: ({"metrics": ["acc", "acc"]}, "name one twice"),
}  # fmt: skip
IN_TEXT: dict[FileFault, tuple[str | bytes, str]] = {
    FileFault.BROKEN_YAML: ("name: [a", r"line \d+, column \d+: broken YAML"),
    FileFault.NOT_UTF8: (b"name: \xff\xfe\xff", "is not UTF-8 text; save it as UTF-8"),
    FileFault.YAML_TAG: (
        "name: !!python/object/apply:os.system ['touch SPOILT']", "tag .*os.system.* not allowed"
    ),
    FileFault.KEY_TWICE: ("name: a\nname: b\n", "line 2, column 1: key 'name' is given twice"),
    FileFault.NOT_A_MAPPING: ("- a\n", "expected key: value lines, found a list"),
}  # fmt: skip


@pytest.mark.parametrize("fault", IN_KEYS, ids=str)
def test_keys_that_do_not_fit(fault: FileFault | TaskFault, tmp_path: Path) -> None:
    changes, expected = IN_KEYS[fault]
    with pytest.raises(TaskError, match=expected) as caught:
        read(tmp_path, **changes)
    assert caught.value.fault == fault
    assert "\n" not in str(caught.value)
    assert f"{tmp_path}/toy.yaml: key " in str(caught.value)


@pytest.mark.parametrize("fault", IN_TEXT, ids=str)
def test_text_that_is_no_task(
    fault: FileFault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text, expected = IN_TEXT[fault]
    with pytest.raises(TaskError, match=expected) as caught:
        read_text(tmp_path, text)
    assert caught.value.fault == fault
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "SPOILT").exists()


def test_every_fault_has_its_test() -> None:
    elsewhere = {
        FileFault.UNREADABLE, TaskFault.DEFINED_TWICE, TaskFault.NOTHING_SELECTED,
        TaskFault.NO_SUCH_FOLDER, TaskFault.NO_SUCH_ROLE, TaskFault.TUNING_ONLY,
    }  # fmt: skip
    assert {*IN_KEYS, *IN_TEXT, *elsewhere} == {*FileFault, *TaskFault}
    assert not set(IN_KEYS) & elsewhere


def test_faults_beyond_one_file(tmp_path: Path) -> None:
    def fault(action: Any, *arguments: Any, **named: Any) -> Any:
        with pytest.raises(EvalcoreError) as caught:
            action(*arguments, **named)
        assert "\n" not in str(caught.value)
        return caught.value.fault  # type: ignore[attr-defined]

    assert fault(read_task, tmp_path / "none.yaml") == FileFault.UNREADABLE
    assert fault(list_tasks, [tmp_path / "nowhere"]) == TaskFault.NO_SUCH_FOLDER
    assert fault(select_tasks, ",") == TaskFault.NOTHING_SELECTED
    task = read(tmp_path)
    assert fault(load_documents, task, "train") == TaskFault.NO_SUCH_ROLE
    assert fault(load_documents, load_task("tulu_v2")) == TaskFault.TUNING_ONLY
    (tmp_path / "copy.yaml").write_text((tmp_path / "toy.yaml").read_text())
    assert fault(list_tasks, [tmp_path]) == TaskFault.DEFINED_TWICE


def test_faults_of_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EVALCORE_DATA_ROOT", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    task = read(tmp_path)
    seen = set()

    def expect(fault: DataFault, words: str, own: Any = task, root: Path | None = tmp_path) -> None:
        with pytest.raises(TaskDataError, match=words) as caught:
            load_documents(own, data_root=root)
        assert caught.value.fault == fault
        assert "\n" not in str(caught.value)
        assert "task toy" in str(caught.value)
        seen.add(fault)

    expect(DataFault.NO_DATA_ROOT, "give --data-root FOLDER", root=None)
    rows_of(tmp_path, {"sentence": "x", "label": 0}, split="dev")
    expect(DataFault.NO_SUCH_SPLIT, "split 'test'.*there are dev")
    rows_of(tmp_path, "{oops")
    expect(DataFault.BROKEN_FILE, "line 1")
    rows_of(tmp_path, {"phrase": "x", "label": 0})
    expect(DataFault.MISSING_COLUMN, "key fields.text: no column 'sentence'; columns are label, ph")
    rows_of(tmp_path, {"sentence": "x", "label": {"a": 1}})
    expect(DataFault.GOLD_KIND, "row 0: gold should be an index or a label")
    rows_of(tmp_path, {"sentence": None, "label": 0}, {"sentence": "x", "label": None})
    expect(DataFault.NO_USABLE_ROW, r"none of 2 rows is usable \(missing values\); check splits")
    hub = {"repo": "nobody/nothing-of-the-kind", "config": "c", "revision": "0" * 40}
    absent = read(tmp_path, source={"hub": hub})
    place = f"{tmp_path}/nobody/nothing-of-the-kind/c/test.parquet"
    started = time.monotonic()
    expect(DataFault.NOT_FETCHED, f"configuration c, split 'test', revision 000.*{place}", absent)
    assert time.monotonic() - started < 10  # no waiting for a hub that may not be asked
    script = {**hub, "revision": "refs/convert/parquet", "files": "c/{split}/*.parquet"}
    unpinned = read(tmp_path, source={"hub": script})
    expect(DataFault.NOT_FETCHED, r"revision refs/convert/parquet, files c/test/\*.parq", unpinned)
    (tmp_path / "toy/test.csv").write_text("sentence,label\nx,0\n")
    expect(DataFault.AMBIGUOUS_FILES, r"stands twice in .*: test.jsonl and test.csv; keep one")
    for file in (tmp_path / "toy").glob("test.*"):
        file.rename(file.with_name(file.name.replace("test.", "test-00000-of-00002.")))
        (tmp_path / "toy/test-00000-of-00002.csv").unlink(missing_ok=True)
    expect(DataFault.INCOMPLETE_FILES, r"1 of 2 files test-\*-of-00002 are missing")
    elsewhere = {DataFault.GOLD_NAMES, DataFault.NOT_TEXT}  # test_columns.py
    assert seen == set(DataFault) - elsewhere


def test_a_threshold_wants_numbers_and_knows_hidden_labels(tmp_path: Path) -> None:
    task = read(tmp_path, gold={"column": "label", "above": 3.5})
    rows_of(tmp_path, *({"sentence": f"{x}", "label": x} for x in (3.5, 3.51, -1, "5", 0)))
    assert [d.gold for d in load_documents(task, data_root=tmp_path)] == [0, 1, -1, 1, 0]
    rows_of(tmp_path, {"sentence": "x", "label": "high"})
    with pytest.raises(DataError, match="gold should be a number, not 'high'"):
        load_documents(task, data_root=tmp_path)


def test_errors_survive_a_process_border() -> None:
    error = TaskError(TaskFault.SPLIT_NAME, "a  line")
    again = pickle.loads(pickle.dumps(error))
    assert (again.fault, str(again), type(again)) == (TaskFault.SPLIT_NAME, "a line", TaskError)


def test_keys_twice_are_refused_at_every_depth_and_merges_are_not() -> None:
    with pytest.raises(yaml.YAMLError, match="twice"):
        yaml.load("a: {b: 1, c: {d: 1, d: 2}}", Loader=UniqueKeyLoader)
    merged = yaml.load("x: &x {a: 1}\ny: {<<: *x, a: 2}", Loader=UniqueKeyLoader)
    assert merged["y"] == {"a": 2}


_PIECES = [
    "!!python/object/apply:os.system ['touch SPOILT']", "!!python/name:os.system", "!x", "&a", "*a",
    "<<: *a", "{", "}", "[", "]", ": ", "- ", "? ", "|", ">", '"', "'", "#", "%", "@", "\t", "\n",
    "\x00", "\u2028", "\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16"), "null",
    "true", "1e999", ".nan", "2026-13-45", "0x", "{{ x }}", "{% include 'x' %}", "__class__",
    "../" * 9, "train[9:1]", "[" * 2000, "{a: " * 500, "9" * 5000, "text: ", "hub: ", "map: ",
]  # fmt: skip


def _mutated(text: str, rng: random.Random) -> str:
    for _ in range(rng.randint(1, 4)):
        at, end = sorted(rng.randrange(len(text) + 1) for _ in range(2))
        kind = rng.randrange(5)
        if kind == 0:
            text = text[:at] + rng.choice(_PIECES) + text[at:]
        elif kind == 1:
            text = text[:at] + text[min(end, at + 12) :]
        elif kind == 2:
            lines = text.split("\n")
            lines.insert(rng.randrange(len(lines)), rng.choice(lines))
            text = "\n".join(lines)
        elif kind == 3:
            lines = text.split("\n")
            line = rng.randrange(len(lines))
            lines[line] = lines[line].partition(":")[0] + ": " + rng.choice(_PIECES)
            text = "\n".join(lines)
        else:
            text = text[:at] + text[at:end][::-1][:20] + text[end:]
    return text


def test_fuzzed_files_give_one_line_or_a_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two seconds of seeded mutations of the real definitions, and of what they read."""
    monkeypatch.chdir(tmp_path)
    seeds = [file.read_text("utf-8") for file in sorted(DEFINITIONS.glob("*.yaml"))]
    rng = random.Random(20)
    refused = accepted = 0
    until = time.monotonic() + FUZZ_SECONDS
    while time.monotonic() < until or refused <= 50 or accepted <= 5:
        text = _mutated(rng.choice(seeds), rng).encode("utf-8", "replace")
        try:
            task, line = read_text(tmp_path, text), ""
        except TaskError as error:
            task, line = None, str(error)
        if task is None:
            refused += 1
            assert "\n" not in line, line
            assert str(tmp_path / "toy.yaml") in line, line
            assert len(line) < 1000, line
        else:
            accepted += 1
            assert task.name
            assert task.primary in task.metrics
    assert refused > 50
    assert accepted > 5
    assert {file.name for file in tmp_path.iterdir()} == {"toy.yaml"}  # nothing was executed


def test_pydantic_still_names_its_types_as_expected() -> None:
    """The sorting of pydantic's own error types into faults leans on their names."""
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(int).validate_python("one")
    assert caught.value.errors()[0]["type"] == "int_parsing"

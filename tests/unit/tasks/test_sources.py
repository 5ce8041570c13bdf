"""What the files of one split say about its rows."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evalcore.tasks import DataFault, TaskDataError, load_documents, open_documents
from evalcore.tasks.model import TaskDefinition
from evalcore.tasks.registry import task_from_definition
from evalcore.types import Task


def _task(**gold: object) -> Task:
    return task_from_definition(
        TaskDefinition.model_validate(
            {
                "name": "toy", "version": 1, "group": "toys", "output_type": "multiple_choice",
                "source": {"path": "toy"}, "splits": {"score": "test"},
                "fields": {"text": "sentence"}, "choices": {"labels": ["yes", "no"]},
                "gold": {"column": "label", **gold}, "metrics": ["acc"], "primary": "acc",
            }
        )
    )  # fmt: skip


def _shards(root: Path, kind: str, *names: list[str] | None) -> None:
    (root / "toy").mkdir()
    for i, own in enumerate(names):
        table = pa.table({"sentence": ["a", "b"], "label": [0, 1]})
        if own is not None:
            about = {"info": {"features": {"label": {"names": own, "_type": "ClassLabel"}}}}
            table = table.replace_schema_metadata({"huggingface": json.dumps(about)})
        file = root / "toy" / f"test-{i:05}-of-{len(names):05}.{kind}"
        if kind == "parquet":
            pq.write_table(table, file)
        else:
            made = pa.ipc.new_file if i % 2 else pa.ipc.new_stream
            with made(str(file), table.schema) as out:
                out.write_table(table)


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
@pytest.mark.parametrize("gold", [{}, {"map": {"0": 0, "1": 1}}], ids=["as it is", "mapped"])
def test_shards_that_name_their_labels_differently_are_refused(
    tmp_path: Path, kind: str, gold: dict[str, object]
) -> None:
    _shards(tmp_path, kind, ["yes", "no"], None, ["no", "yes"])
    for load in (load_documents, open_documents):
        with pytest.raises(TaskDataError) as caught:
            load(_task(**gold), "score", data_root=tmp_path)
        assert caught.value.fault is DataFault.GOLD_NAMES
        for part in (f"00000-of-00003.{kind}", f"00002-of-00003.{kind}", "yes, no", "no, yes"):
            assert part in str(caught.value)


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_names_that_a_later_shard_alone_states_are_held_against_the_task(
    tmp_path: Path, kind: str
) -> None:
    _shards(tmp_path, kind, None, ["no", "yes"])
    with pytest.raises(TaskDataError, match="reads 0 as yes"):
        load_documents(_task(), data_root=tmp_path)


def test_shards_that_agree_are_read(tmp_path: Path) -> None:
    _shards(tmp_path, "parquet", ["yes", "no"], None, ["yes", "no"])
    assert [d.gold for d in load_documents(_task(), data_root=tmp_path)] == [0, 1] * 3


@pytest.mark.parametrize(
    "name", ["test.tsv", "test.jsonl.zst", "test-00000-of-00002.parquet.gz", "test/part.txt"]
)
def test_a_split_of_a_kind_that_is_not_read(tmp_path: Path, name: str) -> None:
    """Of a data set that the hub has too, the hub's rows were taken without a word."""
    hub = task_from_definition(
        TaskDefinition.model_validate(
            {**_task().spec, "source": {"hub": {"repo": "toy", "revision": "0" * 40}}}
        )
    )
    file = tmp_path / "toy" / name
    file.parent.mkdir(parents=True)
    file.write_text("a\tb\n")
    for task in (_task(), hub):
        with pytest.raises(TaskDataError, match="which is not read; write it as parquet") as caught:
            load_documents(task, data_root=tmp_path)
        assert caught.value.fault is DataFault.NO_SUCH_SPLIT
        assert file.name in str(caught.value)

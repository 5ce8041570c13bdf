"""What was asked is kept beside the answers: documents, and prompts that can be read again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from evalcore.app.cells import Grid, Question, RequestFile
from evalcore.app.inputs import keep_inputs
from evalcore.checked import write_table
from evalcore.errors import DataError, InputError, NodeError
from evalcore.identity import NumericsClass
from evalcore.prompting import cached_requests, load_tokenizer, read_requests
from evalcore.store import ResultStore
from evalcore.types import Checkpoint, Document, EncodingSettings, Subject, Task, Variant

TASK = Task("toy", 1, "toy", "multiple_choice", ("acc",), "acc")
VARIANT = Variant("default", "toy", "Question: {{ text }} Answer:", fingerprint="f")
DOCUMENTS = [
    Document(f"{i:032x}", i, {"text": f"number {i}", "label": i % 2}, ("yes", "no"), gold=i % 2)
    for i in range(5)
]


def asked(cache: Path, tokenizer: Path) -> Path:
    return cached_requests(cache, TASK, VARIANT, DOCUMENTS, [], tokenizer, EncodingSettings())


def test_documents_and_prompts_are_kept_once(tmp_path: Path, tiny_tokenizer_dir: Path) -> None:
    store = ResultStore(tmp_path / "results")
    path = asked(store.cache_folder, tiny_tokenizer_dir)
    grid = Grid(documents={("toy", "data"): DOCUMENTS})
    file = RequestFile(path, [d.id for d in DOCUMENTS], np.ones(len(DOCUMENTS), np.int64))
    question = Question(TASK, VARIANT, EncodingSettings(), file, 0.5, DOCUMENTS, "data", "{}")
    grid.asked.add(Subject(Checkpoint("c", "/c", "c", "t")), grid.asked.ask(question))
    grid.give_keys(NumericsClass("hf", "float32", "float32", "cpu"))
    store.write_cells([{"cell": "c", "requests": path.name}, {"cell": "gone", "requests": "x"}])
    keep_inputs(store, grid)
    before = sorted(file for file in store.path.rglob("*") if file.is_file())
    keep_inputs(store, grid)
    assert sorted(file for file in store.path.rglob("*") if file.is_file()) == before
    rows = store.documents("toy").to_pylist()
    assert [row["doc_id"] for row in rows] == [d.id for d in DOCUMENTS]
    assert json.loads(rows[3]["fields"]) == {"text": "number 3", "label": 1}
    assert rows[3]["choices"] == ["yes", "no"]
    assert rows[3]["gold"] == 1

    path.unlink()  # the cache may go
    kept = store.requests("c").to_pylist()
    text = load_tokenizer(tiny_tokenizer_dir).decode(kept[3]["contexts"][0])
    assert "Question: number 3 Answer:" in text
    with pytest.raises(InputError, match="were not kept"):
        store.requests("gone")


def test_a_damaged_request_file_is_made_again(
    tmp_path: Path, tiny_tokenizer_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = asked(tmp_path, tiny_tokenizer_dir)
    data = path.read_bytes()
    broken = bytearray(data)
    broken[len(data) // 2] ^= 1
    for content in (bytes(broken), data[:-1], b""):
        path.write_bytes(content)
        with pytest.raises(NodeError, match="cannot be read here"):
            read_requests(path)
        assert asked(tmp_path, tiny_tokenizer_dir) == path
        assert path.read_bytes() == data
    assert caplog.text.count("; made again") == 3


def test_prompts_under_another_files_name_are_not_used(
    tmp_path: Path, tiny_tokenizer_dir: Path
) -> None:
    path = asked(tmp_path / "cache", tiny_tokenizer_dir)
    right = path.read_bytes()
    other = cached_requests(
        path.parent, TASK, VARIANT, DOCUMENTS[:2], [], tiny_tokenizer_dir, EncodingSettings()
    )
    shutil.copy(other, path)
    with pytest.raises(NodeError, match="lies under another file's name"):
        read_requests(path)
    assert asked(path.parent, tiny_tokenizer_dir) == path
    assert path.read_bytes() == right

    store = ResultStore(tmp_path / "results")
    store.write_cells([{"cell": "c", "requests": path.name}])
    for file in (path, other):
        store.write_requests(file.name, read_requests(file))
        assert store.has_requests(file.name)
    kept, wrong = (store.path / "requests" / file.name for file in (path, other))
    shutil.copy(wrong, kept)
    assert not store.has_requests(path.name)
    with pytest.raises(DataError, match="lies under another file's name"):
        store.requests("c")
    (damage,) = store.verify(set_aside=False).damaged
    assert damage.file == f"requests/{path.name}"
    assert other.name.split(".")[0] in damage.reason


def test_prompts_of_earlier_versions(tmp_path: Path, tiny_tokenizer_dir: Path) -> None:
    """They do not state their name: taken where they are kept, made anew in the cache."""
    path = asked(tmp_path / "cache", tiny_tokenizer_dir)
    right, table = path.read_bytes(), read_requests(path)
    store = ResultStore(tmp_path / "results")
    store.write_cells([{"cell": "c", "requests": path.name}])
    kept = store.write_requests(path.name, table)
    for file in (path, kept):
        write_table(file, table)
    assert store.has_requests(path.name)
    assert store.requests("c").equals(table)
    assert store.verify().sound
    assert asked(path.parent, tiny_tokenizer_dir) == path
    assert path.read_bytes() == right

"""Rows of data sets against the loopback hub: what was asked for is what is read, or one line."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evalcore.errors import DataError
from evalcore.lm_eval.harness import data_from
from evalcore.tasks import (
    check_source,
    data_commits,
    data_resolution,
    load_documents,
    task_from_definition,
)
from evalcore.tasks.model import TaskDefinition
from evalcore.types import Task
from tests.hub.conftest import forget
from tests.hub.loopback import Fault, LoopbackHub

CARD = """---
license: mit
configs:
- config_name: nli
  data_files:
  - split: train
    path: nli/train-*
  - split: test
    path: nli/test-*
---
# A data set
"""


def parquet(*texts: str) -> bytes:
    rows = [{"text": text, "label": i % 2} for i, text in enumerate(texts)]
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), out)
    return out.getvalue()


def task(revision: str | None = None, config: str | None = "nli", **source: Any) -> Task:
    asked = {"repo": "org/set", "config": config, "revision": revision, **source}
    return task_from_definition(
        TaskDefinition.model_validate(
            {
                "name": "toy", "version": 1, "group": "nli", "output_type": "multiple_choice",
                "tuned_by": None, "domain": "none", "source": {"hub": asked},
                "splits": {"score": "test", "train": "train"}, "fields": {"text": "text"},
                "choices": {"labels": ["no", "yes"]}, "gold": {"column": "label"},
                "metrics": ["acc"], "primary": "acc", "description": "A toy.",
            }
        )
    )  # fmt: skip


def files(*texts: str) -> dict[str, Any]:
    return {
        "README.md": CARD,
        "nli/train-00000-of-00001.parquet": parquet("t1", "t2"),
        "nli/test-00000-of-00002.parquet": parquet(*texts[:2]),
        "nli/test-00001-of-00002.parquet": parquet(*texts[2:]),
    }


def texts(of: Task) -> list[str]:
    return [document.fields["text"] for document in load_documents(of)]


def line(of: Task) -> str:
    with pytest.raises(DataError) as caught:
        load_documents(of)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def old_and_new(hub: LoopbackHub) -> tuple[str, str]:
    """Two commits of a data set; main points to the second."""
    repository = hub.repository("dataset", "org/set")
    old = repository.commit(files("old a", "old b", "old c"))
    return old, repository.commit(files("new a", "new b", "new c"))


def test_a_pin_is_read_even_when_the_cache_holds_another_revision(
    hub: LoopbackHub, old_and_new: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """datasets 4/5 would serve the newest cached revision when it cannot ask."""
    old, new = old_and_new
    assert texts(task(new)) == ["new a", "new b", "new c"]
    forget()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert f"revision {old}: not in the local cache and HF_HUB_OFFLINE is set" in line(task(old))
    assert texts(task(new)) == ["new a", "new b", "new c"]  # online, then offline
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert texts(task(old)) == ["old a", "old b", "old c"]
    assert data_commits()[f"org/set/nli@{old}"] == old
    found = data_resolution(task(old))
    assert found is not None
    assert found.commit == old
    forget()
    hub.stop()
    assert "the hub (http://127.0.0.1" in line(task("f" * 40))
    assert texts(task(old)) == ["old a", "old b", "old c"]


@pytest.fixture
def library(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The real ``datasets``, asking this hub; it needs no datasets-server, which has no name."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub.endpoint)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.endpoint)
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
        hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
    )
    return datasets


def test_the_rows_are_those_of_the_real_datasets_library(
    library: Any, old_and_new: tuple[str, str], tmp_path: Path
) -> None:
    """The slow way stands beside ours."""
    for revision in (*old_and_new, "main"):
        theirs = library.load_dataset(
            "org/set", "nli", split="test", revision=revision, cache_dir=str(tmp_path / revision)
        )
        assert texts(task(revision)) == theirs["text"]


def test_where_the_library_is_used_another_cached_revision_is_an_error(
    library: Any, old_and_new: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tasks of lm-eval load their data with it; offline it takes the newest there is."""
    old, new = old_and_new
    asked: dict[str, Any] = {"path": "org/set", "name": "nli", "cache_dir": str(tmp_path / "ds")}
    with data_from(None):
        for revision in (old, new):
            rows = library.load_dataset(**asked, revision=revision)["test"]
            assert rows["text"][0].startswith("old" if revision == old else "new")
        assert data_commits()[f"org/set/nli@{old}"] == old
        monkeypatch.setattr(library.config, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        library.load_dataset(**asked, revision=new)
        with pytest.raises(DataError, match=f"asked for at {old} and `datasets` read {new} from"):
            library.load_dataset(**asked, revision=old)


def test_a_branch_that_moved_is_said_and_the_commit_recorded(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = hub.repository("dataset", "org/set")
    first = repository.commit(files("a", "b", "c"))
    assert texts(task()) == ["a", "b", "c"]
    (finding,) = check_source(task())
    assert (finding.level, finding.code) == ("note", "not_pinned")
    assert f"is not pinned, resolved to {first}:" in finding.message
    second = repository.commit(files("d", "e", "f"))
    assert texts(task()) == ["a", "b", "c"]  # never two commits in one process
    forget()
    assert texts(task()) == ["d", "e", "f"]
    (finding,) = check_source(task())
    assert finding.level == "warning"
    assert f"resolved to {second} (main moved: it was {first}, it is {second})" in finding.message
    forget()
    assert texts(task()) == ["d", "e", "f"]
    assert check_source(task())[0].level == "note"
    forget()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert texts(task()) == ["d", "e", "f"]
    assert "HF_HUB_OFFLINE is set: main is what it was when last" in check_source(task())[0].message


def test_a_branch_is_not_taken_from_the_cache_in_silence(hub: LoopbackHub) -> None:
    hub.repository("dataset", "org/set").commit(files("a", "b", "c"))
    assert texts(task()) == ["a", "b", "c"]
    forget()
    hub.faults.append(Fault("/revision/main", 503))
    hub.faults.append(Fault("/api/datasets/org/set", 503))
    assert texts(task()) == ["a", "b", "c"]
    (finding,) = check_source(task())
    assert finding.level == "warning"
    assert "the hub answered 503 to 4 tries" in finding.message


def test_parquet_of_the_hubs_own_conversion(hub: LoopbackHub) -> None:
    repository = hub.repository("dataset", "org/set")
    repository.commit({"README.md": "---\nlicense: mit\n---\n", "set.py": "raise SystemExit"})
    converted = {f"default/test/000{i}.parquet": parquet(f"c{i}") for i in range(2)}
    repository.commit(converted, ref="refs/convert/parquet")  # type: ignore[arg-type]
    asked = task("refs/convert/parquet", config=None, files="default/{split}/*.parquet")
    assert texts(asked) == ["c0", "c1"]
    # a script and nothing else: says which key names the files
    assert "has no files data/test.parquet or" in line(task(config=None))
    assert "name them in source.hub.files" in line(task(config=None))


def test_other_layouts_and_formats(hub: LoopbackHub) -> None:
    repository = hub.repository("dataset", "org/set")
    rows = "".join(json.dumps({"text": t, "label": 1}) + "\n" for t in ("j1", "j2"))
    plain = repository.commit({"test.jsonl": rows})
    assert texts(task(plain, config=None)) == ["j1", "j2"]
    folder = repository.commit({"README.md": CARD, "nli/test-a.jsonl": rows})
    assert texts(task(folder)) == ["j1", "j2"]
    assert "has no configuration other: there are nli" in line(task(folder, config="other"))
    one = {"README.md": "---\nconfigs:\n- config_name: default\n  data_files: all.jsonl\n---\n"}
    single = repository.commit({**one, "all.jsonl": rows})
    assert "has no split test: there are train" in line(task(single, config=None))


def test_a_missing_shard_is_an_error(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = hub.repository("dataset", "org/set")
    whole = files("a", "b", "c")
    del whole["nli/test-00000-of-00002.parquet"]
    commit = repository.commit(whole)
    said = line(task(commit))
    assert "is incomplete: 1 of 2 files test-*-of-00002 are missing" in said
    assert "(first: number 0)" in said


def test_what_is_missing_in_the_cache_is_said_offline(
    hub: LoopbackHub, old_and_new: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A download of one split leaves a snapshot that lacks the others."""
    _, new = old_and_new
    assert texts(task(new)) == ["new a", "new b", "new c"]
    forget()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataError, match=r"not complete in the local cache \(1 files are missing"):
        load_documents(task(new), "train")


FAULTS = {
    "rate limit": (Fault("org/set", 429, headers={"Retry-After": "0"}), "answered 429 to .* tries"),
    "server error": (Fault("org/set", 503), "answered 503 to .* tries"),
    "body cut short": (Fault("/cdn/", 0), "the connection broke off in .* tries"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_that_pass_and_those_that_stay(
    hub: LoopbackHub, old_and_new: tuple[str, str], name: str
) -> None:
    fault, words = FAULTS[name]
    fault = Fault(fault.path, fault.status, 2, fault.headers)
    hub.faults.append(fault)
    assert texts(task("main")) == ["new a", "new b", "new c"]
    assert fault.times == 0
    old, _ = old_and_new
    hub.faults.append(Fault(fault.path, fault.status, headers=fault.headers))
    asked = len(hub.requests)
    with pytest.raises(DataError, match=words) as caught:
        load_documents(task(old))
    assert "\n" not in str(caught.value)
    assert len(hub.requests) - asked < 100  # bounded


def test_missing_gated_and_private_data(
    hub: LoopbackHub, old_and_new: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = hub.repository("dataset", "org/set")
    said = line(task("man"))
    assert f"has no such revision (nearest: main); see {hub.endpoint}/datasets/org/set" in said
    assert "has no such revision" in line(task("e" * 40))
    repository.gated = True
    assert "is gated: accept its terms at" in line(task())
    assert "log in (hf auth login, or HF_TOKEN)" in line(task())
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody_else")
    said = line(task())
    assert "is gated" in said
    assert "hf_of" not in said
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert texts(task()) == ["new a", "new b", "new c"]
    monkeypatch.delenv("HF_TOKEN")
    forget()
    repository.private = True
    assert "is not on the hub" in line(task("main", config="x"))
    assert "org/none" in line(task(repo="org/none"))
    assert "or is private; check its name, or log in" in line(task(repo="org/none"))


def test_xet_falls_back_to_plain_http(hub: LoopbackHub, old_and_new: tuple[str, str]) -> None:
    """Files say that they are stored with Xet; this hub (a mirror) does not speak it."""
    hub.repository("dataset", "org/set").xet = True
    assert texts(task("main")) == ["new a", "new b", "new c"]
    assert any("xet-read-token" in path for _, path in hub.requests)
    assert any("/cdn/" in path for _, path in hub.requests)


def test_bytes_that_are_not_the_hubs_are_an_error(
    hub: LoopbackHub, old_and_new: tuple[str, str], tmp_path: Path
) -> None:
    assert texts(task()) == ["new a", "new b", "new c"]
    (file, *_) = (tmp_path / "hf/hub").rglob("test-00000-of-00002.parquet")
    blob = file.resolve()
    blob.write_bytes(parquet("bad a", "bad b"))
    assert "changed since it was fetched" in line(task())
    blob.unlink()
    file.unlink()
    forget()
    assert texts(task()) == ["new a", "new b", "new c"]


def test_no_hub_is_asked_twice_for_what_is_there(
    hub: LoopbackHub, old_and_new: tuple[str, str]
) -> None:
    _, new = old_and_new
    assert texts(task(new)) == ["new a", "new b", "new c"]
    forget()
    asked = len(hub.requests)
    assert texts(task(new)) == ["new a", "new b", "new c"]
    assert len(hub.requests) == asked

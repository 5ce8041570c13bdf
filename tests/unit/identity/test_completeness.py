"""Whether a folder is written to its end, and what is ready to be scored."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from evalcore.app import following
from evalcore.app.following import Folders
from evalcore.identity.completeness import why_incomplete
from evalcore.identity.search import search


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "a"
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2}))
    save_file(
        {"base_model.model.q.lora_A.weight": np.zeros((2, 4), np.float32)},
        folder / "adapter_model.safetensors",
    )
    return folder


def test_an_adapter_is_complete_with_its_last_byte(adapter: Path) -> None:
    assert why_incomplete(adapter) is None
    weights = adapter / "adapter_model.safetensors"
    whole = weights.read_bytes()
    for size in (0, 5, 40, len(whole) - 1):
        weights.write_bytes(whole[:size])
        assert why_incomplete(adapter)
    weights.unlink()
    assert why_incomplete(adapter)
    weights.write_bytes(whole)
    config = adapter / "adapter_config.json"
    text = config.read_text()
    config.write_text(text[:-5])
    assert why_incomplete(adapter)
    config.write_text(text)
    (adapter / "optimizer.pt.tmp").touch()
    assert why_incomplete(adapter) == "it holds optimizer.pt.tmp"
    (adapter / "optimizer.pt.tmp").unlink()
    moved = adapter.rename(adapter.parent / "tmp-checkpoint-5")
    assert "temporary" in str(why_incomplete(moved))


def test_a_checkpoint_is_complete_with_its_last_shard(
    make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_checkpoint(tmp_path / "step-00010")
    assert why_incomplete(folder) is None
    (weights,) = folder.glob("*.safetensors")
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    weights.rename(folder / shards[0])
    assert why_incomplete(folder)  # the second, and the index, are to come
    tokenizer = folder / "tokenizer.json"
    (folder / shards[0]).rename(weights)
    tokenizer.rename(tmp_path / "away.json")
    assert why_incomplete(folder)
    (tmp_path / "away.json").rename(tokenizer)
    assert why_incomplete(folder) is None


def test_files_must_have_been_at_rest(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(following.time, "monotonic", lambda: now[0])  # type: ignore[attr-defined]
    folders = Folders([str(adapter.parent)], (), rest_s=30)
    assert folders.look().waiting == {adapter: "its files changed a moment ago"}
    now[0] += 29
    assert not folders.look().ready
    now[0] += 2
    assert list(folders.look().ready) == [adapter]
    (adapter / "README.md").write_text("a card")  # written last by some trainers
    assert not folders.look().ready
    now[0] += 31
    before = folders.look().ready[adapter]
    (adapter / "adapter_model.safetensors").write_bytes(
        (adapter / "adapter_model.safetensors").read_bytes()
    )
    assert list(folders.look(ended=True).ready) == [adapter]
    assert folders.look(ended=True).ready[adapter] != before  # another state: scored again
    (adapter / "adapter_model.safetensors").write_bytes(b"")
    assert not folders.look(ended=True).ready  # not even at the end


def test_what_is_left_out_is_not_there_but_what_lies_below_is(adapter: Path) -> None:
    below = adapter / "checkpoint-5"
    below.mkdir()
    for file in list(adapter.iterdir()):
        if file.is_file():
            (below / file.name).write_bytes(file.read_bytes())
    roots = [str(adapter.parent)]
    assert search(roots).adapters == (adapter, below)
    for glob in (str(adapter), "runs/a", "a"):
        assert search(roots, [glob]).adapters == (below,)
    assert search(roots, ["*checkpoint-*"]).adapters == (adapter,)
    assert search(roots, ["runs/*"]).adapters == ()

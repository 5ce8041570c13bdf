"""Weights saved as pickles become safetensors, and nothing of them is run."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from evalcore.app.convert import convert
from evalcore.app.unpickle import unpickle
from evalcore.errors import InputError
from evalcore.identity import adapter_fingerprint, open_checkpoint, resolve_subjects

Make = Callable[..., Path]


def pickled(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """Turns a folder's safetensors into one pickle of that name."""
    (file,) = folder.glob("*.safetensors")
    tensors = {key: torch.from_numpy(value) for key, value in load_file(file).items()}
    file.unlink()
    torch.save(tensors, folder / name)
    return tensors


def test_an_adapter_keeps_its_identity(
    tmp_path: Path, tiny_checkpoint: Path, make_adapter: Make
) -> None:
    folder = make_adapter(tmp_path / "a", tiny_checkpoint)
    before = adapter_fingerprint(folder)
    pickled(folder, "adapter_model.bin")
    (problem,) = resolve_subjects([folder], [str(tiny_checkpoint)]).problems
    assert f"evalcore convert {folder}" in problem.message
    (file,) = convert(folder, tmp_path / "new")
    assert file == tmp_path / "new" / "adapter_model.safetensors"
    assert adapter_fingerprint(tmp_path / "new") == before
    assert not list(tmp_path.glob(".convert-*"))
    with pytest.raises(InputError, match="exists already"):
        convert(folder, tmp_path / "new")


def test_shards_of_a_checkpoint(tmp_path: Path, make_checkpoint: Make) -> None:
    folder = make_checkpoint(tmp_path / "c", tied=True)
    before = open_checkpoint(str(folder)).fingerprint
    tensors = pickled(folder, "pytorch_model-00001-of-00002.bin")
    names = sorted(tensors)
    shards = {"pytorch_model-00001-of-00002.bin": names[:5],
              "pytorch_model-00002-of-00002.bin": names[5:]}  # fmt: skip
    for shard, own in shards.items():
        torch.save({name: tensors[name] for name in own}, folder / shard)
    places = {name: shard for shard, own in shards.items() for name in own}
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    with pytest.raises(InputError, match="evalcore convert"):
        open_checkpoint(str(folder))
    assert len(convert(folder, tmp_path / "new")) == 2
    assert open_checkpoint(str(tmp_path / "new")).fingerprint == before


def test_tied_tensors_are_written_twice(tmp_path: Path) -> None:
    own = torch.arange(6.0).reshape(2, 3)
    torch.save({"state_dict": {"embed": own, "head": own}}, tmp_path / "x.bin")
    unpickle(str(tmp_path / "x.bin"), str(tmp_path / "x.safetensors"))
    made = load_file(tmp_path / "x.safetensors")
    np.testing.assert_array_equal(made["embed"], made["head"])


class _Code:
    def __reduce__(self) -> Any:
        return os.mkdir, ("ran",)


def test_nothing_of_a_pickle_is_run(
    tmp_path: Path, tiny_checkpoint: Path, make_adapter: Make, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = make_adapter(tmp_path / "a", tiny_checkpoint)
    pickled(folder, "adapter_model.bin")
    torch.save({"a": _Code()}, folder / "adapter_model.bin")
    with pytest.raises(InputError, match="only tensors are read") as caught:
        convert(folder, tmp_path / "new")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "new").exists()
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("held", [_Code(), {"a": 3}, [torch.ones(2)], b"x"])
def test_what_is_no_tensor_is_refused(tmp_path: Path, held: Any) -> None:
    file, target = tmp_path / "x.bin", tmp_path / "x.safetensors"
    if isinstance(held, bytes):
        file.write_bytes(held)
    else:
        torch.save(held, file)
    with pytest.raises(Exception, match=r"tensor|load|pickle|Unpickl"):
        unpickle(str(file), str(target))
    assert not target.exists()


def test_nothing_to_convert(tmp_path: Path, tiny_checkpoint: Path) -> None:
    for folder in (tmp_path, tiny_checkpoint, tmp_path / "none"):
        with pytest.raises(InputError, match="convert: "):
            convert(folder, tmp_path / "new")

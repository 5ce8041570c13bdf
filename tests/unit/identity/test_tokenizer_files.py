"""Copies of a tokenizer are known by their bytes, and asked as one that was loaded anew."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from evalcore.identity import readings
from evalcore.identity.readings import adapter_reading
from evalcore.identity.sources import describe_checkpoint
from evalcore.identity.tokenizer_files import same_files
from evalcore.types import Checkpoint

OF_THE_MODEL = ("config.json", "generation_config.json")


@pytest.fixture
def base(tmp_path: Path, tiny_checkpoint: Path) -> Path:
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "step-7"))
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    return folder


@pytest.fixture
def adapter(base: Path, tmp_path: Path, make_adapter: Callable[..., Path]) -> Path:
    """With a copy of its base's tokenizer, as trainers save it."""
    path = make_adapter(tmp_path / "a", "b")
    for file in base.glob("*token*"):
        shutil.copy(file, path)
    return path


def test_a_copy_is_asked_as_when_it_is_loaded(
    base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = describe_checkpoint(base)
    assert same_files(adapter, base)
    loads: list[object] = []
    slow = readings.read_through

    def counted(checkpoint: Checkpoint, path: str | Path) -> Checkpoint:
        loads.append(path)
        return slow(checkpoint, path)

    monkeypatch.setattr(readings, "read_through", counted)
    assert adapter_reading(adapter, checkpoint) == (None, "")
    assert not loads, "the base's tokenizer is at hand"
    monkeypatch.setattr(readings, "same_files", lambda *_: False)
    assert adapter_reading(adapter, checkpoint) == (None, "")
    assert loads


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_one_more_byte_is_another_tokenizer(base: Path, adapter: Path, name: str) -> None:
    with (adapter / name).open("a") as file:
        file.write(" ")
    assert not same_files(adapter, base)


@pytest.mark.parametrize(
    "name", ["special_tokens_map.json", "chat_template.jinja", "added_tokens.json", "vocab.txt"]
)
@pytest.mark.parametrize("here", ["base", "adapter"])
def test_a_file_that_one_has_alone_is_another_tokenizer(
    base: Path, adapter: Path, name: str, here: str
) -> None:
    (base / name).unlink(missing_ok=True)
    (adapter / name).unlink(missing_ok=True)
    assert same_files(adapter, base)
    ({"base": base, "adapter": adapter}[here] / name).write_text("{}")
    assert not same_files(adapter, base)


@pytest.mark.parametrize("name", OF_THE_MODEL)
def test_a_configuration_beside_an_adapter_has_to_be_its_bases(
    base: Path, adapter: Path, name: str
) -> None:
    shutil.copy(base / name, adapter)
    assert same_files(adapter, base)
    (adapter / name).write_text('{"eos_token_id": 0}')
    assert not same_files(adapter, base)

"""Sizes, and which files of a listing belong to what."""

from __future__ import annotations

import pytest

from evalcore.errors import InputError
from evalcore.identity.hub import HubFile
from evalcore.identity.listings import adapter_folders, files_of, parse_size, size_text
from evalcore.identity.places import HubPlace


@pytest.mark.parametrize(
    ("text", "count"),
    [("200GB", 2 * 10**11), ("1.5 TiB", 3 << 39), ("500m", 5 * 10**8), ("7", 7), ("2 KiB", 2048)],
)
def test_sizes(text: str, count: int) -> None:
    assert parse_size(text) == count


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "1e3", "0", "3 GBit", "1,5GB"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(InputError, match="expected a size"):
        parse_size(text)


def test_sizes_for_people() -> None:
    assert [size_text(n) for n in (999, 1500, 13_500_000_000)] == ["999 bytes", "1.5 kB", "13.5 GB"]


def test_the_files_of_a_folder() -> None:
    names = (
        "README.md config.json model.safetensors consolidated.safetensors tokenizer.json "
        "original/config.json additional_chat_templates/a.jinja "
        "a/adapter_config.json a/adapter_model.safetensors a/model.safetensors a/deep/x.json "
        "a/b/adapter_config.json a/b/adapter_model.safetensors ab/adapter_config.json"
    )
    listing = dict.fromkeys(names.split(), HubFile(None, 1))
    place = HubPlace("org/name", "main")
    assert set(files_of(listing, place)) == {
        "config.json", "model.safetensors", "tokenizer.json", "additional_chat_templates/a.jinja"
    }  # fmt: skip
    below = HubPlace("org/name", "main", "a")
    assert set(files_of(listing, below)) == {"a/adapter_config.json", "a/adapter_model.safetensors"}
    assert [p.folder for p in adapter_folders(listing, place)] == ["a", "a/b", "ab"]
    assert [p.folder for p in adapter_folders(listing, below)] == ["a", "a/b"]

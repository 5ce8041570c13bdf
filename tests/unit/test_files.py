"""What results ask of a file system is tried when they are opened."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from evalcore.errors import ResultsError
from evalcore.files import try_folder
from evalcore.store import ResultStore


def test_a_sound_folder_passes_and_stays_empty(tmp_path: Path) -> None:
    try_folder(tmp_path)
    assert list(tmp_path.iterdir()) == []


def late(path: Any = ".") -> list[str]:
    """A listing that is behind."""
    return []


def kept(path: Any = ".") -> list[str]:
    """A listing that never forgets."""
    real = {entry.name for entry in os.scandir(path)}
    kept.seen = getattr(kept, "seen", set()) | real  # type: ignore[attr-defined]
    return list(kept.seen)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("listing", "said"), [(late, "is not listed at once"), (kept, "is still listed")]
)
def test_a_folder_that_does_not_keep_its_promise_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listing: Any, said: str
) -> None:
    monkeypatch.setattr("evalcore.files.os.listdir", listing)
    with pytest.raises(ResultsError, match=said) as caught:
        ResultStore(tmp_path / "results")
    assert "\n" not in str(caught.value)


def test_bytes_that_come_back_otherwise_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read(path)[:-1] + b"?")
    with pytest.raises(OSError, match="reads back otherwise"):
        try_folder(tmp_path)
    assert list(tmp_path.iterdir()) == []

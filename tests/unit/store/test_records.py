"""Under which fingerprint weights are scored in a results folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from evalcore.identity.away import Named
from evalcore.store import ResultStore


def test_rows_of_several_writers_are_read_together(tmp_path: Path) -> None:
    store = ResultStore(tmp_path / "r")
    assert store.weights().by_files == {}
    store.write_weights([Named("s1", "unread1"), Named("s2", "f2", "f2")])
    store.write_weights([Named("s1", "unread1", "f1", untrained=True)])  # a worker has read it
    store.write_weights([Named("s1", "unread1"), Named("s2", "f2", "f2")])
    found = ResultStore(tmp_path / "r", read_only=True).weights()
    assert found.by_files == {
        "s1": Named("s1", "unread1", "f1", untrained=True), "s2": Named("s2", "f2", "f2")
    }  # fmt: skip
    assert len(list((tmp_path / "r" / "weights").iterdir())) == 2, "what is known is not written"
    assert [found.used(content) for content in ("f1", "f2", "f3")] == ["unread1", "f2", "f3"]


def test_a_name_by_content_goes_before_others(tmp_path: Path) -> None:
    """Two runs began at once: one had read the weights, the other not."""
    store = ResultStore(tmp_path / "r")
    store.write_weights([Named("s1", "unread1", "f1")])
    store.write_weights([Named("s1", "f1", "f1")])
    assert store.weights().by_files["s1"] == Named("s1", "f1", "f1")
    assert store.weights().used("f1") == "f1"


def test_a_damaged_file_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = ResultStore(tmp_path / "r")
    store.write_weights([Named("s1", "unread1", "f1")])
    (file,) = (tmp_path / "r" / "weights").iterdir()
    file.write_bytes(file.read_bytes().replace(b"unread1", b"unread2"))
    assert ResultStore(tmp_path / "r", read_only=True).weights().by_files == {}

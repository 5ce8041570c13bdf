"""Stored prompts are read by the tokenizer that wrote them, or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from evalcore.errors import DataError, InputError
from evalcore.identity import load_tokenizer, tokenizer_fingerprint
from evalcore.prompting.sent import SentPrompts

QUESTION, ANSWERS = "The river is <not> a stone.", (" yes", " no")


class Source:
    """Keeps the prompts of one cell."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    def requests(self, cell: str) -> pa.Table:
        if cell == "damaged":
            raise DataError("requests/x.arrow: batch 0 fails its checksum")
        if cell != "known":
            raise InputError("no prompts")
        return self.table


@pytest.fixture
def folder(tmp_path: Path, make_tokenizer: Callable[..., Path]) -> Path:
    return make_tokenizer(tmp_path / "model")


@pytest.fixture
def source(folder: Path) -> Source:
    def ids(text: str) -> list[int]:
        return load_tokenizer(folder)(text, add_special_tokens=False)["input_ids"]

    answers = [ids(a) for a in ANSWERS]
    rows = [
        {"doc_id": "one", "contexts": [ids(QUESTION)], "continuations": answers, "prompt": None},
        {"doc_id": "two", "contexts": [ids("a"), ids("b")], "continuations": answers,
         "prompt": None},
        {"doc_id": "free", "contexts": [], "continuations": [], "prompt": ids(QUESTION)},
    ]  # fmt: skip
    return Source(pa.Table.from_pylist(rows))


def cell(folder: Path, **changes: Any) -> dict[str, Any]:
    about = {"cell": "known", "checkpoint_source": str(folder)}
    return about | {"tokenizer": tokenizer_fingerprint(folder)} | changes


def test_prompts_come_back_as_they_were_sent(folder: Path, source: Source) -> None:
    sent = SentPrompts(source)
    assert sent.contexts(cell(folder), ["one", "two"]) == {"one": [QUESTION], "two": ["a", "b"]}
    assert sent.requests(cell(folder)) == {
        "one": [(QUESTION, ANSWERS[0]), (QUESTION, ANSWERS[1])],
        "two": [("a", ANSWERS[0]), ("b", ANSWERS[1])],
        "free": [(QUESTION, "")],
    }
    assert sent.lost == set()


def test_another_tokenizer_gives_no_text(
    folder: Path, source: Source, make_tokenizer: Callable[..., Path]
) -> None:
    about = cell(folder)
    make_tokenizer(folder, "unigram")  # the folder was written anew since
    sent = SentPrompts(source)
    assert sent.requests(about) == {}
    assert sent.contexts(about, ["one"]) == {}
    (reason,) = sent.lost
    assert "not the one the prompts were made with" in reason


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tokenizer": None}, "not recorded"),
        ({"checkpoint_source": "/nowhere/at/all"}, "not at hand"),
        ({"checkpoint_source": None}, "not at hand"),
        ({"cell": "another"}, "not kept"),
        ({"cell": "damaged"}, "requests/x.arrow"),
    ],
)
def test_what_is_missing_is_said(
    folder: Path, source: Source, changes: dict[str, Any], words: str
) -> None:
    sent = SentPrompts(source)
    assert sent.requests(cell(folder, **changes)) == {}
    assert any(words in reason for reason in sent.lost)


def test_a_broken_tokenizer_is_said_and_other_faults_are_not_hidden(
    folder: Path, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = cell(folder)
    (folder / "tokenizer.json").write_text("{")
    sent = SentPrompts(source)
    assert sent.requests(about) == {}
    assert "tokenizer.json" in next(iter(sent.lost))

    def faulty(_: str) -> str:
        raise RuntimeError("a defect")

    monkeypatch.setattr("evalcore.prompting.sent.tokenizer_fingerprint", faulty)
    with pytest.raises(RuntimeError, match="a defect"):
        SentPrompts(source).requests(about)

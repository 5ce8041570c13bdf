"""Tokenizers that practically never end are refused soon; ordinary ones are not tried at all."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evalcore.errors import InputError
from evalcore.identity import resolve_subjects, tokenizer_facts, trial
from evalcore.identity.tokenizer import load_untried
from evalcore.identity.trial import check_use, is_plain

Make = Callable[..., Path]
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def write(folder: Path, **parts: Any) -> None:
    file = folder / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | parts))


def replaced(pattern: dict[str, str], content: str, times: int) -> dict[str, Any]:
    step = {"type": "Replace", "pattern": pattern, "content": content}
    return {"type": "Sequence", "normalizers": [step] * times}


def split(regex: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


@pytest.mark.parametrize("kind", ["bpe", "unigram", "wordpiece"])
def test_ordinary_tokenizers_are_not_tried(
    tmp_path: Path, make_tokenizer: Make, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("a child was started")

    monkeypatch.setattr(trial, "run_bounded", never)
    folder = make_tokenizer(tmp_path / kind, kind)
    assert is_plain(folder)
    tokenizer_facts(folder)


def test_steps_of_published_tokenizers_are_ordinary(tmp_path: Path, make_tokenizer: Make) -> None:
    folder = make_tokenizer(tmp_path / "t", "bpe")
    for regex in (GPT2, LLAMA3, O200K, r"\d{1,3}(?=(?:\d{3})*\b)"):
        write(folder, pre_tokenizer=split(regex))
        assert is_plain(folder) == ("(?:" not in regex), regex
    for normalizer in (
        {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u2581"},
         {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]},
        replaced({"Regex": " {2,}"}, "\u2581", 3),
        {"type": "Precompiled", "precompiled_charsmap": "A" * 300_000},
    ):  # fmt: skip
        write(folder, normalizer=normalizer, pre_tokenizer=split(GPT2))
        assert is_plain(folder), normalizer


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"normalizer": replaced({"String": "a"}, "aa", 30)}, "1,073,741,824 times as long"),
        ({"normalizer": {"type": "Prepend", "prepend": "x" * 5000}}, "key prepend: 5,000 char"),
        ({"normalizer": replaced({"Regex": "."}, "x" * 5000, 1)}, "key content: 5,000 char"),
    ],
)
def test_what_makes_texts_grow_without_bound_is_refused_at_once(
    tmp_path: Path, make_tokenizer: Make, parts: dict[str, Any], said: str
) -> None:
    folder = make_tokenizer(tmp_path / "t", "bpe")
    write(folder, **parts)
    began = time.monotonic()
    with pytest.raises(InputError, match=said) as refused:
        tokenizer_facts(folder)
    assert str(folder / "tokenizer.json") in str(refused.value)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    "parts",
    [
        {"model": {"type": "WordLevel", "unk_token": "x", "vocab": {str(i): i for i in range(9)}}},
        {"normalizer": replaced({"Regex": "."}, "aaa", 9)},
        {"normalizer": replaced({"String": "a"}, "a" * 100, 3)},
        {"pre_tokenizer": split("(a|aa|a*)*b")},
        {"added_tokens": [{"content": str(i)} for i in range(30)]},
        {"post_processor": {"type": "x", "special": ["y" * 3000] * 30}},
    ],
)
def test_what_is_odd_is_tried_first(
    tmp_path: Path, make_tokenizer: Make, monkeypatch: pytest.MonkeyPatch, parts: dict[str, Any]
) -> None:
    folder = make_tokenizer(tmp_path / "t", "bpe")
    monkeypatch.setattr(trial, "_PLAIN_ENTRIES", 400)
    monkeypatch.setattr(trial, "_PLAIN_ADDED", 20)
    if "model" in parts:
        monkeypatch.setattr(trial, "_PLAIN_ENTRIES", 8)
    write(folder, **parts)
    assert not is_plain(folder)


def test_a_text_of_too_many_tokens_is_refused(tmp_path: Path, make_tokenizer: Make) -> None:
    folder = make_tokenizer(tmp_path / "t", "bpe")
    write(folder, normalizer=replaced({"String": "q"}, "q" * 100, 2))
    with pytest.raises(InputError, match="tokens of the text 'q' of 1 characters; expected at"):
        check_use(load_untried(str(folder)), str(folder))


def test_what_does_not_end_costs_its_subject_only(
    tmp_path: Path, tiny_checkpoint: Path, make_checkpoint: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real child that is given a second: what it has not done by then it would never do."""
    base = make_checkpoint(tmp_path / "step-9", seed=9)
    write(base, normalizer=replaced({"Regex": "."}, "aaa", 12))
    monkeypatch.setattr(trial, "TRIAL_WALL_S", 0.5)
    (problem,) = resolve_subjects([], [str(base), str(tiny_checkpoint)]).problems
    assert "does not end within 30 s of a core and 4,000 MB (it took longer)" in problem.message
    monkeypatch.setattr(trial, "run_bounded", None)
    (again,) = resolve_subjects([], [str(base), str(tiny_checkpoint)]).problems  # remembered
    assert again.message == problem.message


@pytest.mark.slow
def test_what_is_odd_and_ends_is_taken(tmp_path: Path, make_tokenizer: Make) -> None:
    folder = make_tokenizer(tmp_path / "t", "bpe")
    write(folder, normalizer=replaced({"Regex": "zq"}, "zzzz", 7))
    assert not is_plain(folder)
    assert tokenizer_facts(folder).fingerprint

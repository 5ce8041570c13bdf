"""Tokenizers as published: ids of tokenizer.json whatever the class, identity by behaviour."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from evalcore.errors import InputError
from evalcore.identity import (
    end_token_ids,
    load_tokenizer,
    resolve_subjects,
    tokenizer_facts,
    tokenizer_fingerprint,
)

Make = Callable[..., Path]
TEXTS = ["hello 2023 world\n\n650841823", " two  blanks", "the old mill, 12345", "é 日本", ""]


def edit(file: Path, **changes: Any) -> None:
    data = json.loads(file.read_text()) if file.is_file() else {}
    data.update(changes)
    file.write_text(json.dumps({k: v for k, v in data.items() if v is not ...}))


def as_published(folder: Path, text: str) -> list[int]:
    file = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return list(file.encode(text, add_special_tokens=False).ids)


def require_published(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    for text in TEXTS:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ids == as_published(folder, text), text


@pytest.fixture
def folder(tmp_path: Path, tiny_checkpoint: Path) -> Path:
    """A checkpoint with a byte-level tokenizer, to be changed."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "step-7"))


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "olmo2"])
@pytest.mark.parametrize(
    "name",
    ["PreTrainedTokenizerFast", "LlamaTokenizerFast", "LlamaTokenizer", "GPT2Tokenizer",
     "Qwen2Tokenizer", "NoSuchTokenizer", ...],
)  # fmt: skip
def test_ids_are_those_of_the_file_whatever_its_class(
    folder: Path, name: Any, model_type: str
) -> None:
    before = tokenizer_fingerprint(folder)
    edit(folder / "tokenizer_config.json", tokenizer_class=name)
    edit(folder / "config.json", model_type=model_type)
    require_published(folder)
    assert load_tokenizer(folder)("a")["input_ids"][0] == load_tokenizer(folder).bos_token_id
    assert tokenizer_fingerprint(folder) == before  # it does the same


def test_digits_are_split_as_the_file_splits_them(folder: Path) -> None:
    file = Tokenizer.from_file(str(folder / "tokenizer.json"))
    file.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    file.save(str(folder / "tokenizer.json"))
    plain = tokenizer_facts(folder)
    edit(folder / "tokenizer_config.json", tokenizer_class="GPT2Tokenizer")
    require_published(folder)
    assert tokenizer_fingerprint(folder) == plain.fingerprint
    assert plain.note == ""


def test_what_the_library_would_have_changed_is_said(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", tokenizer_class="LlamaTokenizerFast")
    note = tokenizer_facts(folder).note
    assert "ids are those of tokenizer.json" in note
    assert "LlamaTokenizer" in note
    resolved = resolve_subjects([], [str(folder)])
    assert any(note in line and str(folder) in line for line in resolved.notes)


@pytest.mark.parametrize(
    ("name", "spaced"),
    [("PreTrainedTokenizerFast", False), ("GPT2Tokenizer", True), ("LlamaTokenizer", False)],
)
def test_a_blank_before_the_text_as_the_class_has_it(folder: Path, name: str, spaced: bool) -> None:
    """``add_prefix_space`` is said beside the file; where the class passes over it, so do we."""
    edit(folder / "tokenizer_config.json", tokenizer_class=name, add_prefix_space=True)
    ids = load_tokenizer(folder)("hello", add_special_tokens=False)["input_ids"]
    file = Tokenizer.from_file(str(folder / "tokenizer.json"))
    text = " hello" if spaced else "hello"
    assert ids == file.encode(text, add_special_tokens=False).ids
    assert bool(tokenizer_facts(folder).note) == (name == "LlamaTokenizer")


def test_settings_that_break_the_library_are_one_line(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", model_max_length="huge")
    with pytest.raises(InputError, match="cannot encode text"):
        load_tokenizer(folder)


def sentencepiece_like(folder: Path) -> None:
    """A BPE tokenizer as Llama 2's files are: blanks become a sign, bytes for the unknown."""
    letters = sorted({*"abcdefghijklmnopqrstuvwxyz,.0123456789", "\u2581"})
    words = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *letters]
    words += ["th", "the", "\u2581the"]
    model = models.BPE(
        {word: i for i, word in enumerate(words)}, [("t", "h"), ("th", "e"), ("\u2581", "the")],
        unk_token="<unk>", fuse_unk=True, byte_fallback=True,
    )  # fmt: skip
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))


@pytest.mark.parametrize("name", ["LlamaTokenizerFast", "PreTrainedTokenizerFast"])
def test_tokenizers_with_a_sign_for_blanks(folder: Path, name: str) -> None:
    sentencepiece_like(folder)
    edit(folder / "tokenizer_config.json", tokenizer_class=name)
    require_published(folder)
    tokenizer = load_tokenizer(folder)
    ids = tokenizer("the old mill", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids).strip() == "the old mill"


@pytest.mark.parametrize("kind", ["unigram", "wordpiece"])
@pytest.mark.parametrize("name", ["LlamaTokenizerFast", "T5Tokenizer", "BertTokenizerFast"])
def test_other_models_under_a_foreign_class(
    tmp_path: Path, make_tokenizer: Make, kind: str, name: str
) -> None:
    folder = make_tokenizer(tmp_path / kind, kind)
    edit(folder / "tokenizer_config.json", tokenizer_class=name)
    require_published(folder)
    assert tokenizer_facts(folder).note


def test_without_tokenizer_json_the_library_makes_it_as_before(folder: Path) -> None:
    data = json.loads((folder / "tokenizer.json").read_text())
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in data["model"]["merges"]]
    (folder / "vocab.json").write_text(json.dumps(data["model"]["vocab"]))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    (folder / "tokenizer.json").unlink()
    edit(folder / "tokenizer_config.json", tokenizer_class="GPT2Tokenizer")
    tokenizer = load_tokenizer(folder)
    ids = tokenizer("the old mill 12", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == "the old mill 12"
    first = tokenizer_fingerprint(folder)
    edit(folder / "vocab.json", another=max(data["model"]["vocab"].values()) + 1)
    assert tokenizer_fingerprint(folder) != first


def test_fingerprint_is_what_it_does_not_how_it_is_saved(
    folder: Path, tmp_path: Path, make_tokenizer: Make
) -> None:
    before = tokenizer_fingerprint(folder)
    edit(folder / "tokenizer.json", truncation={"direction": "Right", "max_length": 5,
         "strategy": "LongestFirst", "stride": 0})  # fmt: skip
    edit(folder / "tokenizer_config.json", model_max_length=7, padding_side="left")
    assert tokenizer_fingerprint(folder) == before
    saved = tmp_path / "saved"
    load_tokenizer(folder).save_pretrained(saved)
    shutil.copy(folder / "config.json", saved)
    assert tokenizer_fingerprint(saved) == before
    assert tokenizer_fingerprint(make_tokenizer(tmp_path / "no-bos", bos=False)) != before


def test_fingerprint_sees_specials_wherever_they_are_named(folder: Path) -> None:
    before = tokenizer_facts(folder)
    edit(folder / "tokenizer_config.json", eos_token=...)
    edit(folder / "special_tokens_map.json", eos_token="<unk>")
    moved = tokenizer_facts(folder)
    assert moved.fingerprint != before.fingerprint
    assert moved.ends != before.ends


def test_added_tokens_change_the_fingerprint(folder: Path) -> None:
    before = tokenizer_fingerprint(folder)
    data = json.loads((folder / "tokenizer.json").read_text())
    token = {**data["added_tokens"][0], "content": "<more>", "id": 399}
    edit(folder / "tokenizer.json", added_tokens=[*data["added_tokens"], token])
    assert tokenizer_fingerprint(folder) != before


def test_templates_are_apart_from_the_tokenizer(folder: Path) -> None:
    before = tokenizer_facts(folder)
    assert before.template
    assert not before.dated
    assert before.think_end == ""
    edit(folder / "tokenizer_config.json", chat_template="{{ strftime_now('%d %b') }}</think>")
    after = tokenizer_facts(folder)
    assert after.fingerprint == before.fingerprint
    assert after.template != before.template
    assert after.dated
    assert after.think_end == "</think>"
    edit(folder / "tokenizer_config.json", chat_template=...)
    assert tokenizer_facts(folder).template == ""
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    assert tokenizer_facts(folder).template not in ("", before.template, after.template)


def test_ends_are_of_both_configurations_and_the_tokenizer(folder: Path) -> None:
    eos = load_tokenizer(folder).eos_token_id
    edit(folder / "config.json", eos_token_id=[5, 3])
    edit(folder / "generation_config.json", eos_token_id=9)
    assert tokenizer_facts(folder).ends == tuple(sorted({3, 5, 9, eos}))
    edit(folder / "generation_config.json", eos_token_id=[9, 11])
    assert tokenizer_facts(folder).ends == tuple(sorted({3, 5, 9, 11, eos}))
    edit(folder / "config.json", eos_token_id=None)
    assert end_token_ids(folder, None) == (9, 11)
    edit(folder / "config.json", text_config={"eos_token_id": 6})
    assert end_token_ids(folder, None) == (6, 9, 11)
    edit(folder / "config.json", eos_token_id="</s>")
    with pytest.raises(InputError, match="eos_token_id should hold token ids"):
        tokenizer_facts(folder)


def test_broken_tokenizers_are_one_line(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no tokenizer\.json"):
        tokenizer_facts(tmp_path)
    edit(folder / "tokenizer.json", model={"type": "BPE", "vocab": 3})
    with pytest.raises(InputError, match=r"tokenizer\.json cannot be loaded") as raised:
        tokenizer_facts(folder)
    assert "\n" not in str(raised.value)
    edit(folder / "tokenizer.json", version="1\n0")
    with pytest.raises(InputError, match=r"tokenizer\.json cannot be loaded") as raised:
        tokenizer_facts(folder)
    assert "\n" not in str(raised.value)


def test_a_tokenizer_that_panics_is_one_line(folder: Path) -> None:
    """Its template of special tokens names one that it does not list: no ``Exception`` in Rust."""
    state = json.loads((folder / "tokenizer.json").read_text())
    assert state["post_processor"]["special_tokens"]
    edit(folder / "tokenizer.json", post_processor=state["post_processor"] | {"special_tokens": {}})
    with pytest.raises(InputError, match="cannot") as raised:
        tokenizer_facts(folder)
    assert "\n" not in str(raised.value)

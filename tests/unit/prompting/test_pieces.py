"""Ids put together from pieces are those of the whole text, for tokenizers that allow it."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from evalcore.prompting import Encoder, pieces
from evalcore.prompting.pieces import Pieces, allows_pieces, pieces_of, split_pieces
from evalcore.types import EncodingSettings

CORPUS = [
    "Dorira is a baker, isn't she? I'LL say 12 mills stand at 3.5 km.\n\nQuestion: who? Answer:",
    "premise: the old mill hypothesis: a mill is old\nentailment yes no ( ) [x] don't we'll I've",
]
SOME = st.lists(
    st.sampled_from(
        [" ", "  ", "\n", " \n", "\t", " a", "the", " mill", ".", ". The", " 12", "345", "é", " é",
         "e\u0301", "\u0301", "猫", "\u00a0", "\u2003",
         "'s", "'LL", " '", " don't", "🙂", "#", " (x)",
         "<s>", "</s>", "<two words>", "/", "\r\n", "_", "~", "!"]
    ),
    max_size=10,
).map("".join)  # fmt: skip
TEXT = st.one_of(SOME, st.text(max_size=15))
GPT2, GPT4, QWEN = sorted(pieces._PATTERNS, key=lambda p: ("i:" in p, "|\\p{N}|" in p))


def split(pattern: str, behavior: str = "isolated", invert: bool = False) -> Any:
    return pre_tokenizers.Split(Regex(pattern), behavior, invert)


def byte_level(use_regex: bool = True, add_prefix_space: bool = False) -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=use_regex)


def steps(*parts: Any) -> Any:
    return pre_tokenizers.Sequence(list(parts))


ALLOWED = {
    "gpt-2, pythia, olmo": (byte_level(), None),
    "smollm": (steps(pre_tokenizers.Digits(individual_digits=True), byte_level()), None),
    "llama 3": (steps(split(GPT4), byte_level(False)), None),
    "olmo 2": (steps(split(GPT4, "removed", True), byte_level(False)), None),
    "qwen": (steps(split(QWEN), byte_level(False)), normalizers.NFC()),
    "digits in threes": (steps(split(r"\p{N}{1,3}"), split(GPT2), byte_level(False)), None),
}
REFUSED = {
    "a space in front": byte_level(add_prefix_space=True),
    "no words": byte_level(use_regex=False),
    "unknown pattern": steps(split(r"\S+\s*"), byte_level(False)),
    "spaces behind": steps(split(GPT4, "merged_with_previous"), byte_level(False)),
    "metaspace": pre_tokenizers.Metaspace(),
}


def train(pre_tokenizer: Any, normalizer: Any = None) -> Any:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        core.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(CORPUS * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Any]:
    return {name: train(*parts) for name, parts in ALLOWED.items()}


@given(text=TEXT)
def test_pieces_are_the_text_and_keep_white_space_together(text: str) -> None:
    found = split_pieces(text)
    assert "".join(found) == text
    for before, after in pairwise(found):
        assert "!" <= before[-1] <= "~"
        assert re.match(" [A-Za-z0-9]", after)


@settings(max_examples=250, deadline=None)
@given(
    kind=st.sampled_from(sorted(ALLOWED)),
    policy=st.sampled_from(["auto", "always", "never"]),
    items=st.lists(st.tuples(TEXT, st.lists(TEXT, min_size=1, max_size=3)), max_size=4),
)
def test_ids_equal_those_of_whole_texts(
    tokenizers: dict[str, Any], kind: str, policy: Any, items: list[tuple[str, list[str]]]
) -> None:
    quick = Encoder(tokenizers[kind], EncodingSettings(add_bos=policy))
    slow = Encoder(tokenizers[kind], EncodingSettings(add_bos=policy), by_pieces=False)
    assert (quick._pieces is None, slow._pieces is None) == (False, True)
    assert quick.encode_pairs(items) == slow.encode_pairs(items)
    texts = [context + "".join(tails) for context, tails in items]
    assert quick.encode(texts) == slow.encode(texts)
    assert quick.encode_prompts(texts) == slow.encode_prompts(texts)


@pytest.mark.parametrize("kind", sorted(ALLOWED))
def test_long_texts_and_a_memory_that_overflows(
    tokenizers: dict[str, Any], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "_MOST_KEPT", 20)
    encoder = Encoder(tokenizers[kind], EncodingSettings())
    texts = [f"{CORPUS[i % 2]} {'x' * i} item{i} {i} {CORPUS[(i + 1) % 2]}" for i in range(80)]
    for text in texts:
        assert encoder.encode([text]) == tokenizers[kind]([text])["input_ids"]


@pytest.mark.parametrize("kind", sorted(REFUSED))
def test_other_ways_of_cutting_are_given_whole_texts(kind: str) -> None:
    tokenizer = train(REFUSED[kind])
    assert pieces_of(tokenizer) is None
    encoder = Encoder(tokenizer, EncodingSettings())
    assert encoder.encode(CORPUS) == tokenizer(CORPUS)["input_ids"]


def test_a_callers_truncation_does_not_stay(tokenizers: dict[str, Any]) -> None:
    tokenizer = tokenizers["llama 3"]
    text = "\u732b" * 40
    whole = tokenizer([text])["input_ids"]
    tokenizer([text], truncation=True, max_length=2)
    assert Encoder(tokenizer, EncodingSettings()).encode([text]) == whole


def test_refusals_are_needed() -> None:
    """Where a tokenizer is refused, pieces would give other ids."""
    text = "see two words now"
    spaced = train(REFUSED["no words"])
    assert Pieces(spaced.backend_tokenizer).encode([CORPUS[0]]) != spaced([CORPUS[0]])["input_ids"]
    for token in (AddedToken("two words"), AddedToken("two", rstrip=True)):
        tokenizer = train(byte_level())
        assert pieces_of(tokenizer) is not None
        tokenizer.add_tokens([token])  # the memory is begun anew, and refused
        assert pieces_of(tokenizer) is None
        assert Pieces(tokenizer.backend_tokenizer).encode([text]) != tokenizer([text])["input_ids"]


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"type": "Unigram"}},
        {"model": {"type": "BPE", "dropout": 0.1}},
        {"normalizer": {"type": "Prepend", "prepend": "_"}},
        {"pre_tokenizer": None},
    ],
)
def test_definitions_that_are_refused(tokenizers: dict[str, Any], change: dict[str, Any]) -> None:
    definition = json.loads(tokenizers["llama 3"].backend_tokenizer.to_str())
    assert allows_pieces(definition)
    assert not allows_pieces(definition | change)

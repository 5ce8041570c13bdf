"""Text -> ids: the published split rules, BOS once, training ids equal scored ids."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evalcore.errors import DataError, InputError
from evalcore.prompting import (
    Encoder,
    MergedBorderError,
    encode_pair,
    encode_training,
    load_tokenizer,
)
from evalcore.types import EncodingSettings

KINDS = ["bpe", "bpe-no-bos", "unigram", "wordpiece"]
AUTO, ALWAYS, NEVER = (EncodingSettings(add_bos=p) for p in ("auto", "always", "never"))
# Text with what splits go wrong on: spaces of all kinds, newlines, digits, other scripts.
PIECES = st.lists(
    st.sampled_from(
        [" ", "  ", "\n", "\t", " a", "the", "Gorse", ".", "12", "é", "猫", "\u00a0", "entail",
         "ment", "yes", "🙂", "#"]
    ),
    max_size=8,
).map("".join)  # fmt: skip
TEXT = st.one_of(PIECES, st.text(max_size=12))


@pytest.fixture(scope="module")
def tokenizers(
    tmp_path_factory: pytest.TempPathFactory, make_tokenizer: Callable[..., Path]
) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("tokenizers")
    return {
        kind: load_tokenizer(
            make_tokenizer(root / kind, kind.split("-")[0], bos="no-bos" not in kind)
        )
        for kind in KINDS
    }


def by_the_rules(tokenizer: Any, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """The slow twin: lm-evaluation-harness's published rules, one call per text.

    The tokenizer's own special tokens are used (policy auto), as that program does.
    """

    def encode(text: str, special: bool = True) -> list[int]:
        return list(tokenizer(text, add_special_tokens=special)["input_ids"])

    spaces = len(context) - len(context.rstrip())
    if spaces:
        continuation = context[-spaces:] + continuation
        context = context[:-spaces]
    context_ids = encode(context)
    ids = encode(context + continuation)[len(context_ids) :]
    if not encode(context, special=False):
        return [tokenizer.bos_token_id], encode(continuation, special=False)
    return context_ids, ids or encode(continuation, special=False)


@settings(max_examples=150, deadline=None)
@given(kind=st.sampled_from(KINDS), context=TEXT, continuation=TEXT)
def test_pairs_follow_the_published_rules(
    tokenizers: dict[str, Any], kind: str, context: str, continuation: str
) -> None:
    tokenizer = tokenizers[kind]
    expected = by_the_rules(tokenizer, context, continuation)
    if not expected[1]:
        with pytest.raises(DataError, match="has no tokens"):
            encode_pair(tokenizer, context, continuation, AUTO)
        return
    assert encode_pair(tokenizer, context, continuation, AUTO) == expected


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    policy=st.sampled_from([AUTO, ALWAYS, NEVER]),
    items=st.lists(st.tuples(TEXT, st.lists(TEXT, min_size=1, max_size=3)), max_size=5),
)
def test_batches_equal_single_pairs(
    tokenizers: dict[str, Any],
    kind: str,
    policy: EncodingSettings,
    items: list[tuple[str, list[str]]],
) -> None:
    encoder = Encoder(tokenizers[kind], policy)
    together = encoder.encode_pairs(items)
    alone = [[encoder.encode_pairs([(c, [t])])[0][0] for t in texts] for c, texts in items]
    assert together == alone
    for group in together:
        assert all(context == group[0][0] and context for context, _ in group)


@settings(max_examples=100, deadline=None)
@given(kind=st.sampled_from(KINDS), policy=st.sampled_from([AUTO, ALWAYS]), text=TEXT, tail=PIECES)
def test_one_bos(
    tokenizers: dict[str, Any], kind: str, policy: EncodingSettings, text: str, tail: str
) -> None:
    tokenizer = tokenizers[kind]
    wanted = int(policy is ALWAYS or kind != "bpe-no-bos")
    for given_text in (text, "<s>" + text):  # chat templates write the token themselves
        context, continuation = encode_pair(tokenizer, given_text, tail + " yes", policy)
        ids = context + continuation
        if wanted or not given_text.strip():
            assert ids[0] == tokenizer.bos_token_id
        nothing = not tokenizer(text.rstrip(), add_special_tokens=False)["input_ids"]
        brought = given_text.startswith("<s>")
        assert ids.count(tokenizer.bos_token_id) == max(wanted, brought, nothing)


@settings(max_examples=100, deadline=None)
@given(kind=st.sampled_from(["bpe", "bpe-no-bos"]), context=TEXT, continuation=TEXT)
def test_byte_level_ids_spell_the_text(
    tokenizers: dict[str, Any], kind: str, context: str, continuation: str
) -> None:
    """No text is lost or doubled where the split falls on a token boundary."""
    tokenizer = tokenizers[kind]
    text = context + continuation
    if not continuation.strip() or not text.strip() or "<" in text:
        return
    ids = encode_pair(tokenizer, context, continuation, AUTO)
    whole = tokenizer(text, add_special_tokens=False)["input_ids"]
    bare = context.rstrip()
    alone = tokenizer(bare, add_special_tokens=False)["input_ids"]
    if whole[: len(alone)] == alone:
        body = [token for token in ids[0] + ids[1] if token != tokenizer.bos_token_id]
        assert tokenizer.decode(body, clean_up_tokenization_spaces=False) == text


@settings(max_examples=100, deadline=None)
@given(kind=st.sampled_from(KINDS), prompt=TEXT, completion=TEXT)
def test_training_ids_are_the_scored_ids_and_the_end(
    tokenizers: dict[str, Any], kind: str, prompt: str, completion: str
) -> None:
    tokenizer = tokenizers[kind]
    try:
        scored = encode_pair(tokenizer, prompt, completion, AUTO)
    except DataError:
        return
    try:
        trained = encode_training(tokenizer, prompt, completion, AUTO)
    except MergedBorderError:
        assert is_merged(tokenizer, prompt, completion)
        return
    assert trained == (scored[0], [*scored[1], tokenizer.eos_token_id])


def is_merged(tokenizer: Any, context: str, continuation: str) -> bool:
    """The slow twin: whether the ids of both texts together begin with those of the first."""
    bare = context.rstrip()
    first, whole = (
        list(tokenizer(text, add_special_tokens=False)["input_ids"])
        for text in (bare, context + continuation)
    )
    return bool(bare) and whole[: len(first)] != first


@pytest.mark.parametrize("kind", KINDS)
@given(context=TEXT, continuation=TEXT)
@settings(max_examples=60, deadline=None)
def test_borders_that_merge_are_known(
    tokenizers: dict[str, Any], kind: str, context: str, continuation: str
) -> None:
    """Of 270 borders inside words 60 were scored, and learned, as ids that spell neither text."""
    tokenizer = tokenizers[kind]
    for encoder in (Encoder(tokenizer, AUTO), Encoder(tokenizer, AUTO, by_pieces=False)):
        encoder.encode_pairs([(context, [continuation, " other"])])
        assert encoder.merges(context, continuation) == is_merged(tokenizer, context, continuation)


def test_a_merged_border_is_never_learned(tokenizers: dict[str, Any]) -> None:
    tokenizer, word = tokenizers["bpe"], "contradiction"
    cuts = [cut for cut in range(2, len(word)) if is_merged(tokenizer, word[:cut], word[cut:])]
    assert cuts
    with pytest.raises(MergedBorderError, match="have a token in common; give the prompt a"):
        encode_training(tokenizer, word[: cuts[0]], word[cuts[0] :], AUTO)
    assert encode_training(tokenizer, f"{word}:", word, AUTO)  # a sign at the end is enough


def test_golden_pairs(tokenizers: dict[str, Any]) -> None:
    """Change only with a new REQUESTS_VERSION."""
    tokenizer = tokenizers["bpe"]

    def texts(context: str, continuation: str) -> tuple[list[str], list[str]]:
        pair = encode_pair(tokenizer, context, continuation, AUTO)
        first, second = (tokenizer.convert_ids_to_tokens(part) for part in pair)
        return first, second

    assert texts("The old mill", " yes") == (
        ["<s>", "T", "he", "Ġold", "Ġmil", "l"],
        ["Ġyes"],
    )
    assert texts("The old mill \n", "yes")[1] == ["Ġ", "Ċ", "yes"]
    assert texts("", " yes") == (["<s>"], ["Ġyes"])
    assert texts(" \n", "yes") == (["<s>"], ["Ġ", "Ċ", "yes"])
    assert texts("", "<s> yes") == (["<s>"], ["Ġyes"])


def test_a_continuation_that_melts_into_the_context_is_still_scored(
    tokenizers: dict[str, Any],
) -> None:
    tokenizer = tokenizers["bpe"]
    whole = " contradiction"
    melted = [
        (whole[:cut], whole[cut:])
        for cut in range(2, len(whole))
        if len(tokenizer(whole, add_special_tokens=False)["input_ids"])
        <= len(tokenizer(whole[:cut], add_special_tokens=False)["input_ids"])
    ]
    assert melted, "the tokenizer should have a word longer than its parts"
    for context, continuation in melted:
        _, ids = encode_pair(tokenizer, context, continuation, AUTO)
        assert ids == tokenizer(continuation, add_special_tokens=False)["input_ids"]


def test_missing_special_tokens(tokenizers: dict[str, Any]) -> None:
    import copy

    bare = copy.deepcopy(tokenizers["bpe-no-bos"])
    bare.bos_token = None
    with pytest.raises(InputError, match="no beginning-of-text token"):
        encode_pair(bare, "a", "b", ALWAYS)
    assert encode_pair(bare, "", "yes", AUTO)[0] == [bare.eos_token_id]
    bare.eos_token = None
    with pytest.raises(InputError, match="neither BOS nor EOS"):
        encode_pair(bare, "", "yes", AUTO)
    with pytest.raises(InputError, match="no end-of-text token"):
        encode_training(bare, "a", "b", AUTO)


def test_a_broken_tokenizer_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="cannot be loaded") as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)

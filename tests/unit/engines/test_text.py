"""Where a generation ends, against an obviously right loop, with real tokenizers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers

from evalcore.engines.text import StopRule, finish
from evalcore.engines.vllm.growth import Growth
from evalcore.identity import load_tokenizer
from evalcore.types import GenerationSettings

Make = Callable[..., Path]


def slow(ids: list[int], tokenizer: Any, ends: tuple[int, ...], how: GenerationSettings) -> Any:
    """(text, tokens, reason): token after token, looking at everything each time."""
    special = {tokenizer.decode([i]): i for i in tokenizer.all_special_ids}
    special |= {str(t): i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
    ends = (*ends, *(special[stop] for stop in how.stops if stop in special))
    stops = [stop for stop in how.stops if stop not in special]
    marked = [stop for stop in stops if any(token in stop for token in special)]
    for n, token in enumerate(ids[: how.max_tokens], start=1):
        if token in ends:
            return tokenizer.decode(ids[: n - 1], skip_special_tokens=True), n, "stop"
        text = tokenizer.decode(ids[:n], skip_special_tokens=True)
        found = [text.find(stop) for stop in stops if stop not in marked and stop in text]
        if found:
            return text[: min(found)], n, "stop"
        written = tokenizer.decode(ids[:n], skip_special_tokens=False)
        if any(stop in written for stop in marked):
            at = min(written.find(stop) for stop in marked if stop in written)
            text = written[:at]
            for token_text in special:
                text = text.replace(token_text, "")
            return text, n, "stop"
    kept = ids[: how.max_tokens]
    return tokenizer.decode(kept, skip_special_tokens=True), len(kept), "length"


@pytest.fixture(scope="module")
def byte_level(tiny_tokenizer_dir: Path) -> Any:
    return load_tokenizer(tiny_tokenizer_dir)


@pytest.fixture(scope="module")
def byte_fallback() -> Any:
    """Bytes that are no character are decoded together: text may shrink when it grows."""
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "\u2581", "a", "b"]
    model = models.BPE({w: i for i, w in enumerate(words)}, [], unk_token="<unk>",
                       byte_fallback=True)  # fmt: skip
    made = Tokenizer(model)
    made.normalizer = normalizers.Replace(" ", "\u2581")
    made.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


STOPS = [(), ("\n",), ("ab", "b"), ("<s>",), ("<s>\n", "a "), ("</s>", "the"), ("é",)]


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_finish_is_the_slow_rule(kind: str, data: st.DataObject, request: Any) -> None:
    tokenizer = request.getfixturevalue(kind)
    likely = [*tokenizer("the ab a\n é\n<s>", add_special_tokens=False)["input_ids"], 0, 2]
    token = st.one_of(st.sampled_from(likely), st.integers(0, len(tokenizer) - 1))
    ids = data.draw(st.lists(token, max_size=24))
    stops = data.draw(st.sampled_from(STOPS))
    how = GenerationSettings(data.draw(st.integers(1, 20)), stops)
    ends = data.draw(st.sampled_from([(), (tokenizer.eos_token_id,)]))
    ending = finish(ids, tokenizer, ends, how)
    assert (ending.text, ending.token_count, ending.finish_reason) == slow(
        ids, tokenizer, ends, how
    )
    # What an engine makes that stops at once ends in the same way.
    again = finish(ids[: ending.token_count], tokenizer, ends, how)
    assert (again.text, again.token_count) == (ending.text, ending.token_count)


def test_special_tokens_as_stop_strings_stop(byte_level: Any) -> None:
    ids = byte_level("old mill<s>the", add_special_tokens=False)["input_ids"]
    at = ids.index(byte_level.bos_token_id) + 1
    ending = finish(ids, byte_level, (), GenerationSettings(50, ("<s>",)))
    assert (ending.text, ending.token_count, ending.finish_reason) == ("old mill", at, "stop")
    raw = finish(ids, byte_level, (), GenerationSettings(50, ("\n", "<s>"), run_on=True))
    assert (raw.text, raw.token_count) == ("old mill", at)
    turn = GenerationSettings(50, (), turn_end=byte_level.bos_token_id)
    assert finish(ids, byte_level, (), turn) == ending
    thinking = GenerationSettings(50, ("\n", "<s>"), think_end="</think>")
    assert finish(ids, byte_level, (), thinking) == raw
    rule = StopRule.of(byte_level, (7,), GenerationSettings(9, ("<s>", "\n", "<s> a")))
    assert rule.ends == {7, byte_level.bos_token_id}
    assert (rule.plain, rule.marked) == (("\n",), ("<s> a",))


def test_long_texts_are_decoded_a_few_times_only(byte_level: Any) -> None:
    class Counting:
        eos_token_id = None
        calls = 0

        def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
            self.calls += 1
            return str(byte_level.decode(ids, skip_special_tokens=skip_special_tokens))

    tokenizer = Counting()
    ids = byte_level("the old mill " * 400 + "\n", add_special_tokens=False)["input_ids"]
    assert finish(ids, tokenizer, (), GenerationSettings(10_000, ("\n",))).finish_reason == "stop"
    assert tokenizer.calls < 20


def test_growing_texts_stop_at_special_tokens_too(byte_level: Any) -> None:
    ids = byte_level("old mill<s>the", add_special_tokens=False)["input_ids"]
    for stops in [("<s>",), ("<s>t",)]:
        growth = Growth([GenerationSettings(50, stops)], byte_level, ())
        count = next(n for n, token in enumerate(ids, start=1) if growth.add(0, token))
        ending = finish(ids, byte_level, (), GenerationSettings(50, stops))
        assert growth.endings[0] == ending
        assert (ending.token_count, ending.text) == (count, "old mill")


@settings(max_examples=60, deadline=None)
@given(
    words=st.lists(st.sampled_from(["the", " mill", "\n", " é", "<s>", ".", "x"]), max_size=60),
    stops=st.lists(
        st.sampled_from(["\n", "mill.", "é\n", "<s>", "<s>x", "xx"]), unique=True, max_size=3
    ),
)
def test_the_token_that_ends_a_text_is_seen_when_it_comes(
    byte_level: Any, words: list[str], stops: list[str]
) -> None:
    """Held against the rule for whole texts; only the last tokens are decoded for it."""
    ids = byte_level("".join(words), add_special_tokens=False)["input_ids"]
    asked = GenerationSettings(500, tuple(stops))
    rule = StopRule.of(byte_level, (), asked)
    longest = 0

    def decode(own: list[int], skip_special_tokens: bool = True) -> str:
        nonlocal longest
        longest = max(longest, len(own))
        return str(byte_level.decode(own, skip_special_tokens=skip_special_tokens))

    counts = range(1, len(ids) + 1)
    seen = next((n for n in counts if rule.ended(ids[:n], byte_level, decode)), None)
    ending = finish(ids, byte_level, (), asked)
    assert seen == (ending.token_count if ending.finish_reason == "stop" else None)
    if seen is None:
        assert longest <= 4 * 5 + 8

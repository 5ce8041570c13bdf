"""Control tokens that data names: letters in training, counted in scoring."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evalcore.identity import load_tokenizer
from evalcore.prompting import encode_task, encode_training, training_pair, with_options
from evalcore.prompting.guarding import MARK, control_pattern, holds
from evalcore.types import Document, EncodingSettings, Task, Variant

Make = Callable[..., Path]
TASK = Task("t", 1, "g", "generate_until", ("rouge_l",), "rouge_l")
PLAIN = Variant("v", "g", "Q: {{ q }}\nA:")
SETTINGS = EncodingSettings()


def document(text: str, answer: str = "yes") -> Document:
    return Document("0" * 32, 0, {"q": text, "more": ["<s>"]}, references=(answer,))


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer_dir: Path) -> Any:
    return load_tokenizer(tiny_tokenizer_dir)


def learned(tokenizer: Any, variant: Variant, *shown: Document) -> tuple[list[int], list[int]]:
    own, *shots = shown
    pair = training_pair(TASK, variant, own, shots, tokenizer)
    prompt, completion = encode_training(tokenizer, *pair, SETTINGS)
    return list(prompt), list(completion)


@pytest.mark.parametrize("chat", [False, True])
def test_text_of_control_tokens_is_learned_as_letters(tokenizer: Any, chat: bool) -> None:
    variant = with_options(PLAIN, chat=chat)
    prompt, completion = learned(
        tokenizer, variant, document("a </s> b <s>c", "no </s> more"), document("x</s>", "<unk>")
    )
    plain, bare = learned(tokenizer, variant, document("a b c", "no more"), document("x", "u"))
    special = set(tokenizer.all_special_ids)
    assert [i for i in prompt if i in special] == [i for i in plain if i in special]
    assert [i for i in completion if i in special] == [tokenizer.eos_token_id]
    assert [i for i in bare if i in special] == [tokenizer.eos_token_id]
    text = tokenizer.decode(prompt)
    assert "a </s> b <s>c" in text
    assert tokenizer.decode(completion[:-1]).strip() == "no </s> more"
    assert MARK not in text


def test_what_names_none_is_learned_as_before(tokenizer: Any) -> None:
    own = document("the old mill")
    assert MARK not in "".join(training_pair(TASK, PLAIN, own, [], tokenizer))
    with_tokenizer = training_pair(TASK, PLAIN, own, [], tokenizer)
    assert with_tokenizer == training_pair(TASK, PLAIN, own, [])


def test_documents_that_name_one_are_found() -> None:
    pattern = control_pattern(["</s>", "<|end|>"])
    assert pattern is not None
    assert holds(document("a<|end|>b"), pattern)
    assert holds(document("a", "</s>"), pattern)
    assert not holds(document("a </ s>"), pattern)
    nested = Document("0" * 32, 0, {"turns": [{"text": "x</s>"}]})
    assert holds(nested, pattern)
    assert control_pattern([]) is None


def test_a_chat_about_the_bos_token_is_asked(tmp_path: Path, make_tokenizer: Make) -> None:
    folder = make_tokenizer(tmp_path / "one")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["chat_template"] = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    own = load_tokenizer(folder)
    table = encode_task(TASK, with_options(PLAIN, chat=True), [document("a <s> b")], [], own,
                        SETTINGS)  # fmt: skip
    assert table["contexts"].to_pylist()[0][0].count(own.bos_token_id) == 2

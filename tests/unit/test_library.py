"""A process that runs no model has tokenizers without torch: the same to the last id."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from evalcore.identity import load_tokenizer, tokenizer_facts
from tests.conftest import CHAT_TEMPLATE, CORPUS, write_tokenizer

_ASK = """
import json, os, sys
from dataclasses import asdict
from evalcore.identity import load_tokenizer, tokenizer_facts
from evalcore.library import runs_no_model
runs_no_model()
said = []
for folder, text in json.load(sys.stdin):
    tokenizer = load_tokenizer(folder)
    chat = tokenizer.apply_chat_template([{"role": "user", "content": text}], tokenize=False)
    said.append([asdict(tokenizer_facts(folder)), tokenizer(text)["input_ids"], chat])
found = "torch" in sys.modules
from transformers.utils import is_torch_available
import torch  # whoever wants it afterwards has it
print(json.dumps({"found": found, "known": is_torch_available(), "said": said,
                  "adds": torch.ones(2).sum().item(),
                  "told": os.environ.get("TRANSFORMERS_NO_ADVISORY_WARNINGS")}))
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Tokenizers of three kinds, under general, own and wrong classes."""
    made = []
    for kind in ("bpe", "unigram", "wordpiece"):
        for name in ("PreTrainedTokenizerFast", "LlamaTokenizerFast", "Qwen2Tokenizer"):
            folder = write_tokenizer(tmp_path_factory.mktemp("tokenizers") / f"{kind}-{name}", kind)
            file = folder / "tokenizer_config.json"
            settings = json.loads(file.read_text())
            settings |= {"tokenizer_class": name, "chat_template": CHAT_TEMPLATE}
            file.write_text(json.dumps(settings))
            made.append(folder)
    return made


def test_tokenizers_without_torch_are_the_same(folders: list[Path], tmp_path: Path) -> None:
    asked = [(str(folder), text) for folder in folders for text in (CORPUS[0], "  a\n\n42 é 日")]
    done = subprocess.run(
        [sys.executable, "-c", _ASK], input=json.dumps(asked), capture_output=True, text=True,
        check=False, env={**os.environ, "EVALCORE_CACHE": str(tmp_path / "facts")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "PyTorch was not found" not in done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    alone = found.pop("said")
    assert found == {"found": False, "known": False, "adds": 2.0, "told": None}

    for (folder, text), said in zip(asked, alone, strict=True):
        tokenizer = load_tokenizer(folder)
        chat = tokenizer.apply_chat_template([{"role": "user", "content": text}], tokenize=False)
        here = [asdict(tokenizer_facts(folder)), tokenizer(text)["input_ids"], chat]
        assert said == json.loads(json.dumps(here)), folder
    assert any(said[0]["note"] for said in alone), "a class that would change the ids"


def test_a_process_of_somebody_elses_keeps_its_torch(folders: list[Path]) -> None:
    load_tokenizer(folders[0])
    from transformers.utils import is_torch_available

    assert is_torch_available()

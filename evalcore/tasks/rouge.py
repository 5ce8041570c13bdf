"""ROUGE by rouge-score, in three readings of what a word is.

- ``rouge_l`` and the others: the Porter stemmer over the tokenizer of rouge-score (lower case, runs
  of a-z and 0-9; everything else is white space).
- ``rouge_l_plain``: the same without the stemmer, as Hugging Face `evaluate` has it.
- ``rouge_l_unicode``: runs of letters, marks and digits of any script, case-folded, without the
  stemmer; scripts without spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese) by character.
"""

from __future__ import annotations

import importlib
import re
import sys
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

Reading = Literal["", "plain", "unicode"]
READINGS: tuple[Reading, ...] = ("", "plain", "unicode")
ROUGE_TYPES = {
    "rouge_1": "rouge1",
    "rouge_2": "rouge2",
    "rouge_l": "rougeL",
    "rouge_lsum": "rougeLsum",
}
"""Name here -> name in rouge-score."""
_SEEN = re.compile("[a-z0-9]")
_WITHOUT_SPACES = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff]"
)


def without_spaces(sign: str) -> bool:
    """Whether a character is of a script that sets no spaces between words."""
    return _WITHOUT_SPACES.match(sign) is not None


def rouge_kind(metric: str) -> tuple[str, Reading] | None:
    """(name of ``ROUGE_TYPES``, reading) of a metric's name, raw or not; None if it is no ROUGE."""
    name = metric.removesuffix("_raw")
    for reading in READINGS[1:]:
        base = name.removesuffix(f"_{reading}")
        if base != name and base in ROUGE_TYPES:
            return base, reading
    return (name, "") if name in ROUGE_TYPES else None


@lru_cache(maxsize=8)
def rouge_scorer(kinds: Sequence[str], reading: Reading = "") -> Any:
    """A scorer of rouge-score for some of ``ROUGE_TYPES``."""
    library = _library()
    types = [ROUGE_TYPES[kind] for kind in kinds]
    if reading == "unicode":
        return library.RougeScorer(types, tokenizer=UnicodeWords())
    return library.RougeScorer(types, use_stemmer=reading == "")


class _Unrun(ModuleType):
    """A package whose ``__init__`` was not run: what is asked of it is asked of the whole one."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or sys.modules.get(self.__name__) is self:
            raise AttributeError(name)
        return getattr(importlib.import_module(self.__name__), name)


def _library() -> Any:
    """``rouge_score.rouge_scorer``, imported with nltk's Porter stemmer and without its rest.

    rouge-score imports nltk, and that every reader of corpora and scipy: four seconds for the one
    file that is used. Who imports nltk later gets all of it.
    """
    found = find_spec("nltk")
    homes = list(found.submodule_search_locations or ()) if found else []
    if not homes or "nltk" in sys.modules or "rouge_score.rouge_scorer" in sys.modules:
        return importlib.import_module("rouge_score.rouge_scorer")
    for name, below in (("nltk", ""), ("nltk.stem", "stem")):
        package = _Unrun(name)
        package.__path__ = [str(Path(home, below)) for home in homes]
        sys.modules[name] = package
    try:
        return importlib.import_module("rouge_score.rouge_scorer")
    finally:
        for name in [n for n in sys.modules if n.split(".")[0] == "nltk"]:
            del sys.modules[name]


class UnicodeWords:
    """A tokenizer for rouge-score that knows the letters of every script."""

    def tokenize(self, text: str) -> list[str]:
        """Words of a text."""
        if text.isascii():
            return _ASCII_WORDS.findall(text.lower())
        return unicodedata.normalize("NFKC", text).casefold().translate(_SPACED).split()


class _Spaced(dict[int, str]):
    """Character -> itself, itself between spaces (scripts without them), or a space; as met."""

    def __missing__(self, code: int) -> str:
        char = chr(code)
        if _WITHOUT_SPACES.match(char) and unicodedata.category(char)[0] in "LMN":
            kept = f" {char} "
        else:
            kept = char if unicodedata.category(char)[0] in "LMN" else " "
        self[code] = kept
        return kept


_ASCII_WORDS = re.compile("[a-z0-9]+")
_SPACED = _Spaced()


def is_seen(text: str) -> bool:
    """Whether rouge-score's own tokenizer finds a word in a text."""
    return bool(_SEEN.search(text.lower()))

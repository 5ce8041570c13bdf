"""Words of a text, and when two texts are the same one: for the checks of rows that leak.

Words are those of ``rouge_l_unicode`` (:class:`evalcore.tasks.rouge.UnicodeWords`): runs of
letters, marks and digits in one case, NFKC; scripts without spaces by character. Characters that
are not seen (zero-width spaces, soft hyphens) are left out.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Callable
from functools import lru_cache

from evalcore.tasks.rouge import UnicodeWords, is_seen, rouge_kind

_UNSEEN = dict.fromkeys([0x00AD, 0x200B, 0x2060, 0xFEFF])
_DASHES = dict.fromkeys([0x2010, 0x2011, 0x2012, 0x2013, 0x2014, 0x2212, 0xFE63, 0xFF0D], "-")
_BESIDE = re.compile(r"(?<=\d)\s*+[^\w\s]++|(?<![^\w\s])[^\w\s]++(?=\s*+\d)")  # in linear time
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_TOKENIZER = UnicodeWords()


def words(text: str) -> list[str]:
    """Words of a text."""
    return _TOKENIZER.tokenize(_seen(text))


def normal_tokens(text: str) -> list[str]:
    """Lower-case words without punctuation and English articles (SQuAD's published rules)."""
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def sees(metric: str) -> Callable[[str], bool] | None:
    """Whether a metric's own tokenizer finds a word in a text; None where it has no tokenizer."""
    kind = rouge_kind(metric)
    if kind is not None:
        return is_seen if kind[1] != "unicode" else lambda text: bool(_TOKENIZER.tokenize(text))
    return (lambda text: bool(normal_tokens(text))) if metric == "token_f1" else None


def same_key(text: str, tokens: list[str] | None = None) -> str:
    """Equal for texts that say the same: the words, with the signs that stand beside digits.

    ``12 + 3`` and ``12 * 3``, ``-3`` and ``3``, ``1.5`` and ``1:5`` are other texts. A text without
    words is itself.

    Args:
        text: The text.
        tokens: Its :func:`words`, where they are at hand.
    """
    tokens = words(text) if tokens is None else tokens
    if not tokens:
        return _plain(text)
    if _BESIDE.search(text) is None:
        return " ".join(tokens)
    plain, parts, at = _plain(text), [], 0
    for found in _BESIDE.finditer(plain):
        signs = _signs(plain, found)
        if signs:
            parts += [*words(plain[at : found.start()]), signs]
            at = found.end()
    return " ".join([*parts, *words(plain[at:])]) if parts else " ".join(tokens)


def stripped(text: str) -> str:
    """A text NFKC, in one case, with single spaces and without punctuation at its ends.

    A sign that a number has (``-3``, ``5%``) stays; a text of punctuation alone is itself.
    """
    plain = _plain(text)
    first, last = 0, len(plain)
    while first < last and _strips(plain[first]):
        if plain[first] == "-" and plain[first + 1 : first + 2].isdigit():
            break
        first += 1
    while last > first and _strips(plain[last - 1]):
        if plain[last - 1] == "%" and plain[max(0, last - 3) : last - 1].rstrip()[-1:].isdigit():
            break
        last -= 1
    return plain[first:last] or plain


def _seen(text: str) -> str:
    hidden = not text.isascii() and any(chr(code) in text for code in _UNSEEN)
    return text.translate(_UNSEEN) if hidden else text


def _plain(text: str) -> str:
    """NFKC, one case, single spaces, one kind of dash."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", _seen(text)).translate(_DASHES)
    return " ".join(text.casefold().split())


@lru_cache(maxsize=4096)
def _strips(char: str) -> bool:
    return char in "`^~" or unicodedata.category(char)[0] in "PZC"


@lru_cache(maxsize=4096)
def _is_symbol(char: str) -> bool:
    return char in "^/%#@&\\" or unicodedata.category(char) in ("Sm", "Sc", "So")


def _signs(text: str, found: re.Match[str]) -> str:
    """The signs of a run beside a digit that change what the number is; quotes and stops do not."""
    start, end = found.span()
    before, after = text[max(0, start - 1) : start], text[end : end + 1]
    run = found.group().strip()
    digits = before.isdigit(), text[end : end + 2].lstrip()[:1].isdigit()
    if run in (".", ",", ":") and before.isdigit() and after.isdigit():
        return run if run == found.group() else ""
    kept = []
    for char in run:
        if char == "-":  # a minus or a range; not the hyphen of a word
            counts = digits[1] and not before.isalpha()
        elif char == "*":  # emphasis stands at one side of a number
            counts = all(digits)
        else:
            counts = _is_symbol(char)
        if counts:
            kept.append(char)
    return "".join(kept)

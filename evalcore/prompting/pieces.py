"""Token ids put together from the ids of words, where a tokenizer is known to allow it.

Evaluation texts repeat themselves: shots, instructions, label words, the context once per choice.
Byte-level BPE tokenizers first cut text into words by a fixed pattern and look at each alone. Then
a place between a printable ASCII character and a space that an ASCII letter or digit follows is
always a border of words: no pattern of :data:`_PATTERNS` has a space after anything but white
space, none looks back, and they look ahead only from white space. The ids of a text are those of
the pieces between such places, one after the other, and each distinct piece is encoded once.

What is not recognised here is encoded whole.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any
from weakref import WeakKeyDictionary

logger = logging.getLogger("evalcore")

_DIGITS = frozenset([r"\p{N}", r"\p{N}{1,3}", r"[0-9]", r"\d"])
_PATTERNS = frozenset(
    [
        # GPT-2 (also what ByteLevel itself does with use_regex)
        r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+""",
        # GPT-4, Llama 3, OLMo 2
        r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"""
        r""" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+""",
        # Qwen 2 to 3
        r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"""
        r""" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+""",
    ]
)
# A piece: any character, then up to the next space that is a border as the docstring has it.
_PIECE = re.compile(r"(?s).[^ ]*(?:(?:(?<![!-~]) | (?![A-Za-z0-9]))[^ ]*)*")
_SPACE_AFTER = re.compile(r"[!-~] ")
_MOST_KEPT = 100_000
_LONGEST_KEPT = 48
"""Pieces kept, and their characters: some 25 MB."""
_PROBE = "It's 12 Mills' (old) wheel, 3.5 m: yes\n Answer: no. I'LL é go x  y\n\nQ 7\tz "


def split_pieces(text: str) -> list[str]:
    """The pieces of a text, in order; joined they are the text."""
    return _PIECE.findall(text)


class Pieces:
    """Ids of texts, without special tokens, from a memory of the ids of their pieces."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._known: dict[str, Sequence[int]] = {}

    def encode(self, texts: Iterable[str]) -> list[list[int]]:
        """Ids of each text."""
        return self.encode_split([split_pieces(text) for text in texts])

    def encode_split(self, texts: Sequence[Sequence[str]]) -> list[list[int]]:
        """Ids of each text, given as :func:`split_pieces` splits it."""
        known = self._known
        new = list(set[str]().union(*texts).difference(known))
        if new:
            self._backend.no_truncation()  # the library leaves what its last caller wanted
            self._backend.no_padding()
            found = self._backend.encode_batch_fast(new, add_special_tokens=False)
            known.update((piece, each.ids) for piece, each in zip(new, found, strict=True))
        ids = [list(chain.from_iterable(map(known.__getitem__, pieces))) for pieces in texts]
        if len(known) > _MOST_KEPT:
            known.clear()
        for piece in new:
            if len(piece) > _LONGEST_KEPT:
                known.pop(piece, None)
        return ids


_MEMORIES: WeakKeyDictionary[Any, tuple[int, Pieces | None]] = WeakKeyDictionary()


def pieces_of(tokenizer: Any) -> Pieces | None:
    """The memory of a tokenizer; None if it must be given texts whole.

    One memory serves all that is encoded with a tokenizer; it is begun anew when tokens are added.
    """
    size, pieces = _MEMORIES.get(tokenizer, (-1, None))
    if size != len(tokenizer):
        pieces = _make(tokenizer)
        _MEMORIES[tokenizer] = len(tokenizer), pieces
    return pieces


def _make(tokenizer: Any) -> Pieces | None:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not allows_pieces(json.loads(backend.to_str())):
        return None
    pieces = Pieces(backend)
    whole = tokenizer(_PROBE, add_special_tokens=False, return_attention_mask=False)["input_ids"]
    if pieces.encode([_PROBE])[0] != whole:  # a class that does more than its tokenizer.json says
        logger.info("tokenizer %s is given texts whole", type(tokenizer).__name__)
        return None
    return pieces


def allows_pieces(definition: dict[str, Any]) -> bool:
    """Whether a tokenizer.json is of the kind the module's docstring speaks of."""
    model = definition["model"]
    steps = _steps(definition["pre_tokenizer"], "pretokenizers")
    return (
        model["type"] == "BPE"
        and not model.get("dropout")
        # Composing characters never reaches over a space.
        and all(step["type"] == "NFC" for step in _steps(definition["normalizer"], "normalizers"))
        and all(_cuts_words(step) or _keeps_borders(step) for step in steps)
        and any(_cuts_words(step) for step in steps)
        and not any(_reaches_over(token) for token in definition["added_tokens"])
    )


def _steps(part: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    if part is None:
        return []
    return list(part[key]) if part["type"] == "Sequence" else [part]


def _cuts_words(step: dict[str, Any]) -> bool:
    if step["type"] == "ByteLevel":
        return not step["add_prefix_space"] and step.get("use_regex", True)
    return _isolates(step, _PATTERNS)


def _keeps_borders(step: dict[str, Any]) -> bool:
    """Steps that cut at digits, or do not cut at all."""
    if step["type"] == "ByteLevel":
        return not step["add_prefix_space"]
    return step["type"] == "Digits" or _isolates(step, _DIGITS)


def _isolates(step: dict[str, Any], patterns: frozenset[str]) -> bool:
    """What a pattern finds stays as it is; ``Removed`` and ``invert`` say the same of patterns that
    leave nothing out."""
    if step["type"] != "Split" or step["pattern"].get("Regex") not in patterns:
        return False
    way = step["behavior"], step["invert"]
    return way == ("Isolated", False) or (way == ("Removed", True) and patterns is _PATTERNS)


def _reaches_over(token: dict[str, Any]) -> bool:
    """Whether an added token may hold a border, or takes white space beside it."""
    sticky = token["single_word"] or token["lstrip"] or token["rstrip"]
    return sticky or _SPACE_AFTER.search(token["content"]) is not None

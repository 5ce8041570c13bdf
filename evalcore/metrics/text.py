"""Scores of generated text against references. Text is taken raw, as the store keeps it."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

ROUGE_TYPES = ("rouge_1", "rouge_2", "rouge_l")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


@lru_cache(maxsize=1)
def _scorer() -> Any:
    # rouge_score imports nltk; only tables with generated text need it.
    from rouge_score import rouge_scorer

    return rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)


@lru_cache(maxsize=1 << 17)
def rouge_pair(text: str, reference: str) -> tuple[float, float, float]:
    """F-measures (rouge_1, rouge_2, rouge_l) of one pair, Porter stemmer on; 0 for empty text.

    Cached: the same generated text meets the same reference under many prompts and checkpoints.
    """
    if not text.strip() or not reference.strip():
        return (0.0, 0.0, 0.0)
    scores = _scorer().score(reference, text)
    return tuple(float(scores[key].fmeasure) for key in ("rouge1", "rouge2", "rougeL"))  # type: ignore[return-value]


def rouge(text: str, references: Sequence[str], kind: str) -> float:
    """Best F-measure over the references, of one of ``ROUGE_TYPES``."""
    place = ROUGE_TYPES.index(kind)
    return max((rouge_pair(text, reference)[place] for reference in references), default=0.0)


def exact_match(text: str, references: Sequence[str]) -> float:
    """1.0 if the text equals a reference, white space at both ends aside."""
    return float(any(text.strip() == reference.strip() for reference in references))


def normal_tokens(text: str) -> list[str]:
    """Lower-case words without punctuation and English articles (SQuAD's published rules)."""
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def token_f1(text: str, references: Sequence[str]) -> float:
    """F1 of the bags of words (see :func:`normal_tokens`), best over the references.

    Two empty bags agree (1.0); one empty bag gives 0.0.
    """
    got = Counter(normal_tokens(text))
    best = 0.0
    for reference in references:
        wanted = Counter(normal_tokens(reference))
        if not got or not wanted:
            best = max(best, float(not got and not wanted))
            continue
        shared = sum((got & wanted).values())
        best = max(best, 2 * shared / (got.total() + wanted.total()))
    return best

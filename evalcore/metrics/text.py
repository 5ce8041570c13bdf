"""Scores of generated text against references. Text is taken as the store keeps it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import pyarrow as pa

from evalcore.metrics.arrays import FloatArray, column, integers, matches, strings
from evalcore.tasks.rouge import ROUGE_TYPES, Reading, rouge_scorer
from evalcore.tasks.wording import normal_tokens

Values = Callable[[pa.Table], FloatArray]


@lru_cache(maxsize=1 << 17)
def rouge_pair(
    text: str, reference: str, *, by_line: bool = False, reading: Reading = ""
) -> dict[str, float]:
    """F-measures of one pair by name of ``ROUGE_TYPES``; 0 for empty text.

    Cached: the same generated text meets the same reference under many prompts and checkpoints.

    Args:
        text: Generated text.
        reference: What it is compared with.
        by_line: Only ``rouge_lsum``, which costs as much as the others together.
        reading: What a word is (see :mod:`evalcore.tasks.rouge`); ``rouge_l`` alone but for the
            first.
    """
    kinds = tuple(kind for kind in ROUGE_TYPES if (kind == "rouge_lsum") == by_line)
    kinds = ("rouge_l",) if reading else kinds
    if not text.strip() or not reference.strip():
        return dict.fromkeys(kinds, 0.0)
    scores = rouge_scorer(kinds, reading).score(reference, text)
    return {kind: float(scores[ROUGE_TYPES[kind]].fmeasure) for kind in kinds}


def rouge(text: str, references: Sequence[str], kind: str, reading: Reading = "") -> float:
    """Best F-measure over the references, of one of ``ROUGE_TYPES``."""
    by_line = kind == "rouge_lsum"
    pairs = (
        rouge_pair(text, reference, by_line=by_line, reading=reading)[kind]
        for reference in references
    )
    return max(pairs, default=0.0)


def exact_match(text: str, references: Sequence[str]) -> float:
    """1.0 if the text equals a reference, white space at both ends aside."""
    return float(any(text.strip() == reference.strip() for reference in references))


def verbatim(text: str, references: Sequence[str]) -> float:
    """1.0 if the text equals a reference character by character."""
    return float(text in references)


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


def compare(score: Callable[[str, list[str]], float], name: str = "text") -> Values:
    """Values of ``score(text, references)``; NaN where either is missing.

    Args:
        score: Compares one text with its references.
        name: Column of the text: ``text`` (cut at the first stop string) or ``raw_text``.
    """

    def compute(table: pa.Table) -> FloatArray:
        out = np.full(table.num_rows, np.nan)
        texts, references = strings(table, name), column(table, "references").to_pylist()
        for i, (text, wanted) in enumerate(zip(texts, references, strict=True)):
            if text is not None and wanted:
                out[i] = score(text, wanted)
        return out

    return compute


def compare_rouge(kind: str, name: str = "text", reading: Reading = "") -> Values:
    """Values of one of ``ROUGE_TYPES``, of trimmed or raw text (see :func:`compare`)."""
    return compare(lambda text, references: rouge(text, references, kind, reading), name)


def valid(table: pa.Table) -> FloatArray:
    """1 where an answer came to an end (generation) or is one of the choices (free answers)."""
    reasons = strings(table, "finish_reason")
    ended = np.array(
        [np.nan if r is None else float(r in ("stop", "run_on")) for r in reasons], dtype=float
    )
    free = matches(table, "answer", ["free"])
    if not free.any():
        return ended
    return np.where(free, (integers(table, "prediction") >= 0).astype(np.float64), ended)


def words(table: pa.Table) -> FloatArray:
    """Words of each first reference: pieces between white space, as lm-eval counts."""
    texts = column(table, "references").to_pylist()
    return np.array([len(re.split(r"\s+", t[0])) if t else np.nan for t in texts], dtype=float)

"""What a model that knows nothing scores: each task's floor."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from evalcore.types import Document, Task

_ACCURACIES = {"acc", "acc_norm", "acc_bytes", "acc_mutual_info"}
# metric -> name in rouge-score; the raw metrics are about the same references
_ROUGE = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL", "rouge_lsum": "rougeLsum"}
_CANDIDATES, _SAMPLE = 32, 120


def trivial_baseline(task: Task, docs: Sequence[Document]) -> float:
    """Score of the best answer that ignores the question, in units of the primary metric.

    The task's ``baseline`` says which (``auto`` takes the one that fits):

    - ``majority``: the share of the most frequent label (accuracies);
    - ``uniform``: the mean of 1 / choices (accuracies, gold probability);
    - ``constant``: the best single reference as everybody's answer. Exact match: the share of the
      most frequent reference. ROUGE (Porter stemmer, as the metric): the best of 32 candidates on
      120 documents, the first ones in id order.

    NaN for ``none``, for metrics without a floor, and where the kind does not fit the metric.
    """
    kind = task.spec.get("baseline", "auto")
    if not docs or kind == "none":
        return math.nan
    primary = task.primary.lower().removesuffix("_raw")
    if task.output_type == "multiple_choice":
        if kind == "auto":
            kind = "majority" if task.choices and primary in _ACCURACIES else "uniform"
        if kind == "majority" and primary in _ACCURACIES:
            return max(Counter(doc.gold for doc in docs).values()) / len(docs)
        if kind == "uniform" and primary in {*_ACCURACIES, "gold_prob"}:
            return sum(1.0 / max(1, len(doc.choices)) for doc in docs) / len(docs)
        return math.nan
    if kind not in ("auto", "constant"):
        return math.nan
    if primary in _ROUGE:
        return _best_constant_rouge(_ROUGE[primary], docs)
    if primary == "exact_match":
        counts = Counter(text for doc in docs for text in {r.strip() for r in doc.references})
        return max(counts.values()) / len(docs)
    return math.nan


def _best_constant_rouge(kind: str, docs: Sequence[Document]) -> float:
    from rouge_score import rouge_scorer  # brings nltk: only where ROUGE is asked for

    sample = sorted(docs, key=lambda doc: doc.id)[:_SAMPLE]
    candidates = list(dict.fromkeys(doc.references[0] for doc in sample))[:_CANDIDATES]
    scorer = rouge_scorer.RougeScorer([kind], use_stemmer=True)
    return max(
        sum(
            max(scorer.score(reference, candidate)[kind].fmeasure for reference in doc.references)
            for doc in sample
        )
        / len(sample)
        for candidate in candidates
    )

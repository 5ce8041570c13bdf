"""What a model that knows nothing scores: each task's floor."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from evalcore.types import Document, Task

_ACCURACIES = {"acc", "acc_norm", "acc_bytes", "acc_mutual_info"}
_ROUGE = {"rouge1": "rouge1", "rouge2": "rouge2", "rougel": "rougeL", "rouge_l": "rougeL",
          "rougelsum": "rougeLsum"}  # fmt: skip
_CANDIDATES, _SAMPLE = 32, 120


def trivial_baseline(task: Task, docs: Sequence[Document]) -> float:
    """Score of the best answer that ignores the question, in units of the primary metric.

    Accuracies: the share of the most frequent label where labels are fixed, else the mean of
    1 / choices. Gold probability: the mean of 1 / choices. Exact match: the share of the most
    frequent reference. ROUGE: the best constant output among the references (a sample of
    32 candidates on 120 documents, the first ones in id order). NaN for metrics without a floor.
    """
    if not docs:
        return math.nan
    primary = task.primary.lower()
    if task.output_type == "multiple_choice":
        uniform = sum(1.0 / max(1, len(doc.choices)) for doc in docs) / len(docs)
        if primary in _ACCURACIES:
            if not task.choices:
                return uniform
            return max(Counter(doc.gold for doc in docs).values()) / len(docs)
        return uniform if primary == "gold_prob" else math.nan
    if primary in _ROUGE:
        return _best_constant_rouge(_ROUGE[primary], docs)
    if primary in ("exact_match", "acc"):
        counts = Counter(text.strip() for doc in docs for text in {*doc.references})
        return max(counts.values()) / len(docs)
    return math.nan


def _best_constant_rouge(kind: str, docs: Sequence[Document]) -> float:
    from rouge_score import rouge_scorer  # brings nltk: only where ROUGE is asked for

    sample = sorted(docs, key=lambda doc: doc.id)[:_SAMPLE]
    candidates = list(dict.fromkeys(doc.references[0] for doc in sample))[:_CANDIDATES]
    scorer = rouge_scorer.RougeScorer([kind], use_stemmer=False)
    return max(
        sum(
            max(scorer.score(reference, candidate)[kind].fmeasure for reference in doc.references)
            for doc in sample
        )
        / len(sample)
        for candidate in candidates
    )

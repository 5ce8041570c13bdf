"""Every metric by name: what it fits, what it needs, its error, its scale. See docs/metrics.md."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from evalcore.errors import DefinitionError, UnknownNameError
from evalcore.metrics import choices, pooled, text
from evalcore.metrics.choices import Values
from evalcore.metrics.pooled import CellScore
from evalcore.tasks.rouge import READINGS, ROUGE_TYPES
from evalcore.types import AnswerWay, OutputType, Task

METRICS_VERSION = 2
"""Raised whenever a value of any metric can change for the same stored rows."""

ErrorMethod = Literal["analytic", "delta", "bootstrap"]
Baseline = Literal["majority", "uniform", "constant", "none"]
Kind = OutputType | AnswerWay


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        name: Its name in task files and tables.
        fits: Output types it is defined for; ``multiple_choice`` tasks by their ways of answering
            (``choices``, ``first_token``, ``constrained``, ``free``).
        needs: Columns of the store's examples it is computed from.
        stderr: ``analytic`` (standard deviation over sqrt(n) of a mean), ``delta`` (delta method)
            or ``bootstrap`` (seeded, over documents).
        scale: Range or unit.
        higher_is_better: False for losses.
        baseline: What an answer scores that ignores the question: the ``majority`` label, the
            ``uniform`` guess, the best ``constant`` output; ``none``: no such floor.
        values: Value of each document; None if it has a value per cell only.
        cell: Score of a cell; None: the mean of ``values``.
        by_document: The metric compared document by document in its place (itself if it can be).
    """

    name: str
    fits: frozenset[Kind]
    needs: tuple[str, ...]
    stderr: ErrorMethod
    scale: str
    higher_is_better: bool
    baseline: Baseline
    by_document: str
    values: Values | None = None
    cell: CellScore | None = None

    def fits_cell(self, output_type: str, answer: str) -> bool:
        """Whether it is defined for a cell's output type and way of answering."""
        return (answer if output_type == "multiple_choice" else output_type) in self.fits


_RANKED: tuple[Kind, ...] = ("choices",)
_CHOSEN: tuple[Kind, ...] = ("choices", "first_token", "constrained", "free")
_SCORED: tuple[Kind, ...] = ("choices", "constrained", "free")  # whole choices have log-probability
_TEXT: tuple[Kind, ...] = ("generate_until",)
_ONE: tuple[Kind, ...] = ("loglikelihood",)
_ROLLED: tuple[Kind, ...] = ("loglikelihood_rolling",)
_CHOICE = ("gold", "choice_logprobs")
_PREDICTED = (*_CHOICE, "prediction")
_UNIT = "0 to 1"


def _mean(
    name: str,
    values: Values,
    fits: Iterable[Kind],
    needs: tuple[str, ...],
    *,
    scale: str = _UNIT,
    upward: bool = True,
    baseline: Baseline = "none",
) -> Metric:
    return Metric(
        name, frozenset(fits), needs, "analytic", scale, upward, baseline, name, values=values
    )


def _pooled(
    name: str,
    cell: CellScore,
    fits: Iterable[Kind],
    needs: tuple[str, ...],
    stderr: ErrorMethod,
    by_document: str,
    *,
    scale: str = _UNIT,
    upward: bool = True,
) -> Metric:
    return Metric(
        name, frozenset(fits), needs, stderr, scale, upward, "none", by_document, cell=cell
    )


def _texts() -> list[Metric]:
    found = []
    for source, suffix in (("text", ""), ("raw_text", "_raw")):
        for kind in ROUGE_TYPES:
            values = text.compare_rouge(kind, source)
            needs = (source, "references")
            found.append(_mean(f"{kind}{suffix}", values, _TEXT, needs, baseline="constant"))
        for reading in READINGS[1:]:
            values = text.compare_rouge("rouge_l", source, reading)
            needs = (source, "references")
            name = f"rouge_l_{reading}{suffix}"
            found.append(_mean(name, values, _TEXT, needs, baseline="constant"))
    for name, score in (
        ("exact_match", text.exact_match),
        ("exact_match_verbatim", text.verbatim),
        ("token_f1", text.token_f1),
    ):
        values = text.compare(score)
        found.append(_mean(name, values, _TEXT, ("text", "references"), baseline="constant"))
    return found


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        _mean("acc", choices.accuracy(None), (*_CHOSEN, *_ONE), (*_PREDICTED, "is_greedy"),
              baseline="majority"),
        _mean("acc_norm", choices.accuracy("choice_chars"), _RANKED, (*_CHOICE, "choice_chars"),
              baseline="majority"),
        _mean("acc_bytes", choices.accuracy("choice_bytes"), _RANKED, (*_CHOICE, "choice_bytes"),
              baseline="majority"),
        _mean("acc_mutual_info", choices.acc_mutual_info, _RANKED,
              (*_CHOICE, "unconditional_logprobs"), baseline="majority"),
        _mean("gold_prob", choices.gold_prob, _CHOSEN, _CHOICE, baseline="uniform"),
        _mean("brier", choices.brier, _CHOSEN, _CHOICE, scale="0 to 2", upward=False,
              baseline="uniform"),
        _mean("gold_logprob", choices.gold_logprob, (*_CHOSEN, *_TEXT, *_ONE, *_ROLLED), _CHOICE,
              scale="nats"),
        _mean("gold_bits_per_byte", choices.gold_bits_per_byte,
              (*_SCORED, *_TEXT, *_ONE, *_ROLLED), (*_CHOICE, "choice_bytes"), scale="bits",
              upward=False),
        _mean("greedy_match", choices.greedy_match, (*_SCORED, *_TEXT, *_ONE),
              ("gold", "is_greedy")),
        _mean("label_mass", choices.label_mass, ("choices", "first_token"), ("choice_logprobs",)),
        _mean("valid", text.valid, ("free", *_TEXT), ("finish_reason", "prediction")),
        *_texts(),
        _pooled("macro_f1", pooled.from_confusion(pooled.macro_f1), _CHOSEN, _PREDICTED,
                "bootstrap", "acc"),
        _pooled("f1", pooled.from_confusion(pooled.f1), _CHOSEN, _PREDICTED, "bootstrap", "acc"),
        _pooled("mcc", pooled.from_confusion(pooled.mcc), _CHOSEN, _PREDICTED, "bootstrap", "acc",
                scale="-1 to 1"),
        _pooled("ece", pooled.ece, ("choices", "first_token"), _CHOICE, "bootstrap", "brier",
                upward=False),
        _pooled("perplexity", pooled.perplexity, _ONE, ("choice_logprobs",), "delta",
                "gold_bits_per_byte", scale="1 or more", upward=False),
        _pooled("word_perplexity", pooled.word_perplexity, (*_ROLLED, *_ONE),
                ("choice_logprobs", "references"), "delta", "gold_bits_per_byte",
                scale="1 or more", upward=False),
        _pooled("byte_perplexity", pooled.byte_perplexity, (*_ROLLED, *_ONE),
                ("choice_logprobs", "choice_bytes"), "delta", "gold_bits_per_byte",
                scale="1 or more", upward=False),
        _pooled("bits_per_byte", pooled.bits_per_byte, (*_ROLLED, *_ONE),
                ("choice_logprobs", "choice_bytes"), "delta", "gold_bits_per_byte", scale="bits",
                upward=False),
    )
}  # fmt: skip
"""All metrics by name."""


def find_metric(name: str, hint: str = "") -> Metric:
    """The metric of a name.

    Raises:
        UnknownNameError: There is none; the message lists the nearest.
    """
    try:
        return METRICS[name]
    except KeyError:
        raise UnknownNameError("metric", name, METRICS, hint) from None


def check_metrics(task: Task) -> None:
    """Checks that a task's metrics exist and suit its output type.

    Raises:
        UnknownNameError: A metric that does not exist.
        DefinitionError: A metric that is not defined for the task's output type.
    """
    for name in dict.fromkeys((*task.metrics, task.primary)):
        metric = find_metric(name, f"task {task.name}, key metrics")
        answers = _CHOSEN if task.output_type == "multiple_choice" else ("choices",)
        if not any(metric.fits_cell(task.output_type, str(answer)) for answer in answers):
            suits = sorted({"multiple_choice" if f in _CHOSEN else str(f) for f in metric.fits})
            raise DefinitionError(
                f"task {task.name}, key metrics: {name} is not defined for output_type "
                f"{task.output_type}, but for {', '.join(suits)}"
            )


def needs_unconditional(task: Task) -> bool:
    """Whether a metric of a task needs choices scored after an empty context as well."""
    listed = dict.fromkeys((*task.metrics, task.primary))
    return task.output_type == "multiple_choice" and any(
        "unconditional_logprobs" in METRICS[name].needs for name in listed if name in METRICS
    )


def higher_is_better(metric: str) -> bool:
    """False for losses (bits, perplexities, Brier, ECE), True for scores."""
    return find_metric(metric).higher_is_better


_BOUNDS = {_UNIT: (0.0, 1.0), "0 to 2": (0.0, 2.0), "-1 to 1": (-1.0, 1.0)}


def metric_bounds(metric: str) -> tuple[float, float] | None:
    """Least and largest value of a document; None where there is no bound."""
    return _BOUNDS.get(find_metric(metric).scale)


def cell_metrics(listed: Iterable[str], output_type: str, answer: str) -> list[str]:
    """The metrics reported for a cell: those listed that are defined for it, and what its way of
    answering needs beside them (accuracy; label mass; share of valid answers)."""
    names = [n for n in listed if find_metric(n).fits_cell(output_type, answer)]
    if output_type == "multiple_choice" and answer != "choices":
        names.append("acc")
        names += {"first_token": ["label_mass"], "free": ["valid"]}.get(answer, [])
    return list(dict.fromkeys(names))


def document_metric(primary: str, output_type: str, answer: str | None = None) -> str:
    """The metric compared document by document where ``primary`` is declared.

    It is ``primary`` itself if that has values per document, else its stand-in; and accuracy where
    that is not defined for the way of ``answer`` (None: whatever the way).
    """
    name = find_metric(primary).by_document
    if answer is None or output_type != "multiple_choice":
        return name
    return name if METRICS[name].fits_cell(output_type, answer) else "acc"

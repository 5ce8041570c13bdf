"""lm-eval's own metrics on scores that evalcore stored."""

from __future__ import annotations

import json
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from evalcore.lm_eval import harness
from evalcore.lm_eval.building import Built

BOOTSTRAP_RESAMPLES = 200
_TEXT_RESAMPLES = 100  # metrics of whole corpora: lm-eval's own limit
COLUMNS = ("doc_id", "doc_index", "choice_logprobs", "is_greedy", "unconditional_logprobs",
           "text", "flags")  # fmt: skip
"""Columns of example rows that are read."""


@dataclass(frozen=True)
class Value:
    """A metric of one document.

    Attributes:
        doc_id: The document.
        metric: lm-eval's name of the metric.
        filter: lm-eval's filter it is computed behind.
        value: The number; None where the metric needs several documents at once.
        detail: What lm-eval aggregates instead of a number, as JSON.
    """

    doc_id: str
    metric: str
    filter: str
    value: float | None
    detail: str | None


@dataclass(frozen=True)
class Outcome:
    """A cell by lm-eval's metrics.

    Attributes:
        metrics: ``metric,filter`` and ``metric_stderr,filter`` -> value, as lm-eval writes them.
        values: Per document.
        n: Documents in it.
        missing: Documents without a score (not yet scored, or too long).
        higher_is_better: Per metric.
    """

    metrics: Mapping[str, Any] = field(default_factory=dict)
    values: Sequence[Value] = ()
    n: int = 0
    missing: int = 0
    higher_is_better: Mapping[str, bool] = field(default_factory=dict)


def evaluate(built: Built, rows: Mapping[str, Mapping[str, Any]]) -> Outcome:
    """lm-eval's filters, ``process_results`` and aggregation, fed with stored scores.

    Args:
        built: The task.
        rows: Example rows of one cell by document id, with :data:`COLUMNS`.

    Raises:
        DefinitionError: A function or filter of the task fails.
    """
    own = built.loaded.own
    kept = []
    for document, group in zip(built.documents, built.instances, strict=True):
        row = rows.get(document.id)
        answers = None if row is None else _answers(built, row, len(group))
        if answers is not None:
            kept.append((document.id, group, answers))
    missing = len(built.documents) - len(kept)
    if not kept:
        return Outcome(missing=missing)
    with (
        harness.quiet(),
        harness.one_line(f"lm-eval task {built.loaded.name}"),
        harness.seeded(),
        harness.sandboxed(built.loaded.sandboxed),
    ):
        own._instances = []
        for _, group, answers in kept:
            for instance, answer in zip(group, answers, strict=True):
                # Greedy answers repeat themselves: one stands for all repeats.
                instance.resps = [answer] * max(1, int(instance.repeats or 1))
                instance.filtered_resps = {}
                own._instances.append(instance)
        own.apply_filters()
        raw: dict[tuple[str, str], list[Any]] = {}
        values = []
        for name in kept[0][1][0].filtered_resps:
            for doc_id, group, _ in kept:
                found = own.process_results(
                    group[0].doc, [instance.filtered_resps[name] for instance in group]
                )
                for metric, value in found.items():
                    raw.setdefault((metric, name), []).append(value)
                    values.append(_value(doc_id, metric, name, value))
        metrics = _aggregated(own, raw)
        better = {str(k): bool(v) for k, v in own.higher_is_better().items()}
    return Outcome(metrics, values, len(kept), missing, better)


def _answers(built: Built, row: Mapping[str, Any], wanted: int) -> list[Any] | None:
    """What lm-eval's model would have answered to each request; None if nothing was scored."""
    if "overflow" in (row.get("flags") or ()):
        return None
    kind = built.task.output_type
    if kind == "generate_until":
        return None if row.get("text") is None else [row["text"]]
    logprobs = row.get("choice_logprobs") or []
    if not logprobs:
        return None
    if kind == "loglikelihood_rolling":
        return [float(sum(logprobs))]
    answers = [(float(v), bool(g)) for v, g in zip(logprobs, row["is_greedy"], strict=True)]
    # Whether a choice alone would be greedy is not stored, and no metric of lm-eval asks.
    answers += [(float(value), False) for value in row.get("unconditional_logprobs") or []]
    return answers if len(answers) == wanted else None


def _value(doc_id: str, metric: str, name: str, value: Any) -> Value:
    if isinstance(value, numbers.Real):
        return Value(doc_id, metric, name, float(value), None)
    return Value(doc_id, metric, name, None, json.dumps(value, default=_plain, ensure_ascii=False))


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _aggregated(own: Any, raw: Mapping[tuple[str, str], Sequence[Any]]) -> dict[str, Any]:
    from lm_eval.api.metrics import mean

    functions = own.aggregation()
    metrics: dict[str, Any] = {}
    for (metric, name), items in raw.items():
        aggregate = functions.get(metric, mean)
        metrics[f"{metric},{name}"] = _number(aggregate(items))
        metrics[f"{metric}_stderr,{name}"] = _number(_stderr(aggregate, metric, items))
    return metrics


def _number(value: Any) -> Any:
    return float(value) if isinstance(value, numbers.Real) else json.loads(
        json.dumps(value, default=_plain)
    )  # fmt: skip


def _stderr(aggregate: Callable[..., Any], metric: str, items: Sequence[Any]) -> float | str:
    """lm-eval's standard error: analytic for means, else its bootstrap with fewer draws."""
    from lm_eval.api import metrics as theirs

    analytic = {theirs.mean: theirs.mean_stderr, theirs.acc_all: theirs.acc_all_stderr}
    if len(items) < 2:
        return "N/A"
    if aggregate in analytic:
        return float(analytic[aggregate](items))
    text = {theirs.bleu, theirs.chrf, theirs.chrfpp, theirs.ter}
    others = {theirs.median, theirs.matthews_corrcoef, theirs.f1_score, theirs.perplexity,
              theirs.nanmean}  # fmt: skip
    if aggregate not in text | others:
        return "N/A"
    draws = _TEXT_RESAMPLES if aggregate in text else BOOTSTRAP_RESAMPLES
    resampled = theirs._bootstrap_internal(aggregate, draws)((0, items))
    spread = float(theirs.sample_stddev(resampled))
    return spread if math.isfinite(spread) else "N/A"


def aggregate_groups(
    groups: Mapping[str, Any], outcomes: Mapping[str, Outcome]
) -> dict[str, dict[str, Any]]:
    """lm-eval's groups over the tasks at hand.

    Args:
        groups: lm-eval's groups by name.
        outcomes: Task outcomes by lm-eval's task name.

    Returns:
        Metrics by group name; groups that aggregate nothing, or lack a task, are left out.
    """
    tasks = {
        name: {**outcome.metrics, "sample_len": outcome.n} for name, outcome in outcomes.items()
    }
    result = {}
    with harness.quiet():
        for name, group in groups.items():
            leaves = [task.task_name for task in group.get_all_tasks()]
            if not group.aggregate_metric_list or any(leaf not in tasks for leaf in leaves):
                continue
            found = group.aggregate(tasks)
            result[name] = {key: _number(value) for key, value in found.items() if "," in key} | {
                "sample_len": int(found["sample_len"])
            }
    return result

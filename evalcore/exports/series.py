"""Results as curves for trackers: a series of models over pre-training, a point per checkpoint."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from evalcore.exports.cells import Model, metrics_of, models, prompt_groups, rows_of, task_labels
from evalcore.store import ResultStore

_TOKENS = re.compile(r"tokens?[-_]?(\d+(?:\.\d+)?)([KMBT])", re.IGNORECASE)
_SIZES = {"K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


@dataclass(frozen=True)
class Point:
    """One model of a series.

    Attributes:
        model: Its name.
        x: Where it stands on the axis: the checkpoint's step; its place where no step is known.
        tokens: Pre-training tokens, where the checkpoint's name says them (``tokens4B``).
        values: ``task/metric`` (mean over prompts of one way of asking), ``task@prompt/metric`` and
            ``.../stderr``; no NaN.
    """

    model: str
    x: int
    tokens: int | None
    values: dict[str, float]


@dataclass(frozen=True)
class Series:
    """Models that differ in their checkpoint alone: a run of a tracker.

    Attributes:
        name: ``untuned``, or the tuning with control, seed and step where there are several.
        about: What is the same for all of them.
        points: In the order of ``x``.
    """

    name: str
    about: dict[str, Any]
    points: list[Point]


_ABOUT = ("tuning", "tuned_on", "method", "control", "seed", "tuning_step", "numerics",
          "evalcore_version")  # fmt: skip


def series_of(store: ResultStore) -> Iterator[Series]:
    """Every series of the results. Models that would share a point get series of their own.

    Raises:
        InputError: There are no cells.
    """
    lines: dict[str, list[Model]] = {}
    for model in models(store):
        lines.setdefault(_line(model), []).append(model)
    named = {
        name: own
        for line, members in lines.items()
        for name, own in (
            [(line, members)] if _apart(members) else [(m.name, [m]) for m in members]
        )
    }
    steps = {m.about["checkpoint"]: m.about["step"] for own in named.values() for m in own}
    known = all(step is not None for step in steps.values())
    places = {name: n for n, name in enumerate(sorted(steps))}
    for name, own in named.items():
        points = [
            Point(
                model.name,
                model.about["step"] if known else places[model.about["checkpoint"]],
                tokens_of(model.about), _values(store, model),
            )
            for model in own
        ]  # fmt: skip
        about = {key: own[0].about[key] for key in _ABOUT if own[0].about[key] is not None}
        about["axis"] = "step" if known else "place of the checkpoint by name (no steps known)"
        found = sorted((p for p in points if p.values), key=lambda p: p.x)
        if found:
            yield Series(name, about, found)


def tokens_of(about: dict[str, Any]) -> int | None:
    """Pre-training tokens a checkpoint's revision or name says."""
    for text in (about["revision"], about["checkpoint"]):
        found = _TOKENS.search(text or "")
        if found:
            return round(float(found[1]) * _SIZES[found[2].upper()])
    return None


def _line(model: Model) -> str:
    about = model.about
    if about["base"] is None:
        return "untuned"
    parts = [about["tuning"] or about["adapter"] or "tuned"]
    parts += [about["control"]] if about["control"] else []
    parts += [about["method"]] if about["method"] not in (None, "lora") else []
    parts += [f"seed {about['seed']}"] if about["seed"] is not None else []
    parts += [f"at step {about['tuning_step']}"] if about["tuning_step"] is not None else []
    return ", ".join(parts)


def _apart(members: list[Model]) -> bool:
    """Whether each of them has a checkpoint of its own, at a step of its own."""
    steps = [m.about["step"] for m in members]
    names = [m.about["checkpoint"] for m in members]
    return len(set(names)) == len(names) and (None in steps or len(set(steps)) == len(steps))


def _values(store: ResultStore, model: Model) -> dict[str, float]:
    labels, scores = task_labels(model), metrics_of(rows_of(store, model))
    values: dict[str, float] = {}
    for group, cells in prompt_groups([c for c in model.cells if c["cell"] in scores]).items():
        each = [scores[c["cell"]] for c in cells]
        if len(cells) > 1:
            for metric in each[0]:
                if all(metric in own for own in each):
                    values[f"{group}/{metric}"] = sum(own[metric][0] for own in each) / len(each)
        for cell, own in zip(cells, each, strict=True):
            label = labels[cell["cell"]]
            for metric, (value, stderr, n) in own.items():
                values[f"{label}/{metric}"] = value
                if stderr is not None:
                    values[f"{label}/{metric}/stderr"] = stderr
                values[f"{label}/documents"] = n
    return {k: float(v) for k, v in values.items() if math.isfinite(v)}

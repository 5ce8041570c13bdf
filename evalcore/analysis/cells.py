"""One scored cell as the analysis sees it: its values by document, and what is odd about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from evalcore.analysis.making import Making
from evalcore.analysis.reduction import CellArrays, CellFacts, continuous_metric
from evalcore.analysis.subjects import Flag, TaskInfo, subject_of
from evalcore.analysis.ways import Way
from evalcore.metrics import document_metric

Load = Callable[[], CellArrays]


@dataclass(frozen=True)
class CellValues:
    """Values of one cell's scored documents; read when they are asked for.

    Attributes:
        key: Stands for the values: two cells of one key have the same.
        way: How it was asked; ``way.shots`` is the nominal number of worked examples.
        numerics: Label of the numerics class.
        setting: What two cells must share to be compared, beside task and variant name:
            (variant fingerprint, maximum length ...).
        facts: What its rows say beside the values.
        load: Gives the arrays.
        made: In which ways its rows were made (``analysis.making``); empty: nobody knows of any.
    """

    key: str
    way: Way
    numerics: str
    setting: tuple[Any, ...]
    facts: CellFacts
    load: Load
    made: tuple[Making, ...] = ()

    @property
    def cell(self) -> str:
        """Cell key."""
        return self.facts.cell

    @property
    def n(self) -> int:
        """Documents with a value."""
        return self.facts.n

    @property
    def unscored(self) -> int:
        """Documents recorded but not scored (prompt too long, no gold)."""
        return self.facts.overflow + self.facts.valueless

    @property
    def docs(self) -> npt.NDArray[np.int64]:
        return self.load().docs

    @property
    def values(self) -> npt.NDArray[np.float64]:
        return self.load().values

    @property
    def continuous(self) -> npt.NDArray[np.float64]:
        return self.load().continuous

    @property
    def golds(self) -> npt.NDArray[np.int64]:
        return self.load().golds

    @property
    def floors(self) -> npt.NDArray[np.float64]:
        return self.load().floors

    @property
    def answers(self) -> npt.NDArray[np.int64]:
        return self.load().answers


Stratum = tuple[Way, str]
"""What may be averaged: one way of asking, in one numerics class."""
Cells = dict[str, dict[int, CellValues]]
"""Prompt -> number of the run (training seed) -> its cell."""


def task_of(about: dict[str, Any], flags: list[Flag]) -> TaskInfo:
    primary, baseline = about["primary_metric"], about["baseline"]
    metric = document_metric(primary, about["output_type"])
    if metric != primary:
        text = f"{primary} has no value per document; {metric} is compared"
        flags.append(Flag("metric", about["task"], text))
        baseline = None  # it is in units of the primary metric
    return TaskInfo(
        name=about["task"], group=about["group"], tuned_by=about["tuned_by"],
        domain=about["domain"] or "none", output_type=about["output_type"], metric=metric,
        continuous=continuous_metric(about["output_type"]),
        baseline=float("nan") if baseline is None else float(baseline),
    )  # fmt: skip


def cell_values(
    key: str,
    about: dict[str, Any],
    facts: CellFacts,
    task: TaskInfo,
    load: Load,
    flags: list[Flag],
    made: tuple[Making, ...] = (),
) -> CellValues | None:
    """A cell, with flags for what is odd about it; None if its metric is not the task's."""
    where = f"{subject_of(about).label}, {task.name}, {about['variant']}"
    expected = document_metric(task.metric, task.output_type, about["answer"] or "choices")
    if facts.metric != expected:
        text = f"scored by {facts.metric}, other cells of the task by {task.metric}; not used"
        flags.append(Flag("metric", where, text))
        return None
    if facts.metric != task.metric:
        text = f"{task.metric} is not defined for answer={about['answer']}; {facts.metric} is used"
        flags.append(Flag("metric", where, text))
    held = f"prompts lost shots to fit: {facts.held_shots:.1f} of {facts.shots} shots on average"
    for kind, count, text in (
        ("doubled", facts.doubled, "rows repeat a document; the first is kept"),
        ("overflow", facts.overflow, "prompts did not fit and are not scored"),
        ("unscored", facts.valueless, f"rows have no value of {facts.metric}"),
        ("shots_dropped", facts.dropped, held),
        ("truncated", facts.truncated, "prompts lost their beginning to fit the length"),
    ):
        if count:
            flags.append(Flag(kind, where, f"{count} {text}", count))
    return CellValues(
        key=key, way=Way.of(about, facts.shots), numerics=about["numerics"],
        setting=(
            about["variant_fingerprint"], about["max_length"], about["chat_template"],
            tuple(about["end_tokens"] or ()),
        ),
        facts=facts, load=load, made=made,
    )  # fmt: skip

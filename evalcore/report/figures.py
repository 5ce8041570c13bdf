"""The figures of a report: a specification, the rows it draws, its words."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from evalcore.analysis import Analysis
from evalcore.metrics import higher_is_better
from evalcore.report import charts
from evalcore.report.rows import Names, Row
from evalcore.report.sections import Table
from evalcore.report.words import metric_words, visible


@dataclass(frozen=True)
class Figure:
    """One chart.

    Attributes:
        id: Name of its files, unique in a report.
        section: ``curves``, ``steps``, ``gains``, ``prompts``, ``transfer``, ``losses``, ``cost``.
        title, caption: Its words.
        spec: Vega-Lite, without data.
        dataset: ``scores``, ``losses`` or ``cost``.
        where: Rows it draws: column -> values.
        levels: Of ``scores``: ``curve`` (means and seeds), ``mean`` or ``prompt``.
        row: What a heat map's rows are: ``task`` or ``line``; empty for other charts.
        file: CSV with its numbers.
    """

    id: str
    section: str
    title: str
    caption: str
    spec: dict[str, Any]
    dataset: str
    where: dict[str, list[Any]]
    levels: str = ""
    row: str = ""
    file: str = ""

    def rows(self, datasets: dict[str, list[Row]]) -> list[Row]:
        """What it shows while nothing is filtered."""
        found = [
            r for r in datasets[self.dataset]
            if all(r.get(name) in values for name, values in self.where.items())
        ]  # fmt: skip
        if self.levels:
            wanted = ("mean", "seed") if self.levels == "curve" else (self.levels,)
            found = [r for r in found if r["level"] in wanted]
        return [{**r, "row": r[self.row]} for r in found] if self.row else found

    def as_json(self) -> dict[str, Any]:
        return {
            "id": self.id, "section": self.section, "title": self.title, "caption": self.caption,
            "spec": self.spec, "dataset": self.dataset, "where": self.where,
            "levels": self.levels, "row": self.row, "file": self.file,
        }  # fmt: skip


def file_name(kind: str, name: str) -> str:
    """A file's name for anything; names that look alike on disk stay apart."""
    safe = re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._")[:80]
    if safe != name:
        safe = f"{safe}_{hashlib.blake2b(name.encode(), digest_size=4).hexdigest()}"
    return f"{kind}_{safe}"


def all_figures(analysis: Analysis, scores: list[Row], losses: Sequence[Row]) -> list[Figure]:
    """Every figure with something to show, in the order of the page."""
    names = Names.of(analysis.book)
    figures: list[Figure] = []
    for info in analysis.book.tasks.values():
        task = visible(info.name)
        mine = [r for r in scores
                if r["task"] == task and r["primary"] and r["score"] is not None]  # fmt: skip
        if mine:
            figures += _of_task(names, task, mine, info.metric)
    limit = _limit(scores)
    for tuning in names.tunings:
        own = [r for r in scores if r["tuning"] == tuning and r["level"] == "mean"
               and r["gain"] is not None and not r["control"] and r["drawn"]]  # fmt: skip
        if own:
            less = sorted({r["task"] for r in own if not higher_is_better(r["metric"])})
            figures.append(Figure(
                file_name("transfer", tuning), "transfer", f"Tuned on {tuning}",
                "Gain over the same checkpoint untuned on every task: orange lost, purple won. "
                "Grey: the untuned checkpoint is not credibly above the trivial answer, so there "
                "is nothing to lose."
                + f" Less is better on {', '.join(less)}: there the colours mean the opposite."
                * bool(less),
                charts.transfer(limit), "scores",
                {"tuning": [tuning], "primary": [True], "drawn": [True]}, "mean", "task",
                "gains.csv",
            ))  # fmt: skip
    for tuning in sorted({r["tuning"] for r in losses}):
        figures.append(Figure(
            file_name("loss", tuning), "losses", f"Training on {tuning}",
            "Loss on the completion, a moving mean over five steps. Solid: tuned; dashed: controls "
            "with shuffled labels, or all parameters tuned, as the legend says.",
            charts.losses(), "losses", {"tuning": [tuning]},
        ))  # fmt: skip
    figures.append(Figure(
        "cost", "cost", "Prompt tokens by task",
        "All models together: tokens computed, and tokens a cache held.", charts.cost(), "cost", {},
        file="cells.csv",
    ))  # fmt: skip
    order = ("curves", "steps", "gains", "prompts", "transfer", "losses", "cost")
    return sorted(figures, key=lambda f: order.index(f.section))


def _of_task(names: Names, task: str, mine: list[Row], metric: str) -> list[Figure]:
    words = metric_words(metric)
    first = words[0].upper() + words[1:]
    drawn = [r for r in mine if r["drawn"]]
    way = drawn[0]["way"] if drawn else mine[0]["way"]
    kinds = ["own", "far", "unknown", "control"]

    def tunings(rows: list[Row]) -> charts.Tunings:
        found = {r["tuning"] for r in rows}
        shown = [t for t in (charts.UNTUNED, *names.tunings) if t in found]
        return charts.Tunings(names.tunings, tuple(shown))

    where: dict[str, list[Any]] = {"task": [task], "primary": [True], "drawn": [True]}
    figures = [Figure(
        file_name("curve", task), "curves", task,
        f"{first} on {task} against pre-training, asked with {way}; mean over prompts "
        "and training seeds. Grey and dashed: the checkpoint as it is; solid: tuned models, thick "
        "where tuned on this task. Bands: 95 % intervals of the widest claim the data support; "
        "thin lines and small marks: single training seeds; dotted: what a trivial answer scores.",
        charts.curve(tunings(drawn), words), "scores", where, "curve", file="scores.csv",
    )]  # fmt: skip
    steps = [r for r in mine if r["tuning_step"] is not None and r["level"] == "mean"]
    if len({r["tuning_step"] for r in steps}) > 1:
        figures.append(Figure(
            file_name("steps", task), "steps", task,
            f"{first} on {task} against the step of the tuning, asked with {way}. "
            "Bands: 95 % intervals of the widest claim the data support.",
            charts.curve(tunings(steps), words, by_step=True), "scores",
            {"task": [task], "primary": [True],
             "tuning_step": sorted({r["tuning_step"] for r in steps})},
            "mean", file="scores.csv",
        ))  # fmt: skip
    changed = [r for r in drawn if r["kind"] in kinds and r["gain"] is not None]
    if any(r["kind"] != "control" for r in changed):
        figures.append(Figure(
            file_name("gain", task), "gains", task,
            f"Gain in {words} on {task}: tuned minus untuned, paired by document, with 95 % "
            "intervals of the widest claim the data support. Open marks: the same training with "
            "shuffled labels, which can learn the form of an answer but not the task.",
            charts.gains(tunings(changed), words), "scores",
            {**where, "kind": kinds}, "mean", file="gains.csv",
        ))  # fmt: skip
    prompts = {p for r in drawn if r["level"] == "prompt" for p in r["prompts"]}
    if len(prompts) > 1:
        figures.append(Figure(
            file_name("prompts", task), "prompts", task,
            f"{first} on {task} under each prompt (rows) at each checkpoint "
            "(columns), untuned and tuned on this task. Equal rows: the prompt does not matter.",
            charts.prompt_map(words), "scores",
            {**where, "kind": ["base", "own", "unknown"]}, "prompt", "line",
            "scores_by_prompt.csv",
        ))  # fmt: skip
    return figures


def _limit(scores: Sequence[Row]) -> float:
    """The change at which colours end, the same for all maps of a report."""
    shown = [abs(r["gain"]) for r in scores if r["level"] == "mean" and r["gain"] is not None]
    return float(max([0.1, *shown]))


def cost_rows(table: Table) -> list[Row]:
    """Rows of the cost figure from the table of costs."""
    sums: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for row in table.rows:
        sums[row[0]][0] += row[4] or 0
        sums[row[0]][1] += row[5] or 0
    kinds = ("computed", "taken from cache")
    return [
        {"task": task, "kind": kind, "tokens": tokens}
        for task, found in sums.items()
        for kind, tokens in zip(kinds, found, strict=True)
    ]

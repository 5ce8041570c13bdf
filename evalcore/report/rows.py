"""Rows of the page: every score and gain that was computed, with what a filter may choose by.

Each row is of one ``level``: ``mean`` over the prompts of one way of asking and over training
seeds, ``prompt`` (one cell), or ``seed`` (mean over prompts of one training seed, for thin lines).
Nothing is pooled later: the page and its pictures only choose among these rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np

from evalcore.analysis import Analysis, Estimate, ScoreBook, ScoreRow, SubjectInfo
from evalcore.analysis.groups import role_of
from evalcore.metrics import higher_is_better
from evalcore.report.charts import CONTROL, UNTUNED
from evalcore.report.words import plain, signed, visible

Row = dict[str, Any]

CELL_DIGITS = 10
"""Of a cell's key, as the page tells it."""
FACETS = ("checkpoint", "tuning", "seed", "task", "prompt", "way")
"""What the page's filters choose by; ``folder`` too, where results are of several folders."""


@dataclass(frozen=True)
class Names:
    """What subjects are called on the page.

    Attributes:
        places: Subject id of each untuned checkpoint -> its place in pre-training.
        labels: The same -> what stands below an axis.
        ends: Ids of subjects that are not an earlier step of a tuning, and of their single seeds.
        tunings: Names of tunings in order.
    """

    places: dict[str, int]
    labels: dict[str, str]
    ends: frozenset[str]
    tunings: tuple[str, ...]

    @classmethod
    def of(cls, book: ScoreBook) -> Names:
        labels: dict[str, str] = {}
        full: dict[str, str] = {}
        for s in book.ordered_subjects():
            short = s.checkpoint if s.step is None else short_step(s.step)
            labels.setdefault(s.base or s.id, short)
            full.setdefault(s.base or s.id, s.checkpoint)
        count = Counter(labels.values())
        labels = {id_: full[id_] if count[name] > 1 else name for id_, name in labels.items()}
        count = Counter(labels.values())
        labels = {i: f"{n} ({i[:6]})" if count[n] > 1 else n for i, n in labels.items()}
        ends: dict[tuple[Any, ...], SubjectInfo] = {}
        for s in book.models:
            stepped = s.tuning_step is not None
            ends[(s.base, s.tuning, s.seed, s.control) if stepped else (s.id,)] = s
        tunings = sorted({tuning_name(s) for s in book.models if s.base is not None})
        last = frozenset(id_ for s in ends.values() for id_ in (s.id, *s.run_ids))
        return cls({id_: n for n, id_ in enumerate(labels)}, labels, last, tuple(tunings))


def short_step(step: int) -> str:
    """``1600`` -> ``1.6k``."""
    for size, sign in ((1_000_000, "M"), (1_000, "k")):
        if step >= size:
            return f"{step / size:.3g}{sign}"
    return str(step)


def tuning_name(subject: SubjectInfo) -> str:
    """What a filter and a colour call the tuning of a model, training seed and step apart."""
    if subject.base is None:
        return UNTUNED
    name = subject.tuning or subject.adapter or "tuned"
    return visible(name + (CONTROL if subject.control else ""))


def seed_names(subject: SubjectInfo) -> list[str]:
    """Training seeds behind a subject, as a filter shows them."""
    return [str(s) for s in subject.run_seeds if s is not None] or ["none"]


def score_data(
    analysis: Analysis, by_task: Sequence[ScoreRow], by_prompt: Sequence[ScoreRow]
) -> list[Row]:
    """The rows of every level; ``parent`` is the place of the mean a row is a part of."""
    names = Names.of(analysis.book)
    measurable = {  # without a trivial answer nobody can say that there is nothing to lose
        (f.gain.subject.id, f.gain.task.name):
            f.measurable or f.gain.task.baseline != f.gain.task.baseline
        for f in analysis.forgetting
    }  # fmt: skip
    rows: list[Row] = []
    parents: dict[tuple[str, str, str, Any, str], int] = {}
    for row in by_task:
        own = _row(analysis, names, row, "mean")
        own["measurable"] = measurable.get((row.subject.id, row.task.name), True)
        for run in row.subject.run_ids:
            for prompt in row.prompts:
                parents[(run, row.task.name, prompt, row.way, row.numerics)] = len(rows)
        rows.append(own)
    seeds = [r for n, row in enumerate(by_task) for r in _seed_rows(analysis, names, row, n)]
    for row in by_prompt:
        own = _row(analysis, names, row, "prompt")
        key = (row.subject.id, row.task.name, row.prompts[0], row.way, row.numerics)
        own["parent"] = parents.get(key, -1)
        own["better"], own["worse"] = _flips(analysis.book, row)
        cell = analysis.book.variants(row.subject.id, row.task.name)[row.prompts[0]]
        own["cell"] = cell.cell[:CELL_DIGITS]
        own["gain_least"] = own["gain_most"] = None  # of one prompt they are the gain itself
        rows.append(own)
        if own["parent"] >= 0 and own["better"] is not None:
            mean = rows[own["parent"]]
            mean["better"] = (mean["better"] or 0) + own["better"]
            mean["worse"] = (mean["worse"] or 0) + own["worse"]
    _say_folders(analysis.book, by_task, by_prompt, rows)
    for own in seeds:
        if "folders" in rows[own["parent"]]:
            own["folders"] = rows[own["parent"]]["folders"]
    rows += seeds
    _say_series(rows)
    return rows


def _say_folders(
    book: ScoreBook, by_task: Sequence[ScoreRow], by_prompt: Sequence[ScoreRow], rows: list[Row]
) -> None:
    """Adds ``folders``, where the cells of a row lie, if the results are of several."""
    owner = {
        c.facts.cell: visible(str(c.about["folder"])) for c in book.read if "folder" in c.about
    }
    if not owner:
        return
    for found, row in zip([*by_task, *by_prompt], rows, strict=True):
        cells = [book.variants(run, found.task.name) for run in found.subject.run_ids]
        row["folders"] = sorted({owner[own[p].cell] for own in cells for p in found.prompts
                                 if p in own})  # fmt: skip


def _say_series(rows: list[Row]) -> None:
    """Adds ``series``, the line of a chart a row is on, and of it ``strand``, what is no column.

    A tuning's means are one line, however many seeds each is of, unless several stand at one
    checkpoint: then training seeds (and what else tells models apart) are lines of their own.
    """

    def line(row: Row) -> tuple[Any, ...]:
        folder = tuple(row.get("folders", ()))
        return row["tuning"], row["task"], row["way"], row["numerics"], folder

    means = [r for r in rows if r["level"] == "mean"]
    points = Counter((line(r), r["place"], r["tuning_step"]) for r in means)
    several = {of for (of, *_), count in points.items() if count > 1}
    for row in rows:
        if row["level"] == "mean" and line(row) not in several:
            row["strand"] = ""
        row["series"] = "|".join((row["tuning"], row["strand"], row["asked"]))


def _row(analysis: Analysis, names: Names, row: ScoreRow, level: str) -> Row:
    s, score, gain = row.subject, row.score, row.gain
    base = s.base or s.id
    kind: str = "base" if s.base is None else role_of(row.task, s, analysis.mixes)
    if s.control and kind != "outside":
        kind = "control"
    seeds = seed_names(s)
    tuning = tuning_name(s)
    prompts = [visible(p) for p in row.prompts]
    seed = seeds[0] if len(seeds) == 1 else f"{len(seeds)} seeds"
    strong = kind in ("base", "own", "unknown")
    asked = prompts[0] if len(prompts) == 1 else f"mean over {len(prompts)}"
    return {
        "level": level, "parent": -1, "subject": s.run_ids[0], "checkpoint": visible(s.checkpoint),
        "at": visible(names.labels.get(base, s.checkpoint)), "place": names.places.get(base, 0),
        "tuning": tuning, "kind": kind, "control": bool(s.control), "seed": seed, "seeds": seeds,
        "tuning_step": s.tuning_step,
        "drawn": s.id in names.ends and not (s.control and kind == "outside"),
        "task": visible(row.task.name), "metric": row.task.metric, "way": row.way.label,
        "primary": row.primary, "asked": asked, "prompts": prompts,
        "strand": " ".join((seed, analysis.book.apart.get(s.id) or "")).strip(),
        "line": f"{tuning}{'' if seed in ('none', '0') else f', {_seeds(seed)}'} | {asked}",
        "who": tuning + ("" if seed == "none" else f", {_seeds(seed)}"),
        "weight": 0 if level == "seed" else 2 if strong else 1,
        "floor": _known(row.task.baseline), "n": score.n,
        **_numbers("score", score), **_numbers("gain", gain if row.base is not None else None),
        "base": _known(row.base_score.value), "claim": gain.claim or score.claim,
        "turned": gain.turned if gain.n else None,
        "smallest": _known(gain.smallest), "better": None, "worse": None, "measurable": True,
        "numerics": row.numerics, "note": "; ".join(row.notes),
        "score_text": _with_interval(score, plain), "gain_text": _with_interval(gain, signed),
    }  # fmt: skip


def _seeds(seed: str) -> str:
    return seed if seed.endswith("seeds") else f"seed {seed}"


def _numbers(name: str, estimate: Estimate | None) -> Row:
    """Value, error, 95 % interval of the widest claim, and range over single prompts."""
    fields = {"": "value", "_error": "stderr", "_low": "low95", "_high": "high95",
              "_least": "low_prompt", "_most": "high_prompt"}  # fmt: skip
    there = estimate is not None and estimate.n > 0
    return {
        f"{name}{end}": _known(getattr(estimate, field)) if there else None
        for end, field in fields.items()
    }


def _with_interval(estimate: Estimate, write: Any) -> str:
    if not estimate.n:
        return ""
    text = str(write(estimate.value))
    if estimate.low95 != estimate.low95:
        return text
    return f"{text} [{write(estimate.low95)}, {write(estimate.high95)}]"


def _seed_rows(analysis: Analysis, names: Names, row: ScoreRow, parent: int) -> list[Row]:
    """A line per training seed: the mean over prompts of each seed's scores, no interval."""
    if len(row.subject.runs) < 2:
        return []
    cells = analysis.book.strata(row.subject, row.task.name)[(row.way, row.numerics)]
    base = _row(analysis, names, row, "seed")
    found = []
    for run, seed in enumerate(row.subject.seeds):
        means = [c[run].facts.mean for c in cells.values() if run in c and c[run].n]
        if len(means) < len(row.prompts):
            continue
        value = float(np.mean(means))
        empty = dict.fromkeys(k for k in base if k.startswith("gain") and k != "gain_text")
        found.append({
            **base, **empty, "parent": parent, "subject": row.subject.runs[run], "seed": str(seed),
            "seeds": [str(seed)], "score": value, "score_low": None,
            "score_high": None, "gain_text": "",
            "score_text": plain(value), "strand": str(seed),
            "who": f"{base['tuning']}, seed {seed}", "claim": "", "note": "",
        })  # fmt: skip
    return found


def _flips(book: ScoreBook, row: ScoreRow) -> tuple[int | None, int | None]:
    """Documents of a cell that came out better and worse than under the same prompt of the base."""
    if row.subject.base is None or not row.gain.n:
        return None, None
    prompt, task = row.prompts[0], row.task.name
    mine = book.variants(row.subject.id, task).get(prompt)
    theirs = book.variants(row.subject.base, task).get(prompt)
    if mine is None or theirs is None:
        return None, None
    own, other, upward = mine, theirs, higher_is_better(row.task.metric)

    def count() -> dict[str, int]:
        _, here, there = np.intersect1d(own.docs, other.docs, True, return_indices=True)
        change = own.values[here] - other.values[there]
        change = change if upward else -change
        return {"better": int((change > 1e-12).sum()), "worse": int((change < -1e-12).sum())}

    found = book.memo.get(("flips", row.task.metric, own.key, other.key), count)
    return found["better"], found["worse"]


def _known(value: float | None) -> float | None:
    return None if value is None or not isfinite(value) else round(float(value), 4)

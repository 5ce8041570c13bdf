"""The study's pictures, drawn with matplotlib (Agg): one small panel per task or tuning.

Panels are separate images so that a page can lay them out side by side on a desk and one below
the other on a phone. Checkpoints stand at equal distances in the order of their steps.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evalcore.analysis import Analysis, CurvePoint, Estimate, Forgetting, Gain, SubjectInfo
from evalcore.report.words import signed

# Okabe and Ito's palette: told apart with any common colour blindness.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
BASE_COLOUR, FLOOR_COLOUR, GRID_COLOUR = "#3b3b3b", "#8a8a8a", "#e6e6e6"
MARKERS = "osD^vPX*"


@dataclass(frozen=True)
class Picture:
    """One PNG on disk.

    Attributes:
        path: The file.
        section: ``curves``, ``steps``, ``gains``, ``spread``, ``forgetting`` or ``losses``.
        alt: What it shows, in words.
    """

    path: Path
    section: str
    alt: str


def draw_all(analysis: Analysis, out_dir: Path) -> list[Picture]:
    """Draws every picture as PNG into ``out_dir``."""
    axis = CheckpointAxis.of(analysis)
    colours = tuning_colours(analysis)
    pictures = []
    last = _ends_of_tunings(analysis)
    primary = analysis.primary_gains()
    tasks = [t for t in analysis.book.tasks.values() if any(p.task == t for p in analysis.curves)]
    for task in tasks:
        points = [p for p in analysis.curves if p.task.name == task.name and p.subject.id in last]
        alt = f"{task.metric} on {task.name} against pre-training step, base and tuned"
        with panel() as (figure, axes):
            draw_curve(axes, points, axis, colours)
            pictures.append(save(figure, out_dir, "curves", f"curve_{task.name}", alt))
    for task in tasks:
        gains = [
            g for g in primary
            if g.task.name == task.name and analysis.role(g) in ("own", "far", "unknown")
            and g.subject.id in last
        ]  # fmt: skip
        if not gains:
            continue
        alt = f"Gain on {task.name} per checkpoint with 99 % intervals, control beside"
        with panel() as (figure, axes):
            draw_gains(axes, gains, axis, colours)
            pictures.append(save(figure, out_dir, "gains", f"gain_{task.name}", alt))
    for task in tasks:
        subjects = _spread_subjects(analysis, task.name)
        if all(len(_prompt_scores(analysis, s, task.name)) < 2 for s in subjects):
            continue
        alt = f"{task.metric} on {task.name} under each prompt, one row per subject"
        with panel(height=1.7 + 0.26 * len(subjects)) as (figure, axes):
            draw_spread(axes, analysis, task.name, subjects)
            pictures.append(save(figure, out_dir, "spread", f"spread_{task.name}", alt))
    shown = [f.corrected.value for f in analysis.forgetting if f.measurable and f.corrected]
    limit = max([0.1, *(abs(v) for v in shown)])
    for number, (name, rows) in enumerate(forgetting_series(analysis).items()):
        names = list(dict.fromkeys(r.gain.task.name for r in rows))
        alt = f"Chance-corrected change on tasks outside {name}, checkpoint by task"
        with panel(height=1.2 + 0.42 * len(names)) as (figure, axes):
            draw_forgetting(axes, name, rows, axis, limit)
            pictures.append(save(figure, out_dir, "forgetting", f"forgetting_{number}", alt))
    return pictures


def _ends_of_tunings(analysis: Analysis) -> set[str]:
    """Subjects but for those that are an earlier step of a tuning (they have their own curve)."""
    ends: dict[tuple[Any, ...], SubjectInfo] = {}
    for s in analysis.book.models:
        stepped = s.tuning_step is not None
        ends[(s.base, s.tuning, s.seed, s.control) if stepped else (s.id,)] = s
    return {s.id for s in ends.values()}


@dataclass(frozen=True)
class CheckpointAxis:
    """Places of checkpoints on the x axis.

    Attributes:
        ids: Subject id of each untuned checkpoint, in order.
        labels: What stands below.
    """

    ids: tuple[str, ...]
    labels: tuple[str, ...]

    @classmethod
    def of(cls, analysis: Analysis) -> CheckpointAxis:
        places: dict[str, str] = {}
        for subject in analysis.book.ordered_subjects():
            label = subject.checkpoint if subject.step is None else short_step(subject.step)
            places.setdefault(subject.base or subject.id, label)
        return cls(tuple(places), tuple(places.values()))

    def place(self, subject: SubjectInfo) -> int:
        return self.ids.index(subject.base or subject.id)

    def dress(self, axes: Any) -> None:
        slant = 45 if max(map(len, self.labels)) * len(self.labels) > 48 else 0
        axes.set_xticks(range(len(self.labels)), self.labels, rotation=slant,
                        ha="right" if slant else "center")  # fmt: skip
        axes.set_xlim(-0.4, len(self.labels) - 0.6)
        axes.set_xlabel("pre-training step (in order, not to scale)")


def short_step(step: int) -> str:
    """``1600`` -> ``1.6k``."""
    for size, sign in ((1_000_000, "M"), (1_000, "k")):
        if step >= size:
            return f"{step / size:.3g}{sign}"
    return str(step)


def tuning_colours(analysis: Analysis) -> dict[str, str]:
    """One colour per tuning, the same in all pictures."""
    names = sorted({s.tuning or "tuned" for s in analysis.book.subjects.values() if s.base})
    return {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(names)}


def draw_curve(
    axes: Any, points: list[CurvePoint], axis: CheckpointAxis, colours: dict[str, str]
) -> None:
    """Score against step: base, own tuning (bold, with 95 % band), other tunings thin."""
    task = points[0].task
    series: dict[tuple[str, str, str], list[CurvePoint]] = defaultdict(list)
    for point in points:
        s = point.subject
        name = "base" if s.base is None else s.tuning or "tuned"
        series[(name, s.control or "", str(s.seed) if s.base else "")].append(point)
    seen: set[str] = set()
    for (name, control, _), line in sorted(series.items(), key=lambda kv: kv[0][0] != "base"):
        own = line[0].subject.tuned_on == task.tuned_by is not None
        x = [axis.place(p.subject) for p in line]
        y = [p.score.value for p in line]
        colour = BASE_COLOUR if name == "base" else colours[name]
        label = "untuned" if name == "base" else f"tuned on {name}"
        if control:
            if not own:
                continue
            label = f"control ({control.replace('_', ' ')})"
            errors = _error_lengths([p.score for p in line], "95")
            # Moved a little to the right, so that it does not hide the base's mark.
            beside = [v + 0.1 for v in x]
            axes.errorbar(beside, y, errors, fmt="D", ms=6, mfc="white", color=colour, capsize=3,
                          label=label, zorder=4)  # fmt: skip
            continue
        strong = own or name == "base"
        axes.plot(
            x, y, "-" if strong else ":", marker="o" if own else "s" if strong else None,
            color=colour, lw=2.2 if strong else 1.2, ms=5, alpha=1.0 if strong else 0.85,
            label=None if label in seen else label, zorder=3 if strong else 2,
        )  # fmt: skip
        seen.add(label)
        if strong:
            low, high = [p.score.low95 for p in line], [p.score.high95 for p in line]
            axes.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)
    if not math.isnan(task.baseline):
        axes.axhline(task.baseline, color=FLOOR_COLOUR, ls="--", lw=1.3, label="trivial answer")
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, task.baseline - 0.06 * (high - low)), high)
    axis.dress(axes)
    axes.set_ylabel(metric_words(task.metric))
    axes.set_title(task.name + (" (out of domain)" if task.domain == "out" else ""))
    legend(axes)


def draw_gains(axes: Any, gains: list[Gain], axis: CheckpointAxis, colours: dict[str, str]) -> None:
    """Gain per checkpoint with 99 % intervals; the control beside as an open diamond."""
    series: dict[tuple[str, str, str], list[Gain]] = defaultdict(list)
    for gain in gains:
        s = gain.subject
        series[(s.control or "", s.tuning or "tuned", str(s.seed))].append(gain)
    shift = 0.14
    tunings = {tuning for _, tuning, _ in series}
    for number, ((control, tuning, seed), rows) in enumerate(sorted(series.items())):
        offset = (number - (len(series) - 1) / 2) * shift
        colour = BASE_COLOUR if control and len(tunings) == 1 else colours[tuning]
        seeds = seed != "None" and sum(not k[0] and k[1] == tuning for k in series) > 1
        name = tuning if len(tunings) > 1 else "tuned"
        label = f"{name}, control" if len(tunings) > 1 else "format-only control"
        if not control:
            label = name + (f", seed {seed}" if seeds else "")
        axes.errorbar(
            [axis.place(g.subject) + offset for g in rows], [g.pooled.value for g in rows],
            _error_lengths([g.pooled for g in rows], "99"), fmt="D" if control else "o",
            ms=6.5, mfc="white" if control else colour, color=colour, capsize=3.5, lw=1.6,
            label=label,
        )  # fmt: skip
    axes.axhline(0, color=FLOOR_COLOUR, lw=1.2)
    axis.dress(axes)
    task = gains[0].task
    axes.set_ylabel(f"gain in {metric_words(task.metric)}")
    axes.set_title(task.name + (" (out of domain)" if task.domain == "out" else ""))
    legend(axes)


def draw_spread(axes: Any, analysis: Analysis, task: str, subjects: list[SubjectInfo]) -> None:
    """One row per subject, one mark per prompt; the line spans smallest to largest."""
    every = sorted({v for cells in analysis.book.cells.values() for v in cells})
    here = {v for s in subjects for v in _prompt_scores(analysis, s, task)}
    for row, subject in enumerate(subjects):
        scores = _prompt_scores(analysis, subject, task)
        if not scores:
            continue
        axes.plot([min(scores.values()), max(scores.values())], [row, row], color="#c4c4c4",
                  lw=4, solid_capstyle="round", zorder=1)  # fmt: skip
        for name, score in scores.items():
            place = every.index(name)  # one mark per prompt, the same in all pictures
            axes.plot(score, row, MARKERS[place % len(MARKERS)], ms=7, zorder=3, mec="white",
                      mew=0.7, color=PALETTE[place % len(PALETTE)])  # fmt: skip
    for place, name in enumerate(every):
        if name not in here:
            continue
        axes.plot([], [], MARKERS[place % len(MARKERS)], ms=7, label=name,
                  color=PALETTE[place % len(PALETTE)])  # fmt: skip
    info = analysis.book.tasks[task]
    if not math.isnan(info.baseline):
        axes.axvline(info.baseline, color=FLOOR_COLOUR, ls="--", lw=1.3, label="trivial answer")
    for row in range(1, len(subjects)):
        if (subjects[row].base or subjects[row].id) != (
            subjects[row - 1].base or subjects[row - 1].id
        ):
            axes.axhline(row - 0.5, color=GRID_COLOUR, lw=1)
    axes.set_yticks(range(len(subjects)), [_short_subject(s, info.tuned_by) for s in subjects])
    axes.set_ylim(len(subjects) - 0.4, -0.6)
    axes.set_xlabel(metric_words(info.metric))
    axes.grid(axis="y", visible=False)
    axes.set_title(f"{task}, {analysis.book.primary(task).label}")
    legend(axes)


def _prompt_scores(analysis: Analysis, subject: SubjectInfo, task: str) -> dict[str, float]:
    """Prompt -> score (mean over seeds) in the primary way of asking."""
    stratum = analysis.book.primary_stratum(subject, task)
    if stratum is None:
        return {}
    cells = analysis.book.strata(subject, task)[stratum]
    scores = {name: [c.facts.mean for c in runs.values() if c.n] for name, runs in cells.items()}
    return {name: sum(found) / len(found) for name, found in scores.items() if found}


def draw_forgetting(
    axes: Any, name: str, rows: list[Forgetting], axis: CheckpointAxis, limit: float
) -> None:
    """Heat map checkpoint x task; hatched grey where the base is not above the trivial answer.

    ``limit`` is the change at which the colours end, the same for all maps of a report.
    """
    import matplotlib as mpl
    from matplotlib.patches import Rectangle

    tasks = list(dict.fromkeys(r.gain.task.name for r in rows))
    colour_map, scale = mpl.colormaps["PuOr"], mpl.colors.Normalize(-limit, limit)
    for row in rows:
        x, y = axis.place(row.gain.subject), tasks.index(row.gain.task.name)
        known = row.measurable and row.corrected is not None
        colour = colour_map(scale(row.corrected.value)) if known and row.corrected else "#ededed"
        axes.add_patch(
            Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=colour, lw=1.5,
                      edgecolor="white" if known else "#bdbdbd", hatch=None if known else "////")
        )  # fmt: skip
        if known and row.corrected:
            dark = abs(row.corrected.value) > 0.65 * limit
            sure = row.corrected.high99 < 0 or row.corrected.low99 > 0
            text = signed(row.corrected.value, 2) + ("*" if sure else "")
            axes.text(x, y, text, ha="center", va="center", fontsize=9,
                      color="white" if dark else "#1c1c1c")  # fmt: skip
    axis.dress(axes)
    axes.set_xlim(-0.5, len(axis.ids) - 0.5)
    axes.set_ylim(len(tasks) - 0.5, -0.5)
    axes.set_yticks(range(len(tasks)), tasks)
    axes.grid(visible=False)
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.set_title(f"tuned on {name}")


def forgetting_series(analysis: Analysis) -> dict[str, list[Forgetting]]:
    """Rows of one heat map each: a tuning, or a tuning and seed where there are several."""
    plain = [f for f in analysis.forgetting if f.gain.subject.control is None]
    seeds: dict[str, set[int | None]] = defaultdict(set)
    for row in plain:
        seeds[row.gain.subject.tuning or "?"].add(row.gain.subject.seed)
    out: dict[str, list[Forgetting]] = defaultdict(list)
    for row in plain:
        tuning = row.gain.subject.tuning or "?"
        several = len(seeds[tuning]) > 1
        out[f"{tuning}, seed {row.gain.subject.seed}" if several else tuning].append(row)
    return out


def metric_words(metric: str) -> str:
    """A metric's name for an axis."""
    return {
        "acc": "accuracy",
        "acc_norm": "accuracy (per character)",
        "acc_bytes": "accuracy (per byte)",
        "rouge_l": "ROUGE-L",
        "rouge_1": "ROUGE-1",
        "rouge_2": "ROUGE-2",
        "gold_prob": "probability of the right choice",
        "gold_bits_per_byte": "bits per byte of the reference",
    }.get(metric, metric)


def _spread_subjects(analysis: Analysis, task: str) -> list[SubjectInfo]:
    """Bases and the task's own tuned subjects; other adapters only where it has no tuning."""
    scored = [s for s in analysis.book.models if analysis.book.strata(s, task)]
    tuned_by = analysis.book.tasks[task].tuned_by
    last = analysis.book.ordered_subjects()[-1]
    end = last.base or last.id
    return [
        s for s in scored
        if s.base is None
        or (tuned_by is not None and s.tuned_on == tuned_by)
        or (tuned_by is None and s.base == end and not s.control)
    ]  # fmt: skip


def _short_subject(subject: SubjectInfo, own: str | None) -> str:
    place = subject.checkpoint if subject.step is None else short_step(subject.step)
    if subject.base is None:
        return f"{place} untuned"
    if subject.control:
        return f"{place} control"
    mine = subject.tuned_on is not None and subject.tuned_on == own
    what = "tuned" if mine else f"+ {subject.tuning or subject.adapter}"
    return f"{place} {what}" + (f", seed {subject.seed}" if subject.seed else "")


def _error_lengths(estimates: list[Estimate], level: str) -> list[list[float]]:
    def length(pick: Callable[[Estimate], float]) -> list[float]:
        return [0.0 if math.isnan(pick(e)) else max(0.0, pick(e)) for e in estimates]

    low, high = f"low{level}", f"high{level}"
    return [
        length(lambda e: e.value - getattr(e, low)),
        length(lambda e: getattr(e, high) - e.value),
    ]


def legend(axes: Any) -> None:
    """A legend below the panel, if there is anything to explain."""
    handles, _ = axes.get_legend_handles_labels()
    if handles:
        axes.figure.legend(
            loc="outside lower center", frameon=False, fontsize=9,
            ncols=2 if len(handles) > 1 else 1, handletextpad=0.5, columnspacing=1.2,
        )  # fmt: skip


@contextmanager
def panel(width: float = 4.5, height: float = 3.6) -> Iterator[tuple[Any, Any]]:
    """A figure of this size in inches with one pair of axes, in the report's style."""
    # matplotlib takes a second to import and only reports need it; Agg needs no display.
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style = {
        "font.family": "DejaVu Sans", "font.size": 10, "axes.titlesize": 11,
        "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.edgecolor": "#9a9a9a",
        "axes.labelcolor": "#1c1c1c", "text.color": "#1c1c1c", "xtick.color": "#3b3b3b",
        "ytick.color": "#3b3b3b", "axes.spines.top": False, "axes.spines.right": False,
        "axes.grid": True, "grid.color": GRID_COLOUR, "axes.axisbelow": True,
        "hatch.color": "#bdbdbd", "hatch.linewidth": 0.8,
        "text.parse_math": False,  # names may hold dollar signs
    }  # fmt: skip
    with mpl.rc_context(style):
        figure = Figure(figsize=(width, height), facecolor="white", layout="constrained")
        FigureCanvasAgg(figure)
        yield figure, figure.add_subplot()


def save(figure: Any, out_dir: Path, section: str, name: str, alt: str) -> Picture:
    """Writes a figure as PNG under a safe file name."""
    safe = "".join(c if c.isalnum() or c in "-_" else "_" for c in name)
    if safe != name:  # two names must not become one file
        safe += "_" + hashlib.blake2b(name.encode(), digest_size=3).hexdigest()
    path = out_dir / f"{safe}.png"
    figure.savefig(path, dpi=150, metadata={"Software": None})
    return Picture(path, section, alt)

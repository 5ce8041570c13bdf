"""The first screen in words: what was asked, and sentences made from the numbers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from evalcore.analysis import Analysis, Estimate, Flag
from evalcore.report.tables import SERIOUS, StudyRow, study_rows
from evalcore.report.words import by_prompt, interval, metric_words, plain, signed, visible

MOST_TUNINGS = 3
MOST_WARNINGS = 3


def asked(analysis: Analysis) -> list[tuple[str, str]]:
    """What was asked of which models, with which metric: (name, text) pairs."""
    book = analysis.book
    subjects = book.ordered_subjects()
    bases = [s for s in subjects if s.base is None]
    tuned = [s for s in subjects if s.base is not None and not s.control]
    controls = [s for s in subjects if s.control]
    seeds = {x for s in tuned for x in s.run_seeds if x is not None}
    models = _several(len(bases), "checkpoint")
    if bases:
        ends = dict.fromkeys([bases[0].checkpoint, bases[-1].checkpoint])
        models += f" ({' to '.join(map(visible, ends))})"
    if tuned:
        models += f", {_several(len(tuned), 'tuned model')}"
    if len(seeds) > 1:
        models += f" with {len(seeds)} training seeds"
    if controls:
        models += f", {_several(len(controls), 'control')} trained on shuffled labels"
    metrics: dict[str, list[str]] = defaultdict(list)
    for task in book.tasks.values():
        metrics[metric_words(task.metric)].append(visible(task.name))
    counts = [len(cells) for cells in book.cells.values()]
    prompts = f"{min(counts)} to {max(counts)}" if min(counts) < max(counts) else str(max(counts))
    documents = {c.n for cells in book.cells.values() for c in cells.values()}
    size = f"{min(documents):,}" + (f" to {max(documents):,}" if len(documents) > 1 else "")
    size += " document each" if size == "1" else " documents each"
    ways = dict.fromkeys(book.primary(t).label for t in book.tasks)
    return [
        ("Models", models),
        ("Tasks", f"{_several(len(book.tasks), 'task')}, {size}, under {prompts} "
                  f"prompt{'' if prompts == '1' else 's'}; the sentences are of {'; '.join(ways)}"),
        ("Metric", "; ".join(
            name + ("" if len(metrics) == 1 else f" ({_some(tasks, 4)})")
            for name, tasks in metrics.items())),
    ]  # fmt: skip


def sentences(analysis: Analysis) -> list[str]:
    """Three to five sentences that claim no more than the intervals; none without tuned models."""
    if not analysis.curves:
        return ["No row has a value: nothing can be said about any model. The warnings say why."]
    rows = [r for r in study_rows(analysis) if r.tasks]
    if not rows:
        return _of_bases(analysis)
    last = rows[-1].subject.base
    final = sorted((r for r in rows if r.subject.base == last), key=lambda r: -abs(r.gain.value))
    lines = [_at_last(row) for row in final[:MOST_TUNINGS]]
    if final[MOST_TUNINGS:]:
        lines[-1] += f" ({len(final) - MOST_TUNINGS} more tuned models stand in the table.)"
    first = _first_gains(rows)
    if first:
        lines.append(first)
    forgot = [r for r in final if r.forgetting.n]
    if forgot:
        worst = min(forgot, key=lambda r: r.forgetting.value)
        what = _word(worst.forgetting, True, "a gain", "a loss", "which could be chance")
        lines.append(
            f"On tasks it was not tuned on, the model tuned on {_tuning(worst)} changed most for "
            f"the worse there: {interval(worst.forgetting)} of the room above the trivial answer, "
            f"{what} for {worst.forgetting.claim} ({worst.measurable} of {worst.outside} tasks "
            "could show it)."
        )
    elif any(r.outside for r in final):
        lines.append(
            "What tuning costs elsewhere cannot be said: on no other task is the untuned "
            "checkpoint credibly above the trivial answer."
        )
    return lines


def _of_bases(analysis: Analysis) -> list[str]:
    """Of untuned checkpoints alone: where each task is answered best."""
    lines = []
    for task in list(analysis.book.tasks.values())[:MOST_TUNINGS]:
        own = [p for p in analysis.curves if p.task.name == task.name and p.score.n]
        if own:
            point = own[-1]
            score = point.score
            lines.append(
                f"{visible(point.subject.label)} scores {plain(score.value)}"
                + (f" [{plain(score.low95)}, {plain(score.high95)}]" if score.claim else "")
                + f" on {visible(task.name)} ({metric_words(task.metric)}"
                + (
                    ""
                    if task.baseline != task.baseline
                    else f"; a trivial answer: {plain(task.baseline)}"
                )
                + ")"
                + ("." if score.claim else ", without an interval.")
            )
    return lines


def _tuning(row: StudyRow) -> str:
    seeds = f" ({len(row.subject.runs)} seeds)" if row.subject.runs else ""
    if not row.subject.runs and row.subject.seed:
        seeds = f" (seed {row.subject.seed})"
    return visible(row.subject.tuning or row.subject.adapter or "?") + seeds


def _at_last(row: StudyRow) -> str:
    tasks = ", ".join(visible(t) for t in row.tasks)
    verdict = _verdict(row.gain, row.upward)
    text = (
        f"Tuned on {_tuning(row)}, {visible(row.subject.checkpoint)} goes from "
        f"{plain(row.base.value)} to {plain(row.tuned.value)} on {tasks}: {verdict}"
    )
    if row.gain.prompts > 1:
        text += f" (by prompt {by_prompt(row.gain)})"
    if row.over_control.n:
        words = ("more than", "less than", "not credibly more or less than")
        text += f". {_word(row.over_control, row.upward, *words).capitalize()} its control gains: "
        text += interval(row.over_control)
    else:
        text += ". No control tells format from ability"
    if row.notes:
        text += f". Mind: {'; '.join(row.notes[:2])}"
    return text + "."


def _first_gains(rows: Sequence[StudyRow]) -> str:
    """Per tuning the first checkpoint whose gain is credible for the widest claim."""
    tunings: dict[str, list[StudyRow]] = defaultdict(list)
    for row in rows:
        tunings[_tuning(row)].append(row)
    if all(len(mine) < 2 for mine in tunings.values()):
        return ""
    parts = []
    for name, mine in list(tunings.items())[:MOST_TUNINGS]:
        found = next((r for r in mine if _word(r.gain, r.upward, "gain", "", "")), None)
        where = "at no checkpoint" if found is None else f"at {visible(found.subject.checkpoint)}"
        parts.append(f"{name} {where}")
    claims = dict.fromkeys(r.gain.claim for r in rows if r.gain.claim)
    side = "above" if all(r.upward for r in rows) else "on the better side of"
    return (
        f"First credible gain (95 % interval {side} 0, for {' or '.join(claims) or 'nothing'}): "
        f"{', '.join(parts)}."
    )


def _word(estimate: Estimate, upward: bool, more: str, less: str, neither: str) -> str:
    """``more`` where it is credibly better than 0, ``less`` where worse."""
    above, below = (more, less) if upward else (less, more)
    return above if estimate.low95 > 0 else below if estimate.high95 < 0 else neither


def _verdict(gain: Estimate, upward: bool) -> str:
    """What may be said for the widest claim; what is true of these prompts alone where it differs.

    The value stands once, with the widest interval.
    """
    within = gain.over_documents
    words = ("a gain", "a loss", "it could be chance")
    if not within.claim:
        return f"{signed(gain.value)}, without an interval"
    found, inner = _word(gain, upward, *words), _word(within, upward, *words)
    text = f"{interval(gain)}, {found} for {gain.claim}"
    if not upward:
        text = f"{interval(gain)} (less is better), {found} for {gain.claim}"
    if gain.claim != within.claim and found != inner:
        bounds = f"[{signed(within.low95)}, {signed(within.high95)}]"
        text += f"; {inner} for {within.claim}, {bounds}"
    return text


def warnings(flags: Sequence[Flag], most: int = MOST_WARNINGS) -> tuple[list[str], int]:
    """The warnings that concern headlines, serious ones first, and how many others there are."""
    order = sorted(flags, key=lambda f: (f.kind not in SERIOUS, f.kind != "control"))
    shown = [f"{visible(f.where)}: {visible(f.text)}" for f in order[:most]]
    return shown, len(flags) - len(shown)


def best_task(analysis: Analysis) -> str | None:
    """The task of the first picture: the one that tuning changed most at the last checkpoint."""
    rows = [r for r in study_rows(analysis) if r.tasks and r.gain.n]
    if rows:
        last = rows[-1].subject.base
        own = [r for r in rows if r.subject.base == last]
        return max(own, key=lambda r: abs(r.gain.value)).tasks[0]
    return next((p.task.name for p in analysis.curves), None)


def _several(number: int, name: str) -> str:
    return f"{number:,} {name}{'' if number == 1 else 's'}"


def _some(names: Sequence[str], most: int) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if names[most:] else "")

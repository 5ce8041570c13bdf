"""What ``bench/peers.py`` measured, as Arrow, Markdown and a picture."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.peers_grid import GridSize
from evalcore.benchmark.tables import markdown, number
from evalcore.report.charts import PALETTE
from evalcore.report.pictures import write_png

Row = dict[str, Any]
SYSTEMS = ("evalcore", "lm-eval-hf", "lm-eval-vllm")


def summarise(runs: Sequence[Row], size: GridSize) -> list[Row]:
    """One row per number of documents and system.

    Start-up of evalcore is a run of one cell with one document; that of a peer is everything but
    its evaluation (imports, loading, end of the process), summed over subjects. A peer measured on
    some of its subjects or variants is extrapolated, see :func:`_peer`.

    Returns:
        Rows with ``total_s``, ``startup_s``, ``steady_s`` (their difference), the steady seconds of
        a further subject and of a further variant of all subjects, ``computed_over_limit``, what
        was measured, ``times`` and ``steady_times`` (how many times evalcore's).
    """
    rows = []
    for docs in sorted({run["documents"] for run in runs if run["system"] in SYSTEMS}):
        own = [run for run in runs if run["documents"] == docs]
        ours = [run for run in own if run["system"] == "evalcore"]
        for system in SYSTEMS:
            its = [run for run in own if run["system"] == system]
            if its and system == "evalcore":
                starts = [run["wall_s"] for run in runs if run["system"] == "evalcore-start"]
                rows.append(_ours(its, starts, size))
            elif its:
                rows.append(_peer(its, ours[0] if ours else None, size))
    base = {row["documents"]: row for row in rows if row["system"] == "evalcore"}
    for row in rows:
        ours_row = base.get(row["documents"], {})
        for times, seconds in (("times", "total_s"), ("steady_times", "steady_s")):
            known = ours_row.get(seconds) and row[seconds]
            row[times] = row[seconds] / ours_row[seconds] if known else None
    return rows


def _ours(runs: Sequence[Row], starts: Sequence[float], size: GridSize) -> Row:
    walls = [run["wall_s"] for run in runs]
    total, startup = statistics.median(walls), statistics.median(starts) if starts else 0.0
    # On a machine with other work a start alone can take longer than a whole small grid.
    steady = total - startup if total > startup else None
    limit, computed = runs[0].get("token_limit"), runs[0].get("computed_tokens")
    return {
        "documents": runs[0]["documents"], "system": "evalcore",
        "measured_subjects": size.subjects, "measured_variants": size.variants,
        "runs": len(runs), "extrapolated": False,
        "total_s": total, "least_s": min(walls), "most_s": max(walls),
        "computed_over_limit": computed / limit if limit and computed else None,
        **_margins(startup, steady, size),
    }  # fmt: skip


def _peer(runs: Sequence[Row], ours: Row | None, size: GridSize) -> Row:
    """A peer's whole grid from the subjects that were measured.

    Subjects without and with an adapter are kept apart (an adapter costs the hf backend time):
    each kind counts as the mean over its measured subjects of the median over rounds, times the
    subjects of that kind; a kind that was not measured counts like the other. Where only some
    variants ran, evaluation is scaled by the tokens of all variants over the tokens that ran, and
    start-up is not.
    """
    kinds: dict[bool, dict[str, list[Row]]] = {}
    for run in runs:
        kinds.setdefault("+" in run["subject"], {}).setdefault(run["subject"], []).append(run)
    counts = {False: size.checkpoints, True: size.checkpoints * size.adapters}
    sums = dict.fromkeys(("startup", "steady", "least", "most", "computed"), 0.0)
    for kind, subjects in counts.items():
        measured = kinds.get(kind) or next(iter(kinds.values()))
        for own in measured.values():
            share = subjects / len(measured)
            steady = [run["evaluate_s"] * _scale(run, ours, size) for run in own]
            starts = [run["wall_s"] - run["evaluate_s"] for run in own]
            walls = [start + scored for start, scored in zip(starts, steady, strict=True)]
            sums["startup"] += share * statistics.median(starts)
            sums["steady"] += share * statistics.median(steady)
            sums["least"] += share * min(walls)
            sums["most"] += share * max(walls)
            sums["computed"] += share * own[0]["computed_tokens"] * _scale(own[0], ours, size)
    labels = {run["subject"] for run in runs}
    variants = min(run["variants"] for run in runs)
    limit = ours.get("token_limit") if ours else None
    return {
        "documents": runs[0]["documents"], "system": runs[0]["system"],
        "measured_subjects": len(labels), "measured_variants": variants, "runs": len(runs),
        "extrapolated": len(labels) < size.subjects or variants < size.variants,
        "total_s": sums["startup"] + sums["steady"], "least_s": sums["least"],
        "most_s": sums["most"], "computed_over_limit": sums["computed"] / limit if limit else None,
        **_margins(sums["startup"], sums["steady"], size),
    }  # fmt: skip


def _scale(run: Row, ours: Row | None, size: GridSize) -> float:
    """Tokens of a subject's whole work over those that the run sent."""
    if run["variants"] >= size.variants:
        return 1.0
    if ours is None:
        return size.variants / run["variants"]
    return ours["tokens"] / run["tokens"]


def _margins(startup: float, steady: float | None, size: GridSize) -> Row:
    each = {"subject_s": size.subjects, "variant_s": size.variants, "cell_s": size.cells}
    return {
        "startup_s": startup,
        "steady_s": steady,
        **{name: None if steady is None else steady / count for name, count in each.items()},
    }


def not_the_same(runs: Sequence[Row], size: GridSize) -> list[str]:
    """What makes measured runs not comparable: other work or other accuracies than evalcore's."""
    wrong = []
    ours = {run["documents"]: run for run in runs if run["system"] == "evalcore"}
    for run in runs:
        base = ours.get(run["documents"])
        if base is None or run["system"] not in SYSTEMS or run["system"] == "evalcore":
            continue
        where = f"{run['system']}, {run['documents']} documents, {run['subject']}"
        if run["variants"] >= size.variants and run["tokens"] != base["tokens"]:
            wrong.append(f"{where}: {run['tokens']} tokens, evalcore {base['tokens']}")
        mine = base["accuracy"][run["subject"]]
        # A tie within rounding may fall either way, once in a task.
        far = [
            n for n, own in run["accuracy"].items() if abs(own - mine[n]) * run["documents"] > 1.5
        ]
        if far:
            wrong.append(f"{where}: other accuracy in {', '.join(far)}")
    return wrong


def as_markdown(rows: Sequence[Row], size: GridSize, facts: dict[str, Any]) -> str:
    """The table, what the grid was and what ran."""
    titles = ["system", "docs/task", "measured", "runs", "total s", "start-up s", "steady s",
              "one more subject, s", "one more variant, s", "computed/limit", "times evalcore",
              "steady state"]  # fmt: skip
    cells = [
        [
            row["system"], number(row["documents"]),
            f"{row['measured_subjects']} of {size.subjects} subjects, "
            f"{row['measured_variants']} of {size.variants} variants",
            str(row["runs"]), number(row["total_s"], 1) + (" *" if row["extrapolated"] else ""),
            number(row["startup_s"], 1), number(row["steady_s"], 1), number(row["subject_s"], 2),
            number(row["variant_s"], 1), number(row["computed_over_limit"], 2),
            _times(row["times"]), _times(row["steady_times"]),
        ]
        for row in rows
    ]  # fmt: skip
    grid = (
        f"{size.checkpoints} checkpoints x (1 + {size.adapters} adapters) x {size.tasks} tasks x "
        f"{size.variants} variants = {size.cells} cells, {size.shots} shots"
    )
    said = ", ".join(f"{name} {value}" for name, value in facts.items())
    note = (
        "\n\\* extrapolated to the whole grid from what was measured: subjects with and without an "
        "adapter apart, by number; variants by tokens. evalcore always ran the whole grid. A "
        "further subject costs a peer its start-up besides; a further variant of a finished grid "
        "costs all of them their start-ups again.\n"
    )
    starred = any(row["extrapolated"] for row in rows)
    return f"{grid}; {said}\n\n{markdown(titles, cells)}" + (note if starred else "")


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}x"


def write_summary(
    runs: Sequence[Row], size: GridSize, out: Path, facts: dict[str, Any]
) -> list[Path]:
    """Writes ``peers.arrow`` (summary), ``peers-runs.arrow``, ``peers.md`` and ``peers.png``."""
    import pyarrow as pa
    import pyarrow.feather as feather

    rows = summarise(runs, size)
    if not rows:
        return []
    table = pa.Table.from_pylist(rows).replace_schema_metadata({"facts": json.dumps(facts)})
    names = [n for n in dict.fromkeys(name for run in runs for name in run) if n != "accuracy"]
    every = pa.Table.from_pylist([{name: run.get(name) for name in names} for run in runs])
    summary, details, page = out / "peers.arrow", out / "peers-runs.arrow", out / "peers.md"
    feather.write_feather(table, str(summary), compression="uncompressed")
    feather.write_feather(every, str(details), compression="uncompressed")
    page.write_text(as_markdown(rows, size, facts))
    return [summary, details, page, _draw(rows, size, out)]


def _draw(rows: Sequence[Row], size: GridSize, out: Path) -> Path:
    import altair as alt

    points = [
        {
            "documents": f"{row['documents']:,} documents a task", "place": row["documents"],
            "system": row["system"], "part": part, "seconds": seconds or 0.0,
            "label": f"{row['total_s']:.0f}{'*' if row['extrapolated'] else ''}",
            "total": row["total_s"],
        }
        for row in rows
        for part, seconds in (("start-up", row["startup_s"]), ("scoring", row["steady_s"]))
    ]  # fmt: skip
    title = f"{size.cells} cells (pale: start-up; *: extrapolated)"
    base = alt.Chart(alt.Data(values=points), title=title).encode(
        x=alt.X("documents:N", sort=alt.EncodingSortField("place"), title=None,
                axis=alt.Axis(labelAngle=0)),
        xOffset="system:N",
    )  # fmt: skip
    order = alt.Order("part:N", sort="descending")
    bars = base.mark_bar().encode(
        y=alt.Y("seconds:Q", title="seconds for the grid"), order=order,
        color=alt.Color("system:N", title=None, scale=alt.Scale(range=list(PALETTE)),
                        legend=alt.Legend(orient="bottom")),
        opacity=alt.condition("datum.part === 'start-up'", alt.value(0.45), alt.value(1)),
    )  # fmt: skip
    text = base.transform_filter("datum.part === 'scoring'").mark_text(dy=-6).encode(
        y="total:Q", text="label:N"
    )  # fmt: skip
    chart = (bars + text).properties(width=520, height=280)
    return write_png({**chart.to_dict(), "background": "white"}, out / "peers.png")

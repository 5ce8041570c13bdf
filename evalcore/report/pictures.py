"""Figures as SVG and PNG files, drawn by vl-convert from the specifications of the page."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from evalcore.report.charts import Spec
from evalcore.report.figures import Figure
from evalcore.report.rows import Row

VEGA_LITE = "6.4"
"""Version of Vega-Lite, for pictures and for the page."""
MOST_COLUMNS = 60
"""Checkpoints, and rows of a heat map, in a picture; of more, as many are taken at equal distances.
The page has all."""
MOST_PICTURES = 120
"""Pictures of a report; ``--tasks`` makes those of others."""
_WIDTH = 440


def write_png(spec: Spec, path: Path) -> Path:
    """Draws a specification that has its data, with an SVG of the same name beside the PNG.

    Raises:
        OSError: The files cannot be written.
    """
    import vl_convert  # only reports need it

    svg = vl_convert.vegalite_to_svg(json.dumps(spec), vl_version=VEGA_LITE)
    path.with_suffix(".svg").write_text(svg, encoding="utf-8")
    path.write_bytes(vl_convert.svg_to_png(svg, scale=2))
    return path


def write_pictures(
    figures: Sequence[Figure], datasets: dict[str, list[Row]], out_dir: Path
) -> list[Path]:
    """Writes ``ID.svg`` and ``ID.png`` of figures into ``out_dir``; returns the PNGs."""
    return [
        write_png(picture(figure, figure.rows(datasets)), out_dir / f"{figure.id}.png")
        for figure in chosen(figures)
    ]


def chosen(figures: Sequence[Figure]) -> list[Figure]:
    """Of more than :data:`MOST_PICTURES` those of no single task, and of the first tasks."""
    tasks: dict[str, int] = {}
    for figure in figures:
        tasks[_task(figure)] = tasks.get(_task(figure), 0) + 1
    left, kept = MOST_PICTURES, set()
    for task in sorted(tasks, key=bool):  # figures of no task come first, tasks stay in order
        if tasks[task] <= left:
            kept.add(task)
            left -= tasks[task]
        elif task:
            break
    return [figure for figure in figures if _task(figure) in kept]


def _task(figure: Figure) -> str:
    return str(figure.where.get("task", [""])[0])


def picture(figure: Figure, rows: list[Row]) -> Spec:
    """The specification of a figure's picture: with its rows, without what only a pointer shows."""
    rows, said = _few(
        rows, lambda r: (r["place"], r["at"]) if "place" in r else None, "checkpoints"
    )
    if figure.row:
        rows, more = _few(rows, lambda r: r["row"], "rows")
        said += more
    spec = _without_tips(figure.spec)
    columns = len({r.get("at") for r in rows})
    return {
        **spec,
        "width": max(_WIDTH, (34 if figure.row else 24) * columns),
        "datasets": {"rows": rows}, "background": "white", "padding": 8,
        "title": {"text": figure.title + (f" ({', '.join(said)})" if said else ""),
                  "anchor": "start"},
    }  # fmt: skip


def _column(row: Row) -> tuple[int, str] | None:
    return (row["place"], row["at"]) if "place" in row else None


def _few(rows: list[Row], of: Callable[[Row], Any], what: str) -> tuple[list[Row], list[str]]:
    """Rows of at most :data:`MOST_COLUMNS` of what they are of, and what was left out in words."""
    found = sorted({of(r) for r in rows} - {None})
    if len(found) <= MOST_COLUMNS:
        return rows, []
    last = len(found) - 1
    shown = {found[round(n * last / (MOST_COLUMNS - 1))] for n in range(MOST_COLUMNS)}
    return [r for r in rows if of(r) in shown], [f"{len(shown)} of {len(found)} {what}"]


def _without_tips(spec: Any) -> Any:
    if isinstance(spec, dict):
        return {key: _without_tips(value) for key, value in spec.items() if key != "tooltip"}
    return [_without_tips(value) for value in spec] if isinstance(spec, list) else spec

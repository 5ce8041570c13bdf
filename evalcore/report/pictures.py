"""Figures as SVG and PNG files, drawn by vl-convert from the specifications of the page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evalcore.report.charts import Spec
from evalcore.report.figures import Figure
from evalcore.report.rows import Row

VEGA_LITE = "6.4"
"""Version of Vega-Lite, for pictures and for the page."""
MOST_COLUMNS = 60
"""Checkpoints in a picture; of more, as many are taken at equal distances. The page has all."""
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
    """Writes ``ID.svg`` and ``ID.png`` of every figure into ``out_dir``; returns the PNGs."""
    return [
        write_png(picture(figure, figure.rows(datasets)), out_dir / f"{figure.id}.png")
        for figure in figures
    ]


def picture(figure: Figure, rows: list[Row]) -> Spec:
    """The specification of a figure's picture: with its rows, without what only a pointer shows."""
    places = sorted({(r["place"], r["at"]) for r in rows if "place" in r})
    title = figure.title
    if len(places) > MOST_COLUMNS:
        last = len(places) - 1
        shown = {places[round(n * last / (MOST_COLUMNS - 1))] for n in range(MOST_COLUMNS)}
        rows = [r for r in rows if (r["place"], r["at"]) in shown]
        title += f" ({len(shown)} of {len(places)} checkpoints)"
        places = sorted(shown)
    spec = _without_tips(figure.spec)
    width = max(_WIDTH, (34 if figure.row else 24) * len(places))
    return {
        **spec, "config": {**spec["config"], "aria": False}, "width": width,
        "datasets": {"rows": rows}, "background": "white", "padding": 8,
        "title": {"text": title, "anchor": "start"},
    }  # fmt: skip


def _without_tips(spec: Any) -> Any:
    if isinstance(spec, dict):
        return {key: _without_tips(value) for key, value in spec.items() if key != "tooltip"}
    return [_without_tips(value) for value in spec] if isinstance(spec, list) else spec

"""Figures as SVG and PNG files, drawn by vl-convert from the specifications of the page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from evalcore.report.charts import Spec
from evalcore.report.figures import Figure
from evalcore.report.rows import Row

VEGA_LITE = "6.4"
"""Version of Vega-Lite, for pictures and for the page."""
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
    paths = []
    for figure in figures:
        rows = figure.rows(datasets)
        columns = len({r.get("at") for r in rows})
        spec = {
            **figure.spec, "width": max(_WIDTH, 34 * columns if figure.row else 24 * columns),
            "datasets": {"rows": rows}, "background": "white", "padding": 8,
            "title": {"text": figure.title, "anchor": "start"},
        }  # fmt: skip
        paths.append(write_png(spec, out_dir / f"{figure.id}.png"))
    return paths

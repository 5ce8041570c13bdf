"""What was measured as a table for people, an Arrow file and a picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from evalcore.errors import InputError
from evalcore.files import write_atomically
from evalcore.report.charts import PALETTE
from evalcore.report.pictures import write_png

Row = Mapping[str, Any]
AXES = ("contexts", "context_tokens", "choices", "continuation_tokens", "shots", "adapters")
_COLUMNS: tuple[tuple[str, Callable[[Row], str]], ...] = (
    ("point", lambda r: r["label"]),
    ("start s", lambda r: number(r["start_s"], 1)),
    ("median s", lambda r: number(r["median_s"], 3)),
    ("min", lambda r: number(r["min_s"], 3)),
    ("max", lambda r: number(r["max_s"], 3)),
    ("examples/s", lambda r: number(r["examples_per_s"])),
    ("prompt tok/s", lambda r: number(r["prompt_tokens_per_s"])),
    ("computed/limit", lambda r: number(r["computed_over_token_limit"], 2)),
    ("per choice/limit", lambda r: number(_per_choice(r), 2)),
    ("computed/blocks", lambda r: number(r["computed_over_block_limit"], 2)),
    ("MFU %", lambda r: number(None if r["mfu"] is None else 100 * r["mfu"], 1)),
)


def number(value: float | None, digits: int = 0) -> str:
    """``-`` where a figure is not known."""
    return "-" if value is None else f"{value:,.{digits}f}"


def _per_choice(row: Row) -> float | None:
    """What one request per choice would compute, over the token limit."""
    naive, limit = row.get("naive_tokens"), row.get("token_limit")
    return naive / limit if naive and limit else None


def table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """(titles, cells) of the table for people; a failed point says why in its second cell."""
    titles = [title for title, _ in _COLUMNS]
    cells = []
    for row in rows:
        if row["status"] == "measured":
            cells.append([text(row) for _, text in _COLUMNS])
        else:
            cells.append([row["label"], row["status"], *[""] * (len(_COLUMNS) - 2)])
    return titles, cells


def markdown(titles: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is left-aligned, figures are right-aligned."""

    def line(values: Sequence[str]) -> str:
        return "| " + " | ".join(v.replace("|", "\\|") for v in values) + " |"

    rule = "|---|" + "---:|" * (len(titles) - 1)
    return "\n".join([line(titles), rule, *map(line, cells)]) + "\n"


def plain(titles: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """The table in columns of spaces, for a terminal."""
    widths = [max(len(row[i]) for row in [titles, *cells]) for i in range(len(titles))]
    if any(row[1].startswith("failed") for row in cells):  # a reason may run over the columns
        widths[1] = max(
            len(titles[1]), *(len(r[1]) for r in cells if not r[1].startswith("fail")), 0
        )
    lines = []
    for row in [titles, *cells]:
        rest = (value.rjust(width) for value, width in zip(row[1:], widths[1:], strict=True))
        lines.append("  ".join([row[0].ljust(widths[0]), *rest]).rstrip())
    return "\n".join(lines)


def write_rows(rows: Sequence[Row], out: Path, name: str = "bench") -> list[Path]:
    """Writes ``NAME.arrow`` (every figure) and ``NAME.md`` (the table); returns both paths.

    Raises:
        InputError: The folder cannot be written.
    """
    import pyarrow as pa

    data = pa.Table.from_pylist([dict(row) for row in rows])

    def write_arrow(sink: Any) -> None:
        with pa.ipc.new_file(sink, data.schema) as writer:
            writer.write_table(data)

    arrow, page = out / f"{name}.arrow", out / f"{name}.md"
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(arrow, write_arrow)
        page.write_text(markdown(*table(rows)))
    except OSError as error:
        raise InputError(f"--out {out}: cannot be written ({error.strerror})") from None
    return [arrow, page]


def swept_axis(rows: Sequence[Row]) -> str | None:
    """The axis with the most values; None where nothing numeric was swept."""
    counts = {axis: len({r[axis] for r in rows if r[axis] is not None}) for axis in AXES}
    axis = max(counts, key=lambda name: counts[name])
    return axis if counts[axis] > 1 else None


def draw(rows: Sequence[Row], out: Path, name: str = "bench") -> Path:
    """Draws examples per second against what was swept (median, least and most) as PNG."""
    import altair as alt

    measured = [row for row in rows if row["status"] == "measured"]
    axis = swept_axis(measured) if measured else None
    points = [
        {
            "at": row[axis] if axis else row["label"], "rate": row["examples_per_s"],
            "least": row["examples"] / row["max_s"], "most": row["examples"] / row["min_s"],
            "series": _series(row, axis, measured) if axis else "",
        }
        for row in measured
    ]  # fmt: skip
    where = f"{measured[0]['model']}, {measured[0]['device']}" if measured else "no measurement"
    rate, least = (alt.X if not axis else alt.Y)("rate:Q", title="examples per second"), "least:Q"
    base = alt.Chart(alt.Data(values=points), title=f"Scoring speed ({where})")
    if axis:
        base = base.encode(
            x=alt.X("at:Q", title=axis.replace("_", " ")),
            color=alt.Color("series:N", title=None, scale=alt.Scale(range=list(PALETTE)),
                            legend=alt.Legend(orient="bottom", columns=1, labelLimit=400)),
        )  # fmt: skip
        marks = base.mark_line(point=True).encode(y=rate)
        spread = base.mark_rule().encode(y=least, y2="most:Q")
    else:
        base = base.encode(y=alt.Y("at:N", sort=None, title=None))
        marks = base.mark_bar(color=PALETTE[0]).encode(x=rate)
        spread = base.mark_rule().encode(x=least, x2="most:Q")
    chart = (marks + spread).properties(width=520, height=280 if axis else alt.Step(22))
    return write_png({**chart.to_dict(), "background": "white"}, out / f"{name}.png")


def _series(row: Row, axis: str, rows: Sequence[Row]) -> str:
    """Names the values, other than of ``axis``, that differ among rows."""
    parts = [str(row["strategy"])]
    if len({r["adapter_way"] for r in rows}) > 1:
        parts.append(str(row["adapter_way"]))
    for other in AXES:
        if other != axis and len({r[other] for r in rows}) > 1:
            parts.append(f"{row[other]} {other.replace('_', ' ')}")
    return ", ".join(parts)

"""A table that shows itself, and turns into what the user works with."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from evalcore.errors import InputError, UnknownNameError

if TYPE_CHECKING:
    import pandas
    import polars
    import pyarrow as pa

SHOWN_ROWS = 20
WIDEST_CELL = 40


class Frame:
    """A table of results: Arrow inside, pandas or polars on request.

    ``polars.DataFrame(frame)``, ``pandas.DataFrame.from_arrow(frame)``, DuckDB and whatever else
    takes Arrow's C stream take it as it is.

    Args:
        table: Its rows.
        shown: Columns that its printed form shows; None: all.
    """

    def __init__(self, table: pa.Table, shown: Sequence[str] | None = None) -> None:
        self._table = table
        self._shown = list(shown) if shown is not None else table.column_names

    def to_arrow(self) -> pa.Table:
        """The same as ``pyarrow.Table``."""
        return self._table

    def to_pandas(self) -> pandas.DataFrame:
        """The same as ``pandas.DataFrame``.

        Raises:
            InputError: pandas is not installed.
        """
        try:
            return self._table.to_pandas()
        except ModuleNotFoundError:
            raise _missing("pandas") from None

    def to_polars(self) -> polars.DataFrame:
        """The same as ``polars.DataFrame``.

        Raises:
            InputError: polars is not installed.
        """
        try:
            import polars
        except ModuleNotFoundError:
            raise _missing("polars") from None
        frame = polars.from_arrow(self._table)
        assert isinstance(frame, polars.DataFrame)
        return frame

    def to_pylist(self) -> list[dict[str, Any]]:
        """The same as a list of rows."""
        rows: list[dict[str, Any]] = self._table.to_pylist()
        return rows

    @property
    def columns(self) -> list[str]:
        names: list[str] = self._table.column_names
        return names

    def __getitem__(self, column: str) -> list[Any]:
        """The values of a column.

        Raises:
            UnknownNameError: There is no such column.
        """
        if column not in self.columns:
            raise UnknownNameError("column", column, self.columns)
        values: list[Any] = self._table.column(column).to_pylist()
        return values

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Rows, one dictionary after the other."""
        for batch in self._table.to_batches():
            yield from batch.to_pylist()

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        return self._table.__arrow_c_stream__(requested_schema)

    def __repr__(self) -> str:
        rows = self._texts()
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(v.ljust(w) for v, w in zip(row, widths, strict=True)) for row in rows]
        lines.insert(1, "-" * min(120, sum(widths) + 2 * (len(widths) - 1)))
        return "\n".join([*(line.rstrip() for line in lines), self._foot()])

    def _repr_html_(self) -> str:
        head, *body = self._texts()
        cells = "".join(f"<th>{html.escape(name)}</th>" for name in head)
        rows = "".join(
            "<tr>" + "".join(f"<td>{html.escape(v)}</td>" for v in row) + "</tr>" for row in body
        )
        foot = html.escape(self._foot())
        return f"<table><thead><tr>{cells}</tr></thead><tbody>{rows}</tbody></table><p>{foot}</p>"

    def _texts(self) -> list[list[str]]:
        part = self._table.select(self._shown).slice(0, SHOWN_ROWS)
        return [self._shown, *([_text(v) for v in row.values()] for row in part.to_pylist())]

    def _foot(self) -> str:
        hidden = len(self.columns) - len(self._shown)
        rows = f"{len(self):,} rows"
        if len(self) > SHOWN_ROWS:
            rows += f" (the first {SHOWN_ROWS} shown)"
        return rows + (f", {hidden} more columns" if hidden else "")


def _text(value: Any) -> str:
    if value is None:
        return ""
    text = f"{value:.3f}" if isinstance(value, float) else str(value)
    text = " ".join(text.split()) if text.strip() else text
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= WIDEST_CELL else text[: WIDEST_CELL - 1] + "…"


def _missing(name: str) -> InputError:
    return InputError(f"{name} is not installed; install it, or take .to_arrow() or .to_pylist()")

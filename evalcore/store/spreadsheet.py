"""Text of CSV files that spreadsheets show instead of running it.

A cell that begins with ``=``, ``+``, ``-``, ``@``, a tab or a line end is taken for a formula by
Excel, LibreOffice and Google Sheets (CWE-1236), and names of adapters and texts of models come from
outside. Such a text gets an apostrophe in front, which says "text" there; so does a text that
begins with an apostrophe, so that taking the first apostrophe away always gives the text back.
Numbers are columns of their own type and stay as they are.
"""

from __future__ import annotations

import re

import pyarrow as pa
import pyarrow.compute as pc

# The full-width signs are read as the plain ones under East Asian settings.
_BEGINS = r"^['=+\-@\t\r\n＝＋－＠]"
_FORMULA = re.compile(_BEGINS)


def text_cell(text: str) -> str:
    """One text as a CSV cell."""
    return f"'{text}" if _FORMULA.match(text) else text


def text_column(column: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """A column of texts as CSV cells (:func:`text_cell`); other columns as they are."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return column
    marked = pc.binary_join_element_wise(
        pa.scalar("'", column.type), column, pa.scalar("", column.type)
    )
    return pc.if_else(pc.match_substring_regex(column, _BEGINS), marked, column)


def text_columns(table: pa.Table) -> pa.Table:
    """A table whose texts are CSV cells."""
    columns = [text_column(column) for column in table.columns]
    return pa.Table.from_arrays(columns, names=table.column_names)

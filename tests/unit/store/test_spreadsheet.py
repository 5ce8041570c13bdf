"""No cell of a CSV file is a formula to a spreadsheet, and every text can be had back."""

from __future__ import annotations

import csv
import io

import pyarrow as pa
import pyarrow.csv
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalcore.exports.tables import write_csv
from evalcore.store import text_cell, text_columns

SIGNS = tuple("=+-@\t\r\n＝＋－＠")
TEXTS = [
    "=cmd|' /C calc'!A0", "@SUM(1+1)*cmd", "+1+1", "-2+3", "\t=1", "\r=1", "\n=1", "＝1", "plain",
    "'quoted", "", "a=b", "naïve; =1", '"=1"', "[=1]",
]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_cells_of_both_ways_agree(text: str) -> None:
    column = text_columns(pa.table({"a": [text, None]}))["a"].to_pylist()
    assert column == [text_cell(text), None]
    assert not column[0].startswith(SIGNS)
    assert (column[0][1:] if column[0].startswith("'") else column[0]) == text


@given(st.lists(st.text(), max_size=5))
def test_no_text_is_a_formula_and_none_is_lost(texts: list[str]) -> None:
    for text, cell in zip(texts, map(text_cell, texts), strict=True):
        assert not cell.startswith(SIGNS)
        assert (cell[1:] if cell.startswith("'") else cell) == text


def test_export_escapes_every_kind_of_text_column_and_no_number() -> None:
    table = pa.table(
        {
            "adapter": pa.array(TEXTS).dictionary_encode(),
            "text": pa.array(TEXTS, pa.large_string()),
            "gain": pa.array([-0.5] * len(TEXTS)),
            "references": pa.array([["=1", "-2"]] * len(TEXTS)),
        }
    )
    sink = io.BytesIO()
    write_csv(table.schema, [table], sink)
    rows = list(csv.DictReader(io.StringIO(sink.getvalue().decode(), newline="")))
    assert [row["adapter"] for row in rows] == [text_cell(text) for text in TEXTS]
    assert [row["text"] for row in rows] == [text_cell(text) for text in TEXTS]
    assert {row["gain"] for row in rows} == {"-0.5"}
    assert {row["references"] for row in rows} == {'["=1", "-2"]'}

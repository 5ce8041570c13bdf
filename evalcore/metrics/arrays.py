"""Arrow columns as numpy arrays: ragged lists become one flat array with offsets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Ragged:
    """Rows of different lengths.

    Attributes:
        flat: [T] all entries, one row after the other.
        lengths: int64 [N] entries per row.
    """

    flat: npt.NDArray[Any]
    lengths: IntArray

    @property
    def starts(self) -> IntArray:
        """int64 [N]: where each row begins in ``flat``."""
        return np.cumsum(self.lengths) - self.lengths

    def reduce(self, ufunc: Callable[..., Any], values: npt.NDArray[Any], empty: Any) -> Any:
        """``ufunc`` over each row of ``values`` ([T], aligned with flat); ``empty`` if a row is."""
        out = np.full(len(self.lengths), empty, dtype=values.dtype)
        filled = self.lengths > 0
        if filled.any():
            # reduceat misreads empty segments, so only the filled rows' starts are given to it.
            out[filled] = ufunc.reduceat(values, self.starts[filled])  # type: ignore[attr-defined]
        return out

    def at(self, index: IntArray, missing: Any) -> npt.NDArray[Any]:
        """[N]: entry ``index[i]`` of row i; ``missing`` where the row has no such entry."""
        out = np.full(len(self.lengths), missing, dtype=np.result_type(self.flat, type(missing)))
        there = (index >= 0) & (index < self.lengths)
        out[there] = self.flat[(self.starts + index)[there]]
        return out


def column(table: pa.Table, name: str) -> pa.Array:
    """One contiguous Arrow array of a column, dictionaries decoded."""
    data = table.column(name)
    array = data.combine_chunks() if isinstance(data, pa.ChunkedArray) else data
    if isinstance(array, pa.ChunkedArray):  # zero or several chunks, by the pyarrow version
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    return array


def ragged(table: pa.Table, name: str, dtype: npt.DTypeLike) -> Ragged:
    """A list column of numbers; null rows become empty rows, null entries NaN."""
    array = column(table, name)
    lengths = array.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    flat = array.flatten().to_numpy(zero_copy_only=False).astype(dtype)
    return Ragged(flat, lengths.astype(np.int64))


def integers(table: pa.Table, name: str, missing: int = -1) -> IntArray:
    """An integer column as int64 [N], nulls as ``missing``."""
    found = column(table, name).fill_null(missing).to_numpy(zero_copy_only=False)
    result: IntArray = found.astype(np.int64)
    return result


def strings(table: pa.Table, name: str) -> list[str | None]:
    """A string column as a Python list."""
    result: list[str | None] = column(table, name).to_pylist()
    return result


def segment_sum(rows: Ragged, values: FloatArray) -> FloatArray:
    """float64 [N]: sum of ``values`` over each row."""
    result: FloatArray = rows.reduce(np.add, values, 0.0)
    return result


def matches(table: pa.Table, name: str, wanted: Sequence[str]) -> BoolArray:
    """bool [N]: rows whose value is one of ``wanted``; none where there is no such column."""
    if name not in table.column_names:
        return np.zeros(table.num_rows, dtype=bool)
    found = pc.is_in(column(table, name), value_set=pa.array(wanted, pa.string()))
    result: BoolArray = found.to_numpy(zero_copy_only=False).astype(bool)
    return result


def softmax(rows: Ragged) -> FloatArray:
    """float64 [T]: exp of each entry over the sum of its row's; NaN in rows that hold a NaN."""
    top = rows.reduce(np.maximum, rows.flat, np.nan)
    owner = np.repeat(np.arange(len(rows.lengths)), rows.lengths)
    share = np.exp(rows.flat - top[owner])
    result: FloatArray = share / segment_sum(rows, share)[owner]
    return result


def first_argmax(rows: Ragged, values: FloatArray) -> IntArray:
    """int64 [N]: position of the largest of each row, the first of ties; -1 for empty rows.

    Rows that hold a NaN also give -1: an unknown score has no place in an order.
    """
    # -inf as the "empty" value never meets a real row, because empty rows own no entries.
    best = rows.reduce(np.maximum, values, -np.inf)
    owner = np.repeat(np.arange(len(rows.lengths)), rows.lengths)
    position = np.arange(len(values), dtype=np.int64) - rows.starts[owner]
    never = np.iinfo(np.int64).max
    first = rows.reduce(np.minimum, np.where(values == best[owner], position, never), never)
    return np.where(first == never, -1, first)

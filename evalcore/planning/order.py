"""In which order the requests of a subject are best computed: shared beginnings next to each other.

A subject's requests are cut into units, and what two units have in common is computed twice.
Sorted by their first tokens, and identical ones side by side, almost nothing is.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from evalcore.types import IntArray, OffsetArray

Ranks = npt.NDArray[np.int64]

KEY_TOKENS = 64
"""Leading tokens that are compared. Longer shared beginnings stay together because rows of one
file do; this bounds memory to 256 bytes a document."""
_ROWS_AT_ONCE = 8192


def prefix_ranks(
    files: Iterable[tuple[IntArray, OffsetArray]], key_tokens: int = KEY_TOKENS
) -> list[Ranks]:
    """Places of all rows of all files in one common order.

    Rows are ordered by their first ``key_tokens`` tokens; among equal ones identical sequences get
    the same rank, and rows of one file follow one another.

    Args:
        files: Per file, tokens int32 [T] of all rows and offsets int64 [rows + 1]. Of each only
            keys are kept, so that they need not be in memory together.
        key_tokens: Leading tokens compared.

    Returns:
        Per file int64 [rows]: rank of each row; equal ranks are identical sequences (but for one
        chance in 2**64 for a pair, which costs nothing but order).
    """
    keys, hashes = [], []
    for tokens, offsets in files:
        keys.append(heads(tokens, offsets, key_tokens))
        hashes.append(_hashes(tokens, offsets))
    counts = [len(own) for own in hashes]
    total = sum(counts)
    if not total:
        return [np.zeros(0, dtype=np.int64) for _ in counts]
    number = _numbered(_stacked(keys))
    # Within equal heads a sequence stands where it was first seen, whatever repeats it later.
    _, first, same = np.unique(np.concatenate(hashes), return_index=True, return_inverse=True)
    order = np.lexsort((first[same], number))
    place = np.empty(total, dtype=np.int64)
    starts = np.ones(total, dtype=bool)
    starts[1:] = (number[order][1:] != number[order][:-1]) | (same[order][1:] != same[order][:-1])
    place[order] = np.cumsum(starts) - 1
    return np.split(place, np.cumsum(counts)[:-1])


def _stacked(parts: list[npt.NDArray[np.int32]]) -> npt.NDArray[np.int32]:
    """The parts below each other; each is let go once it is copied."""
    out = np.empty((sum(map(len, parts)), parts[0].shape[1]), dtype=parts[0].dtype)
    begin = 0
    while parts:
        own = parts.pop(0)
        out[begin : begin + len(own)] = own
        begin += len(own)
    return out


def sorted_heads(keys: npt.NDArray[np.int32]) -> Ranks:
    """int64 [rows]: rows of :func:`heads` in lexicographic order, equal ones as they come."""
    rows, width = keys.shape
    kind = pa.binary(keys.itemsize * width)
    array = pa.FixedSizeBinaryArray.from_buffers(kind, rows, [None, pa.py_buffer(keys)])
    result: Ranks = pc.array_sort_indices(array).to_numpy().astype(np.int64)
    return result


def _numbered(keys: npt.NDArray[np.int32]) -> Ranks:
    """int64 [rows]: each row's place among the distinct rows in lexicographic order."""
    order = sorted_heads(keys)
    new = np.zeros(len(order), dtype=np.int64)
    for begin in range(1, len(order), _ROWS_AT_ONCE):
        rows = order[begin - 1 : begin + _ROWS_AT_ONCE]
        new[begin : begin + len(rows) - 1] = (keys[rows[1:]] != keys[rows[:-1]]).any(axis=1)
    number = np.empty_like(new)
    number[order] = np.cumsum(new)
    return number


def heads(tokens: IntArray, offsets: OffsetArray, width: int) -> npt.NDArray[np.int32]:
    """Big-endian int32 [rows, width]: the first tokens plus one, zeros after a row's end.

    Their bytes compare as the sequences do.
    """
    lengths = np.minimum(np.diff(offsets), width)
    out = np.zeros((len(lengths), width), dtype=">i4")
    column = np.arange(width)
    for begin in range(0, len(lengths), _ROWS_AT_ONCE):
        rows = slice(begin, begin + _ROWS_AT_ONCE)
        inside = column < lengths[rows, None]
        at = np.where(inside, offsets[:-1][rows, None] + column, 0)
        out[rows] = np.where(inside, tokens[at] + 1, 0) if len(tokens) else 0
    return out


def _hashes(tokens: IntArray, offsets: OffsetArray) -> npt.NDArray[np.uint64]:
    """uint64 [rows]: a sum of products with one random odd factor per position, length included."""
    lengths = np.diff(offsets)
    out = lengths.astype(np.uint64)
    longest = int(lengths.max(initial=0))
    factors = np.random.default_rng(7).integers(1, 2**63, longest, dtype=np.uint64) * 2 + 1
    step = max(1, 1_000_000 // max(longest, 1))
    for begin in range(0, len(lengths), step):
        end = min(begin + step, len(lengths))
        flat = tokens[offsets[begin] : offsets[end]].astype(np.uint64) + np.uint64(1)
        own = lengths[begin:end]
        starts = offsets[begin:end] - offsets[begin]
        within = np.arange(len(flat)) - np.repeat(starts, own)
        filled = own > 0
        if filled.any():
            sums = np.add.reduceat(flat * factors[within], starts[filled])
            out[begin:end][filled] += sums
    return out

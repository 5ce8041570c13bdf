"""In which order the requests of a subject are best computed: shared beginnings next to each other.

A subject's requests are cut into units, and what two units have in common is computed twice.
Sorted by their first tokens, and identical ones side by side, almost nothing is.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from evalcore.types import IntArray, OffsetArray

Ranks = npt.NDArray[np.int64]

KEY_TOKENS = 64
"""Leading tokens that are compared. Longer shared beginnings stay together because rows of one
file do; this bounds memory to 256 bytes a request."""


def prefix_ranks(
    files: Sequence[tuple[IntArray, OffsetArray]], key_tokens: int = KEY_TOKENS
) -> list[Ranks]:
    """Places of all rows of all files in one common order.

    Rows are ordered by their first ``key_tokens`` tokens; among equal ones identical sequences get
    the same rank, and rows of one file follow one another.

    Args:
        files: Per file, tokens int32 [T] of all rows and offsets int64 [rows + 1].
        key_tokens: Leading tokens compared.

    Returns:
        Per file int64 [rows]: rank of each row; equal ranks are identical sequences (but for one
        chance in 2**64 for a pair, which costs nothing but order).
    """
    counts = [len(offsets) - 1 for _, offsets in files]
    total = sum(counts)
    if not total:
        return [np.zeros(0, dtype=np.int64) for _ in files]
    keys = np.concatenate([_heads(tokens, offsets, key_tokens) for tokens, offsets in files])
    hashes = np.concatenate([_hashes(tokens, offsets) for tokens, offsets in files])
    heads = np.unique(keys.view(f"V{4 * key_tokens}").ravel(), return_inverse=True)[1]
    # Within equal heads a sequence stands where it was first seen, whatever repeats it later.
    _, first, same = np.unique(hashes, return_index=True, return_inverse=True)
    order = np.lexsort((first[same], heads))
    place = np.empty(total, dtype=np.int64)
    starts = np.ones(total, dtype=bool)
    starts[1:] = (heads[order][1:] != heads[order][:-1]) | (same[order][1:] != same[order][:-1])
    place[order] = np.cumsum(starts) - 1
    return np.split(place, np.cumsum(counts)[:-1])


def _heads(tokens: IntArray, offsets: OffsetArray, width: int) -> npt.NDArray[np.int32]:
    """Big-endian int32 [rows, width]: the first tokens plus one, zeros after a row's end."""
    lengths = np.minimum(np.diff(offsets), width)
    out = np.zeros((len(lengths), width), dtype=">i4")
    column = np.arange(width)
    for begin in range(0, len(lengths), 65536):
        rows = slice(begin, begin + 65536)
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
    step = max(1, 4_000_000 // max(longest, 1))
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

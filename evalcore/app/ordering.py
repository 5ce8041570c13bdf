"""Gives planned cells the common order of their requests (see ``planning.order``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa

from evalcore.planning import PlannedCell, prefix_ranks
from evalcore.prompting import read_requests
from evalcore.types import IntArray, OffsetArray


def ranked(cells: Sequence[PlannedCell]) -> list[PlannedCell]:
    """The cells with the rank of each row; requests of different tokenizers are not compared."""
    groups: dict[str, dict[str, None]] = {}
    for planned in cells:
        tokenizer = planned.cell.subject.checkpoint.tokenizer_fingerprint
        groups.setdefault(tokenizer, {})[planned.requests_path] = None
    ranks = {}
    for tokenizer, paths in groups.items():
        files = (first_contexts(read_requests(path)) for path in paths)
        for path, own in zip(paths, prefix_ranks(files), strict=True):
            ranks[tokenizer, path] = own
    return [
        replace(
            planned,
            ranks=ranks[
                planned.cell.subject.checkpoint.tokenizer_fingerprint, planned.requests_path
            ],
        )
        for planned in cells
    ]


def first_contexts(requests: pa.Table) -> tuple[IntArray, OffsetArray]:
    """Tokens and offsets of each row's first context, without a Python object per token."""
    column = requests["contexts"].combine_chunks()
    if isinstance(column, pa.ChunkedArray):  # a table without rows
        return np.zeros(0, dtype=np.int32), np.zeros(1, dtype=np.int64)
    outer = column.offsets.to_numpy().astype(np.int64)
    inner = column.values.offsets.to_numpy().astype(np.int64)
    flat = column.values.values.to_numpy()
    starts = inner[outer[:-1]]
    lengths = inner[outer[:-1] + 1] - starts
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
    return flat[np.repeat(starts, lengths) + within], offsets

"""Gives planned cells the common order of their requests (see ``planning.order``)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from evalcore.app.cells import GridCells
from evalcore.planning import prefix_ranks
from evalcore.prompting import read_requests
from evalcore.types import IntArray, OffsetArray


class Order:
    """The common order of all that is asked; requests of different tokenizers are not compared.

    Args:
        cells: With every request file of the run among what they ask.
    """

    def __init__(self, cells: GridCells) -> None:
        groups: dict[str, dict[Path, None]] = {}
        for subject, question in cells.examples():
            files = groups.setdefault(subject.checkpoint.tokenizer_fingerprint, {})
            files[question.file.path] = None
        self._ranks: dict[tuple[str, Path], OffsetArray] = {}
        for tokenizer, files in groups.items():
            contexts = (first_contexts(read_requests(path)) for path in files)
            for path, ranks in zip(files, prefix_ranks(contexts), strict=True):
                self._ranks[tokenizer, path] = ranks

    def ranked(self, cells: GridCells) -> GridCells:
        """Some of the run's cells with the rank of each row."""
        ranks = {
            id(question): self._ranks[subject.checkpoint.tokenizer_fingerprint, question.file.path]
            for subject, question in cells.examples()
        }
        return replace(cells, ranks=ranks)


def ranked(cells: GridCells) -> GridCells:
    """Cells with the rank of each row among themselves."""
    return Order(cells).ranked(cells)


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

"""Gives planned cells the common order of their requests (see ``planning.order``)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from evalcore.app.cells import GridCells, Question
from evalcore.planning import prefix_ranks
from evalcore.prompting import read_requests
from evalcore.types import IntArray, OffsetArray


def ranked(cells: GridCells) -> GridCells:
    """The cells with the rank of each row; requests of different tokenizers are not compared."""
    groups: dict[str, dict[Path, list[Question]]] = {}
    for subject, question in cells.examples():
        tokenizer = subject.checkpoint.tokenizer_fingerprint
        groups.setdefault(tokenizer, {}).setdefault(question.file.path, []).append(question)
    ranks = {}
    for files in groups.values():
        contexts = (first_contexts(read_requests(path)) for path in files)
        for own, ranked in zip(files.values(), prefix_ranks(contexts), strict=True):
            ranks.update(dict.fromkeys(map(id, own), ranked))
    return replace(cells, ranks=ranks)


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

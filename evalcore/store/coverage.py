"""Which documents of which cells are already scored, as the segments' footers state it.

In a footer the statement is small: cells of one segment mostly cover the same documents, so each
distinct set of documents is written once, as numbers into the segment's list of document ids.
In memory it is numpy: a document id is interned once for the whole store.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

_ID_DIGITS = 32
_CODEC = "zstd"


@dataclass(frozen=True)
class SegmentCoverage:
    """What one segment holds.

    Attributes:
        cells: Cell keys.
        cell_sets: For each cell, the number of its set in ``sets``.
        sets: Distinct document sets; int32 numbers into ``doc_ids``, ascending.
        doc_ids: Distinct document ids.
    """

    cells: tuple[str, ...]
    cell_sets: tuple[int, ...]
    sets: tuple[npt.NDArray[np.int32], ...]
    doc_ids: tuple[str, ...]

    @classmethod
    def of_rows(cls, cells: pa.ChunkedArray, doc_ids: pa.ChunkedArray) -> SegmentCoverage:
        """Reads the statement off the key columns of a segment's table."""
        cell_names, cell_codes = codes_of(cells)
        doc_names, doc_codes = codes_of(doc_ids)
        pairs = np.unique(cell_codes * max(len(doc_names), 1) + doc_codes)
        cell_of_pair, doc_of_pair = np.divmod(pairs, max(len(doc_names), 1))
        present, starts = np.unique(cell_of_pair, return_index=True)
        numbers: dict[bytes, int] = {}
        sets: list[npt.NDArray[np.int32]] = []
        cell_sets = []
        for codes in np.split(doc_of_pair.astype(np.int32), starts[1:]) if len(present) else []:
            number = numbers.setdefault(codes.tobytes(), len(sets))
            if number == len(sets):
                sets.append(codes)
            cell_sets.append(number)
        names = tuple(cell_names[code] for code in present)
        return cls(names, tuple(cell_sets), tuple(sets), tuple(doc_names))

    @property
    def num_pairs(self) -> int:
        """Number of distinct (cell, document) pairs."""
        return sum(len(self.sets[number]) for number in self.cell_sets)

    def encode(self) -> bytes:
        """Compact ASCII: base64 of zstd of (JSON header, document ids, set members).

        ASCII because the Arrow format calls footer values strings, and some readers check that.
        """
        joined = "".join(self.doc_ids)
        is_hex = all(len(doc_id) == _ID_DIGITS for doc_id in self.doc_ids) and _is_hex(joined)
        header = {
            "cells": self.cells,
            "cell_sets": self.cell_sets,
            "set_sizes": [len(codes) for codes in self.sets],
            "num_docs": len(self.doc_ids),
            "doc_ids": None if is_hex else self.doc_ids,
        }
        parts = [json.dumps(header, separators=(",", ":")).encode(), b"\n"]
        if is_hex:
            parts.append(bytes.fromhex(joined))
        # Differences: neighbouring rows have neighbouring numbers, which then cost next to nothing.
        parts += [np.diff(codes, prepend=0).astype("<i4").tobytes() for codes in self.sets]
        raw = b"".join(parts)
        packed = pa.Codec(_CODEC).compress(raw, asbytes=True)
        return str(len(raw)).encode() + b":" + base64.b64encode(packed)

    @classmethod
    def decode(cls, encoded: bytes) -> SegmentCoverage:
        """Inverse of :meth:`encode`.

        Raises:
            ValueError: Not such a statement (also pyarrow's errors, KeyError).
        """
        header, raw = _unpacked(encoded)
        at = 0
        doc_ids = header["doc_ids"]
        if doc_ids is None:
            end = at + header["num_docs"] * _ID_DIGITS // 2
            joined = raw[at:end].hex()
            doc_ids = [joined[i : i + _ID_DIGITS] for i in range(0, len(joined), _ID_DIGITS)]
            at = end
        members = np.frombuffer(raw, dtype="<i4", offset=at).astype(np.int32, copy=False)
        sizes = header["set_sizes"]
        if sum(sizes) != len(members) or len(doc_ids) != header["num_docs"]:
            raise ValueError("coverage statement is cut short")
        steps = np.split(members, np.cumsum(sizes)[:-1]) if sizes else []
        sets = [np.cumsum(part, dtype=np.int32) for part in steps]
        return cls(tuple(header["cells"]), tuple(header["cell_sets"]), tuple(sets), tuple(doc_ids))


def _unpacked(encoded: bytes) -> tuple[dict[str, Any], bytes]:
    """(JSON header, what follows it) of an encoded statement."""
    size, _, packed = encoded.partition(b":")
    raw = pa.Codec(_CODEC).decompress(
        base64.b64decode(packed, validate=True), int(size), asbytes=True
    )
    line = raw.index(b"\n")
    return json.loads(raw[:line]), raw[line + 1 :]


class Coverage(Mapping[str, frozenset[str]]):
    """Cell key -> document ids that are scored and committed.

    A mapping for people; :meth:`encode` and :meth:`mask` are the fast way for planning.
    """

    def __init__(self, segments: Iterable[SegmentCoverage] = ()) -> None:
        self._codes: dict[str, int] = {}
        self._ids: list[str] = []
        self._cells: dict[str, list[npt.NDArray[np.int32]]] = {}
        self.num_segments = 0
        for segment in segments:
            self.add(segment)

    @classmethod
    def of_codes(
        cls,
        doc_ids: Sequence[str],
        cells: Mapping[str, list[npt.NDArray[np.int32]]],
        num_segments: int,
    ) -> Coverage:
        """Of sets of documents, numbers into ``doc_ids``, of each cell; overlaps count once."""
        self = cls()
        self._ids = list(doc_ids)
        self._codes = {doc_id: code for code, doc_id in enumerate(doc_ids)}
        self._cells = dict(cells)
        self.num_segments = num_segments
        return self

    def add(self, segment: SegmentCoverage) -> None:
        """Takes in what one more segment holds; overlaps count once."""
        interned = np.empty(len(segment.doc_ids), dtype=np.int32)
        for i, doc_id in enumerate(segment.doc_ids):
            code = self._codes.setdefault(doc_id, len(self._ids))
            if code == len(self._ids):
                self._ids.append(doc_id)
            interned[i] = code
        sets = [np.sort(interned[codes]) for codes in segment.sets]
        for cell, number in zip(segment.cells, segment.cell_sets, strict=True):
            self._cells.setdefault(cell, []).append(sets[number])
        self.num_segments += 1

    def __getitem__(self, cell: str) -> frozenset[str]:
        return frozenset(self._ids[code] for code in self._members(cell))

    def __iter__(self) -> Iterator[str]:
        return iter(self._cells)

    def __len__(self) -> int:
        return len(self._cells)

    def __contains__(self, cell: object) -> bool:
        return cell in self._cells

    def count(self, cell: str) -> int:
        """Number of documents covered in ``cell``; 0 for an unknown cell."""
        return len(self._members(cell)) if cell in self._cells else 0

    @property
    def num_examples(self) -> int:
        """Number of distinct (cell, document) pairs."""
        return sum(self.count(cell) for cell in self._cells)

    def encode(self, doc_ids: Sequence[str]) -> npt.NDArray[np.int64]:
        """Numbers this coverage has for ``doc_ids``, -1 for ids it never met; int64 [n]."""
        get = self._codes.get
        codes = (get(doc_id, -1) for doc_id in doc_ids)
        return np.fromiter(codes, dtype=np.int64, count=len(doc_ids))

    def mask(self, cell: str, codes: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Which documents (as numbers from :meth:`encode`) ``cell`` has; bool [n]."""
        if cell not in self._cells:
            return np.zeros(len(codes), dtype=np.bool_)
        return np.isin(codes, self._members(cell))

    def _members(self, cell: str) -> npt.NDArray[np.int32]:
        parts = self._cells[cell]
        if len(parts) > 1:  # merged on first use and kept
            parts[:] = [np.unique(np.concatenate(parts))]
        return parts[0]


def codes_of(column: pa.ChunkedArray) -> tuple[list[str], npt.NDArray[np.int64]]:
    """Distinct values of a text column and the number of each row's value; int64 [rows]."""
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    column = column.unify_dictionaries()
    if column.num_chunks == 0:
        return [], np.zeros(0, dtype=np.int64)
    indices = [chunk.indices.to_numpy(zero_copy_only=False) for chunk in column.chunks]
    return column.chunk(0).dictionary.to_pylist(), np.concatenate(indices).astype(np.int64)


def _is_hex(text: str) -> bool:
    try:
        return bytes.fromhex(text).hex() == text
    except ValueError:
        return False

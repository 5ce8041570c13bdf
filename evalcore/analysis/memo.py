"""What was computed of a book's values once is not computed again, nor by a later report.

Estimates depend on the values of cells and on nothing else that changes, so they are filed under
the keys of the cells (``CellValues.key``). A memo may be handed what an earlier report has filed
(:attr:`Memo.known`) and says what was asked for, to be filed in turn (:meth:`Memo.table`).

On disk (:data:`KEPT_SCHEMA`) every estimate is a row of numbers, once, however many results it is
a part of; a result is a row of JSON in which ``{"": N}`` stands for the estimate in row N.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from math import nan
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from evalcore.analysis.intervals import CLAIMS, Edge, Interval, Parts
from evalcore.analysis.stats import EMPTY, Estimate

MEMO_VERSION = 3
"""Raised whenever an estimate of the same values can change."""

KEPT_SCHEMA = pa.schema(
    [("digest", pa.string()), ("result", pa.string()), ("numbers", pa.list_(pa.float64()))]
)
"""Estimates (``numbers`` alone) and, behind all of them, results (``digest`` and ``result``)."""
_PLAIN = tuple(f.name for f in fields(Estimate) if f.name not in ("documents", "limits"))
_CLAIM = _PLAIN.index("claim")
_WHOLE = {_PLAIN.index(name): int for name in ("n", "prompts", "seeds", "turned")} | {
    _PLAIN.index("degenerate"): bool
}
_BEFORE = [f.name for f in fields(Estimate)].index("documents")
"""Fields of an estimate before ``documents``; ``limits`` is the last one."""
_KNOWN = ("", *CLAIMS)
# Behind the plain numbers: row of ``documents`` (-1: none), claim of the interval (0: none), its
# value and parts, whether it has an edge, the edge.
_PARTS = ("documents", "prompts", "seeds", "clusters", "num_prompts", "num_seeds")
_EDGE = ("low", "high", "rest", "size")
_WIDTH = len(_PLAIN) + 2 + 1 + len(_PARTS) + 1 + len(_EDGE)


@dataclass
class Memo:
    """Computed values by what they were computed from.

    Attributes:
        known: Digest -> what an earlier report computed.
        about: What else all of it depends on.
        added: Digests of what is new and worth keeping.
    """

    known: Mapping[str, Any] = field(default_factory=dict)
    about: str = ""
    added: set[str] = field(default_factory=set)
    _live: dict[str, Any] = field(default_factory=dict)

    def get(self, what: tuple[Any, ...], compute: Callable[[], Any], *, keep: bool = True) -> Any:
        """What ``compute`` gives for ``what``: a dictionary of JSON values and estimates.

        Args:
            what: Name of the function, keys of cells, everything else that decides.
            compute: Called where it is not known.
            keep: Whether it is worth keeping for a later report.
        """
        digest = self._digest(what)
        found = self._live.get(digest)
        if found is None:
            found = self.known.get(digest)
            if found is None:
                found = compute()
                if keep:
                    self.added.add(digest)
            self._live[digest] = found
        return found

    def forget(self, what: tuple[Any, ...]) -> None:
        """Keeps nothing of ``what``, which could not be computed as it should be."""
        digest = self._digest(what)
        self.added.discard(digest)
        self._live.pop(digest, None)

    def _digest(self, what: tuple[Any, ...]) -> str:
        text = json.dumps([MEMO_VERSION, self.about, *what])
        return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()

    def table(self, *, everything: bool) -> pa.Table:
        """What is to be kept, of :data:`KEPT_SCHEMA`.

        Args:
            everything: Also what an earlier report computed and this one asked for.

        Raises:
            TypeError: An estimate whose intervals cannot be written down (a mean over tasks).
        """
        wanted = [d for d in self._live if d in self.added or (everything and d in self.known)]
        return written({digest: self._live[digest] for digest in wanted})


class Kept(Mapping[str, Any]):
    """What tables of :data:`KEPT_SCHEMA` hold, made when it is asked for.

    Lists come back for tuples. Estimates that were one come back as one.
    """

    def __init__(self, tables: Sequence[pa.Table]) -> None:
        self._tables = [_Table(table) for table in tables]
        self._at = {
            digest: (table, row)
            for table in self._tables
            for row, digest in enumerate(table.digests, table.estimates)
        }

    def __getitem__(self, digest: str) -> Any:
        table, row = self._at[digest]
        return table.result(row)

    def __iter__(self) -> Iterator[str]:
        return iter(self._at)

    def __len__(self) -> int:
        return len(self._at)


class _Table:
    def __init__(self, table: pa.Table) -> None:
        table = table.combine_chunks()
        digests = table.column("digest")
        self.estimates = digests.null_count
        self.digests: list[str] = digests.slice(self.estimates).to_pylist()
        self._results = table.column("result")
        numbers = table.column("numbers").slice(0, self.estimates).combine_chunks()
        flat = numbers.flatten().to_numpy(zero_copy_only=False)
        self._numbers: npt.NDArray[np.float64] = flat.reshape(self.estimates, _WIDTH)
        self._made: dict[int, Estimate] = {}

    def result(self, row: int) -> Any:
        return _filled(json.loads(self._results[row].as_py()), self._estimate)

    def _estimate(self, row: int) -> Estimate:
        found = self._made.get(row)
        if found is None:
            found = self._made[row] = _read(self._numbers[row].tolist(), self._estimate)
        return found


class KeptLimits:
    """``Interval.limits`` of an interval that is put together when it is asked for."""

    __slots__ = ("_claim", "_interval", "_numbers")

    def __init__(self, claim: int, numbers: list[float]) -> None:
        self._claim, self._numbers = claim, numbers
        self._interval: Interval | None = None

    @property
    def interval(self) -> Interval:
        if self._interval is None:
            value, parts, edge = self._numbers[0], self._numbers[1:7], self._numbers[7:]
            documents, prompts, seeds, clusters, *levels = parts
            self._interval = Interval(
                CLAIMS[self._claim - 1], value,
                parts=Parts(documents, prompts, seeds, clusters, int(levels[0]), int(levels[1])),
                edge=Edge(*edge[1:]) if edge[0] else None,
            )  # fmt: skip
        return self._interval

    def __call__(self, level: float) -> tuple[float, float]:
        return self.interval.limits(level)


def written(results: Mapping[str, Any]) -> pa.Table:
    """Results by digest as a table of :data:`KEPT_SCHEMA`.

    Raises:
        TypeError: An estimate whose intervals cannot be written down.
    """
    places: dict[int, int] = {}
    rows: list[list[float]] = []

    def place(estimate: Estimate) -> int:
        if id(estimate) not in places:
            inner = -1 if estimate.documents is None else place(estimate.documents)
            places[id(estimate)] = len(rows)
            rows.append(_numbers(estimate, inner))
        return places[id(estimate)]

    texts = [json.dumps(_emptied(result, place)) for result in results.values()]
    return pa.Table.from_arrays(
        [
            pa.array([None] * len(rows) + list(results), pa.string()),
            pa.array([None] * len(rows) + texts, pa.string()),
            pa.array(rows + [None] * len(texts), KEPT_SCHEMA.field("numbers").type),
        ],
        schema=KEPT_SCHEMA,
    )


def _emptied(value: Any, place: Callable[[Estimate], int]) -> Any:
    """A result with places for its estimates (EMPTY: -1)."""
    if isinstance(value, Estimate):
        return {"": -1 if value.n == 0 else place(value)}
    if isinstance(value, dict):
        return {key: _emptied(part, place) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_emptied(part, place) for part in value]
    return value


def _filled(value: Any, estimate: Callable[[int], Estimate]) -> Any:
    """Inverse of :func:`_emptied`."""
    if isinstance(value, dict):
        if "" in value:
            return EMPTY if value[""] < 0 else estimate(value[""])
        return {key: _filled(part, estimate) for key, part in value.items()}
    if isinstance(value, list):
        return [_filled(part, estimate) for part in value]
    return value


def _numbers(estimate: Estimate, inner: int) -> list[float]:
    plain = [getattr(estimate, name) for name in _PLAIN]
    plain[_CLAIM] = _KNOWN.index(estimate.claim)
    interval = _interval_of(estimate)
    if interval is None:
        return [*plain, inner, 0, *[nan] * (2 + len(_PARTS) + len(_EDGE))]
    parts = [getattr(interval.parts, name) for name in _PARTS]
    edge = [nan] * len(_EDGE)
    if interval.edge is not None:
        edge = [getattr(interval.edge, name) for name in _EDGE]
    claim = _KNOWN.index(interval.claim)
    return [*plain, inner, claim, interval.value, *parts, interval.edge is not None, *edge]


def _interval_of(estimate: Estimate) -> Interval | None:
    limits = estimate.limits
    if limits is None:
        return None
    found = limits.interval if isinstance(limits, KeptLimits) else getattr(limits, "__self__", None)
    if not isinstance(found, Interval) or found.parts is None:
        raise TypeError("only intervals of a layout can be written down")
    return found


def _read(numbers: list[float], estimate: Callable[[int], Estimate]) -> Estimate:
    known: list[Any] = numbers[: len(_PLAIN)]
    for place, kind in _WHOLE.items():
        known[place] = kind(known[place])
    known[_CLAIM] = _KNOWN[int(known[_CLAIM])]
    inner, claim = int(numbers[len(_PLAIN)]), int(numbers[len(_PLAIN) + 1])
    known.insert(_BEFORE, None if inner < 0 else estimate(inner))
    known.append(KeptLimits(claim, numbers[len(_PLAIN) + 2 :]) if claim else None)
    return Estimate(*known)

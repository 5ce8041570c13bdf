"""What was computed of a book's values once is not computed again, nor by a later report.

Estimates depend on the values of cells and on nothing else that changes, so they are filed under
the keys of the cells (``CellValues.key``). A memo may be handed what an earlier report has filed
(:attr:`Memo.known`, as JSON values) and says what is new (:attr:`Memo.added`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from evalcore.analysis.intervals import Edge, Interval, Parts
from evalcore.analysis.stats import EMPTY, Estimate

MEMO_VERSION = 1
"""Raised whenever an estimate of the same values can change."""

_PLAIN = tuple(
    f.name for f in fields(Estimate) if f.name not in ("documents", "limits")
)  # fmt: skip


@dataclass
class Memo:
    """Computed values by what they were computed from.

    Attributes:
        about: What else all of it depends on.
        known: Digest -> what was computed, as JSON values; of an earlier report.
        added: The same of this one.
        used: Digests that were asked for.
    """

    known: Mapping[str, Any] = field(default_factory=dict)
    added: dict[str, Any] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    about: str = ""
    _live: dict[str, Any] = field(default_factory=dict)

    def get(self, what: tuple[Any, ...], compute: Callable[[], Any], *, keep: bool = True) -> Any:
        """What ``compute`` gives for ``what``: a dictionary of JSON values and estimates.

        Args:
            what: Name of the function, keys of cells, everything else that decides.
            compute: Called where it is not known.
            keep: Whether it is worth keeping for a later report.
        """
        text = json.dumps([MEMO_VERSION, self.about, *what])
        digest = hashlib.blake2b(text.encode(), digest_size=12).hexdigest()
        if digest not in self._live:
            if digest in self.known:
                self._live[digest] = decoded(self.known[digest])
            else:
                self._live[digest] = compute()
                if keep:
                    self.added[digest] = encoded(self._live[digest])
        self.used.add(digest)
        return self._live[digest]


def encoded(value: Any) -> Any:
    """A dictionary, list or estimate as JSON values.

    Raises:
        TypeError: An estimate whose intervals cannot be written down (a mean over tasks).
    """
    if isinstance(value, Estimate):
        return {"": _estimate(value)}
    if isinstance(value, dict):
        return {key: encoded(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [encoded(part) for part in value]
    return value


def decoded(value: Any) -> Any:
    """Inverse of :func:`encoded` (tuples come back as lists)."""
    if isinstance(value, dict):
        if "" in value:
            return _to_estimate(value[""])
        return {key: decoded(part) for key, part in value.items()}
    if isinstance(value, list):
        return [decoded(part) for part in value]
    return value


def _estimate(value: Estimate) -> list[Any] | None:
    if value.n == 0:
        return None
    plain = [getattr(value, name) for name in _PLAIN]
    interval = None
    if value.limits is not None:
        source = getattr(value.limits, "__self__", None)
        if not isinstance(source, Interval):
            raise TypeError("only intervals of a layout can be written down")
        p, e = source.parts, source.edge
        assert p is not None
        interval = [
            source.claim, source.value,
            [p.documents, p.prompts, p.seeds, p.clusters, p.num_prompts, p.num_seeds],
            None if e is None else [e.low, e.high, e.rest, e.size],
        ]  # fmt: skip
    inner = None if value.documents is None else _estimate(value.documents)
    return [plain, interval, inner]


def _to_estimate(record: list[Any] | None) -> Estimate:
    if record is None:
        return EMPTY
    plain, interval, inner = record
    known = dict(zip(_PLAIN, plain, strict=True))
    limits = None
    if interval is not None:
        claim, value, parts, edge = interval
        limits = Interval(
            claim, value, parts=Parts(*parts), edge=None if edge is None else Edge(*edge)
        ).limits
    documents = None if inner is None else _to_estimate(inner)
    return Estimate(**known, documents=documents, limits=limits)

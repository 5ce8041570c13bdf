"""Choices that stand for several texts: what is known of the texts, put together for the choice.

A choice's probability is that of its texts together (logsumexp of their log-probabilities; texts
that are the same token ids count once). Its tokens, bytes and characters are those of its most
probable text; it is what greedy decoding writes if any of its texts is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from evalcore.scoring.batching import ScoreRequests
from evalcore.types import FloatArray, OffsetArray, ScoreResult


@dataclass(frozen=True)
class ChoiceTexts:
    """Which continuations of a slice are texts of the same choice.

    Attributes:
        offsets: int64 [examples + 1] into the slice's continuations.
        owners: int64 [continuations]: number of the choice within its example; None where each
            choice has one text.
        starts: int64 [choices]: the first continuation of each choice of the slice.
        choice_offsets: int64 [examples + 1] into the slice's choices.
    """

    offsets: OffsetArray
    owners: OffsetArray | None
    starts: OffsetArray
    choice_offsets: OffsetArray

    @classmethod
    def of(cls, table: pa.Table, offsets: OffsetArray) -> ChoiceTexts:
        """From a slice of a request table and its continuations' offsets (0 for overflow)."""
        every = np.arange(offsets[-1])
        column = table["choice_owners"] if "choice_owners" in table.column_names else None
        if column is None or column.null_count == len(column):
            return cls(offsets, None, every, offsets)
        lists = column.combine_chunks()
        lists = lists if isinstance(lists, pa.ListArray) else pa.array([], column.type)
        owners = np.empty(int(offsets[-1]), dtype=np.int64)
        for e, (begin, end) in enumerate(pairwise(offsets)):
            own = lists[e].as_py() if end > begin else None
            owners[begin:end] = np.arange(end - begin) if own is None else own
        example = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        new = np.ones(len(owners), dtype=bool)
        new[1:] = (owners[1:] != owners[:-1]) | (example[1:] != example[:-1])
        starts = np.flatnonzero(new)
        counts = np.bincount(example[starts], minlength=len(offsets) - 1)
        return cls(offsets, owners, starts, np.concatenate([[0], np.cumsum(counts)]))

    def choice_of(self, texts: np.ndarray) -> np.ndarray:
        """int32 [examples]: the choice of a text given by its number in the example; -1 stays."""
        if self.owners is None:
            return texts
        chosen = texts.copy()
        found = np.flatnonzero(texts >= 0)
        chosen[found] = self.owners[self.offsets[found] + texts[found]]
        return chosen

    def together(self, logprobs: FloatArray, slots: OffsetArray) -> FloatArray:
        """float64 [choices]: log-probability of each choice.

        Args:
            logprobs: float64 [continuations].
            slots: int64 [continuations]: which request answers each; equal ones are one text.
        """
        if self.owners is None or not len(self.starts):
            return logprobs
        group = np.repeat(np.arange(len(self.starts)), self._sizes())
        _, first = np.unique(np.stack([group, slots]), axis=1, return_index=True)
        once = np.full(len(logprobs), -np.inf)
        once[first] = logprobs[first]
        with np.errstate(invalid="ignore"):
            return np.asarray(np.logaddexp.reduceat(once, self.starts))

    def _sizes(self) -> OffsetArray:
        return np.diff(np.append(self.starts, self.offsets[-1]))

    def best(self, logprobs: FloatArray) -> OffsetArray:
        """int64 [choices]: the most probable text of each choice, the first of equals."""
        if self.owners is None:
            return self.starts
        group = np.repeat(np.arange(len(self.starts)), self._sizes())
        order = np.lexsort((np.arange(len(logprobs)), -logprobs, group))
        first: OffsetArray = order[np.searchsorted(group[order], np.arange(len(self.starts)))]
        return first

    def columns(
        self,
        scored: ScoreRequests,
        answers: ScoreResult,
        slots: OffsetArray,
        logprobs: FloatArray,
        carried: Mapping[str, pa.Array | pa.ChunkedArray],
    ) -> dict[str, pa.Array]:
        """The columns of ``store.EXAMPLE_SCHEMA`` that have one value a choice.

        Args:
            scored: Requests of the whole unit.
            answers: Their answers.
            slots: int64 [continuations] of this slice.
            logprobs: float64 [continuations].
            carried: ``choice_bytes`` and ``choice_chars`` of each text, and what there may be of
                ``unconditional_logprobs``.
        """
        lengths = np.diff(scored.batch.continuation_offsets)[slots].astype(np.int32)
        greedy = answers.is_greedy[slots]
        if self.owners is None:
            return {
                "choice_logprobs": self._lists(pa.array(logprobs)),
                "choice_tokens": self._lists(pa.array(lengths)),
                "is_greedy": self._lists(pa.array(greedy)),
            }
        best = self.best(logprobs)
        some = len(self.starts) > 0
        any_greedy = np.logical_or.reduceat(greedy, self.starts) if some else greedy
        found = {
            "choice_logprobs": self._lists(pa.array(self.together(logprobs, slots))),
            "choice_tokens": self._lists(pa.array(lengths[best])),
            "is_greedy": self._lists(pa.array(any_greedy)),
        }
        for name in ("choice_bytes", "choice_chars"):
            found[name] = self._lists(self._scored_values(carried[name]).take(pa.array(best)))
        bare = carried["unconditional_logprobs"]
        if bare.null_count < len(bare):
            alone = pc.list_flatten(bare).to_numpy(zero_copy_only=False)
            found["unconditional_logprobs"] = self._lists(pa.array(self.together(alone, slots)))
        return found

    def _scored_values(self, lists: pa.Array | pa.ChunkedArray) -> pa.Array:
        """Flat values of examples that are scored: those that overflow have lists, but no slots."""
        keep = pa.array(np.diff(self.offsets) > 0)
        flat = pc.list_flatten(lists.filter(keep))
        return flat.combine_chunks() if isinstance(flat, pa.ChunkedArray) else flat

    def _lists(self, values: pa.Array) -> pa.ListArray:
        return pa.ListArray.from_arrays(pa.array(self.choice_offsets.astype(np.int32)), values)

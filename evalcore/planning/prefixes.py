"""The least a run has to compute: distinct prompt positions whose state is needed.

Over all sequences (context + continuation without its last token; the whole context where text is
generated) every distinct non-empty prefix is one position. Sorted lexicographically, a sequence
adds its length minus what it shares with its predecessor; hence no trie of Python objects.

Contexts are not copied once per choice: the continuations of a context that no other sequence runs
through ("private") are sorted under the number of that context. Memory is a few times the tokens of
the distinct contexts and continuations.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from evalcore.types import GenerateBatch, IntArray, OffsetArray, ScoreBatch

Rows = npt.NDArray[np.int64]
_WINDOW = 32
_CHUNK_ELEMENTS = 4_000_000
_SHORT = 16


@dataclass(frozen=True)
class PrefixProfile:
    """The distinct sequences, in lexicographic order.

    Attributes:
        lengths: int64 [S], tokens of each.
        shared: int64 [S], leading tokens it shares with those before it.
    """

    lengths: Rows
    shared: Rows

    @property
    def token_limit(self) -> int:
        """Distinct prefix positions: what a perfect cache of single tokens would compute."""
        return int((self.lengths - self.shared).sum())

    def block_limit(self, block_size: int) -> int:
        """The same with a cache that shares whole blocks of ``block_size`` tokens only."""
        return int((self.lengths - self.shared // block_size * block_size).sum())


def token_limit(batches: Iterable[ScoreBatch | GenerateBatch]) -> int:
    """Number of distinct prefix positions needed for all batches together; exact."""
    return prefix_profile(batches).token_limit


def block_limit(batches: Iterable[ScoreBatch | GenerateBatch], block_size: int) -> int:
    """As :func:`token_limit`, with shared prefixes rounded down to whole cache blocks."""
    return prefix_profile(batches).block_limit(block_size)


def prefix_profile(batches: Iterable[ScoreBatch | GenerateBatch]) -> PrefixProfile:
    """Finds distinct sequences and what they share; both limits follow from it."""
    contexts, tails, owner = _gather(list(batches))
    used, owner = np.unique(owner, return_inverse=True)  # a context nobody continues costs nothing
    contexts = contexts.take(used)
    order, shared = contexts.sort()
    is_new = _is_new(contexts.lengths[order], shared)
    number = np.cumsum(is_new) - 1
    rank = np.empty(len(order), dtype=np.int64)  # context -> number of the distinct context
    rank[order] = number
    distinct = contexts.take(order[is_new])
    owner = rank[owner]

    # A distinct context that another begins with is not private: spell its sequences out.
    public = np.zeros(len(distinct), dtype=np.bool_)
    public[:-1] = shared[is_new][1:] == distinct.lengths[:-1]
    while True:
        spelt = public[owner]
        full = distinct.take(owner[spelt]).followed_by(tails.take(np.flatnonzero(spelt)))
        private = np.flatnonzero(~public)
        main = distinct.take(private).and_then(full)
        if len(full):
            order, shared = main.sort()
        else:  # the usual case, and sorted already
            order, shared = np.arange(len(main)), shared[is_new]
        lengths = main.lengths[order]
        # The same for a context that a spelt-out sequence runs into; no third round can follow.
        is_context = order < len(private)
        runs_into = np.zeros(len(order), dtype=np.bool_)
        runs_into[:-1] = shared[1:] == lengths[:-1]
        hit = private[order[is_context & runs_into]]
        if not len(hit):
            break
        public[hit] = True

    entry_new = _is_new(lengths, shared)
    lengths, shared = lengths[entry_new], shared[entry_new]
    is_context, entries = is_context[entry_new], order[entry_new]
    shared_of_context = np.zeros(len(distinct), dtype=np.int64)
    shared_of_context[private[entries[is_context]]] = shared[is_context]
    below = _below_private(tails, owner, ~public[owner], distinct.lengths, shared_of_context)
    return PrefixProfile(
        np.concatenate([lengths[~is_context], below.lengths]),
        np.concatenate([shared[~is_context], below.shared]),
    )


def profile_of_sequences(tokens: IntArray, offsets: OffsetArray) -> PrefixProfile:
    """The profile of sequences of which every position is needed.

    Args:
        tokens: int32 [T].
        offsets: int64 [S + 1].
    """
    ragged = Ragged(np.asarray(tokens, dtype=np.int32), offsets[:-1], np.diff(offsets))
    order, shared = ragged.sort()
    lengths = ragged.lengths[order]
    new = _is_new(lengths, shared) & (lengths > 0)
    return PrefixProfile(lengths[new], shared[new])


@dataclass(frozen=True)
class Leaves:
    """Sequences that no other one begins with, in lexicographic order: the leaves of the trie.

    Attributes:
        tokens: int32 [T], the leaves one after the other.
        offsets: int64 [K + 1].
        shared: int64 [K], leading tokens a leaf shares with those before it; what follows them is
            its own, and all own positions together are the distinct ones.
        leaf_of: int64 [S], a leaf that begins with each of the sequences asked about.
    """

    tokens: IntArray
    offsets: OffsetArray
    shared: Rows
    leaf_of: Rows


def leaves_of_contexts(batch: ScoreBatch, chosen: Rows) -> Leaves:
    """The leaves among (context + continuation without its last token) of some continuations.

    Args:
        batch: Where they stand.
        chosen: int64 [S], continuations to look at.
    """
    contexts, tails, owner = _gather([batch])
    owner, tails = owner[chosen], tails.take(chosen)
    used, place = np.unique(owner, return_inverse=True)
    # A context alone stands for all its continuations of one token; else it is no leaf.
    longer = np.flatnonzero(tails.lengths > 0)
    spelt = contexts.take(owner[longer]).followed_by(tails.take(longer))
    everything = contexts.take(used).and_then(spelt)
    row = place.astype(np.int64)
    row[longer] = len(used) + np.arange(len(longer))
    order, shared = everything.sort()
    lengths = everything.lengths[order]
    is_leaf = np.ones(len(order), dtype=np.bool_)
    is_leaf[:-1] = shared[1:] != lengths[:-1]
    number = np.empty(len(order), dtype=np.int64)
    number[order] = np.cumsum(is_leaf) - is_leaf
    # What a leaf begins with stands right before it; the first of those shares what the leaf does.
    first = np.flatnonzero(np.concatenate([[True], is_leaf[:-1]])[: len(order)])
    tokens, offsets = everything.take(order[is_leaf]).packed()
    return Leaves(tokens, offsets, shared[first], number[row])


@dataclass(frozen=True)
class Ragged:
    """Rows of different length in one flat array; rows may lie anywhere in it."""

    tokens: IntArray
    starts: Rows
    lengths: Rows

    @classmethod
    def joined(cls, parts: Iterable[tuple[IntArray, OffsetArray]]) -> Ragged:
        """Rows of several (flat, offsets), one after the other; each begins at offset 0."""
        pairs = list(parts)
        lengths = _concatenate([np.diff(offsets) for _, offsets in pairs], np.int64)
        tokens = _concatenate([flat for flat, _ in pairs], np.int32)
        return cls(tokens, _offsets(lengths)[:-1], lengths)

    def __len__(self) -> int:
        return len(self.starts)

    def take(self, rows: Rows) -> Ragged:
        return Ragged(self.tokens, self.starts[rows], self.lengths[rows])

    def packed(self) -> tuple[IntArray, OffsetArray]:
        """Rows one after the other: (flat, offsets)."""
        offsets = _offsets(self.lengths)
        flat = np.empty(offsets[-1], dtype=np.int32)
        _copy(self, flat, offsets[:-1])
        return flat, offsets

    def followed_by(self, tails: Ragged) -> Ragged:
        """Row i of self, then row i of ``tails``."""
        lengths = self.lengths + tails.lengths
        offsets = _offsets(lengths)
        flat = np.empty(offsets[-1], dtype=np.int32)
        _copy(self, flat, offsets[:-1])
        _copy(tails, flat, offsets[:-1] + self.lengths)
        return Ragged(flat, offsets[:-1], lengths)

    def and_then(self, other: Ragged) -> Ragged:
        """Rows of self, then rows of ``other``."""
        if not len(other):
            return self
        (a, a_offsets), (b, b_offsets) = self.packed(), other.packed()
        starts = np.concatenate([a_offsets[:-1], b_offsets[:-1] + len(a)])
        return Ragged(np.concatenate([a, b]), starts, np.concatenate([self.lengths, other.lengths]))

    def numbers(self) -> Rows:
        """int64 [rows]: equal rows have equal numbers, from 0 as they first come up."""
        found = _binary(*self.packed()).dictionary_encode().indices
        result: Rows = found.to_numpy().astype(np.int64)
        return result

    def order(self) -> Rows:
        """int64 [rows]: rows in lexicographic order, a prefix first."""
        return _order(*self.packed())

    def sort(self) -> tuple[Rows, Rows]:
        """Lexicographic order (a prefix first), and what each shares with its predecessor there."""
        flat, offsets = self.packed()
        order = _order(flat, offsets)
        starts, lengths = offsets[:-1][order], self.lengths[order]
        shared = np.zeros(len(order), dtype=np.int64)
        if len(order):
            limit = np.minimum(lengths[1:], lengths[:-1])
            shared[1:] = _common(flat, starts[:-1], starts[1:], limit)
        return order, shared


def _binary(flat: npt.NDArray[np.int32], offsets: OffsetArray) -> pa.LargeBinaryArray:
    buffers = [None, pa.py_buffer(offsets * 4), pa.py_buffer(flat)]
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(offsets) - 1, buffers)


def _order(flat: npt.NDArray[np.int32], offsets: OffsetArray) -> Rows:
    # Big-endian bytes compare like the (non-negative) numbers do.
    array = _binary(flat.astype(">i4"), offsets)
    result: Rows = pc.array_sort_indices(array).to_numpy().astype(np.int64)
    return result


def _below_private(
    tails: Ragged, owner: Rows, chosen: npt.NDArray[np.bool_], length: Rows, shared: Rows
) -> PrefixProfile:
    """The sequences of private contexts, as (context number, continuation), de-duplicated."""
    rows = np.flatnonzero(chosen)
    number = owner[rows]
    heads = Ragged(number.astype(np.int32), np.arange(len(rows)), np.ones(len(rows), np.int64))
    keyed = heads.followed_by(tails.take(rows))
    order, common = keyed.sort()
    lengths, number = keyed.lengths[order], number[order]
    new = _is_new(lengths, common)
    lengths, common, number = lengths[new], common[new], number[new]
    context = length[number]
    # The first of a context shares what the context shares; its siblings the context and more.
    inside = np.where(common == 0, shared[number], context + common - 1)
    return PrefixProfile(context + lengths - 1, inside)


def _gather(batches: list[ScoreBatch | GenerateBatch]) -> tuple[Ragged, Ragged, Rows]:
    """All contexts; all continuations without their last token; each one's context number.

    A generation is a context with an empty continuation.
    """
    context_parts: list[IntArray] = []
    context_lengths: list[Rows] = []
    tail_parts: list[IntArray] = []
    tail_starts: list[Rows] = []
    tail_lengths: list[Rows] = []
    owners: list[Rows] = []
    contexts = tokens = 0
    for batch in batches:
        offsets = np.asarray(batch.context_offsets, dtype=np.int64)
        context_parts.append(batch.context_tokens[offsets[0] : offsets[-1]])
        context_lengths.append(np.diff(offsets))
        count = len(offsets) - 1
        if isinstance(batch, ScoreBatch):
            ends = np.asarray(batch.continuation_offsets, dtype=np.int64)
            tail_parts.append(batch.continuation_tokens)
            tail_starts.append(ends[:-1] + tokens)
            tail_lengths.append(np.diff(ends) - 1)
            owners.append(batch.continuation_context.astype(np.int64) + contexts)
            tokens += len(batch.continuation_tokens)
        else:
            tail_starts.append(np.zeros(count, dtype=np.int64))
            tail_lengths.append(np.zeros(count, dtype=np.int64))
            owners.append(np.arange(contexts, contexts + count, dtype=np.int64))
        contexts += count
    lengths = _concatenate(context_lengths, np.int64)
    all_contexts = Ragged(_concatenate(context_parts, np.int32), _offsets(lengths)[:-1], lengths)
    tails = Ragged(
        _concatenate(tail_parts, np.int32),
        _concatenate(tail_starts, np.int64),
        _concatenate(tail_lengths, np.int64),
    )
    return all_contexts, tails, _concatenate(owners, np.int64)


def _common(tokens: IntArray, a: Rows, b: Rows, limit: Rows) -> Rows:
    """Common leading tokens of the rows at ``a[i]`` and ``b[i]``, at most ``limit[i]``."""
    common = np.zeros(len(a), dtype=np.int64)
    active = np.flatnonzero(limit > 0)
    window = _WINDOW
    while len(active):
        go_on = []
        for chunk in np.array_split(active, -(-len(active) * window // _CHUNK_ELEMENTS)):
            at = common[chunk][:, None] + np.arange(window)
            inside = at < limit[chunk][:, None]
            at = np.where(inside, at, 0)
            same = tokens[a[chunk][:, None] + at] == tokens[b[chunk][:, None] + at]
            same &= inside
            run = np.where(same.all(axis=1), window, same.argmin(axis=1))
            common[chunk] += run
            go_on.append(chunk[run == window])
        active = np.concatenate(go_on)
        window = min(window * 2, 1024)
    return common


def _copy(source: Ragged, target: IntArray, starts: Rows) -> None:
    """Copies row i of ``source`` to ``target[starts[i]:]``."""
    contiguous = len(source) and np.array_equal(
        source.starts[1:], source.starts[:-1] + source.lengths[:-1]
    )
    ends = starts + source.lengths
    if contiguous and np.array_equal(starts[1:], ends[:-1]):
        first = source.starts[0]
        target[starts[0] : ends[-1]] = source.tokens[first : first + ends[-1] - starts[0]]
        return
    if source.lengths.sum() > _SHORT * len(source):
        # Slices cost by the row, index arrays by the token.
        rows = zip(starts.tolist(), source.starts.tolist(), source.lengths.tolist(), strict=True)
        tokens = source.tokens
        for to, at, length in rows:
            target[to : to + length] = tokens[at : at + length]
        return
    step = _CHUNK_ELEMENTS // _SHORT
    for k in range(0, len(source), step):
        lengths = source.lengths[k : k + step]
        within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        read = np.repeat(source.starts[k : k + step], lengths) + within
        target[np.repeat(starts[k : k + step], lengths) + within] = source.tokens[read]


def _is_new(lengths: Rows, shared: Rows) -> npt.NDArray[np.bool_]:
    """In sorted order: which rows differ from their predecessor."""
    new = np.ones(len(lengths), dtype=np.bool_)
    new[1:] = (shared[1:] != lengths[1:]) | (lengths[1:] != lengths[:-1])
    return new


def _offsets(lengths: Rows) -> OffsetArray:
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def _concatenate(parts: list[npt.NDArray[Any]], dtype: type) -> npt.NDArray[Any]:
    joined = np.concatenate([np.zeros(0, dtype=dtype), *parts])
    result: npt.NDArray[Any] = joined.astype(dtype, copy=False)
    return result

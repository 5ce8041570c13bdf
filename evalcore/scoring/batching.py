"""Request tables -> engine batches in which every distinct request stands once.

A request table has one row per document (``prompting.REQUEST_SCHEMA``). Two documents, two tasks or
two prompt variants may ask for the same tokens; an engine gets each (context, continuation) pair
once, contexts in lexicographic order so that shared prefixes are neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from evalcore.types import GenerateBatch, GenerationSettings, IntArray, OffsetArray, ScoreBatch

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class ScoreRequests:
    """A batch and the way back to the examples it serves.

    Attributes:
        batch: Distinct contexts with their distinct continuations.
        choice_offsets: int64 [examples + 1]; choices of example e are
            ``slots[choice_offsets[e]:choice_offsets[e + 1]]``.
        slots: int64 [choices], the continuation of ``batch`` that answers each choice.
        context_owner: int64 [N], the first example that needs each context.
    """

    batch: ScoreBatch
    choice_offsets: OffsetArray
    slots: OffsetArray
    context_owner: OffsetArray


@dataclass(frozen=True)
class GenerateRequests:
    """A batch of distinct contexts; ``slots[e]`` is the context of example e (int64 [examples])."""

    batch: GenerateBatch
    slots: OffsetArray
    context_owner: OffsetArray


@dataclass(frozen=True)
class _Lists:
    """A list<list<int32>> column as flat arrays: outer -> inner -> tokens."""

    outer: OffsetArray
    inner: OffsetArray
    flat: IntArray

    @classmethod
    def of(cls, column: pa.ChunkedArray) -> _Lists:
        array = column.combine_chunks()
        if isinstance(array, pa.ChunkedArray):  # no chunk at all
            array = pa.array([], type=column.type)
        inner = array.values
        return cls(
            array.offsets.to_numpy().astype(np.int64),
            inner.offsets.to_numpy().astype(np.int64),
            inner.values.to_numpy().astype(np.int32, copy=False),
        )

    def tokens(self, i: int) -> IntArray:
        return self.flat[self.inner[i] : self.inner[i + 1]]


def scorable(requests: pa.Table) -> Bools:
    """bool [rows]: False for documents whose prompt does not fit the model ("overflow")."""
    flags = requests["flags"].to_pylist()
    return np.fromiter(("overflow" not in f for f in flags), dtype=np.bool_, count=len(flags))


def score_requests(requests: pa.Table) -> ScoreRequests:
    """Builds the scoring batch of a request table (rows that overflow get no choices)."""
    contexts, continuations = _Lists.of(requests["contexts"]), _Lists.of(requests["continuations"])
    usable = scorable(requests)
    group_of: dict[bytes, int] = {}
    groups: list[dict[bytes, int]] = []
    context_at: list[int] = []  # where in `contexts` the tokens of a group stand
    owner: list[int] = []
    pairs: list[tuple[int, int]] = []  # (group, place within the group) of each choice
    tokens_at: list[list[int]] = []
    offsets = np.zeros(len(requests) + 1, dtype=np.int64)
    for e in range(len(requests)):
        first, last = continuations.outer[e], continuations.outer[e + 1]
        shared = contexts.outer[e + 1] - contexts.outer[e] == 1
        for j in range(first, last) if usable[e] else ():
            at = int(contexts.outer[e]) + (0 if shared else int(j - first))
            group = group_of.setdefault(contexts.tokens(at).tobytes(), len(groups))
            if group == len(groups):
                groups.append({})
                tokens_at.append([])
                context_at.append(at)
                owner.append(e)
            key = continuations.tokens(j).tobytes()
            place = groups[group].setdefault(key, len(groups[group]))
            if place == len(tokens_at[group]):
                tokens_at[group].append(int(j))
            pairs.append((group, place))
        offsets[e + 1] = len(pairs)
    order = _prefix_order([contexts.tokens(at) for at in context_at])
    batch, starts = _assemble(contexts, continuations, context_at, tokens_at, order)
    slots = np.fromiter((starts[g] + p for g, p in pairs), dtype=np.int64, count=len(pairs))
    return ScoreRequests(batch, offsets, slots, np.asarray(owner, dtype=np.int64)[order])


def _prefix_order(contexts: Sequence[IntArray]) -> OffsetArray:
    keys = [tokens.astype(">u4").tobytes() for tokens in contexts]
    return np.asarray(sorted(range(len(keys)), key=keys.__getitem__), dtype=np.int64)


def _assemble(
    contexts: _Lists,
    continuations: _Lists,
    context_at: list[int],
    tokens_at: list[list[int]],
    order: OffsetArray,
) -> tuple[ScoreBatch, list[int]]:
    """The flat batch in ``order``, and the first continuation of each group in it."""
    starts = [0] * len(context_at)
    count = 0
    members: list[int] = []
    group_sizes = []
    for g in order:
        starts[g] = count
        count += len(tokens_at[g])
        members += tokens_at[g]
        group_sizes.append(len(tokens_at[g]))
    batch = ScoreBatch(
        *_gather(contexts, [context_at[g] for g in order]),
        *_gather(continuations, members),
        np.repeat(np.arange(len(order), dtype=np.int32), group_sizes),
    )
    return batch, starts


def _gather(lists: _Lists, items: Sequence[int]) -> tuple[IntArray, OffsetArray]:
    offsets = np.zeros(len(items) + 1, dtype=np.int64)
    parts = [lists.tokens(i) for i in items]
    np.cumsum([len(part) for part in parts], out=offsets[1:])
    flat = np.concatenate(parts) if parts else np.zeros(0, dtype=np.int32)
    return flat.astype(np.int32, copy=False), offsets


def generate_requests(requests: pa.Table, settings: GenerationSettings) -> GenerateRequests:
    """Builds the generation batch of a request table; overflowing rows have slot -1."""
    contexts = _Lists.of(requests["contexts"])
    usable = scorable(requests)
    seen: dict[bytes, int] = {}
    at: list[int] = []
    owner: list[int] = []
    found = np.full(len(requests), -1, dtype=np.int64)
    for e in np.flatnonzero(usable):
        i = int(contexts.outer[e])
        found[e] = seen.setdefault(contexts.tokens(i).tobytes(), len(at))
        if found[e] == len(at):
            at.append(i)
            owner.append(int(e))
    order = _prefix_order([contexts.tokens(i) for i in at])
    place = np.empty(len(at), dtype=np.int64)
    place[order] = np.arange(len(at))
    flat, offsets = _gather(contexts, [at[i] for i in order])
    slots = np.where(found >= 0, place[found] if len(at) else -1, -1)
    owners = np.asarray(owner, dtype=np.int64)[order] if at else np.zeros(0, dtype=np.int64)
    return GenerateRequests(GenerateBatch(flat, offsets, settings), slots, owners)

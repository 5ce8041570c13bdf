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
        unconditional_offsets: int64 [examples + 1], the same for ``unconditional_slots``.
        unconditional_slots: int64 [unconditional choices], the continuation of ``batch`` that
            answers each choice after an empty context (mutual information).
    """

    batch: ScoreBatch
    choice_offsets: OffsetArray
    slots: OffsetArray
    context_owner: OffsetArray
    unconditional_offsets: OffsetArray
    unconditional_slots: OffsetArray


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


class _Groups:
    """Distinct contexts, each with its distinct continuations, in order of first appearance."""

    def __init__(self) -> None:
        self._group_of: dict[bytes, int] = {}
        self._places: list[dict[bytes, int]] = []
        self.contexts: list[IntArray] = []
        self.members: list[list[IntArray]] = []
        self.owners: list[int] = []

    def add(self, context: IntArray, continuation: IntArray, example: int) -> tuple[int, int]:
        """(group, place in the group) of a request; a new one is kept."""
        group = self._group_of.setdefault(context.tobytes(), len(self.contexts))
        if group == len(self.contexts):
            self._places.append({})
            self.contexts.append(context)
            self.members.append([])
            self.owners.append(example)
        place = self._places[group].setdefault(continuation.tobytes(), len(self.members[group]))
        if place == len(self.members[group]):
            self.members[group].append(continuation)
        return group, place


def score_requests(requests: pa.Table) -> ScoreRequests:
    """Builds the scoring batch of a request table (rows that overflow get no choices)."""
    contexts, continuations = _Lists.of(requests["contexts"]), _Lists.of(requests["continuations"])
    before, alone = _plain_lists(requests), _Lists.of(requests["unconditional"])
    usable = scorable(requests)
    groups = _Groups()
    pairs: list[tuple[int, int]] = []
    bare: list[tuple[int, int]] = []
    offsets = np.zeros(len(requests) + 1, dtype=np.int64)
    bare_offsets = np.zeros_like(offsets)
    for e in range(len(requests)):
        if usable[e]:
            first, last = continuations.outer[e], continuations.outer[e + 1]
            shared = contexts.outer[e + 1] - contexts.outer[e] == 1
            for j in range(first, last):
                at = int(contexts.outer[e]) + (0 if shared else int(j - first))
                pairs.append(groups.add(contexts.tokens(at), continuations.tokens(j), e))
            for j in range(alone.outer[e], alone.outer[e + 1]):
                bare.append(groups.add(before[e], alone.tokens(j), e))
        offsets[e + 1], bare_offsets[e + 1] = len(pairs), len(bare)
    order = _prefix_order(groups.contexts)
    batch, starts = _assemble(groups, order)
    slots, bare_slots = (
        np.fromiter((starts[g] + p for g, p in some), dtype=np.int64, count=len(some))
        for some in (pairs, bare)
    )
    owners = np.asarray(groups.owners, dtype=np.int64)[order]
    return ScoreRequests(batch, offsets, slots, owners, bare_offsets, bare_slots)


def _plain_lists(requests: pa.Table) -> list[IntArray]:
    column = requests["unconditional_context"].to_pylist()
    return [np.asarray(tokens or [], dtype=np.int32) for tokens in column]


def _prefix_order(contexts: Sequence[IntArray]) -> OffsetArray:
    keys = [tokens.astype(">u4").tobytes() for tokens in contexts]
    return np.asarray(sorted(range(len(keys)), key=keys.__getitem__), dtype=np.int64)


def _assemble(groups: _Groups, order: OffsetArray) -> tuple[ScoreBatch, list[int]]:
    """The flat batch in ``order``, and the first continuation of each group in it."""
    starts = [0] * len(groups.contexts)
    members: list[IntArray] = []
    sizes = []
    for g in order:
        starts[g] = len(members)
        members += groups.members[g]
        sizes.append(len(groups.members[g]))
    batch = ScoreBatch(
        *_gather([groups.contexts[g] for g in order]),
        *_gather(members),
        np.repeat(np.arange(len(order), dtype=np.int32), sizes),
    )
    return batch, starts


def _gather(parts: Sequence[IntArray]) -> tuple[IntArray, OffsetArray]:
    offsets = np.zeros(len(parts) + 1, dtype=np.int64)
    np.cumsum([len(part) for part in parts], out=offsets[1:])
    flat = np.concatenate(parts) if parts else np.zeros(0, dtype=np.int32)
    return flat.astype(np.int32, copy=False), offsets


def generate_requests(requests: pa.Table, settings: GenerationSettings) -> GenerateRequests:
    """Builds the generation batch of a request table; overflowing rows have slot -1."""
    usable = scorable(requests)
    seen: dict[bytes, int] = {}
    prompts: list[IntArray] = []
    owner: list[int] = []
    found = np.full(len(requests), -1, dtype=np.int64)
    for e, tokens in enumerate(requests["prompt"].to_pylist()):
        if not usable[e] or not tokens:
            continue
        prompt = np.asarray(tokens, dtype=np.int32)
        found[e] = seen.setdefault(prompt.tobytes(), len(prompts))
        if found[e] == len(prompts):
            prompts.append(prompt)
            owner.append(e)
    order = _prefix_order(prompts)
    place = np.empty(len(prompts), dtype=np.int64)
    place[order] = np.arange(len(prompts))
    flat, offsets = _gather([prompts[i] for i in order])
    slots = np.where(found >= 0, place[found] if len(prompts) else -1, -1)
    owners = np.asarray(owner, dtype=np.int64)[order]
    return GenerateRequests(GenerateBatch(flat, offsets, settings), slots, owners)

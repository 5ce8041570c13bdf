"""Request tables -> engine batches in which every distinct request stands once.

A request table has one row per document (``prompting.REQUEST_SCHEMA``). Two documents, two tasks or
two prompt variants may ask for the same tokens; an engine gets each (context, continuation) pair
once, contexts in lexicographic order so that shared prefixes are neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from evalcore.planning import Ragged
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
class Lists:
    """A list<list<int32>> column as flat arrays, all offsets beginning at 0: row i has the lists
    ``outer[i]:outer[i + 1]``, list j the tokens ``flat[inner[j]:inner[j + 1]]``."""

    outer: OffsetArray
    inner: OffsetArray
    flat: IntArray

    @classmethod
    def of(cls, column: pa.ChunkedArray) -> Lists:
        """The lists of a column without nulls."""
        array = _whole(column)
        flat, inner = _flat(array.flatten())
        return cls(_offsets(array), inner, flat)

    def owners(self) -> OffsetArray:
        """int64 [lists]: the row each list is of."""
        return np.repeat(np.arange(len(self.outer) - 1), np.diff(self.outer))

    def of_each(self, others: Lists) -> OffsetArray:
        """int64 [lists of others]: the list of the same row and place here, or the row's only."""
        rows = others.owners()
        within = np.arange(len(rows)) - others.outer[rows]
        at: OffsetArray = self.outer[rows] + np.where(np.diff(self.outer)[rows] == 1, 0, within)
        return at


def flat_lists(column: pa.ChunkedArray) -> tuple[IntArray, OffsetArray]:
    """(tokens, offsets) of a list<int32> column; null is empty."""
    return _flat(_whole(column))


def _whole(column: pa.ChunkedArray) -> pa.ListArray:
    array = column.combine_chunks()
    # A column without any chunk stays one.
    return pa.array([], type=column.type) if isinstance(array, pa.ChunkedArray) else array


def _flat(array: pa.ListArray) -> tuple[IntArray, OffsetArray]:
    return array.flatten().to_numpy().astype(np.int32, copy=False), _offsets(array)


def _offsets(array: pa.ListArray) -> OffsetArray:
    lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy()
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def scorable(requests: pa.Table) -> Bools:
    """bool [rows]: False for documents whose prompt does not fit the model ("overflow")."""
    flags = _whole(requests["flags"])
    found = np.flatnonzero(flags.flatten().to_numpy(zero_copy_only=False) == "overflow")
    out = np.ones(len(flags), dtype=np.bool_)
    out[np.searchsorted(_offsets(flags), found, side="right") - 1] = False
    return out


def score_requests(requests: pa.Table) -> ScoreRequests:
    """Builds the scoring batch of a request table (rows that overflow get no choices)."""
    own, bare = Lists.of(requests["contexts"]), flat_lists(requests["unconditional_context"])
    tails, alone = Lists.of(requests["continuations"]), Lists.of(requests["unconditional"])
    contexts = Ragged.joined([(own.flat, own.inner), bare])
    continuations = Ragged.joined([(tails.flat, tails.inner), (alone.flat, alone.inner)])
    # Requests in order of rows: a row's choices, then those after its empty context.
    rows = np.concatenate([tails.owners(), alone.owners()])
    context = np.concatenate([own.of_each(tails), len(own.inner) - 1 + alone.owners()])
    usable = scorable(requests)
    asked = np.flatnonzero(usable[rows])
    asked = asked[np.argsort(rows[asked], kind="stable")]
    rows, context, is_bare = rows[asked], context[asked], asked >= len(tails.inner) - 1

    place, kept = _distinct_in_order(contexts, context)
    tail = continuations.numbers()[asked]
    pairs, first, same = np.unique(
        place * max(len(continuations), 1) + tail, return_index=True, return_inverse=True
    )
    members = np.lexsort((first, place[first]))  # in their context's order, as they first come up
    slot = np.empty(len(pairs), dtype=np.int64)
    slot[members] = np.arange(len(pairs))
    first = first[members]
    batch = ScoreBatch(
        *contexts.take(context[kept]).packed(),
        *continuations.take(asked[first]).packed(),
        place[first].astype(np.int32),
    )
    counts = (np.where(usable, np.diff(lists.outer), 0) for lists in (tails, alone))
    offsets, bare_offsets = (np.concatenate([[0], np.cumsum(own)]) for own in counts)
    slots = slot[same]
    return ScoreRequests(batch, offsets, slots[~is_bare], rows[kept], bare_offsets, slots[is_bare])


def _distinct_in_order(sequences: Ragged, wanted: OffsetArray) -> tuple[OffsetArray, OffsetArray]:
    """Which of the wanted rows are the same.

    Returns:
        int64 [len(wanted)]: place of each among the distinct ones in lexicographic order; and
        int64 [distinct]: the first of ``wanted`` that is each of those.
    """
    _, first, same = np.unique(sequences.numbers()[wanted], return_index=True, return_inverse=True)
    order = sequences.take(wanted[first]).order()
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    return place[same], first[order]


def generate_requests(requests: pa.Table, settings: GenerationSettings) -> GenerateRequests:
    """Builds the generation batch of a request table; overflowing rows have slot -1."""
    tokens, offsets = flat_lists(requests["prompt"])
    prompts = Ragged.joined([(tokens, offsets)])
    asked = np.flatnonzero(scorable(requests) & (prompts.lengths > 0))
    place, kept = _distinct_in_order(prompts, asked)
    slots = np.full(len(requests), -1, dtype=np.int64)
    slots[asked] = place
    batch = GenerateBatch(*prompts.take(asked[kept]).packed(), settings)
    return GenerateRequests(batch, slots, asked[kept])

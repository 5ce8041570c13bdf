"""Pure part of the packed strategy: a ScoreBatch -> forward steps over shared cache blocks.

Contexts are sorted, so neighbours share the longest prefixes. Each context forwards only what its
left neighbour has not: the shared part, in whole blocks, is in the neighbour's cache blocks,
written in the same step (every layer writes keys and values of all rows before it attends) or in
the step before. The first continuation rides on the context's own sequence; every other one
re-forwards the context's last, partly filled block into blocks of its own. The first token of every
continuation is predicted by the context's last row; the last token of a continuation is never
forwarded.

Shapes: T rows of a step, R sequences of a step, P predictions of a step, W widest block table.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from evalcore.types import GenerateBatch, IntArray, OffsetArray, ScoreBatch

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Limits:
    """What one step may use.

    Attributes:
        block_size: Tokens of a cache block.
        tokens: Rows of a forward pass.
        seqs: Sequences of a forward pass.
        blocks: Cache blocks free to write into, numbered from ``first_block``.
        first_block: vLLM keeps block 0 as its null block.
        length: Longest sequence.
    """

    block_size: int
    tokens: int
    seqs: int
    blocks: int
    length: int
    first_block: int = 1


@dataclass(frozen=True)
class Step:
    """One forward pass.

    Attributes:
        token_ids: int32 [T].
        positions: int64 [T].
        slots: int64 [T], where each row's keys and values are written.
        query_lens: int32 [R], rows of each sequence.
        seq_lens: int32 [R], positions each sequence attends to, its rows included.
        block_table: int32 [R, W].
        rows: int64 [P], rows whose logits are needed.
        targets: int64 [P], token predicted.
        slots_out: int64 [P], index into ``ScoreBatch.continuation_tokens``.
    """

    token_ids: IntArray
    positions: Int64s
    slots: Int64s
    query_lens: IntArray
    seq_lens: IntArray
    block_table: IntArray
    rows: Int64s
    targets: Int64s
    slots_out: Int64s


@dataclass(frozen=True)
class _Group:
    """A context with continuations that go into one step (a big group is several of these)."""

    context: int
    continuations: list[int]
    shared: int  # leading tokens found in the left neighbour's blocks, a block multiple
    length: int  # tokens of the context
    tokens: int  # rows forwarded
    blocks: int  # blocks written
    seqs: int


@dataclass(frozen=True)
class Plan:
    """Groups in order, and continuations that no step can hold (they are scored one by one)."""

    groups: list[_Group]
    leftover: list[int]
    computed_tokens: OffsetArray  # int64 [N]
    cached_tokens: OffsetArray  # int64 [N]


def sort_contexts(batch: ScoreBatch | GenerateBatch) -> list[int]:
    """Context numbers in lexicographic order of their token ids."""
    flat = batch.context_tokens.astype(">i4").tobytes()  # big-endian bytes sort like the numbers
    offsets = (batch.context_offsets * 4).tolist()
    return sorted(range(batch.num_contexts), key=lambda i: flat[offsets[i] : offsets[i + 1]])


def common_prefix(a: IntArray, b: IntArray) -> int:
    """Length of the longest common prefix of two token arrays."""
    length = min(len(a), len(b))
    differ = a[:length] != b[:length]
    at = int(differ.argmax()) if length else 0
    return at if length and differ[at] else length


def _split(lengths: list[tuple[int, int]], tail: int, head: int, limits: Limits) -> list[list[int]]:
    """Splits a group's continuations so that each part fits a step (head: context rows)."""
    size = limits.block_size
    parts: list[list[int]] = []
    tokens = seqs = blocks = 0
    for index, length in lengths:
        new = length - 1 + tail if length > 1 else 0
        if parts and not (
            tokens + new > limits.tokens
            or seqs + 1 > limits.seqs
            or blocks - (-new // size) + 1 > limits.blocks
        ):
            parts[-1].append(index)
            tokens, seqs, blocks = tokens + new, seqs + 1, blocks - (-new // size)
        else:
            parts.append([index])
            tokens, seqs, blocks = head + length - 1, 1, -(-(head + length - 1) // size)
    return parts


def make_plan(batch: ScoreBatch, limits: Limits) -> Plan:
    """Decides what is forwarded and what is shared.

    Args:
        batch: Contexts and continuations.
        limits: What one step may use.
    """
    size = limits.block_size
    lengths = np.diff(batch.continuation_offsets).tolist()
    bounds = np.searchsorted(batch.continuation_context, np.arange(batch.num_contexts + 1)).tolist()
    computed = np.zeros(batch.num_contexts, dtype=np.int64)
    needed = np.zeros(batch.num_contexts, dtype=np.int64)
    groups: list[_Group] = []
    leftover: list[int] = []
    previous: IntArray | None = None
    for i in sort_contexts(batch):
        context = batch.context(i)
        length = len(context)
        fits: list[int] = []
        tail = length % size
        for j in range(bounds[i], bounds[i + 1]):
            total = length + lengths[j] - 1
            # Worst case of a step's first group: nothing of it is shared yet.
            room = total <= limits.tokens and -(-total // size) < limits.blocks
            (fits if room and total <= limits.length else leftover).append(j)
        for part in _split([(j, lengths[j]) for j in fits], tail, length, limits):
            # The last row must be forwarded: it predicts the first tokens.
            reach = min(common_prefix(previous, context), length - 1) if previous is not None else 0
            shared = reach // size * size
            extra = [tail + lengths[j] - 1 for j in part[1:] if lengths[j] > 1]
            own = length + lengths[part[0]] - 1
            group = _Group(
                context=i,
                continuations=part,
                shared=shared,
                length=length,
                tokens=own - shared + sum(extra),
                blocks=-(-own // size) - shared // size + sum(-(-n // size) for n in extra),
                seqs=1 + len(extra),
            )
            groups.append(group)
            computed[i] += group.tokens
            needed[i] += sum(length + lengths[j] - 1 for j in part)
            previous = context
    return Plan(groups, leftover, computed, needed - computed)


def _take(groups: list[_Group], start: int, limits: Limits) -> int:
    """End of the longest run of groups from ``start`` that fits a step."""
    first = groups[start]
    tokens = seqs = 0
    blocks = first.shared // limits.block_size  # kept from the step before
    stop = start
    while stop < len(groups):
        group = groups[stop]
        tokens, seqs, blocks = tokens + group.tokens, seqs + group.seqs, blocks + group.blocks
        if stop > start and (
            tokens > limits.tokens or seqs > limits.seqs or blocks > limits.blocks
        ):
            break
        stop += 1
    return stop


def steps(batch: ScoreBatch, plan: Plan, limits: Limits) -> Iterator[Step]:
    """The forward passes of a plan; to be run in order, nothing else writing the blocks."""
    start = 0
    kept = np.zeros(0, dtype=np.int32)  # blocks of the last context of the step before
    everything = np.arange(limits.first_block, limits.first_block + limits.blocks, dtype=np.int32)
    while start < len(plan.groups):
        stop = _take(plan.groups, start, limits)
        kept = kept[: plan.groups[start].shared // limits.block_size]
        free = np.setdiff1d(everything, kept, assume_unique=True) if len(kept) else everything
        step, kept = _build(batch, plan.groups[start:stop], kept, free, limits.block_size)
        yield step
        start = stop


def _build(
    batch: ScoreBatch, groups: list[_Group], kept: IntArray, free: IntArray, size: int
) -> tuple[Step, IntArray]:
    """Arrays of one step, and the block table of its last context."""
    pieces: list[IntArray] = []
    tables: list[IntArray] = []
    starts: list[int] = []
    lens: list[int] = []
    rows: list[Int64s] = []
    outs: list[Int64s] = []
    offsets = batch.continuation_offsets
    used = row = 0
    table = kept
    for group in groups:
        context, length = batch.context(group.context), group.length
        full = length // size * size
        last_row = row + length - 1 - group.shared
        for n, j in enumerate(group.continuations):
            begin, end = int(offsets[j]), int(offsets[j + 1])
            # The context's last row predicts the first token, the continuation's own the rest.
            rows.append(np.asarray([last_row]))
            outs.append(np.arange(begin, end))
            if n and end - begin == 1:
                continue
            start = full if n else group.shared
            tokens = np.concatenate([context[start:], batch.continuation_tokens[begin : end - 1]])
            count = -(-(start + len(tokens)) // size) - start // size
            own = np.concatenate([table[: start // size], free[used : used + count]])
            used += count
            table = table if n else own
            pieces.append(tokens)
            tables.append(own)
            starts.append(start)
            lens.append(len(tokens))
            at = row + length - start
            rows.append(np.arange(at, at + end - begin - 1))
            row += len(tokens)
    return _flatten(batch, pieces, tables, starts, lens, rows, outs, size), table


def _flatten(
    batch: ScoreBatch,
    pieces: list[IntArray],
    tables: list[IntArray],
    starts: list[int],
    lens: list[int],
    rows: list[Int64s],
    outs: list[Int64s],
    size: int,
) -> Step:
    query_lens = np.asarray(lens, dtype=np.int32)
    begin = np.asarray(starts, dtype=np.int64)
    block_table = np.zeros((len(tables), max(map(len, tables))), dtype=np.int32)
    for r, table in enumerate(tables):
        block_table[r, : len(table)] = table
    first_rows = np.cumsum(query_lens) - query_lens
    owner = np.repeat(np.arange(len(lens)), query_lens)
    positions = np.arange(int(query_lens.sum()), dtype=np.int64) - first_rows[owner] + begin[owner]
    slots = block_table[owner, positions // size].astype(np.int64) * size + positions % size
    slots_out = np.concatenate(outs).astype(np.int64)
    return Step(
        token_ids=np.concatenate(pieces),
        positions=positions,
        slots=slots,
        query_lens=query_lens,
        seq_lens=(begin + query_lens).astype(np.int32),
        block_table=block_table,
        rows=np.concatenate(rows).astype(np.int64),
        targets=batch.continuation_tokens[slots_out].astype(np.int64),
        slots_out=slots_out,
    )

"""Pure part of the packed strategy: a ScoreBatch -> forward steps over a tree in cache blocks.

The tokens needed (each context with each continuation but its last token) form a prefix tree. Its
leaves in lexicographic order are *branches*: branch k owns the positions it does not share with the
branches before it, so every distinct position has one owner and is forwarded once. A branch reads
what it shares from its parent's cache blocks; where it parts inside a block, that block is copied
to one of its own before it writes.

Steps take branches in order as far as they are ready. A branch is ready when the positions it
shares are computed: in an earlier step, or in the same one where it parts at a block's end (every
layer writes keys and values of all rows before it attends). A branch longer than a step takes
several. Blocks are freed as soon as no branch to come needs them.

A generation is a continuation whose tokens are not known yet: a branch of its own with room for all
of them, which goes on by one position each time a token is told (``Steps.grow``).

Shapes: T rows of a step, R sequences of a step, P predictions of a step, W widest block table.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from evalcore.planning.prefixes import Leaves, leaves_of_contexts
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
        copies: int64 [C, 2], (from, to): blocks to copy before the pass.
        token_ids: int32 [T].
        positions: int64 [T].
        slots: int64 [T], where each row's keys and values are written.
        query_lens: int32 [R], rows of each sequence.
        seq_lens: int32 [R], positions each sequence attends to, its rows included.
        block_table: int32 [R, W].
        rows: int64 [P], rows whose logits are needed.
        targets: int64 [P], token predicted; 0 where it is not known.
        slots_out: int64 [P], index into ``ScoreBatch.continuation_tokens``.
    """

    copies: Int64s
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
class Tree:
    """Branches of a prefix tree, in lexicographic order.

    Attributes:
        leaves: Their tokens and what each shares with those before it.
        parent: Owner of the last position a branch shares; -1 where it shares nothing.
        own_blocks: Blocks a branch writes.
        live_blocks: Blocks of earlier branches still needed when a branch is reached in order.
        freed: Per branch k (and one past the last): (owner, n) pairs; once all branches before k
            are done, only the first n of the owner's blocks are still needed.
    """

    leaves: Leaves
    parent: list[int]
    own_blocks: Int64s
    live_blocks: Int64s
    freed: list[list[tuple[int, int]]]


@dataclass(frozen=True)
class Plan:
    """A tree, what it predicts, and what is left out.

    Attributes:
        tree: Branches to forward.
        predictions: int64 [K + 1], offsets into the two that follow, by branch.
        at: int64 [P], position whose row predicts, ascending within a branch.
        out: int64 [P], index into ``ScoreBatch.continuation_tokens``.
        leftover: Continuations that do not fit (they are scored one by one).
        grown: int64 [G], branch of each continuation that grows; -1 if it is one token.
        known: Positions of each branch whose tokens are known at the start.
        computed_tokens: int64 [N], rows forwarded for what is known at the start; a branch counts
            for one of its contexts.
        cached_tokens: int64 [N], positions of the group that needed no row of its own.
    """

    tree: Tree
    predictions: OffsetArray
    at: Int64s
    out: Int64s
    leftover: list[int]
    grown: Int64s
    known: Int64s
    computed_tokens: OffsetArray
    cached_tokens: OffsetArray


def sort_contexts(batch: ScoreBatch | GenerateBatch) -> list[int]:
    """Context numbers in lexicographic order of their token ids."""
    flat = batch.context_tokens.astype(">i4").tobytes()  # big-endian bytes sort like the numbers
    offsets = (batch.context_offsets * 4).tolist()
    return sorted(range(batch.num_contexts), key=lambda i: flat[offsets[i] : offsets[i + 1]])


def grow_tree(leaves: Leaves, block_size: int) -> Tree:
    """Parents and lifetimes of blocks, by walking the branches in order with a stack."""
    lengths = np.diff(leaves.offsets)
    whole = leaves.shared // block_size
    own = -(-lengths // block_size) - whole
    parent: list[int] = []
    live: list[int] = []
    freed: list[list[tuple[int, int]]] = []
    stack: list[tuple[int, int, int]] = []  # (owner, positions it shares, blocks of it needed)
    total = 0
    for k, (shared, blocks) in enumerate(zip(leaves.shared.tolist(), own.tolist(), strict=True)):
        gone: list[tuple[int, int]] = []
        while stack and stack[-1][1] >= shared:
            owner, _, kept = stack.pop()
            gone.append((owner, 0))
            total -= kept
        if stack:  # of the parent, blocks that hold a shared position stay
            owner, its_shared, kept = stack[-1]
            keep = min(kept, -(-shared // block_size) - its_shared // block_size)
            if keep < kept:
                gone.append((owner, keep))
                stack[-1] = (owner, its_shared, keep)
                total -= kept - keep
        parent.append(stack[-1][0] if stack else -1)
        live.append(total)
        freed.append(gone)
        stack.append((k, shared, blocks))
        total += blocks
    freed.append([(owner, 0) for owner, _, _ in stack])
    return Tree(leaves, parent, own, np.asarray(live, dtype=np.int64), freed)


def make_plan(batch: ScoreBatch, limits: Limits, growing: int = 0) -> Plan:
    """Decides what is forwarded and what is left over.

    Args:
        batch: Contexts and continuations.
        limits: What the steps may use.
        growing: How many of the last continuations are generations; their tokens are negative, and
            no two have one in common.
    """
    lengths = np.diff(batch.continuation_offsets)
    owner = batch.continuation_context.astype(np.int64)
    contexts = np.diff(batch.context_offsets)[owner]
    total = contexts + lengths - 1
    left = (total > limits.length) | (-(-total // limits.block_size) > limits.blocks)
    while True:  # a tree without some branches needs less: two rounds as a rule
        chosen = np.flatnonzero(~left)
        leaves = leaves_of_contexts(batch, chosen)
        tree = grow_tree(leaves, limits.block_size)
        too_big = tree.live_blocks + tree.own_blocks > limits.blocks
        if not too_big.any():
            break
        left[chosen[too_big[leaves.leaf_of]]] = True
    leaf_of = np.full(len(lengths), -1, dtype=np.int64)
    leaf_of[chosen] = leaves.leaf_of
    first = len(lengths) - growing
    grown = np.where(lengths[first:] > 1, leaf_of[first:], -1)
    known = np.diff(leaves.offsets)
    known[grown[grown >= 0]] = contexts[first:][grown >= 0]
    needed = np.zeros(batch.num_contexts, dtype=np.int64)
    np.add.at(needed, owner[chosen], np.where(chosen < first, total[chosen], contexts[chosen]))
    # The context a branch counts for: that of its longest continuation, or the last of equals.
    by_length = chosen[np.argsort(total[chosen], kind="stable")]
    counts_for = np.zeros(len(known), dtype=np.int64)
    counts_for[leaf_of[by_length]] = owner[by_length]
    computed = np.zeros(batch.num_contexts, dtype=np.int64)
    np.add.at(computed, counts_for, known - leaves.shared)
    offsets, at, out = _predictions(batch, chosen, tree)
    return Plan(
        tree,
        offsets,
        at,
        out,
        np.flatnonzero(left).tolist(),
        grown,
        known,
        computed,
        needed - computed,
    )


def _predictions(
    batch: ScoreBatch, chosen: Int64s, tree: Tree
) -> tuple[OffsetArray, Int64s, Int64s]:
    """(offsets by branch, position, continuation token) of everything to predict."""
    lengths = np.diff(batch.continuation_offsets)[chosen]
    contexts = np.diff(batch.context_offsets)[batch.continuation_context[chosen]]
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    at = np.repeat(contexts - 1, lengths) + within
    out = np.repeat(batch.continuation_offsets[:-1][chosen], lengths) + within
    owner = np.repeat(tree.leaves.leaf_of, lengths)
    parent = np.asarray(tree.parent, dtype=np.int64)
    climb = np.flatnonzero(tree.leaves.shared[owner] > at)
    while len(climb):
        owner[climb] = parent[owner[climb]]
        climb = climb[tree.leaves.shared[owner[climb]] > at[climb]]
    order = np.lexsort((at, owner))
    offsets = np.searchsorted(owner[order], np.arange(len(parent) + 1))
    return offsets.astype(np.int64), at[order], out[order]


class Steps:
    """The forward passes of a plan; to be run in order, nothing else writing the blocks.

    Where continuations grow, the caller tells after each pass what it predicted (``grow``) or that
    it was the last one (``end``).
    """

    def __init__(self, batch: ScoreBatch, plan: Plan, limits: Limits) -> None:
        self._batch, self._plan, self._size = batch, plan, limits.block_size
        self._schedule = _Schedule(plan, limits)

    def __iter__(self) -> Iterator[Step]:
        while pieces := self._schedule.next():
            yield _build(self._batch, self._plan, pieces, self._schedule, self._size)

    def grow(self, number: int, n: int, token: int) -> None:
        """Tells token ``n`` of the growing continuation ``number`` (of G): it is forwarded next."""
        branch, leaves = int(self._plan.grown[number]), self._plan.tree.leaves
        leaves.tokens[leaves.offsets[branch] + self._plan.known[branch] + n] = token
        self._schedule.learn(branch)

    def end(self, number: int) -> None:
        """Nothing more is wanted of a growing continuation."""
        branch = int(self._plan.grown[number])
        if branch >= 0:
            self._schedule.finish(branch)


@dataclass(frozen=True)
class _Piece:
    """Positions ``start`` to ``stop`` of a branch, forwarded in one step."""

    branch: int
    start: int
    stop: int


class _Schedule:
    """Which pieces go into which step, and in which blocks."""

    def __init__(self, plan: Plan, limits: Limits) -> None:
        tree = self._tree = plan.tree
        self._limits = limits
        self._known = plan.known.tolist()
        self._lengths = np.diff(tree.leaves.offsets).tolist()
        self._shared = tree.leaves.shared.tolist()
        self._stop = np.concatenate([[0], np.cumsum(tree.own_blocks)])
        self._done = list(self._shared)  # positions computed of each branch
        self._first = 0  # all branches before it are done
        self._ready = [k for k, parent in enumerate(tree.parent) if parent < 0]  # a heap
        # Children in order part ever earlier from their parent: the next to be ready is the last.
        self._children: list[list[int]] = [[] for _ in self._lengths]
        for k, parent in enumerate(tree.parent):
            if parent >= 0:
                self._children[parent].append(k)
        self._free = list(range(limits.first_block + limits.blocks - 1, limits.first_block - 1, -1))
        self._own: dict[int, list[int]] = {}
        self.tables: dict[int, IntArray] = {}
        self.copies: list[tuple[int, int]] = []
        self._forget: list[int] = []

    def next(self) -> list[_Piece]:
        """Pieces of the next step; none when all is done. Sets ``copies`` and ``tables``."""
        for branch in self._forget:
            self.tables.pop(branch, None)
        self.copies, self._forget = [], []
        size, room = self._limits.block_size, self._limits.tokens
        frontier = self._frontier()
        pieces: list[_Piece] = []
        later: list[int] = []
        while self._ready and self._ready[0] < frontier:
            if not room or len(pieces) == self._limits.seqs:
                break
            k = heapq.heappop(self._ready)
            if k not in self.tables:
                self._start(k)
            start = self._done[k]
            stop = min(self._known[k], start + room)
            pieces.append(_Piece(k, start, stop))
            room -= stop - start
            self._done[k] = stop
            if stop < self._known[k]:
                later.append(k)
            children = self._children[k]
            while children and self._shared[children[-1]] <= stop:
                child = children.pop()
                if self._shared[child] == self._known[child]:
                    continue  # it grows, and waits for its first token
                if self._shared[child] % size:
                    later.append(child)
                else:
                    heapq.heappush(self._ready, child)
        for k in later:
            heapq.heappush(self._ready, k)
        self._advance()
        return pieces

    def learn(self, k: int) -> None:
        """One more position of a growing branch is known."""
        self._known[k] += 1
        heapq.heappush(self._ready, k)

    def finish(self, k: int) -> None:
        """A growing branch ends before its time."""
        self._done[k] = self._known[k] = self._lengths[k]
        self._advance()

    def _frontier(self) -> int:
        """Branches before it may start: all from the first open one on have room for blocks.

        Hence the first open branch, which is always ready, can never wait for blocks.
        """
        if self._first == len(self._lengths):
            return 0
        room = self._limits.blocks - self._tree.live_blocks[self._first]
        return int(np.searchsorted(self._stop, self._stop[self._first] + room, side="right")) - 1

    def _start(self, k: int) -> None:
        parent, whole = self._tree.parent[k], self._shared[k] // self._limits.block_size
        own = [self._free.pop() for _ in range(int(self._tree.own_blocks[k]))]
        shared = self.tables[parent][:whole] if parent >= 0 else np.zeros(0, dtype=np.int32)
        if self._shared[k] % self._limits.block_size:
            self.copies.append((int(self.tables[parent][whole]), own[0]))
        self._own[k] = own
        self.tables[k] = np.concatenate([shared, np.asarray(own, dtype=np.int32)])

    def _advance(self) -> None:
        """Moves on past finished branches and frees the blocks nobody needs any more."""
        lengths = self._lengths
        while self._first < len(lengths) and self._done[self._first] == lengths[self._first]:
            self._first += 1
            for owner, keep in self._tree.freed[self._first]:
                own = self._own.get(owner, [])  # none if it ended before it began
                self._free.extend(own[keep:])
                del own[keep:]
                if not keep:
                    self._forget.append(owner)  # this step still reads its table


def _build(
    batch: ScoreBatch, plan: Plan, pieces: list[_Piece], schedule: _Schedule, size: int
) -> Step:
    """Arrays of one step."""
    leaves = plan.tree.leaves
    starts = np.asarray([p.start for p in pieces], dtype=np.int64)
    stops = np.asarray([p.stop for p in pieces], dtype=np.int64)
    query_lens = stops - starts
    first_rows = np.cumsum(query_lens) - query_lens
    widths = -(-stops // size)
    block_table = np.zeros((len(pieces), int(widths.max())), dtype=np.int32)
    tokens, rows, outs = [], [], []
    for r, piece in enumerate(pieces):
        begin = int(leaves.offsets[piece.branch])
        tokens.append(leaves.tokens[begin + piece.start : begin + piece.stop])
        block_table[r, : widths[r]] = schedule.tables[piece.branch][: widths[r]]
        low, high = plan.predictions[piece.branch : piece.branch + 2]
        low, high = low + np.searchsorted(plan.at[low:high], [piece.start, piece.stop])
        rows.append(plan.at[low:high] + (first_rows[r] - piece.start))
        outs.append(plan.out[low:high])
    owner = np.repeat(np.arange(len(pieces)), query_lens)
    positions = np.arange(int(query_lens.sum())) + (starts - first_rows)[owner]
    slots = block_table[owner, positions // size].astype(np.int64) * size + positions % size
    slots_out = np.concatenate(outs)
    return Step(
        copies=np.asarray(schedule.copies, dtype=np.int64).reshape(-1, 2),
        token_ids=np.concatenate(tokens),
        positions=positions,
        slots=slots,
        query_lens=query_lens.astype(np.int32),
        seq_lens=stops.astype(np.int32),
        block_table=block_table,
        rows=np.concatenate(rows),
        targets=np.maximum(batch.continuation_tokens[slots_out], 0).astype(np.int64),
        slots_out=slots_out,
    )

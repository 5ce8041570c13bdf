"""The limits of more sequences than one wants in memory at once, part by part.

Parts are cut where the first tokens of sequences differ, in their lexicographic order: whatever
stands in a later part comes after everything in those before. What a part shares with the earlier
ones is then what its first sequence shares with the last one before it, and both part within the
tokens compared.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from evalcore.planning.order import KEY_TOKENS, heads, sorted_heads
from evalcore.planning.prefixes import PrefixProfile, Ragged, prefix_profile
from evalcore.types import GenerateBatch, GenerationSettings, ScoreBatch

Rows = npt.NDArray[np.int64]
TOKENS_AT_ONCE = 4_000_000
"""Some 100 MB."""
_SAMPLED = 64


@dataclass(frozen=True)
class Sequences:
    """What is asked of a request file: contexts, each with a continuation or to be gone on from.

    Attributes:
        contexts: Rows of context tokens; a row may be used by several sequences.
        continuations: Rows of continuation tokens, none empty.
        context: int64 [S], context of each sequence.
        continuation: int64 [S], its continuation; -1 where text is generated.
    """

    contexts: Ragged
    continuations: Ragged
    context: Rows
    continuation: Rows

    def __len__(self) -> int:
        return len(self.context)

    @property
    def num_tokens(self) -> int:
        return int(self.contexts.lengths.sum() + self.continuations.lengths.sum())

    def keys(self, rows: Rows, width: int) -> npt.NDArray[np.int32]:
        """The first tokens of sequences (see ``order.heads``), without their last token."""
        own = self.contexts.take(self.context[rows])
        begin = Ragged(own.tokens, own.starts, np.minimum(own.lengths, width))
        scored = self.continuation[rows] >= 0
        own_tails = self.continuations.take(self.continuation[rows[scored]])
        starts, lengths = np.zeros((2, len(rows)), dtype=np.int64)
        starts[scored] = own_tails.starts
        lengths[scored] = np.minimum(own_tails.lengths - 1, width - begin.lengths[scored])
        full = begin.followed_by(Ragged(own_tails.tokens, starts, lengths))
        return heads(full.tokens, np.append(full.starts, len(full.tokens)), width)

    def batches(self, rows: Rows) -> list[ScoreBatch | GenerateBatch]:
        """Sequences as the batches that ask for them."""
        scored = rows[self.continuation[rows] >= 0]
        scored = scored[np.argsort(self.context[scored], kind="stable")]
        used, owner = np.unique(self.context[scored], return_inverse=True)
        batch = ScoreBatch(
            *self.contexts.take(used).packed(),
            *self.continuations.take(self.continuation[scored]).packed(),
            owner.astype(np.int32),
        )
        prompts = np.unique(self.context[rows[self.continuation[rows] < 0]])
        return [batch, _prompts(*self.contexts.take(prompts).packed())]


@dataclass(frozen=True)
class Part:
    """Some of all sequences.

    Attributes:
        profile: Theirs; those of all parts, one after the other, are the profile of all sequences.
        continuation_tokens: Tokens of the distinct (context, continuation) pairs.
    """

    profile: PrefixProfile
    continuation_tokens: int


def in_parts(
    files: Sequence[Callable[[], Sequences]],
    *,
    tokens_at_once: int | None = None,
    key_tokens: int = KEY_TOKENS,
) -> Iterator[Part]:
    """Profiles sequences part by part.

    Sequences that begin with the same ``key_tokens`` tokens stay together, so memory is bounded by
    ``tokens_at_once`` and the largest such group.

    Args:
        files: Each reads its sequences anew.
        tokens_at_once: About how many tokens of contexts and continuations make a part; None:
            :data:`TOKENS_AT_ONCE`.
        key_tokens: Leading tokens compared.
    """
    sampled: list[bytes] = []
    orders: list[Rows] = []
    total = 0
    for read in files:
        own = read()
        keys = own.keys(np.arange(len(own)), key_tokens)
        orders.append(sorted_heads(keys).astype(np.int32))
        sampled += [keys[row].tobytes() for row in orders[-1][::_SAMPLED]]
        total += own.num_tokens
    borders = _borders(sampled, -(-total // (tokens_at_once or TOKENS_AT_ONCE)))
    cuts = [
        [0, *_places(read(), order, borders, key_tokens), len(order)]
        for read, order in zip(files, orders, strict=True)
    ]
    before = b""
    for part in range(len(borders) + 1):
        batches: list[ScoreBatch | GenerateBatch] = []
        last = before
        for read, order, cut in zip(files, orders, cuts, strict=True):
            rows = order[cut[part] : cut[part + 1]].astype(np.int64)
            if len(rows):
                own = read()
                batches += own.batches(rows)
                last = max(last, own.keys(rows[-1:], key_tokens).tobytes())
        if batches:
            yield Part(_after(before, batches), _continuation_tokens(batches))
        before = last


def _continuation_tokens(batches: list[ScoreBatch | GenerateBatch]) -> int:
    """Tokens of all continuations, those of identical requests once."""
    scored = [batch for batch in batches if isinstance(batch, ScoreBatch)]
    contexts = Ragged.joined([(b.context_tokens, b.context_offsets) for b in scored])
    tails = Ragged.joined([(b.continuation_tokens, b.continuation_offsets) for b in scored])
    firsts = np.cumsum([0, *(batch.num_contexts for batch in scored)])
    owner = np.concatenate(
        [batch.continuation_context + first for batch, first in zip(scored, firsts, strict=False)]
    )
    pairs = contexts.numbers()[owner] * max(len(tails), 1) + tails.numbers()
    return int(tails.lengths[np.unique(pairs, return_index=True)[1]].sum())


def _borders(sampled: list[bytes], parts: int) -> list[bytes]:
    """Distinct keys that begin parts of about equal size."""
    sampled.sort()
    found = {sampled[len(sampled) * k // parts] for k in range(1, parts)} if sampled else set()
    return sorted(found)


def _places(own: Sequences, order: Rows, borders: list[bytes], width: int) -> list[int]:
    """Where in ``order`` the sequences begin whose keys are not below each border."""

    def key(row: np.int32) -> bytes:
        return own.keys(np.asarray([row], dtype=np.int64), width).tobytes()

    return [bisect_left(order, border, key=key) for border in borders]


def _after(before: bytes, batches: list[ScoreBatch | GenerateBatch]) -> PrefixProfile:
    """Profile of a part that comes after a sequence with the key ``before``."""
    head = np.frombuffer(before, dtype=">i4").astype(np.int32)
    head = head[head > 0] - 1
    if not len(head):
        return prefix_profile(batches)
    offsets = np.asarray([0, len(head)], dtype=np.int64)
    profile = prefix_profile([*batches, _prompts(head, offsets)])
    # It stands first, hence shares nothing: taken out again, the others keep what they share.
    own = np.flatnonzero((profile.lengths == len(head)) & (profile.shared == 0))[:1]
    return PrefixProfile(np.delete(profile.lengths, own), np.delete(profile.shared, own))


def _prompts(tokens: npt.NDArray[np.int32], offsets: Rows) -> GenerateBatch:
    return GenerateBatch(tokens, offsets, GenerationSettings())

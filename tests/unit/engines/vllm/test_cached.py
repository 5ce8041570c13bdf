"""The cached strategy's requests, answered by a cache that is plainly right."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from evalcore.engines.vllm.cached import make_tails, spread
from evalcore.engines.vllm.requests import MOST_LABELS, Answer, Ask, Work
from evalcore.planning import block_limit
from evalcore.types import ScoreBatch

TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=9)
ITEMS = st.lists(st.tuples(TOKENS, st.lists(TOKENS, max_size=4)), max_size=8)


def logprob(prefix: tuple[int, ...], token: int) -> float:
    """A number that only this token after this prefix has."""
    return -1.0 - (hash((prefix, token)) % 1_000_003) / 7.0


class Cache:
    """A prefix cache of whole blocks: what an ask computes, and its answer."""

    def __init__(self, block_size: int) -> None:
        self.blocks: set[tuple[int, ...]] = set()
        self.size = block_size

    def answer(self, ask: Ask) -> Answer:
        tokens, size = tuple(ask.tokens), self.size
        assert ask.cap is not None
        hit = 0
        most = min(ask.cap, len(tokens) - 1)
        while hit + size <= most and tokens[: hit + size] in self.blocks:
            hit += size
        self.blocks |= {tokens[:n] for n in range(size, len(tokens) + 1, size)}
        rows = range(len(tokens) - ask.last, len(tokens))
        assert all(row - 1 >= hit for row in rows), "a wanted row came from the cache"
        return Answer(
            [(logprob(tokens[:row], tokens[row]), False) for row in rows],
            [(logprob(tokens, label), True) for label in ask.labels],
            len(tokens) - hit,
            hit,
        )


def score(batch: ScoreBatch, block_size: int) -> tuple[np.ndarray, int]:
    work, cache = Work(batch, "salt"), Cache(block_size)
    tails = make_tails(work, block_size)
    asks = [tail.ask(work) for tail in tails]
    assert all(len(ask.labels) <= MOST_LABELS for ask in asks)
    values = np.full(len(batch.continuation_tokens), np.nan)
    greedy = np.zeros(len(values), dtype=bool)
    computed = np.zeros(batch.num_contexts, dtype=np.int64)
    spread(tails, [cache.answer(ask) for ask in asks], values, greedy, computed)
    return values, int(computed.sum())


def expected(batch: ScoreBatch) -> list[float]:
    out = []
    for i, owner in enumerate(batch.continuation_context.tolist()):
        context, tokens = batch.context(owner).tolist(), batch.continuation(i).tolist()
        out += [logprob((*context, *tokens[:n]), token) for n, token in enumerate(tokens)]
    return out


@settings(max_examples=80, deadline=None)
@given(ITEMS, st.integers(1, 4))
def test_every_token_is_read_from_its_own_prefix(items: list, block_size: int) -> None:
    batch = ScoreBatch.from_lists(items)
    values, _ = score(batch, block_size)
    assert values.tolist() == expected(batch)


def grid(seed: int, documents: int, shots: int) -> ScoreBatch:
    """Four choices that often begin alike, after shots that all documents share."""
    rng = np.random.default_rng(seed)
    shown = rng.integers(0, 500, shots).tolist()
    items = []
    for _ in range(documents):
        start = rng.integers(0, 500, int(rng.integers(0, 3))).tolist()
        question = rng.integers(0, 500, int(rng.integers(20, 80))).tolist()
        choices = [
            [*start, *rng.integers(0, 500, int(rng.integers(1, 6))).tolist()] for _ in range(4)
        ]
        items.append((shown + question, choices))
    return ScoreBatch.from_lists(items)


def test_what_is_computed_is_the_block_limit() -> None:
    for shots in (0, 300):
        batch = grid(shots, 200, shots)
        values, computed = score(batch, 16)
        assert values.tolist() == expected(batch)
        assert computed <= 1.02 * block_limit([batch], 16)


def test_many_labels_are_several_requests() -> None:
    batch = ScoreBatch.from_lists([([1, 2, 3], [[t] for t in range(300)])])
    assert len(make_tails(Work(batch, ""), 16)) == 3
    assert score(batch, 16)[0].tolist() == expected(batch)

"""Distinct-prefix counts against a trie of dictionaries."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from evalcore.planning import block_limit, prefix_profile, profile_of_sequences, token_limit
from evalcore.types import GenerateBatch, GenerationSettings, ScoreBatch, flatten

TOKEN = st.integers(0, 2) | st.sampled_from([255, 256, 70_000])
TOKENS = st.lists(TOKEN, min_size=1, max_size=7)
SCORE_ITEMS = st.lists(
    st.tuples(TOKENS, st.lists(TOKENS, min_size=0, max_size=3)), min_size=0, max_size=6
)
GENERATE_ITEMS = st.lists(TOKENS, min_size=0, max_size=5)


def needed_sequences(score: list, generate: list) -> list[tuple[int, ...]]:
    scored = [(*context, *tail[:-1]) for context, group in score for tail in group]
    return scored + [tuple(context) for context in generate]


def trie_nodes(sequences: list[tuple[int, ...]]) -> int:
    root: dict = {}
    count = 0
    for sequence in sequences:
        node = root
        for token in sequence:
            if token not in node:
                node[token] = {}
                count += 1
            node = node[token]
    return count


def positions_with_blocks(sequences: list[tuple[int, ...]], size: int) -> int:
    """Whole blocks once each; what is left of a sequence after its last whole block every time."""
    distinct = set(sequences)
    blocks = {s[:end] for s in distinct for end in range(size, len(s) + 1, size)}
    return len(blocks) * size + sum(len(s) % size for s in distinct)


def as_batches(score: list, generate: list, cut: int) -> list:
    return [
        ScoreBatch.from_lists(score[:cut]),
        GenerateBatch(*flatten(generate), GenerationSettings()),
        ScoreBatch.from_lists(score[cut:]),
    ]


@settings(max_examples=200, deadline=None)
@given(SCORE_ITEMS, GENERATE_ITEMS, st.integers(0, 6), st.integers(1, 5))
def test_limits_equal_the_trie(score: list, generate: list, cut: int, size: int) -> None:
    sequences = needed_sequences(score, generate)
    batches = as_batches(score, generate, cut)
    assert token_limit(batches) == trie_nodes(sequences)
    assert block_limit(batches, size) == positions_with_blocks(sequences, size)
    assert len(prefix_profile(batches).lengths) == len(set(sequences))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(TOKEN, max_size=8), max_size=12), st.integers(1, 5))
def test_flat_sequences_equal_the_trie(sequences: list, size: int) -> None:
    profile = profile_of_sequences(*flatten(sequences))
    as_tuples = [tuple(s) for s in sequences if s]
    assert profile.token_limit == trie_nodes(as_tuples)
    assert profile.block_limit(size) == positions_with_blocks(as_tuples, size)


def test_a_choice_that_runs_through_another_context_is_counted_once() -> None:
    # 1 2 3 4 is needed for the first choice and is the second context's beginning.
    batch = ScoreBatch.from_lists([([1, 2], [[3, 4, 9], [3]]), ([1, 2, 3, 4, 5], [[6, 7]])])
    assert token_limit([batch]) == 6  # 1 2 3 4 5 6


def test_long_shared_prefixes_cross_the_compare_window() -> None:
    rng = np.random.default_rng(0)
    shots = rng.integers(0, 50_000, 700).tolist()
    items = []
    for _ in range(40):
        question = rng.integers(0, 4, int(rng.integers(1, 90))).tolist()
        choices = rng.integers(0, 3, (3, 4)).tolist()
        items.append((shots[: int(rng.integers(500, 700))] + question, choices))
    sequences = needed_sequences(items, [])
    assert token_limit([ScoreBatch.from_lists(items)]) == trie_nodes(sequences)
    assert block_limit([ScoreBatch.from_lists(items)], 16) == positions_with_blocks(sequences, 16)


def test_bounds() -> None:
    assert token_limit([]) == 0
    batch = ScoreBatch.from_lists([([5, 6, 7], [[8], [9]])])
    assert token_limit([batch]) == 3  # last tokens of choices are never run
    assert block_limit([batch], 1) == 3
    twice = ScoreBatch.from_lists([([5, 6, 7], [[8, 1], [9, 1]])])
    assert token_limit([twice]) == 5
    assert block_limit([twice], 16) == 8  # no whole block to share: both requests in full

"""Distinct-prefix counts against a trie of dictionaries."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evalcore.planning import (
    Ragged,
    Sequences,
    block_limit,
    chunks,
    in_parts,
    prefix_profile,
    profile_of_sequences,
    token_limit,
)
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


def sequences_of(score: list, generate: list) -> Sequences:
    """The same as batches: each context once per item, prompts after them."""
    contexts = [context for context, _ in score] + generate
    pairs = [(i, tail) for i, (_, tails) in enumerate(score) for tail in tails]
    going_on = [len(score) + i for i in range(len(generate))]
    return Sequences(
        Ragged.joined([flatten(contexts)]),
        Ragged.joined([flatten([tail for _, tail in pairs])]),
        np.asarray([i for i, _ in pairs] + going_on, dtype=np.int64),
        np.asarray([*range(len(pairs)), *(-1 for _ in generate)], dtype=np.int64),
    )


@settings(max_examples=200, deadline=None)
@given(
    files=st.lists(st.tuples(SCORE_ITEMS, GENERATE_ITEMS), min_size=1, max_size=3),
    tokens=st.integers(1, 20),
    keys=st.integers(1, 4),
    size=st.integers(1, 3),
)
def test_parts_together_are_the_whole(files: list, tokens: int, keys: int, size: int) -> None:
    reads = [partial(sequences_of, *file) for file in files]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "_SAMPLED", 1)
        parts = list(in_parts(reads, tokens_at_once=tokens, key_tokens=keys))
    sequences = {s for file in files for s in needed_sequences(*file)}
    assert sum(part.profile.token_limit for part in parts) == trie_nodes(list(sequences))
    lengths = np.concatenate([[0], *(part.profile.lengths for part in parts)])[1:]
    assert sorted(lengths.tolist()) == sorted(map(len, sequences))
    whole = prefix_profile([batch for read in reads for batch in all_of(read())])
    assert sum(part.profile.block_limit(size) for part in parts) == whole.block_limit(size)
    pairs = {(tuple(c), tuple(t)) for items, _ in files for c, tails in items for t in tails}
    assert sum(part.continuation_tokens for part in parts) == sum(len(t) for _, t in pairs)


def all_of(sequences: Sequences) -> list:
    return sequences.batches(np.arange(len(sequences)))


def test_large_work_is_cut_into_parts() -> None:
    rng = np.random.default_rng(3)
    contexts = [[1, *rng.integers(0, 50, 6).tolist()] for _ in range(3000)]
    read = partial(sequences_of, [(c, [[2, 3], [4]]) for c in contexts], contexts[:100])
    parts = list(in_parts([read, read], tokens_at_once=5000, key_tokens=3))
    assert len(parts) > 8
    whole = prefix_profile(all_of(read()))
    assert sum(part.profile.token_limit for part in parts) == whole.token_limit
    assert max(len(part.profile.lengths) for part in parts) < len(whole.lengths) / 4

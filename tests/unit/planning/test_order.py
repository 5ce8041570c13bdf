"""The common order of request files against plain Python sorting."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from evalcore.planning.order import prefix_ranks
from evalcore.types import flatten

ROWS = st.lists(st.lists(st.integers(0, 2), max_size=5), max_size=8)


@settings(max_examples=60, deadline=None)
@given(files=st.lists(ROWS, min_size=1, max_size=3), width=st.integers(1, 4))
def test_ranks_follow_the_heads_and_join_what_is_identical(files, width) -> None:
    ranks = prefix_ranks([flatten(rows) for rows in files], key_tokens=width)
    assert [len(own) for own in ranks] == [len(rows) for rows in files]
    pairs = [
        (int(rank), row)
        for own, rows in zip(ranks, files, strict=True)
        for rank, row in zip(own, rows, strict=True)
    ]
    for rank, row in pairs:
        for other_rank, other in pairs:
            assert (rank == other_rank) == (row == other)
            if row[:width] < other[:width]:
                assert rank < other_rank


def test_equal_heads_keep_the_order_of_rows() -> None:
    rows = [[1, 1, 9], [1, 1, 3], [1, 0, 5], [1, 1, 9], [1, 1, 4]]
    (ranks,) = prefix_ranks([flatten(rows)], key_tokens=2)
    assert ranks.tolist() == [1, 2, 0, 1, 3]


def test_large_token_ids_and_empty_files() -> None:
    empty = flatten([])
    ranks = prefix_ranks([empty, flatten([[100_000], [256], [255]]), flatten([[1], [512]])])
    assert [own.tolist() for own in ranks] == [[], [4, 2, 1], [0, 3]]

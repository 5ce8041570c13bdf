"""Several mappings as one: the last that was added counts, and nothing is copied."""

from __future__ import annotations

from collections import ChainMap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalcore.planning.joined import Joined

PARTS = st.lists(st.dictionaries(st.sampled_from("abcd"), st.integers()), max_size=4)


@given(PARTS)
def test_it_is_a_chain_of_mappings(parts: list[dict[str, int]]) -> None:
    joined: Joined[int] = Joined()
    for part in parts:
        joined.add(part)
    plain = ChainMap(*reversed(parts))
    assert dict(joined) == dict(plain)
    assert len(joined) == len(plain)
    for key in "abcde":
        assert joined.get(key) == plain.get(key)


def test_what_comes_later_is_seen() -> None:
    part = {"a": 1}
    joined = Joined(part)
    part["b"] = 2
    assert joined["b"] == 2
    with pytest.raises(KeyError, match="c"):
        joined["c"]

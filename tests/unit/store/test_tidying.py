"""Small segments are merged by themselves: which, when, and that nothing is lost."""

from __future__ import annotations

import fcntl
import random
from pathlib import Path

import numpy as np
import pytest

from evalcore.app import tidying as beside
from evalcore.store import ResultStore, tidying
from evalcore.store.segments import list_segments
from evalcore.store.tidying import small_groups
from tests.toys.stored import key, make_row

MIB = 1 << 20


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ResultStore:
    """Forty small segments, of which some hold other answers to the same documents."""
    monkeypatch.setattr(tidying, "FEWEST", 20)
    monkeypatch.setattr(tidying, "_LEAST_TOGETHER", 4)
    drawn = random.Random(5)
    store = ResultStore(tmp_path / "results")
    for number in range(40):
        with store.open_writer("w") as writer:
            docs = drawn.sample(range(60), 8)
            writer.add([make_row("c", key(str(doc)), number) for doc in docs])
    return store


def rows(store: ResultStore) -> list[tuple[str, int]]:
    table = store.examples()
    return sorted(zip(table["doc_id"].to_pylist(), table["prediction"].to_pylist(), strict=True))


def test_neighbours_of_small_segments_are_groups() -> None:
    few = np.full(tidying.FEWEST - 1, MIB)
    assert small_groups(few) == []
    sizes = np.full(tidying.FEWEST + 100, MIB)
    found = small_groups(sizes)
    assert found[0] == (0, 64)  # 64 MiB
    assert [start for start, _ in found[1:]] == [stop for _, stop in found[:-1]]
    sizes[10] = sizes[30] = 100 * MIB  # large ones stay, and cut the others apart
    found = small_groups(sizes)
    assert found[0] == (11, 30)  # ten alone are too few to be worth it
    assert all(not start <= large < stop for start, stop in found for large in (10, 30))


def test_merging_keeps_every_row_and_who_wins(store: ResultStore) -> None:
    before = rows(store)
    done = store.tidy(60)
    assert done is not None
    assert done.segments_before == 40
    assert len(list_segments(store.segments_folder)) == done.segments_after < 4
    assert rows(ResultStore(store.path)) == before
    assert store.tidy(60) is None


def test_one_at_a_time_in_time_and_until_told(store: ResultStore) -> None:
    count = len(list_segments(store.segments_folder))
    assert store.tidy(0) is None
    assert store.tidy(60, lambda: True) is None
    (store.path / "index").mkdir(exist_ok=True)
    with open(store.path / "index" / "tidying.lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert store.tidy(60) is None
    assert len(list_segments(store.segments_folder)) == count
    assert store.tidy(60) is not None


def test_damaged_segments_stay_for_verify(store: ResultStore) -> None:
    path = list_segments(store.segments_folder)[7]
    data = bytearray(path.read_bytes())
    data[len(data) // 4] ^= 1
    path.write_bytes(data)
    assert store.tidy(60) is None
    assert len(list_segments(store.segments_folder)) == 40
    assert not store.verify().sound
    assert store.tidy(60) is not None


def test_beside_a_run_and_at_its_end(store: ResultStore, monkeypatch: pytest.MonkeyPatch) -> None:
    before = rows(store)
    with beside.tidying(store, lambda: True) as kept:
        pass
    assert kept.lines() == []  # a stopped run begins nothing
    with pytest.raises(RuntimeError), beside.tidying(store, lambda: False) as kept:
        raise RuntimeError
    assert kept.lines() == []
    with beside.tidying(store, lambda: False) as kept:
        pass
    (line,) = kept.lines()
    assert line.startswith("40 small result files were merged into ")
    assert rows(ResultStore(store.path)) == before

"""Footers as arrays, against asking each segment; and the index that saves asking again."""

from __future__ import annotations

import random
from collections import defaultdict
from pathlib import Path

import pytest

from evalcore.store import Coverage, ResultStore, survey
from evalcore.store.coverage import SegmentCoverage
from evalcore.store.segments import SegmentInfo, list_segments, read_info
from evalcore.store.survey import Index, Survey
from tests.toys.stored import key, make_row


@pytest.fixture
def store(tmp_path: Path) -> ResultStore:
    """Thirty segments of a few cells, some rows more than once."""
    drawn = random.Random(3)
    store = ResultStore(tmp_path / "results")
    for number in range(30):
        cells = drawn.sample("abcdefgh", drawn.randint(1, 4))
        docs = drawn.sample(range(20), drawn.randint(1, 6))
        with store.open_writer(f"w{number % 3}") as writer:
            writer.add([make_row(cell, key(str(doc)), number) for cell in cells for doc in docs])
    return store


def infos(store: ResultStore) -> list[SegmentInfo]:
    return [read_info(path) for path in list_segments(store.segments_folder)]


def as_sets(stated: SegmentCoverage) -> dict[str, set[str]]:
    return {
        cell: {stated.doc_ids[code] for code in stated.sets[number]}
        for cell, number in zip(stated.cells, stated.cell_sets, strict=True)
    }


def doubled(found: list[SegmentInfo]) -> set[int]:
    """Pair by pair."""
    seen: set[tuple[str, str]] = set()
    again = set()
    for number, info in enumerate(found):
        own = {(cell, doc) for cell, docs in as_sets(info.coverage).items() for doc in docs}
        if own & seen:
            again.add(number)
        seen |= own
    return again


def check(made: Survey, found: list[SegmentInfo]) -> None:
    assert made.names == tuple(info.path.name for info in found)
    for number, info in enumerate(found):
        segment = made.segment(number)
        assert (segment.path, segment.num_rows, segment.num_bytes) == (
            info.path, info.num_rows, info.num_bytes,
        )  # fmt: skip
        assert as_sets(made.stated(number)) == as_sets(info.coverage)
        assert made.num_pairs[number] == info.coverage.num_pairs
    coverage, naive = made.coverage(), Coverage(info.coverage for info in found)
    assert {c: coverage[c] for c in coverage} == {c: naive[c] for c in naive}
    assert made.doubled() == doubled(found)
    holders = defaultdict(list)
    for number, info in enumerate(found):
        for cell in info.coverage.cells:
            holders[cell].append(number)
    assert {c: made.owners[e].tolist() for c, e in made.by_cell()} == holders
    assert made.holding({"a", "b"}.__contains__) == sorted({*holders["a"], *holders["b"]})


@pytest.mark.parametrize("at_once", [1, 7, 1 << 24])
def test_a_survey_says_what_the_footers_say(
    store: ResultStore, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(survey, "_PAIRS_AT_ONCE", at_once)
    found = infos(store)
    assert doubled(found)  # there is something to find
    made = Survey.of(store.segments_folder, found)
    check(made, found)
    chosen = [3, 4, 17, 29]
    check(made.select(chosen), [found[i] for i in chosen])
    check(made.select([]), [])


def test_an_index_saves_the_footers(store: ResultStore, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []
    monkeypatch.setattr(survey, "read_info", lambda path: (asked.append(path), read_info(path))[1])  # type: ignore[func-returns-value]
    monkeypatch.setattr(survey, "MOST_UNKNOWN", 10)
    index = Index(store.path / "index", keep=True)

    def look() -> int:
        """Surveys, checks it, and tells how many footers were read for it."""
        asked.clear()
        made = index.survey(store.segments_folder, lambda path, why: None)
        count = len(asked)
        check(made, infos(store))
        return count

    assert look() == 30
    assert look() == 0
    with store.open_writer("later") as writer:
        writer.add([make_row("new", key("new"))])
    assert look() == 1
    assert look() == 1  # too few for a new index
    for number in range(12):
        with store.open_writer("later") as writer:
            writer.add([make_row("new", key(str(number)))])
    assert look() == 13
    assert look() == 0
    store.compact()
    assert look() == 1
    (path,) = (store.path / "index").glob("footers-*")
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)
    assert look() == 1  # a damaged index is no index


def test_what_is_gone_or_was_cut_is_not_taken_from_the_index(
    store: ResultStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(survey, "MOST_UNKNOWN", 10)
    paths = list_segments(store.segments_folder)
    assert ResultStore(store.path).coverage().num_segments == 30
    assert list((store.path / "index").glob("footers-*"))
    paths[2].unlink()
    paths[5].write_bytes(paths[5].read_bytes()[:-40])
    again = ResultStore(store.path, read_only=True)
    left = [read_info(path) for i, path in enumerate(paths) if i not in (2, 5)]
    naive = Coverage(info.coverage for info in left)
    assert {c: again.coverage()[c] for c in again.coverage()} == {c: naive[c] for c in naive}
    assert list(again.damage) == [f"segments/{paths[5].name}"]


def test_a_reader_writes_no_index(store: ResultStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "MOST_UNKNOWN", 10)
    assert ResultStore(store.path, read_only=True).coverage().num_segments == 30
    assert not (store.path / "index").exists()

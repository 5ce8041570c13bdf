"""The next unit is prepared while the present one computes, and nothing hangs on it."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from evalcore.planning import Unit
from evalcore.scoring import ScoringWorker, WorkerConfig, ahead, shares
from evalcore.store import ResultStore
from evalcore.types import ScoreBatch, ScoreResult, Subject
from tests.toys.scoring import SPEC, StubEngine, unit_job, write_requests


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ScoringWorker:
    monkeypatch.setattr("evalcore.scoring.worker.create_engine", lambda spec: StubEngine())
    ResultStore(tmp_path / "results")
    shares._batched.cache_clear()
    return ScoringWorker(WorkerConfig(str(tmp_path / "results"), SPEC), 0)


def test_its_requests_are_batched_when_it_comes(worker: ScoringWorker, tmp_path: Path) -> None:
    requests = write_requests(tmp_path / "requests.arrow")
    first, second = (unit_job(requests, "good", i).payload for i in range(2))
    worker.ahead(second)
    worker.run(first)
    worker._ahead.wait()
    before = shares._batched.cache_info()
    worker.run(second)
    after = shares._batched.cache_info()
    assert (before.misses, after.misses - before.misses) == (2, 0)


def test_the_engine_plans_it_while_the_present_one_computes(
    worker: ScoringWorker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The very batch that it is asked then."""
    requests = write_requests(tmp_path / "requests.arrow")
    jobs = [unit_job(requests, "good", i).payload for i in range(3)]
    planned, done = threading.Event(), list[tuple[str, int]]()

    def expect(self: StubEngine, batch: ScoreBatch) -> None:
        done.append(("planned", id(batch)))
        planned.set()

    def score(self: StubEngine, batch: ScoreBatch) -> ScoreResult:
        assert planned.wait(20), "planned before the present one is done"
        planned.clear()
        done.append(("scored", id(batch)))
        return scored(self, batch)

    scored = StubEngine.score
    monkeypatch.setattr(StubEngine, "expect", expect)
    monkeypatch.setattr(StubEngine, "score", score)
    for present, coming in itertools.pairwise(jobs):
        worker.ahead(coming)
        worker.run(present)
    (_, second), (_, _), (_, third), (_, also_second) = done
    assert [what for what, _ in done] == ["planned", "scored", "planned", "scored"]
    assert second == also_second != third


def test_files_of_another_subject_are_read_once(
    worker: ScoringWorker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they lie: of subjects in place none are read, and of too large ones neither."""
    requests = write_requests(tmp_path / "requests.arrow")
    jobs = [unit_job(requests, name, i).payload for i, name in enumerate(["a", "b", "b", "c"])]
    read: list[str] = []

    def files_of(subjects: list[Subject]) -> list[Path]:
        found = [tmp_path / f"{subject.checkpoint.name}.safetensors" for subject in subjects]
        for path in found:
            path.write_bytes(bytes(10))
        return found

    def seen(path: Path, goes_on: Callable[[], bool]) -> None:
        whole(path, goes_on)
        assert goes_on()
        read.append(path.name)

    whole = ahead.read_through
    monkeypatch.setattr(ahead, "_files", files_of)
    monkeypatch.setattr(ahead, "read_through", seen)
    for present, coming in itertools.pairwise(jobs):
        worker.ahead(coming)
        worker.run(present)
        worker._ahead.wait()
    assert read == ["b.safetensors", "c.safetensors"]
    monkeypatch.setattr(ahead, "available_bytes", lambda: 15)
    worker.ahead(jobs[0])
    worker.run(jobs[3])
    worker._ahead.wait()
    assert read == ["b.safetensors", "c.safetensors"]


def test_what_is_wrong_with_it_is_said_by_who_does_it(
    worker: ScoringWorker, tmp_path: Path
) -> None:
    requests = write_requests(tmp_path / "requests.arrow")
    unit: Unit = unit_job(requests, "good", 1).payload.unit
    bad = unit_job(tmp_path / "nothing.arrow", "good", 2).payload
    assert bad.unit.id != unit.id
    worker.ahead(bad)
    worker.run(unit_job(requests, "good", 0).payload)
    worker._ahead.wait()
    worker.run(unit_job(requests, "good", 1).payload)

"""Reported as committed is what is on disk: the real worker and store, a stub engine."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evalcore.errors import ResultsError
from evalcore.scoring import ScoringWorker, WorkerConfig
from evalcore.store import ResultStore, segments
from tests.toys.scoring import ROWS_PER_UNIT, SPEC, Run, StubEngine, unit_job, write_requests


@pytest.fixture(scope="module")
def requests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_requests(tmp_path_factory.mktemp("requests") / "requests.arrow")


class Clock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@settings(max_examples=40, deadline=None)
@given(
    every=st.sampled_from([0.0, 5.0, 1e9]),
    flush_bytes=st.sampled_from([1, 3000, 1 << 40]),
    steps=st.lists(st.sampled_from(["unit", "unit", "unit", "wait", "flush"]), max_size=25),
)
def test_ids_reported_are_ids_on_disk_after_every_call(
    requests: Path,
    tmp_path_factory: pytest.TempPathFactory,
    every: float,
    flush_bytes: int,
    steps: list[str],
) -> None:
    results = tmp_path_factory.mktemp("results")
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("evalcore.scoring.worker.create_engine", lambda spec: StubEngine())
        patch.setattr(time, "monotonic", clock)
        patch.setattr(segments.SegmentWriter.__init__, "__kwdefaults__",
                      {"flush_bytes": flush_bytes, "flush_age_s": 60.0})  # fmt: skip
        ResultStore(results)
        worker = ScoringWorker(WorkerConfig(str(results), SPEC, every), 0)
        reported: set[str] = set()
        asked: list[str] = []
        for i, step in enumerate([*steps, "flush"]):
            if step == "wait":
                clock.now += 3.0
                continue
            if step == "flush":
                reply = worker.flush()
            else:
                job = unit_job(requests, "good", i)
                asked.append(job.id)
                reply = worker.run(job.payload)
            assert not reported & set(reply.committed), "each once"
            reported |= set(reply.committed)
            coverage = ResultStore(results).coverage()
            assert coverage.num_examples == len(reported) * ROWS_PER_UNIT
            if every == 0.0 or flush_bytes == 1:
                assert reported == set(asked), "nothing waits"
        assert reported == set(asked)


def test_a_unit_as_long_as_the_interval_is_committed_at_once(
    requests: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not when the next one has ended, which would make a crash cost two of them."""
    monkeypatch.setattr("evalcore.scoring.worker.create_engine", lambda spec: StubEngine())
    monkeypatch.setenv("TOY_UNIT_S", "0.06")
    ResultStore(tmp_path)
    worker = ScoringWorker(WorkerConfig(str(tmp_path), SPEC, 0.1), 0)
    for i in range(3):
        job = unit_job(requests, "good", i)
        assert worker.run(job.payload).committed == (job.id,)


def test_a_commit_that_fails_reports_nothing_and_keeps_the_rows(
    requests: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evalcore.scoring.worker.create_engine", lambda spec: StubEngine())
    ResultStore(tmp_path)
    worker = ScoringWorker(WorkerConfig(str(tmp_path), SPEC, 1e9), 0)
    first, second = (unit_job(requests, "good", i) for i in range(2))
    assert worker.run(first.payload).committed == ()
    moved = (tmp_path / "segments").rename(tmp_path / "elsewhere")
    with pytest.raises(ResultsError, match="cannot write results"):
        worker.flush()
    moved.rename(tmp_path / "segments")
    assert worker.run(second.payload).committed == ()
    assert set(worker.flush().committed) == {first.id, second.id}


def test_a_killed_worker_costs_its_last_interval_only(requests: Path, tmp_path: Path) -> None:
    """Thirty units committed one by one, a death, ten more: nothing is scored a second time."""
    jobs = [unit_job(requests, "good", i) for i in range(30)]
    jobs += [unit_job(requests, "die:", 0, once=tmp_path / "mark")]
    jobs += [unit_job(requests, "good", i) for i in range(30, 40)]
    run = Run(tmp_path / "results")(jobs)
    assert (run.outcome, run.failures, len(run.committed)) == ("done", {}, 41)
    assert max(run.runs.values()) == 1
    assert run.rows_written() == 41 * ROWS_PER_UNIT
    assert run.starts == 2


def test_counts_are_of_committed_work(capsys: pytest.CaptureFixture[str]) -> None:
    from evalcore.cli import progress as module
    from evalcore.planning import PlanCounts
    from evalcore.scoring import UnitReport

    progress = module.ScoreProgress()
    progress.planned(PlanCounts(1, 1, 1, 1, 2, 20, 0, 1000, 1), {}, whole=True)
    report = UnitReport("u", examples=10, prompt_tokens=500)
    for _ in range(5):  # scored again and again, as after crashes
        progress._said = -1e9
        progress.unit("step-1", report)
    progress._said = -1e9
    progress.committed(report)
    progress._said = -1e9
    progress.committed(report)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("scoring:")]
    assert lines[:5] == ["scoring: 0/20 none committed yet"] * 5
    assert lines[5].startswith("scoring: 10/20 ")
    assert lines[6].startswith("scoring: 20/20 ")
    assert lines[6].endswith(", 0 s left")

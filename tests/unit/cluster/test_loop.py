"""Any order of results, deaths, hangs, flushes and stops: the real loop and worker, in one process.

The transport keeps real runners with real scoring workers on a stub engine, but no processes: what
happens next is hypothesis's choice, and time passes when it says so.
"""

from __future__ import annotations

import pickle
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evalcore.cluster import Job, Patience, Stop
from evalcore.cluster.crew import PoolEvents, RunLimits
from evalcore.cluster.loop import PoolRun
from evalcore.cluster.protocol import Answer, Command, Lost
from evalcore.cluster.runner import WorkerRunner
from evalcore.errors import EvalcoreError
from evalcore.scoring import ScoringWorker, WorkerConfig
from evalcore.store import ResultStore
from tests.toys.scoring import ROWS_PER_UNIT, SPEC, StubEngine, Units, unit_job, write_requests

SICK = ["load:SubjectError", "load:InputError", "load:ProofError", "score:EngineError",
        "score:InputError", "score:RuntimeError", "big:0"]  # fmt: skip


def make(config: WorkerConfig, index: int) -> ScoringWorker:
    return ScoringWorker(config, index)


class Theatre:
    """A transport without processes; ``deeds`` says what becomes of each command."""

    waits_for_room = False

    def __init__(self, deeds: list[str], clock: list[float]) -> None:
        self.deeds, self.clock = deeds, clock
        self.runners: dict[int, WorkerRunner] = {}
        self.inbox: list[tuple[int, bytes]] = []

    def start(self, worker_index: int, blob: bytes) -> None:
        self.runners[worker_index] = WorkerRunner()
        self.inbox.append((worker_index, blob))

    def send(self, worker_index: int, blob: bytes) -> None:
        self.inbox.append((worker_index, blob))

    def poll(self, timeout_s: float) -> list[tuple[int, bytes | Lost]]:
        self.clock[0] += timeout_s
        if not self.inbox:
            return []
        deed = self.deeds.pop() if self.deeds else "answer"
        at = -1 if deed == "last" else 0
        index, blob = self.inbox.pop(at)
        kind = pickle.loads(blob).kind if index in self.runners else "gone"
        if kind == "gone":
            return []
        if deed == "hang" and kind in ("run", "flush", "prepare"):
            return []  # no answer, ever
        if deed in ("die", "leave"):
            return [(index, Lost("was killed", machine=deed == "leave"))]
        answer = self.runners[index].handle(blob)
        if deed == "die late":  # it has done it, and nobody hears of it
            return [(index, Lost("was killed"))]
        return [(index, answer)]

    def explain(self, worker_index: int) -> Lost:
        return Lost("is running")

    def kill(self, worker_index: int) -> None:
        self.runners.pop(worker_index, None)
        self.inbox = [item for item in self.inbox if item[0] != worker_index]

    def close(self) -> None:
        self.runners.clear()


@pytest.fixture(scope="module")
def requests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_requests(tmp_path_factory.mktemp("requests") / "requests.arrow", bad=(7,))


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(
    workers=st.integers(1, 3),
    every_s=st.sampled_from([0.0, 1e9]),
    names=st.lists(
        st.sampled_from(["good", "fine", "big:4", "row:InputError", *SICK]), max_size=12
    ),
    deeds=st.lists(st.sampled_from(["answer"] * 5 + ["last", "die", "die late", "leave", "hang"]),
                   max_size=30),
    stop_after=st.one_of(st.none(), st.integers(0, 60)),
)  # fmt: skip
def test_every_unit_is_accounted_for(
    requests: Path,
    tmp_path_factory: pytest.TempPathFactory,
    workers: int,
    every_s: float,
    names: list[str],
    deeds: list[str],
    stop_after: int | None,
) -> None:
    results = tmp_path_factory.mktemp("results")
    ResultStore(results)
    config = WorkerConfig(str(results), SPEC, every_s)
    jobs = [unit_job(requests, name, i) for i, name in enumerate(names)]
    committed: list[str] = []
    failed: dict[str, EvalcoreError] = {}
    turns = [0]
    clock = [1000.0]

    def on_committed(job: Job) -> None:
        assert job.id not in committed, "once"
        committed.append(job.id)
        rows[0] += job.payload.unit.num_examples

    def on_failure(job: Job, error: EvalcoreError) -> None:
        assert job.id not in failed, "once"
        failed[job.id] = error
        failed_rows[0] += job.payload.unit.num_examples

    def should_stop() -> Stop:
        turns[0] += 1
        assert turns[0] < 5000, "it does not end"
        if stop_after is None or turns[0] < stop_after:
            return Stop.NO
        return Stop.SOON if turns[0] < stop_after + 200 else Stop.NOW

    def start_blob(index: int) -> bytes:
        body = ("tests.unit.cluster.test_loop:make", pickle.dumps(config), index)
        return pickle.dumps(Command("start", body=body))

    rows, failed_rows = [0], [0]
    theatre = Theatre(list(deeds), clock)
    limits = RunLimits(1000, None, 60.0, 10.0, 1000, Patience(2.0, 2.0, 2.0, 1.0))
    events = PoolEvents(on_committed=on_committed, on_failure=on_failure)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("evalcore.scoring.worker.create_engine", lambda spec: StubEngine())
        patch.setattr(time, "monotonic", lambda: clock[0])
        run = PoolRun(workers, start_blob, theatre, Units(jobs), events, limits)
        outcome = run.loop(should_stop)

    store = ResultStore(results)
    assert store.coverage().num_examples >= rows[0], "reported is on disk"
    assert not set(committed) & set(failed)
    if outcome == "stopped":
        assert stop_after is not None
        return
    assert rows[0] + failed_rows[0] == ROWS_PER_UNIT * len(jobs), "each row once, one way or other"
    if {"die", "die late", "hang"} & set(deeds):
        return
    for i, name in enumerate(names):
        bad = 7 in jobs[i].payload.unit.slices[0].rows
        wanted = {"good": 0, "fine": 0, "big:4": 0, "row:InputError": int(bad)}.get(
            name, ROWS_PER_UNIT
        )
        assert store.coverage().count(f"{name}/{i}") == ROWS_PER_UNIT - wanted


def test_answers_are_what_the_loop_expects() -> None:
    """The theatre speaks the real protocol: a runner's answers, pickled."""
    answer = pickle.loads(WorkerRunner().handle(pickle.dumps(Command("run", "a"))))
    assert isinstance(answer, Answer)
    assert answer.kind == "raised"


GARBAGE = [
    b"no pickle", pickle.dumps(None), pickle.dumps(Answer("ran", "another")),
    pickle.dumps(Answer("flushed")), pickle.dumps(Answer("ready")), pickle.dumps(Answer("raised")),
    pickle.dumps(Answer("beat")), pickle.dumps(Answer("beat", result=("x", 3))),
    pickle.dumps(Answer("closed")), pickle.dumps(Answer("what")),  # type: ignore[arg-type]
]  # fmt: skip


class Babel(Theatre):
    """The first process says something else than it should, in one of its answers."""

    def __init__(self, said: bytes, at: int) -> None:
        super().__init__([], [1000.0])
        self.said, self.left = said, at

    def poll(self, timeout_s: float) -> list[tuple[int, bytes | Lost]]:
        news = super().poll(timeout_s)
        self.left -= bool(news)
        return [(news[0][0], self.said)] if news and self.left == 0 else news


@pytest.mark.parametrize("said", GARBAGE, ids=range(len(GARBAGE)))
@pytest.mark.parametrize("at", [1, 2, 3, 5, 6])
def test_a_worker_that_answers_garbage_is_replaced(
    requests: Path, tmp_path: Path, said: bytes, at: int
) -> None:
    """Whatever it says, in whatever state: the driver goes on, and each unit ends once."""
    ResultStore(tmp_path)
    jobs = [unit_job(requests, "good", i) for i in range(3)]
    committed: list[str] = []
    config = pickle.dumps(WorkerConfig(str(tmp_path), SPEC, 1e9))
    body = ("tests.unit.cluster.test_loop:make", config, 0)
    limits = RunLimits(3, None, 60.0, 10.0, 3, Patience(2.0, 2.0, 2.0, 1.0))
    theatre = Babel(said, at)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("evalcore.scoring.worker.create_engine", lambda spec: StubEngine())
        patch.setattr(time, "monotonic", lambda: theatre.clock[0])
        run = PoolRun(
            1, lambda index: pickle.dumps(Command("start", body=body)), theatre, Units(jobs),
            PoolEvents(on_committed=lambda job: committed.append(job.id)), limits,
        )  # fmt: skip
        assert run.loop(lambda: Stop.NO) == "done"
    assert sorted(committed) == sorted(job.id for job in jobs)

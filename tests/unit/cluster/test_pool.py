"""The job pool with real child processes: order, errors, restarts, stops, what is durable."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any

import pytest

from evalcore.cluster import Job, JobPool, ListSource, Stop
from evalcore.cluster.local import worker_path
from evalcore.errors import EngineError, InputError, ProofError, WorkerLostError
from tests.toys.cluster import Recorder, job


def pool(out: Path, workers: int = 1, config: dict[str, Any] | None = None, **more: Any) -> JobPool:
    config = {"out": str(out), **(config or {})}
    return JobPool("tests.toys.cluster:make_worker", config, workers=workers, **more)


def run(the_pool: JobPool, jobs: list[Job], should_stop: Any = None) -> tuple[str, Recorder]:
    seen = Recorder()
    outcome = the_pool.run(ListSource(jobs), should_stop=should_stop, **seen.callbacks())
    return outcome, seen


def test_many_jobs_on_two_workers(tmp_path: Path) -> None:
    # Each takes a moment, so that the first worker to be ready cannot do all of them alone.
    jobs = [job(f"j{i}", op="sleep", s=0.01, value=i) for i in range(300)]
    outcome, seen = run(pool(tmp_path, workers=2), jobs)
    assert outcome == "done"
    assert {k: v[0][1] for k, v in seen.results.items()} == {f"j{i}": 2 * i for i in range(300)}
    assert sorted(seen.committed) == sorted(j.id for j in jobs)
    assert len({v[0][2] for v in seen.results.values()}) == 2, "both workers worked"
    assert (tmp_path / "closed-0").exists()
    assert (tmp_path / "closed-1").exists()
    assert sorted(s for _, s in seen.states) == ["ready"] * 2 + ["starting"] * 2 + ["stopped"] * 2


WARM = "tests.toys.cluster:warm_up"


def warm_pids(folder: Path, count: int) -> set[int]:
    """Processes that are warm, once there are so many."""
    until = time.monotonic() + 60
    while len(found := list(folder.glob("warm-*"))) < count:
        assert time.monotonic() < until
        time.sleep(0.05)
    return {int(path.name.removeprefix("warm-")) for path in found}


def test_processes_that_wait_are_those_that_work(tmp_path: Path) -> None:
    waiting = JobPool("tests.toys.cluster:make_worker", workers=2)
    waiting.warm(WARM, str(tmp_path))
    pids = warm_pids(tmp_path, 2)
    waiting.configure({"out": str(tmp_path)})
    outcome, seen = run(waiting, [job(f"j{i}", op="sleep", s=0.01) for i in range(300)])
    assert outcome == "done"
    assert {own[0][2] for own in seen.results.values()} == pids
    assert sorted(s for _, s in seen.states) == ["ready"] * 2 + ["starting"] * 2 + ["stopped"] * 2


def test_a_pool_that_is_given_up_leaves_no_process(tmp_path: Path) -> None:
    waiting = pool(tmp_path)
    waiting.warm(WARM, str(tmp_path))
    (pid,) = warm_pids(tmp_path, 1)
    waiting.close()
    waiting.close()
    assert not Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize("when", ["before", "while it waits for the first job"])
def test_a_process_that_dies_while_it_waits_is_replaced(tmp_path: Path, when: str) -> None:
    waiting = pool(tmp_path)
    waiting.warm(WARM, str(tmp_path))
    (pid,) = warm_pids(tmp_path, 1)
    if when == "before":
        os.kill(pid, signal.SIGKILL)
    source = Growing([job("a")], pid)
    outcome = waiting.run(source, should_stop=source.look)
    assert (outcome, source.asked_when_dry > 2) == ("done", True)
    assert (tmp_path / "a").exists()


class Growing(ListSource):
    """Has its jobs only after a while; kills a process in the meantime."""

    def __init__(self, jobs: list[Job], victim: int) -> None:
        super().__init__(jobs)
        self.growing, self.victim, self.asked_when_dry = True, victim, 0

    def look(self) -> Stop:
        self.asked_when_dry += 1
        if self.asked_when_dry == 3:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.victim, signal.SIGKILL)
        self.growing = self.asked_when_dry < 8
        return Stop.NO

    def next(self, worker_index: int) -> Job | None:
        return None if self.growing else super().next(worker_index)


def test_nothing_to_do_starts_nothing(tmp_path: Path) -> None:
    outcome, seen = run(pool(tmp_path, workers=2), [])
    assert (outcome, seen.states) == ("done", [])


@pytest.mark.parametrize("deed", ["kill", "exit"])
def test_worker_dies_once(tmp_path: Path, deed: str) -> None:
    jobs = [job("a"), job("b", deed, once=str(tmp_path / "mark")), job("c")]
    outcome, seen = run(pool(tmp_path), jobs)
    assert (outcome, sorted(seen.committed), seen.failures) == ("done", ["a", "b", "c"], {})
    assert (seen.count("lost"), seen.count("restarted")) == (1, 1)


def test_poison_job_is_given_up_and_others_are_done(tmp_path: Path) -> None:
    """Also two in a row, more deaths than max_restarts: it is the jobs, not the worker."""
    jobs = [job("a"), job("bad1", "kill"), job("bad2", "kill"), job("b")]
    outcome, seen = run(pool(tmp_path, max_restarts=2, log_dir=tmp_path / "logs"), jobs)
    assert (outcome, sorted(seen.committed)) == ("done", ["a", "b"])
    error = seen.failures["bad1"]
    assert isinstance(error, WorkerLostError)
    assert "SIGKILL" in str(error)
    assert "job bad1" in str(error)
    assert "something terrible" in str(error)
    assert "worker-0.log" in str(error)
    assert "\n" not in str(error)
    assert seen.count("lost") == 4


def test_suspect_job_is_tried_on_the_other_worker(tmp_path: Path) -> None:
    jobs = [job("bad", "kill"), *(job(f"s{i}", "sleep", s=0.2) for i in range(6))]
    _, seen = run(pool(tmp_path, workers=2), jobs)
    assert isinstance(seen.failures["bad"], WorkerLostError)
    assert sorted(i for i, state in seen.states if state == "lost") == [0, 1]


@pytest.mark.parametrize(
    ("what", "kind", "restarts"),
    [
        ("InputError", InputError, 0),
        ("FussyError", InputError, 0),
        ("ProofError", ProofError, 2),
        ("ValueError", EngineError, 2),
    ],
)
def test_exception_kinds(tmp_path: Path, what: str, kind: type[Exception], restarts: int) -> None:
    jobs = [job("a"), job("bad", "raise", what=what), job("b")]
    outcome, seen = run(pool(tmp_path), jobs)
    assert (outcome, sorted(seen.committed)) == ("done", ["a", "b"])
    error = seen.failures["bad"]
    assert type(error) is kind
    assert "do_raise" in error.traceback_text  # type: ignore[attr-defined]
    assert seen.count("lost") == restarts
    if what == "ValueError":
        assert str(error) == "worker 0, job bad: ValueError: it went wrong"
    if what == "FussyError":
        assert str(error) == "wrong value in row 3"


@pytest.mark.parametrize("what", ["ProofError", "ValueError"])
def test_passing_trouble_is_retried(tmp_path: Path, what: str) -> None:
    jobs = [job("b", "raise", what=what, once=str(tmp_path / "mark"))]
    _, seen = run(pool(tmp_path), jobs)
    assert (seen.committed, seen.failures, seen.count("lost")) == (["b"], {}, 1)


def test_no_restart_for_the_last_lost_job(tmp_path: Path) -> None:
    """A process is started for a job only, so the end of a run costs no engine start."""
    _, seen = run(pool(tmp_path), [job("bad", "kill")])
    assert (seen.count("lost"), seen.count("restarted")) == (2, 1)


def test_deadline(tmp_path: Path) -> None:
    mark = str(tmp_path / "mark")
    jobs = [job("slow", "sleep", s=60, once=mark), job("hangs", "sleep", s=60), job("b")]
    started = time.monotonic()
    outcome, seen = run(pool(tmp_path, deadline_s=0.4), jobs)
    assert time.monotonic() - started < 10
    assert (outcome, sorted(seen.committed)) == ("done", ["b", "slow"])
    assert "missed its deadline of 0.4 s in job hangs" in str(seen.failures["hangs"])


def test_startup_deadline(tmp_path: Path) -> None:
    slow = pool(tmp_path, config={"slow_start": {0: 60}}, startup_deadline_s=0.3, max_restarts=1)
    with pytest.raises(WorkerLostError, match=r"deadline of 0\.3 s while it started"):
        run(slow, [job("a")])


@pytest.mark.parametrize(("what", "starts"), [("InputError", 1), ("EngineError", 3)])
def test_factory_that_fails(tmp_path: Path, what: str, starts: int) -> None:
    seen = Recorder()
    broken = pool(tmp_path, config={"fail_start": what}, max_restarts=2)
    with pytest.raises(EngineError if what == "EngineError" else InputError, match="no such"):
        broken.run(ListSource([job("a")]), **seen.callbacks())
    assert seen.count("starting") + seen.count("restarted") == starts
    assert seen.failures == {}


@pytest.mark.parametrize(
    "name", ["tests.toys.cluster", "tests.toys.cluster:nothing", "no_such_module:f"]
)
def test_factory_name(name: str) -> None:
    with pytest.raises((InputError, EngineError), match=name.split(":")[0]):
        JobPool(name, max_restarts=0).run(ListSource([job("a")]))


def test_a_worker_that_only_fails_is_given_up(tmp_path: Path) -> None:
    """The last one has more chances than others, not endlessly many."""
    seen = Recorder()
    jobs = ListSource([job(f"p{i}", "kill") for i in range(9)])
    with pytest.raises(WorkerLostError, match="SIGKILL"):
        pool(tmp_path, max_restarts=1, max_given_up=3).run(jobs, **seen.callbacks())
    assert seen.count("lost") == 4
    assert seen.count("parked") == 1


def test_stop_lets_the_running_job_end(tmp_path: Path) -> None:
    seen = Recorder()
    started: list[float] = []

    def stop() -> bool:
        if seen.count("ready") and not started:
            started.append(time.monotonic())
        return bool(started)

    slow = pool(tmp_path, config={"flush_every": 10})
    jobs = [job(f"s{i}", "sleep", s=0.5) for i in range(9)]
    assert slow.run(ListSource(jobs), should_stop=stop, **seen.callbacks()) == "stopped"
    assert seen.committed == ["s0"]
    assert seen.flushes == [(0, 1)]
    assert (tmp_path / "closed-0").exists()


def test_hard_stop_kills(tmp_path: Path) -> None:
    seen = Recorder()
    started = time.monotonic()
    outcome = pool(tmp_path).run(
        ListSource([job("hangs", "sleep", s=60)]),
        should_stop=lambda: Stop.NOW if seen.count("ready") else Stop.NO,
        **seen.callbacks(),
    )
    assert outcome == "stopped"
    assert time.monotonic() - started < 5
    assert (seen.results, seen.committed, seen.failures) == ({}, [], {})


def test_buffered_results_are_done_again(tmp_path: Path) -> None:
    """Of five results the worker had written three when it died; the other two are done again."""
    jobs = [job(f"j{i}") for i in range(5)]
    jobs += [job("boom", "kill", once=str(tmp_path / "mark")), job("last")]
    outcome, seen = run(pool(tmp_path, config={"flush_every": 3}), jobs)
    assert outcome == "done"
    assert {k: len(v) for k, v in seen.results.items()} == {
        **{f"j{i}": 1 for i in range(3)},
        "j3": 2,
        "j4": 2,
        "boom": 1,
        "last": 1,
    }
    assert sorted(seen.committed) == sorted(j.id for j in jobs)
    assert len(seen.committed) == len(set(seen.committed))
    assert all((tmp_path / j.id).exists() for j in jobs)


def test_flush_that_fails_fails_its_jobs(tmp_path: Path) -> None:
    """The results' folder is gone: nothing is reported as durable, and the run ends."""
    out = tmp_path / "gone"
    outcome, seen = run(pool(out, config={"flush_every": 99}), [job("a"), job("b")])
    assert (outcome, seen.committed) == ("done", [])
    assert set(seen.failures) == {"a", "b"}
    assert "FileNotFoundError" in str(seen.failures["a"])


def test_environment_per_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOY_LEAK", "1")
    env = {"TOY_OWN": "5", "TOY_LEAK": None}
    for name, expected in (("TOY_OWN", "'5'"), ("TOY_LEAK", "None")):
        run(pool(tmp_path, env=lambda index: env), [job("a", "env", name=name)])
        assert (tmp_path / "env").read_text() == expected
    assert os.environ["TOY_LEAK"] == "1"


def test_payload_that_cannot_be_pickled(tmp_path: Path) -> None:
    jobs = [job("a"), Job("bad", lambda: None), job("b")]
    outcome, seen = run(pool(tmp_path), jobs)
    assert (outcome, sorted(seen.committed)) == ("done", ["a", "b"])
    assert "cannot be pickled" in str(seen.failures["bad"])


def test_jobs_made_from_results(tmp_path: Path) -> None:
    """A source may give None now and a job later, as long as something is under way."""

    class Chain(ListSource):
        def __init__(self) -> None:
            self.ready = [job("first")]

        def next(self, worker_index: int) -> Job | None:
            return self.ready.pop() if self.ready else None

    chain = Chain()
    committed: list[str] = []

    def on_committed(done: Job) -> None:
        committed.append(done.id)
        if len(committed) < 4:
            chain.ready.append(job(f"next{len(committed)}"))

    assert pool(tmp_path, workers=2).run(chain, on_committed=on_committed) == "done"  # type: ignore[arg-type]
    assert committed == ["first", "next1", "next2", "next3"]


@pytest.mark.parametrize(("more", "text"), [({"workers": 0}, "workers"), ({"backend": "x"}, "ray")])
def test_wrong_arguments(more: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        JobPool("a:b", **more)


def test_idle_worker_takes_what_a_starting_one_would_get(tmp_path: Path) -> None:
    """A worker that is slow to start (or whose actor finds no room) delays nobody."""
    seen = Recorder()
    started = time.monotonic()
    slow = pool(tmp_path, workers=2, config={"slow_start": {1: 60}})
    jobs = [job("a"), job("b")]
    assert slow.run(ListSource(jobs), **seen.callbacks()) == "done"
    assert sorted(seen.committed) == ["a", "b"]
    assert time.monotonic() - started < 10


def test_copies_that_libraries_bring_along_do_not_go_before_what_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    brought = next(p for p in Path(sysconfig.get_path("purelib")).iterdir() if p.is_dir())
    monkeypatch.setattr(sys, "path", [*sys.path, str(brought), str(tmp_path)])
    entries = worker_path().split(os.pathsep)
    assert str(tmp_path) in entries
    assert str(brought.resolve()) not in entries

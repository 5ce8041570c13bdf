"""A failure costs what it is of, and no more: real pool and worker, stub engine (tests/toys)."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from evalcore.cluster import Job
from evalcore.errors import EngineError, ResultsError
from evalcore.scoring.localising import folders_of, unseen
from evalcore.types import Adapter, Checkpoint, Subject
from tests.toys.scoring import ROWS_PER_UNIT, Run, unit_job, write_requests

Env = Callable[[int], dict[str, str]]


@pytest.fixture(scope="module")
def requests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_requests(tmp_path_factory.mktemp("requests") / "requests.arrow")


def good(requests: Path, count: int, name: str = "good") -> list[Job]:
    return [unit_job(requests, name, i) for i in range(count)]


@pytest.mark.parametrize(
    ("deed", "starts"),
    [
        ("load:ProofError", 3),
        ("load:RuntimeError", 3),
        ("score:EngineError", 3),
        ("die:", 3),
        ("load:SubjectError", 1),
        ("load:InputError", 2),
    ],
)
def test_a_sick_subject_costs_only_itself(
    requests: Path, tmp_path: Path, deed: str, starts: int
) -> None:
    """25 units of it first, then 30 good ones, one worker: two engine starts more at most."""
    sick = [unit_job(requests, f"{deed}:sick", i) for i in range(25)]
    run = Run(tmp_path)(sick + good(requests, 30))
    assert run.outcome == "done"
    assert sorted(run.committed) == sorted(job.id for job in good(requests, 30))
    assert set(run.failures) == {job.id for job in sick}
    assert len({str(error) for error in run.failures.values()}) == 1, "one line"
    assert run.starts <= starts
    assert max(run.runs.values()) == 1, "nothing good is scored twice"


def test_many_sick_subjects_of_one_folder_ask_for_a_second_opinion_once(
    requests: Path, tmp_path: Path
) -> None:
    """One worker: what is malformed is tried again in one fresh process, after all the rest."""
    sick = [unit_job(requests, f"load:InputError:{i}", 0, kin="/adapters") for i in range(12)]
    run = Run(tmp_path)(sick[:6] + good(requests, 5) + sick[6:])
    assert (run.outcome, len(run.committed), len(run.failures)) == ("done", 5, 12)
    assert run.starts == 2


def test_subjects_that_take_workers_down_do_not_end_the_run(requests: Path, tmp_path: Path) -> None:
    """More in a row than a worker is restarted: the last one goes on, up to the good ones."""
    sick = [unit_job(requests, f"die::{i}", 0) for i in range(5)]
    run = Run(tmp_path, max_restarts=2)(sick + good(requests, 5))
    assert (run.outcome, len(run.committed), len(run.failures)) == ("done", 5, 5)


@pytest.mark.parametrize(("variable", "blind"), [("TOY_BLIND", {3}), ("TOY_START", {2, 3})])
def test_a_blind_worker_fails_nothing(
    requests: Path, tmp_path: Path, variable: str, blind: set[int]
) -> None:
    """One of four does not see the checkpoints, or two have devices that do not work."""

    def env(index: int) -> dict[str, str]:
        return {"TOY_UNIT_S": "0.05", **({variable: "1"} if index in blind else {})}

    jobs = [unit_job(requests, f"good{i % 16}", i) for i in range(80)]
    run = Run(tmp_path, workers=4, env=env, max_restarts=1)(jobs)
    assert (run.outcome, run.failures) == ("done", {})
    assert len(set(run.committed)) == len(run.committed) == 80
    assert run.on_disk() == 80
    assert set(run.given_up) <= blind


def test_a_worker_that_fails_while_others_succeed_is_named(requests: Path, tmp_path: Path) -> None:
    def env(index: int) -> dict[str, str]:
        return {"TOY_BLIND": "1"} if index == 1 else {"TOY_UNIT_S": "0.1"}

    jobs = [unit_job(requests, f"good{i}", i) for i in range(40)]
    run = Run(tmp_path, workers=2, env=env)(jobs)
    assert (run.outcome, run.failures, len(run.committed)) == ("done", {}, 40)
    assert list(run.given_up) == [1]
    assert "no such folder" in run.given_up[1]
    assert (1, "parked") in run.states


def test_what_a_machine_does_not_see_is_told_before_its_first_unit(
    requests: Path, tmp_path: Path
) -> None:
    names = [str(tmp_path / name) for name in ("here", "gone", "gone too")]
    (tmp_path / "here").mkdir()
    run = Run(tmp_path / "results", config={"folders": tuple(names)})(good(requests, 3))
    ((index, _, what),) = run.trouble
    assert (index, len(run.committed)) == (0, 3)
    assert what.startswith(
        f"before the first unit: does not see {names[1]} and 1 more of 3 folders"
    )
    assert unseen(names[:1]) == unseen(()) == ()


def test_folders_of_subjects_are_those_nobody_fetches() -> None:
    local = Checkpoint("a", "/mnt/study/a", "1" * 32, "2" * 32)
    away = Checkpoint("b", "/cache/b", "3" * 32, "2" * 32, origin="org/b@main")
    tuned = Adapter("t", "/mnt/runs/t", "4" * 32, 8)
    subjects = [Subject(local), Subject(away, tuned), Subject(local, tuned)]
    assert folders_of(subjects) == ("/mnt/study", "/mnt/runs")


def test_no_worker_can_start(requests: Path, tmp_path: Path) -> None:
    """Nothing is failed for good: the next run, on a better machine, tries all of it."""
    run = Run(tmp_path, env={"TOY_START": "1"}, max_restarts=1, max_given_up=2)
    with pytest.raises(EngineError, match="does not work"):
        run([unit_job(requests, f"good{i}", i) for i in range(9)])
    assert (run.committed, run.failures) == ([], {})
    assert run.starts == 3


def test_a_results_folder_that_is_gone_ends_the_run(requests: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    run = Run(results, env={"TOY_UNIT_S": "0.05"}, workers=2)
    began = time.monotonic()

    def stop() -> bool:
        if len(run.committed) >= 5:
            shutil.rmtree(results / "segments", ignore_errors=True)
        return False

    with pytest.raises(ResultsError, match="cannot write results"):
        run([unit_job(requests, "good", i) for i in range(5000)], stop)
    assert run.failures == {}
    assert time.monotonic() - began < 60
    assert len(run.runs) < 100, "at once"


@pytest.mark.parametrize("deed", ["row:InputError", "row:ValueError"])
def test_a_bad_row_costs_itself(tmp_path: Path, deed: str) -> None:
    requests = write_requests(tmp_path / "requests.arrow", bad=(7,))
    jobs = [unit_job(requests, "good", 0), *(unit_job(requests, deed, i) for i in range(4))]
    run = Run(tmp_path / "results")(jobs)
    assert run.outcome == "done"
    assert run.rows_written() == 5 * ROWS_PER_UNIT - 1
    assert len(run.failures) == 1


def test_a_unit_too_large_for_memory_is_halved(requests: Path, tmp_path: Path) -> None:
    run = Run(tmp_path)([unit_job(requests, "big:4", i) for i in range(2)])
    assert (run.outcome, run.failures, run.starts) == ("done", {}, 1)
    assert run.on_disk() == 2


def test_what_was_done_is_committed_before_a_living_worker_is_restarted(
    requests: Path, tmp_path: Path
) -> None:
    jobs = [*good(requests, 10), unit_job(requests, "score:RuntimeError:x", 0, tmp_path / "mark")]
    run = Run(tmp_path / "results", commit_every_s=1e9)([*jobs, *good(requests, 3, "more")])
    assert (run.outcome, run.failures, len(run.committed)) == ("done", {}, 14)
    assert max(run.runs.values()) == 1
    assert run.starts == 2


def test_a_worker_that_fails_one_subject_only_fails_nothing(requests: Path, tmp_path: Path) -> None:
    def env(index: int) -> dict[str, str]:
        return {"TOY_BLIND_TO": "fine", "TOY_UNIT_S": "0.05"} if index == 0 else {}

    jobs = [unit_job(requests, name, i) for i in range(15) for name in ("fine", "good")]
    run = Run(tmp_path, workers=2, env=env)(jobs)
    assert (run.outcome, run.failures) == ("done", {})
    assert len(set(run.committed)) == len(run.committed) == 30
    assert set(run.given_up) <= {0}


def test_units_that_no_memory_holds_fail_alone_and_soon(requests: Path, tmp_path: Path) -> None:
    jobs = [unit_job(requests, "big:0", i) for i in range(6)]
    run = Run(tmp_path)([*jobs, *good(requests, 6)])
    assert run.outcome == "done"
    assert len(run.committed) == 6
    assert run.failures
    assert all("out of memory" in str(error) for error in run.failures.values())
    assert run.starts <= 3
    tried = sum(run.runs.values())
    assert tried == 6, "nothing that was done is done again"

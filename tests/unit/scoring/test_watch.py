"""What a run tells whoever watches: counts, events, and progress files read from anywhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from evalcore.app.status import status
from evalcore.checked import write_json
from evalcore.cluster import Job
from evalcore.errors import InputError, ResultsError, SubjectError
from evalcore.planning import Plan, PlanCounts
from evalcore.scoring import UnitReport, Watch, watch
from evalcore.store import ResultStore, read_progress
from tests.toys.scoring import unit_job, write_requests


def plan_of(jobs: list[Job]) -> Plan:
    units = tuple(job.payload.unit for job in jobs)
    cells: dict[str, Any] = {
        part.cell_key: SimpleNamespace(task=SimpleNamespace(name="toy"), subject=unit.subject)
        for unit in units
        for part in unit.slices
    }
    rows = sum(unit.num_examples for unit in units)
    return Plan(units, PlanCounts(1, 1, len(cells), len(cells), len(units), rows, 7, 9, 1), cells)


def jobs_of(tmp_path: Path) -> list[Job]:
    requests = write_requests(tmp_path / "requests.arrow")
    return [unit_job(requests, name, i) for i, name in enumerate(("one", "one", "two", "two"))]


def report(job: Job) -> UnitReport:
    return UnitReport(job.id, examples=5, computed_tokens=30, wall_s=0.1)


def run_some(told: Watch, jobs: list[Job]) -> None:
    """Two units are done, one of them committed; one fails; a worker is lost."""
    told.planned(plan_of(jobs))
    told.worker(0, "starting")
    told.begun(0, "node-a", jobs[0])
    told.scored(jobs[0], report(jobs[0]))
    told.committed(jobs[0], report(jobs[0]))
    told.begun(0, "node-a", jobs[1])
    told.scored(jobs[1], report(jobs[1]))
    told.failure(jobs[2], SubjectError("weights of two are not finite"))
    told.begun(1, "node-b", jobs[3])
    told.worker(1, "lost")
    told.given_up(1, "node-b", "it only fails")
    told.stop("SIGTERM")


def test_a_run_is_told_while_it_lasts_and_when_it_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "WRITE_EVERY_S", 0.05)
    results, jobs = tmp_path / "results", jobs_of(tmp_path)
    ResultStore(results)
    log = tmp_path / "events.jsonl"
    with Watch("run-1", results, log, {"shard": "0/2"}) as told:
        run_some(told, jobs)
        ends = time.monotonic() + 30
        while "stopping" not in str(status(results)) and time.monotonic() < ends:
            time.sleep(0.05)
        (seen,) = read_progress(results).runs
        assert (seen.life, seen.record["left"]) == ("running", 10)
        lines = "\n".join(status(results).lines())
        assert "5 of 20 examples committed (25 %), 5 cannot be scored; 7 were there" in lines
        assert "shard 0/2" in lines
        assert "worker 0 on node-a: waiting" in lines
        assert "checkpoint one: 5 of 10" in lines
        assert "checkpoint two: 0 of 10, 5 failed" in lines
        assert "task toy: 5 of 20, 5 failed" in lines
        assert "worker 1 on node-b gets no more work: it only fails" in lines
        assert "not scored: two (5): weights of two are not finite" in lines
        assert "stopping (SIGTERM)" in lines
        told.end(75, "stopped (SIGTERM)")
    (line,) = [line for line in status(results).lines() if "ended" in line]
    assert "with status 75: stopped (SIGTERM)" in line
    events = [json.loads(line) for line in log.read_text().splitlines()]
    assert [event["event"] for event in events] == [
        "start", "plan", "worker", "unit", "committed", "unit", "failure", "worker", "parked",
        "stop", "end",
    ]  # fmt: skip
    assert {event["run"] for event in events} == {"run-1"}
    failure = next(event for event in events if event["event"] == "failure")
    assert failure["scope"] == "subject"
    assert not list((results / "progress").glob(".*")), "no temporary file is left"


def test_time_left_is_never_negative(tmp_path: Path) -> None:
    """A plan's rows may be committed by more units than were planned."""
    jobs, told = jobs_of(tmp_path), Watch()
    told.planned(plan_of(jobs))
    for job in [*jobs, *jobs]:
        told.scored(job, report(job))
        told.committed(job, report(job))
        record = told.record()
        assert record["left"] >= 0
        assert record["left_s"] is None or record["left_s"] >= 0


def test_an_error_is_the_last_word(tmp_path: Path) -> None:
    ResultStore(tmp_path)
    with pytest.raises(ResultsError), Watch("run", tmp_path):
        raise ResultsError("no room")
    assert "with status 74: no room" in str(status(tmp_path))
    with pytest.raises(ZeroDivisionError), Watch("run", tmp_path):
        raise ZeroDivisionError("division")
    assert "with status 1: broke off: division" in str(status(tmp_path))


def test_nothing_is_created_for_a_wrong_command(tmp_path: Path) -> None:
    with pytest.raises(InputError), Watch("run", tmp_path / "results"):
        raise InputError("wrong")
    assert not (tmp_path / "results").exists()
    with pytest.raises(InputError, match="no results there"):
        status(tmp_path / "results")


@pytest.mark.parametrize("fault", ["slow", "full"])
def test_a_disk_that_is_slow_or_full_does_not_hold_up_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    def write(path: Path, record: object) -> None:
        if fault == "full":
            raise OSError(28, "No space left on device")
        time.sleep(30)

    jobs = jobs_of(tmp_path)
    monkeypatch.setattr("evalcore.store.progress.write_json", write)
    monkeypatch.setattr(watch, "CLOSE_S", 0.2)
    monkeypatch.setattr(watch, "WRITE_EVERY_S", 0.05)
    ResultStore(tmp_path / "results")
    began = time.monotonic()
    with Watch("run", tmp_path / "results", tmp_path / "log") as told:
        run_some(told, jobs)
        told.end(0, "done")
    assert time.monotonic() - began < 15


def test_a_log_that_cannot_be_written_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        Watch("run", None, tmp_path / "nowhere" / "log")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="a pipe"):
        Watch("run", None, tmp_path / "pipe")


KILLED = """
import os, sys
from pathlib import Path
from evalcore.scoring import Watch
told = Watch("killed", Path(sys.argv[1]))
told._write_file()
os.kill(os.getpid(), 9)
"""


def test_a_run_that_was_killed_is_told_from_one_that_lives(tmp_path: Path) -> None:
    ResultStore(tmp_path)
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    (seen,) = read_progress(tmp_path).runs
    assert seen.life == "dead"
    assert "dead without a last word" in str(status(tmp_path))
    own = Watch("lives", tmp_path)
    own._write_file()
    assert [s.life for s in read_progress(tmp_path).runs] == ["dead", "running"]
    path = tmp_path / "progress" / "lives.checked.json"
    record = dict(read_progress(tmp_path).runs[1].record)
    write_json(path, record | {"process_start": "1"})  # its number was given to another process
    assert read_progress(tmp_path).runs[1].life == "dead"
    write_json(path, record | {"machine": "another"})
    assert read_progress(tmp_path).runs[1].life == "running"
    os.utime(path, (0, time.time() - 100))
    assert read_progress(tmp_path).runs[1].life == "silent"
    os.utime(path, (0, time.time() + 1000))  # a file server's clock that is ahead
    (_, ahead) = read_progress(tmp_path).runs
    assert (ahead.life, ahead.age_s) == ("running", 0.0)


def test_a_damaged_file_is_named_and_never_a_crash(tmp_path: Path) -> None:
    jobs = jobs_of(tmp_path)
    ResultStore(tmp_path)
    told = Watch("run", tmp_path)
    run_some(told, jobs)
    told._write_file()
    path = tmp_path / "progress" / "run.checked.json"
    whole = path.read_bytes()
    for at in range(0, len(whole), 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        assert "left out" in str(status(tmp_path))
        path.write_bytes(whole[:at])
        assert "left out" in str(status(tmp_path))
    for odd in ({"a": 1}, {"ended": "yes"}, {"planned": None, "phase": "scoring", "workers": 3}):
        write_json(path, odd)
        assert "another version" in str(status(tmp_path))
        json.dumps(status(tmp_path).as_record())


def test_files_of_long_ago_are_removed_by_a_later_run(tmp_path: Path) -> None:
    ResultStore(tmp_path)
    for name, age_s in (("old", 8 * 86400), ("young", 3600)):
        Watch(name, tmp_path)._write_file()
        path = tmp_path / "progress" / f"{name}.checked.json"
        os.utime(path, (0, time.time() - age_s))
    Watch("new", tmp_path)._write_file()
    assert {s.record["run"] for s in read_progress(tmp_path).runs} == {"young", "new"}


def test_a_run_with_nothing_to_do_says_what_is_there(tmp_path: Path) -> None:
    ResultStore(tmp_path)
    with Watch("run-1", tmp_path) as told:
        told.planned(Plan((), PlanCounts(1, 1, 2, 0, 0, 0, 1240, 0, 0), {}))
        told.end(0, "done")
    said = "\n".join(status(tmp_path).lines())
    assert "nothing to do: all 1,240 examples were there already" in said
    assert "at least" not in said
    with Watch("run-2", tmp_path) as told:
        told.end(2, "wrong")
    said = "\n".join(status(tmp_path).lines())
    assert "nothing was planned" in said
    assert "at least" not in said

"""What nobody plans: drivers and workers killed from outside, signals to everybody, Ray actors."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.strikes import alive
from evalcore.cluster import JobPool, ListSource, Patience
from tests.toys.cluster import Recorder, job

DRIVER = """
import sys
from tests.toys.cluster import job
from evalcore.cluster import JobPool, ListSource, StopSignals

committed = []
with StopSignals() as stop:
    pool = JobPool("tests.toys.cluster:make_worker", {config!r}, workers={workers})
    source = ListSource([job(f"j{{i}}", {op!r}, s=0.3) for i in range(200)])
    outcome = pool.run(source, should_stop=stop, on_committed=lambda j: committed.append(j.id))
print(outcome, stop.reason, ",".join(committed))
sys.exit(75 if outcome == "stopped" else 0)
"""


def start_driver(out: Path, op: str, workers: int = 2, **config: Any) -> subprocess.Popen[str]:
    code = DRIVER.format(config={"out": str(out), **config}, workers=workers, op=op)
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True
    )


def wait_until(condition: Callable[[], bool], timeout_s: float = 15.0) -> None:
    ends = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < ends, "waited too long"
        time.sleep(0.02)


def family(out: Path, workers: int) -> list[int]:
    """Pids of the workers, their guards and their grandchildren, once all have said them."""
    notes = [out / f"pids-{i}" for i in range(workers)]
    wait_until(lambda: all(note.exists() for note in notes))
    return [int(pid) for note in notes for pid in note.read_text().split()]


def test_killed_driver_leaves_no_orphans(tmp_path: Path) -> None:
    driver = start_driver(tmp_path, "nest")
    pids = family(tmp_path, 2)
    assert len(pids) == 6
    assert all(alive(pid) for pid in pids)
    driver.kill()
    driver.wait()
    wait_until(lambda: not any(alive(pid) for pid in pids), timeout_s=5)


@pytest.mark.parametrize("victim", [0, 1], ids=["worker", "guard"])
def test_worker_killed_from_outside(tmp_path: Path, victim: int) -> None:
    """Its job is done again, what it had started is gone, whichever of its processes was hit."""
    seen = Recorder()
    callbacks = seen.callbacks()
    killed: list[int] = []

    def strike() -> bool:
        if not killed and (tmp_path / "pids-0").exists():
            killed.extend(family(tmp_path, 1))
            os.kill(killed[victim], signal.SIGKILL)
        return False

    jobs = [job("a"), job("b", "nest", once=str(tmp_path / "mark")), job("c")]
    pool = JobPool("tests.toys.cluster:make_worker", {"out": str(tmp_path)})
    assert pool.run(ListSource(jobs), should_stop=strike, **callbacks) == "done"
    assert sorted(seen.committed) == ["a", "b", "c"]
    assert seen.count("lost") == 1
    assert not any(alive(pid) for pid in killed)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_signal_to_everybody_stops_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    """A batch system signals every process of a job: the running job still ends and is kept."""
    driver = start_driver(tmp_path, "sleep", workers=1, flush_every=1000)
    wait_until(lambda: len(descendants(driver.pid)) == 2)
    time.sleep(0.5)  # in the second job or so
    for pid in (driver.pid, *descendants(driver.pid)):
        os.kill(pid, number)
    output, _ = driver.communicate(timeout=10)
    outcome, reason, committed = output.strip().split(" ")
    assert (driver.returncode, outcome, reason) == (75, "stopped", number.name)
    assert committed
    assert all((tmp_path / name).exists() for name in committed.split(","))


def descendants(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            found += [int(child), *descendants(int(child))]
    return found


def test_second_interrupt_kills(tmp_path: Path) -> None:
    driver = start_driver(tmp_path, "nest", workers=1)
    pids = family(tmp_path, 1)
    driver.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert driver.poll() is None, "the first one waits for the running job"
    driver.send_signal(signal.SIGINT)
    output, _ = driver.communicate(timeout=10)
    assert output.startswith("stopped SIGINT")
    assert not any(alive(pid) for pid in pids)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_every_job_is_accounted_for_once(tmp_path: Path, seed: int) -> None:
    """Random trouble on three buffering workers: committed if on disk, failed if it must."""
    draw = random.Random(seed)
    jobs, must_fail = [], set()
    for i in range(40):
        once = {"once": str(tmp_path / f"mark-{i}")} if draw.random() < 0.5 else {}
        op = draw.choice(["double"] * 8 + ["kill", "raise"])
        what = draw.choice(["InputError", "ProofError", "ValueError"])
        jobs.append(job(f"j{i}", op, what=what, **once))
        if op != "double" and not once:  # whatever happens once only is good at the second try
            must_fail.add(f"j{i}")
    seen = Recorder()
    config = {"out": str(tmp_path), "flush_every": draw.randint(2, 9)}
    pool = JobPool("tests.toys.cluster:make_worker", config, workers=3, max_restarts=50)
    assert pool.run(ListSource(jobs), **seen.callbacks()) == "done"
    assert set(seen.failures) == must_fail
    assert sorted(seen.committed) == sorted({j.id for j in jobs} - must_fail)
    assert all((tmp_path / name).exists() for name in seen.committed)


@pytest.fixture(scope="module")
def ray_session() -> Any:
    """One local Ray for the module; the pool uses a Ray that is there."""
    ray = pytest.importorskip("ray")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()


def ray_pool(out: Path, workers: int = 2, **more: Any) -> JobPool:
    config = {"out": str(out), **more.pop("config", {})}
    return JobPool("tests.toys.cluster:make_worker", config, workers=workers, backend="ray", **more)


@pytest.mark.slow
def test_ray_actors_one_killed(tmp_path: Path, ray_session: Any) -> None:
    """The same jobs, the same answers; a killed actor's job and its uncommitted ones again."""
    jobs = [job(f"j{i}", value=i) for i in range(20)]
    jobs += [job("boom", "kill", once=str(tmp_path / "mark")), job("poison", "kill")]
    jobs += [job("wrong", "raise", what="FussyError"), job("bug", "raise", what="ValueError")]
    seen = Recorder()
    pool = ray_pool(tmp_path, config={"flush_every": 7}, log_dir=tmp_path / "logs")
    assert pool.run(ListSource(jobs), **seen.callbacks()) == "done"
    assert sorted(seen.committed) == sorted([*(f"j{i}" for i in range(20)), "boom"])
    assert all((tmp_path / name).exists() for name in seen.committed)
    assert {k: v[-1][1] for k, v in seen.results.items() if k[0] == "j"} == {
        f"j{i}": 2 * i for i in range(20)
    }
    assert {k: type(e).__name__ for k, e in seen.failures.items()} == {
        "poison": "WorkerLostError",
        "wrong": "InputError",
        "bug": "EngineError",
    }
    assert "something terrible" in str(seen.failures["poison"])
    assert ray_session.is_initialized(), "a Ray that was there is left as it is"


@pytest.mark.slow
def test_ray_deadline_stop_and_environment(tmp_path: Path, ray_session: Any) -> None:
    seen = Recorder()
    jobs = [job("env", "env", name="TOY"), job("hangs", "sleep", s=60)]
    pool = ray_pool(tmp_path, workers=1, deadline_s=0.5, env={"TOY": "7"})
    assert pool.run(ListSource(jobs), **seen.callbacks()) == "done"
    assert (tmp_path / "env").read_text() == "'7'"
    assert "missed its deadline" in str(seen.failures["hangs"])

    seen = Recorder()
    jobs = [job(f"s{i}", "sleep", s=0.5) for i in range(20)]
    outcome = ray_pool(tmp_path, workers=1).run(
        ListSource(jobs), should_stop=lambda: bool(seen.count("ready")), **seen.callbacks()
    )
    assert (outcome, seen.committed) == ("stopped", ["s0"])


@pytest.mark.slow
def test_ray_actors_show_progress(tmp_path: Path, ray_session: Any) -> None:
    """One that moves is left alone, one that hangs is found, on Ray as with child processes."""
    seen = Recorder()
    jobs = [job("a"), job("moves", "tick", s=5), job("hangs", "sleep", s=600)]
    patience = Patience(floor_s=4.0, start_s=4.0, flush_s=4.0)
    pool = ray_pool(tmp_path, workers=1, patience=patience)
    assert pool.run(ListSource(jobs), **seen.callbacks()) == "done"
    assert sorted(seen.committed) == ["a", "moves"]
    assert "made no progress for 4 s in job hangs" in str(seen.failures["hangs"])


@pytest.mark.slow
def test_ray_of_our_own_keeps_our_signal_handlers(tmp_path: Path) -> None:
    """Started and stopped by the pool, in a process that has none; SIGTERM still stops the run."""
    code = DRIVER.replace("workers={workers}", "workers=2, backend='ray'").format(
        config={"out": str(tmp_path)}, op="sleep"
    )
    driver = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_until(lambda: (tmp_path / "j0").exists(), timeout_s=60)
    driver.send_signal(signal.SIGTERM)
    output, noise = driver.communicate(timeout=30)
    assert driver.returncode == 75, noise
    assert output.startswith("stopped SIGTERM j")
    assert noise == "", "quiet"

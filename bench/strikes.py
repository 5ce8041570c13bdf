"""Runs of the command line that are struck in their middle: what can be done to one, and the doing.

Used by :mod:`bench.chaos` and by tests.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.raylets import Raylets

LOCAL = ("driver", "worker", "both", "pause", "SIGTERM", "SIGINT", "SIGINT twice", "time limit")
"""What is done to a run on child processes, with any engine."""
WRITES = ("driver write", "worker write")
"""The process is killed at something it does to a file; the stub engine's module does it."""
ON_RAY = ("node", "actor", "driver on Ray", "SIGTERM on Ray")
"""What is done to a run on a Ray cluster of two raylets."""
LOSES = ("worker", "both", "SIGINT twice", "driver write", "worker write", "node", "actor")
"""What may lose the news of a commit that is on disk already."""
ENGINES = {"hf": LOCAL, "vllm": LOCAL, "stub": (*LOCAL, *WRITES, *ON_RAY)}
END_S = 600.0
STOPPED = 75


@dataclass(frozen=True)
class Asked:
    """How a grid is scored; the numbers that differ from run to run.

    Attributes:
        workers: Engines at a time.
        unit: Examples of a unit, at most.
        commit_every: Seconds between commits.
        shard: Part of the grid, as ``0/2``.
        time_limit: Seconds.
        limit: Documents of a task.
        tasks: What is asked.
    """

    workers: int = 1
    unit: int = 8
    commit_every: float = 0.0
    shard: str | None = None
    time_limit: float | None = None
    limit: int = 12
    tasks: str = "pocket_nli"

    def command(self, grid: Path, out: Path, engine: str) -> list[str]:
        """A grid of several subjects, in many small units; events are told beside the results."""
        module = "bench.stub" if engine == "stub" else "evalcore"
        command = [
            sys.executable, "-m", module, "score", str(grid / "adapters"), "-o", str(out),
            "-t", self.tasks, "-p", "default,io", "--limit", str(self.limit),
            "--engine", "hf" if engine == "stub" else engine, "--threads", "1",
            "--workers", str(self.workers), "--unit-examples", str(self.unit),
            "--commit-every", str(self.commit_every), "--stop-grace", "20",
            "--log-json", str(events_of(out))
        ]  # fmt: skip
        command += [] if self.shard is None else ["--shard", self.shard]
        return command + ([] if self.time_limit is None else ["--time-limit", str(self.time_limit)])


def events_of(out: Path) -> Path:
    """Where runs into a folder tell their events."""
    return out.with_name(f"{out.name}.events.jsonl")


def segments(out: Path) -> int:
    """Commits so far."""
    return len(list((out / "segments").glob("[!.]*.arrow")))


def happened(out: Path, what: str) -> int:
    """Commits (``commits``) or units scored (``units``) of all runs so far."""
    if what == "commits":
        return segments(out)
    told = events_of(out)
    return told.read_bytes().count(b'"event": "unit"') if told.exists() else 0


def descendants(pid: int) -> list[int]:
    """All processes below one."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in task.read_text().split():
                found += [int(child), *descendants(int(child))]
    return found


def alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has reaped yet does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rsplit(")", 1)[1].split()[0] not in "ZX"


def engine_process(pid: int) -> int | None:
    """The worker that has the most memory below a driver."""

    def pages(child: int) -> int:
        try:
            return int(Path(f"/proc/{child}/statm").read_text().split()[1])
        except OSError:
            return 0

    return max(descendants(pid), key=pages, default=None)


def actors(cluster: Raylets) -> list[int]:
    """Processes of evalcore's actors on a cluster."""
    found = []
    for pid in descendants(cluster.process.pid):
        with contextlib.suppress(OSError):
            name = Path(f"/proc/{pid}/cmdline").read_bytes()
            if name.startswith((b"ray::RayWorker", b"ray::Mailbox")) and alive(pid):
                found.append(pid)
    return found


def strike(
    process: subprocess.Popen[bytes], deed: str, draw: random.Random, cluster: Raylets | None = None
) -> None:
    """Does it; where it leaves the driver alive, the driver is left to end by itself."""
    worker = engine_process(process.pid)
    if cluster is not None:
        mine = [pid for pid in actors(cluster) if b"RayWorker" in _name(pid)]
        worker = draw.choice(mine) if mine else None
    with contextlib.suppress(ProcessLookupError):
        if deed in ("worker", "both", "actor") and worker is not None:
            os.kill(worker, signal.SIGKILL)
        if deed in ("driver", "both", "driver on Ray"):
            process.kill()
        if deed == "node" and cluster is not None:
            cluster.kill()
        if deed == "pause" and worker is not None:
            os.kill(worker, signal.SIGSTOP)
            time.sleep(draw.uniform(0.5, 5.0))
            os.kill(worker, signal.SIGCONT)
        if deed.startswith("SIG"):
            process.send_signal(getattr(signal, deed.split()[0]))
            if deed.endswith("twice"):
                time.sleep(draw.uniform(0.0, 1.0))
                process.send_signal(signal.SIGINT)


def _name(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def disturbed(
    grid: Path, out: Path, asked: Asked, engine: str, deed: str, draw: random.Random,
    cluster: Raylets | None = None,
) -> dict[str, Any]:  # fmt: skip
    """One run with its strike; what was done and how it ended."""
    counted, wanted = draw.choice(["commits", "units"]), draw.randint(0, 8)
    begin, mark = happened(out, counted), out.with_name(f"{out.name}.mark")
    env: Mapping[str, str] = os.environ if cluster is None else cluster.env
    more = () if cluster is None else ("--cluster", "ray", "--ray-address", env["RAY_ADDRESS"])
    if deed in WRITES:
        mark.unlink(missing_ok=True)
        who = deed.split()[0]
        dies = f"{who}:{draw.randint(1, 60 if who == 'driver' else 24)}"
        env = {**env, "STUB_DIES": dies, "STUB_MARK": str(mark)}
    command = [*asked.command(grid, out, engine), *more]
    said = out.with_name(f"{out.name}.log")
    with said.open("ab") as sink:
        process = subprocess.Popen(command, stdout=sink, stderr=sink, env=env)
    ends = time.monotonic() + END_S
    while process.poll() is None and happened(out, counted) < begin + wanted:
        assert time.monotonic() < ends, "it neither commits nor ends"
        time.sleep(0.02)
    time.sleep(draw.uniform(0.0, 0.5))
    family = [process.pid, *descendants(process.pid)]
    by_itself = deed == "time limit" or deed in WRITES
    struck = process.poll() is None
    if struck and not by_itself:
        strike(process, deed, draw, cluster)
    status = process.wait(timeout=END_S)
    struck = mark.exists() if deed in WRITES else struck
    struck = status == STOPPED if deed == "time limit" else struck
    left = time.monotonic() + 30.0

    def orphans() -> int:
        there = sum(alive(pid) for pid in family)
        return there + (0 if cluster is None else len(actors(cluster)))

    while orphans() and time.monotonic() < left:
        time.sleep(0.1)
    if deed == "node" and cluster is not None and struck:
        cluster.add(num_cpus=1)
    return {
        "deed": deed, "workers": asked.workers, "unit": asked.unit, "shard": asked.shard,
        "commit_every": asked.commit_every, "struck": struck, "status": status,
        "orphans": orphans(), "segments": segments(out),
    }  # fmt: skip

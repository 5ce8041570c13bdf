"""A toy worker for the tests of the job pool: does what its payload says."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from evalcore import errors
from evalcore.cluster import Job, WorkerReply, pulse


class FussyError(errors.InputError):
    """Cannot be pickled: the constructor takes other arguments than the message."""

    def __init__(self, what: str, where: str) -> None:
        super().__init__(f"{what} in {where}")


class ToyWorker:
    """``config``: out (folder of committed results), flush_every (None: durable at once)."""

    def __init__(self, config: dict[str, Any], worker_index: int) -> None:
        self.index = worker_index
        self.out = Path(config["out"])
        self.flush_every = config.get("flush_every")
        self.buffer: list[str] = []
        if "fail_start" in config:
            raise getattr(errors, config["fail_start"])("cannot start: no such engine")
        time.sleep(config.get("slow_start", {}).get(worker_index, 0))
        print("a line on stdout that must not disturb the channel", flush=True)

    def run(self, payload: dict[str, Any]) -> Any:
        if first_time(payload):
            getattr(self, "do_" + payload["op"])(payload)
        result = (payload["id"], payload.get("value", 0) * 2, os.getpid())
        if self.flush_every is None:
            self.write([payload["id"]])
            return result
        self.buffer.append(payload["id"])
        done = self.buffer if len(self.buffer) >= self.flush_every else []
        if done:
            self.write(done)
            self.buffer = []
        return WorkerReply(result, tuple(done))

    def flush(self) -> int:
        self.write(self.buffer)
        count, self.buffer = len(self.buffer), []
        return count

    def close(self) -> None:
        (self.out / f"closed-{self.index}").touch()

    def write(self, ids: list[str]) -> None:
        for job_id in ids:
            (self.out / job_id).touch()

    def do_double(self, payload: dict[str, Any]) -> None:
        pass

    def do_kill(self, payload: dict[str, Any]) -> None:
        print("something terrible", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

    def do_exit(self, payload: dict[str, Any]) -> None:
        sys.exit(3)

    def do_sleep(self, payload: dict[str, Any]) -> None:
        time.sleep(payload["s"])

    def do_tick(self, payload: dict[str, Any]) -> None:
        ends = time.monotonic() + payload["s"]
        while time.monotonic() < ends:
            pulse.tick()
            time.sleep(0.1)

    def do_raise(self, payload: dict[str, Any]) -> None:
        if payload["what"] == "FussyError":
            raise FussyError("wrong value", "row 3")
        own = getattr(errors, payload["what"], None)
        raise (own or {"ValueError": ValueError}[payload["what"]])("it went wrong")

    def do_env(self, payload: dict[str, Any]) -> None:
        (self.out / "env").write_text(repr(os.environ.get(payload["name"])))

    def do_nest(self, payload: dict[str, Any]) -> None:
        """Starts a grandchild, tells both pids, and hangs."""
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        note = self.out / f"pids-{self.index}.part"
        note.write_text(f"{os.getpid()} {os.getppid()} {child.pid}")
        note.rename(self.out / f"pids-{self.index}")
        time.sleep(600)


def first_time(payload: dict[str, Any]) -> bool:
    """Whether the payload's deed is due: always, or only at the first try if it has a marker."""
    marker = payload.get("once")
    if marker is None:
        return True
    try:
        Path(marker).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def make_worker(config: dict[str, Any], worker_index: int) -> ToyWorker:
    return ToyWorker(config, worker_index)


def job(job_id: str, op: str = "double", **more: Any) -> Job:
    return Job(job_id, {"id": job_id, "op": op, **more})


def warm_up(folder: str) -> None:
    """Says which process it was called in."""
    (Path(folder) / f"warm-{os.getpid()}").touch()


class Recorder:
    """Keeps what a run reported."""

    def __init__(self) -> None:
        self.results: dict[str, list[Any]] = {}
        self.failures: dict[str, Exception] = {}
        self.committed: list[str] = []
        self.states: list[tuple[int, str]] = []
        self.flushes: list[tuple[int, Any]] = []

    def callbacks(self) -> dict[str, Any]:
        return {
            "on_result": lambda job, result: self.results.setdefault(job.id, []).append(result),
            "on_failure": self.on_failure,
            "on_committed": lambda job: self.committed.append(job.id),
            "on_worker": lambda index, state: self.states.append((index, state)),
            "on_flush": lambda index, result: self.flushes.append((index, result)),
        }

    def on_failure(self, failed: Job, error: Exception) -> None:
        assert failed.id not in self.failures, "a job fails once"
        self.failures[failed.id] = error

    def count(self, state: str) -> int:
        return sum(s == state for _, s in self.states)

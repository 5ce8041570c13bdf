"""What a run tells whoever watches: a progress file in the results, and a log of events.

A thread of its own writes both, so that a slow or full disk never holds up the loop; what cannot be
written is said once and left.
"""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import os
import queue
import socket
import stat
import threading
import time
from collections import Counter, deque
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from evalcore.cluster import ErrorInfo, Job
from evalcore.errors import EvalcoreError, InputError
from evalcore.planning import Plan, Unit
from evalcore.planning.joined import Joined
from evalcore.scoring.reports import UnitReport
from evalcore.store import ProgressFile
from evalcore.types import Cell

log = logging.getLogger("evalcore")

WRITE_EVERY_S = 5.0
CLOSE_S = 10.0  # longest that the end of a run waits for its last word to be written
RATE_OVER_S = 300.0
MOST_FAILURES = 50


class Watch:
    """Keeps count of a run, in the driver's thread, and tells it, in its own.

    Used as a context manager around the run; outside of one it only counts.

    Args:
        name: Of the run: start, host, process.
        results: The results folder; None: no progress file.
        log_json: File that gets a JSON line per event; None: none.
        about: What else the file says (shard, engine ...).

    Raises:
        InputError: ``log_json`` cannot be opened for appending.
    """

    def __init__(
        self,
        name: str = "",
        results: Path | None = None,
        log_json: Path | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        self.name = name
        self._file = None if results is None else ProgressFile(results, name)
        self._log = None if log_json is None else _open_log(log_json)
        self._events: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._began = time.monotonic()
        self._cells: Joined[Cell] = Joined()
        self._tasks: dict[str, dict[str, int]] = {}
        self._checkpoints: dict[str, dict[str, int]] = {}
        self._workers: dict[int, dict[str, Any]] = {}
        self._job_of: dict[int, tuple[str, float]] = {}
        self._failures: Counter[tuple[str, str]] = Counter()
        self._recent: deque[tuple[float, int]] = deque()
        self._thread = threading.Thread(target=self._tell, name="evalcore-watch", daemon=True)
        self._state: dict[str, Any] = {
            **(about or {}),
            "phase": "preparing",
            "beat": 0,
            "planned": 0,
            "covered": 0,
            "whole": False,
            "committed": 0,
            "failed": 0,
            "units": 0,
            "units_planned": 0,
            "computed_tokens": 0,
            "given_up": {},
            "stopping": None,
            "ended": None,
        }

    # The run

    def __enter__(self) -> Self:
        self._event("start", host=socket.gethostname(), pid=os.getpid())
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None and self._state["ended"] is None:
            status = error.exit_status if isinstance(error, EvalcoreError) else 1
            said = str(error) or type(error).__name__
            self.end(status, said if isinstance(error, EvalcoreError) else f"broke off: {said}")
        self._events.put(None)
        self._thread.join(CLOSE_S)

    def end(self, status: int, how: str) -> None:
        """The last word: exit status and what it means."""
        wall_s = round(time.monotonic() - self._began, 3)
        with self._lock:
            self._state["ended"] = {"status": status, "how": how, "wall_s": wall_s}
            self._state["phase"] = "ended"
        self._event("end", status=status, how=how, wall_s=wall_s)

    def planned(self, plan: Plan, *, whole: bool = True) -> None:
        """A plan is there, or some more of it, and scoring begins; ``whole``: no more will come."""
        counts = plan.counts
        with self._lock:
            self._cells.add(plan.cells)
            for unit in plan.units:
                self._count(unit, "planned")
            state = self._state
            state.update(
                phase="scoring",
                planned=state["planned"] + counts.examples_planned,
                covered=state["covered"] + counts.examples_covered,
                units_planned=state["units_planned"] + counts.units,
                whole=whole,
            )
            if not self._recent:
                self._recent.append((time.monotonic(), 0))
        self._event(
            "plan",
            examples=counts.examples_planned,
            covered=counts.examples_covered,
            units=counts.units,
            cells=counts.cells,
            prompt_tokens=counts.prompt_tokens,
            whole=whole,
        )

    def begun(self, index: int, node: str, job: Job) -> None:
        """A worker has got a unit."""
        with self._lock:
            worker = self._worker(index)
            worker.update(
                state="working", node=node, doing=job.payload.unit.label, since=time.monotonic()
            )
            self._job_of[index] = (job.id, time.monotonic())

    def scored(self, job: Job, report: UnitReport) -> None:
        """A unit was scored; it may still be lost."""
        unit: Unit = job.payload.unit
        with self._lock:
            at = next((i for i, (job_id, _) in self._job_of.items() if job_id == job.id), None)
            if at is not None:
                del self._job_of[at]
                worker = self._worker(at)
                worker.update(state="waiting", doing="", since=time.monotonic())
                worker["units"] += 1
                worker["examples"] += report.examples
            self._state["computed_tokens"] += report.computed_tokens + report.new_tokens
        self._event(
            "unit",
            worker=at,
            unit=job.id,
            label=unit.label,
            examples=report.examples,
            computed_tokens=report.computed_tokens,
            cached_tokens=report.cached_tokens,
            new_tokens=report.new_tokens,
            wall_s=round(report.wall_s, 4),
        )

    def committed(self, job: Job, report: UnitReport) -> None:
        """Its rows are on disk."""
        unit: Unit = job.payload.unit
        with self._lock:
            self._count(unit, "committed")
            self._state["committed"] += unit.num_examples
            self._state["units"] += 1
            now = time.monotonic()
            self._recent.append((now, self._state["committed"]))
            while len(self._recent) > 2 and self._recent[1][0] < now - RATE_OVER_S:
                self._recent.popleft()
        self._event(
            "committed",
            unit=job.id,
            label=unit.label,
            examples=unit.num_examples,
            computed_tokens=report.computed_tokens,
            new_tokens=report.new_tokens,
        )

    def failure(self, job: Job, error: EvalcoreError) -> None:
        """A unit, or what was left of it, is failed for good."""
        unit: Unit = job.payload.unit
        message, scope = str(error), ErrorInfo.of(error).scope
        with self._lock:
            self._count(unit, "failed")
            self._state["failed"] += unit.num_examples
            self._failures[unit.label, message] += unit.num_examples
        self._event(
            "failure",
            scope=scope,
            unit=job.id,
            label=unit.label,
            message=message,
            examples=unit.num_examples,
            cells=[s.cell_key for s in unit.slices],
        )

    def worker(self, index: int, state: str) -> None:
        """A worker starts, is ready, is lost, restarted, stopped or parked."""
        with self._lock:
            at = self._worker(index)
            at.update(state=state, since=time.monotonic())
            if state not in ("ready",):
                self._job_of.pop(index, None)
                at["doing"] = ""
        self._event("worker", worker=index, state=state)

    def given_up(self, index: int, node: str, why: str) -> None:
        """A worker gets no more work."""
        with self._lock:
            where = f"worker {index}" + (f" on {node}" if node else "")
            self._state["given_up"][where] = why
        self._event("parked", worker=index, node=node, why=why)

    def stop(self, reason: str) -> None:
        """It was asked to stop."""
        with self._lock:
            self._state["stopping"] = reason
        self._event("stop", reason=reason)

    # Parts

    def _worker(self, index: int) -> dict[str, Any]:
        new = {
            "worker": index,
            "node": "",
            "state": "",
            "doing": "",
            "since": 0.0,
            "units": 0,
            "examples": 0,
        }
        return self._workers.setdefault(index, new)

    def _count(self, unit: Unit, what: str) -> None:
        for part in unit.slices:
            cell = self._cells[part.cell_key]
            for groups, name in (
                (self._tasks, cell.task.name),
                (self._checkpoints, cell.subject.checkpoint.name),
            ):
                group = groups.setdefault(name, {"planned": 0, "committed": 0, "failed": 0})
                group[what] += len(part.rows)

    def record(self) -> dict[str, Any]:
        """All of it as plain values."""
        now = time.monotonic()
        with self._lock:
            self._state["beat"] += 1
            state = copy.deepcopy(self._state)
            workers = [dict(worker) for _, worker in sorted(self._workers.items())]
            tasks, checkpoints = copy.deepcopy((self._tasks, self._checkpoints))
            failures = self._failures.most_common(MOST_FAILURES)
            reasons = len(self._failures)
            then, before = self._recent[0] if self._recent else (now, 0)
        for worker in workers:
            worker["since_s"] = round(now - worker.pop("since"), 1)
        left = max(state["planned"] - state["committed"] - state["failed"], 0)
        rate = (state["committed"] - before) / (now - then) if now > then else 0.0
        running = state["ended"] is None
        return state | {
            "running_s": round(now - self._began, 1),
            "every_s": WRITE_EVERY_S,
            "left": left,
            "examples_per_s": round(rate, 3),
            "left_s": round(left / rate, 1) if running and rate > 0 else None,
            "workers": workers,
            "tasks": tasks,
            "checkpoints": checkpoints,
            "failures": [
                {"label": label, "message": message, "examples": examples}
                for (label, message), examples in failures
            ],
            "failures_in_all": reasons,
        }

    def _event(self, event: str, **values: Any) -> None:
        if self._log is not None:
            moment = datetime.now(UTC).isoformat(timespec="milliseconds")
            self._events.put({"time": moment, "run": self.name, "event": event, **values})

    def _tell(self) -> None:
        """The thread: events as they come, the file every few seconds and at the end."""
        due, over = time.monotonic(), False
        while not over:
            with contextlib.suppress(queue.Empty):
                event = self._events.get(timeout=max(due - time.monotonic(), 0.0))
                over = event is None
                if event is not None:
                    self._write_event(event)
            if over or time.monotonic() >= due:
                due = time.monotonic() + WRITE_EVERY_S
                self._write_file()
        if self._log is not None:
            with contextlib.suppress(OSError):
                self._log.close()

    def _write_event(self, event: dict[str, Any]) -> None:
        if self._log is None:
            return
        try:
            self._log.write(json.dumps(event, default=str) + "\n")
        except (OSError, ValueError) as error:
            log.warning("--log-json: %s; no more events are written", error)
            self._log = None

    def _write_file(self) -> None:
        if self._file is None:
            return
        try:
            self._file.write(self.record())
        except OSError as error:  # what it means for results is found by who writes those
            log.debug("progress file: %s", error)


def _open_log(path: Path) -> IO[str]:
    """Opened for appending, a line at a time; never waits for a reader."""
    try:
        if path.exists() and stat.S_ISFIFO(path.stat().st_mode):
            raise InputError(f"--log-json {path}: this is a pipe; give a file")
        return path.open("a", buffering=1, encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"--log-json {path}: cannot be written ({error.strerror or error}); give another file"
        ) from None

"""Progress on a terminal: one bar with a rate and an estimate; plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

if TYPE_CHECKING:
    from evalcore.scoring import UnitReport

PLAIN_EVERY_S = 10.0


class ScoreProgress:
    """Implements ``scoring.Progress``; a context manager."""

    def __init__(self, what: str = "scoring") -> None:
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
            disable=not sys.stderr.isatty(),
        )
        self._what = what
        self._task: TaskID | None = None
        self._done = self._total = 0
        self._began = self._said = time.monotonic()

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def begin(self, planned: int, covered: int) -> None:
        self._total, self._began = planned, time.monotonic()
        self._task = self._bar.add_task(self._what, total=planned, rate="starting an engine")

    def worker(self, index: int, state: str) -> None:
        if state in {"lost", "restarted"}:
            self._say(f"worker {index}: {state}")

    def unit(self, label: str, report: UnitReport) -> None:
        self._done += report.examples
        elapsed = max(time.monotonic() - self._began, 1e-9)
        rate = f"{self._done / elapsed:,.0f} examples/s"
        if self._task is not None:
            self._bar.update(self._task, completed=self._done, description=label, rate=rate)
        if not sys.stderr.isatty() and time.monotonic() - self._said > PLAIN_EVERY_S:
            self._said = time.monotonic()
            left = (self._total - self._done) * elapsed / max(self._done, 1)
            self._say(f"{self._what}: {self._done:,}/{self._total:,} {rate}, {left:.0f} s left")

    def failure(self, label: str, message: str) -> None:
        self._say(f"not scored: {label}: {message}")

    def _say(self, line: str) -> None:
        if sys.stderr.isatty():
            self._bar.console.print(line, highlight=False)
        else:
            click.echo(line, err=True)


class StudyProgress(ScoreProgress):
    """Implements ``app.StudyProgress``: the same bar for every stage, and a line per stage."""

    def stage(self, name: str, what: str) -> None:
        self._say(f"[{name}] {what}")

    def stage_done(self, name: str, seconds: float, budget_s: float | None) -> None:
        if self._task is not None:
            self._bar.remove_task(self._task)
            self._task = None
        self._done = 0
        budget = f" (budget {budget_s:.0f} s)" if budget_s else ""
        self._say(f"[{name}] {seconds:.1f} s{budget}")

    def step(self, what: str, done: int, total: int, note: str) -> None:
        if self._task is None:
            self._task = self._bar.add_task(what, total=total, rate="")
        self._bar.update(self._task, completed=done, total=total, description=what, rate=note)
        if not sys.stderr.isatty() and time.monotonic() - self._said > PLAIN_EVERY_S:
            self._said = time.monotonic()
            self._say(f"{what}: {done:,}/{total:,} {note}")

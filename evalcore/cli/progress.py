"""Progress on a terminal: one bar with a rate and an estimate; plain lines elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Mapping
from threading import Timer
from typing import TYPE_CHECKING, Self

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from evalcore.cli.output import echo, echo_late, on_terminal
from evalcore.scoring import RunSummary
from evalcore.shown import one_line, printable

if TYPE_CHECKING:
    from evalcore.planning import PlanCounts
    from evalcore.scoring import UnitReport

PLAIN_EVERY_S = 10.0


def figures(
    spent: RunSummary,
    elapsed_s: float,
    asked_share: float,
    limits: Mapping[str, int],
) -> str:
    """What a run costs so far, on one line.

    Args:
        spent: Sums over the units that were scored.
        elapsed_s: Since the run began, its start included.
        asked_share: Of the plan's prompt tokens; the limits are taken in proportion.
        limits: Least work of the whole plan.
    """
    parts = [f"{spent.prompt_tokens / elapsed_s:,.0f} prompt tokens/s"]
    if asked_share and limits.get("token_limit"):
        over_tokens, over_blocks = (
            spent.computed_tokens / (limits[name] * asked_share)
            for name in ("token_limit", "block_limit")
        )
        parts.append(f"computed ~{over_tokens:.2f} x limit (~{over_blocks:.2f} x in blocks)")
    seen = spent.computed_tokens + spent.cached_tokens
    parts += [
        f"{100 * spent.cached_tokens / max(seen, 1):.0f} % shared",
        f"start {spent.start_s:.0f} s",
        f"swaps {spent.swap_s:.1f} s",
        f"proofs {spent.proof_s:.1f} s",
        f"idle {100 * spent.idle_share:.0f} %",
        f"{spent.fallbacks:,} fall-backs",
    ]
    return ", ".join(parts)


def _shown(label: str) -> str:
    """A label with its brackets and control characters shown, not obeyed."""
    return escape(printable(label))


class _Bar(Progress):
    """Bars, and below them a line of figures that may be wider than what a bar leaves free."""

    note = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self.note:
            yield Text(self.note, style="dim")


class ScoreProgress:
    """Implements ``scoring.Progress``; a context manager."""

    def __init__(self, what: str = "scoring", quiet: bool = False) -> None:
        self._quiet = quiet
        self._bar = _Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
            disable=quiet or not on_terminal(),
        )
        self._what = what
        self._task: TaskID | None = None
        self._early: TaskID | None = None
        self._late: Timer | None = None
        self._done = self._total = 0
        self._counts: PlanCounts | None = None
        self._limits: Mapping[str, int] = {}
        self._whole = self._over = True
        self._spent = RunSummary()
        self._began = self._said = time.monotonic()

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._say_late("")
        with contextlib.suppress(OSError):  # the terminal is gone
            self._bar.stop()

    def preparing(self, what: str) -> None:
        self._say_late(what)
        if self._early is None:
            self._early = self._bar.add_task(self._what, total=None, rate=what)
        else:
            self._bar.update(self._early, rate=what)

    def _say_late(self, what: str) -> None:
        """Tells a log what is being done, if that takes long; until another thing is done."""
        if self._late is not None:
            self._late.cancel()
        log = what and not (self._quiet or on_terminal())
        self._late = echo_late(f"{self._what}: {what}") if log else None

    def _prepared(self) -> None:
        self._say_late("")
        if self._early is not None:
            self._bar.remove_task(self._early)
            self._early = None

    def planned(self, counts: PlanCounts, limits: Mapping[str, int], whole: bool) -> None:
        if self._over:
            self._prepared()
            self._spent, self._done, self._began = RunSummary(), 0, time.monotonic()
            self._task = self._bar.add_task(self._what, total=0, rate="starting an engine")
            least = "" if whole else "at least "
            self._say_late(f"{least}{counts.examples_planned:,} examples, starting an engine")
        self._over = False
        self._counts, self._limits, self._whole = counts, limits, whole
        self._total = counts.examples_planned
        if self._task is not None:
            self._bar.update(self._task, total=self._total)

    def ended(self) -> None:
        self._over = True

    def worker(self, index: int, state: str) -> None:
        if state in {"lost", "restarted"}:
            self._say(f"worker {index}: {state}")

    def unit(self, label: str, report: UnitReport) -> None:
        self._say_late("")
        self._spent.spent(report)
        self._show(label)

    def committed(self, report: UnitReport) -> None:
        self._done += report.examples
        self._show()

    def _show(self, label: str | None = None) -> None:
        """Counts are of committed work; figures are of all that was spent, done again or not."""
        elapsed = max(time.monotonic() - self._began, 1e-9)
        rate = f"{self._done / elapsed:,.0f} examples/s" if self._done else "none committed yet"
        rate += "" if self._whole else ", still planning"
        self._bar.note = figures(self._spent, elapsed, self._asked_share(), self._limits)
        if self._task is not None:
            name = None if label is None else _shown(label)
            self._bar.update(self._task, completed=self._done, description=name, rate=rate)
        if not on_terminal() and time.monotonic() - self._said > PLAIN_EVERY_S:
            self._said = time.monotonic()
            left_s = max(self._total - self._done, 0) * elapsed / max(self._done, 1)
            left = f", {left_s:.0f} s left" if self._done else ""
            least = "" if self._whole else "at least "
            self._say(f"{self._what}: {self._done:,}/{least}{self._total:,} {rate}{left}")
            self._say(f"  {self._bar.note}")

    def _asked_share(self) -> float:
        """Of the plan's prompt tokens, those asked for by now; above 1 if work was done again."""
        planned = self._counts.prompt_tokens if self._counts is not None else 0
        return self._spent.prompt_tokens / planned if planned else 0.0

    def failure(self, label: str, message: str) -> None:
        self._say(one_line(f"not scored: {label}: {message}"))

    def _say(self, line: str) -> None:
        if self._quiet:
            return
        if not on_terminal():
            echo(line, err=True)
            return
        with contextlib.suppress(OSError):  # as in echo
            self._bar.console.print(printable(line), highlight=False, markup=False)


class StudyProgress(ScoreProgress):
    """Implements ``app.StudyProgress``: the same bar for every stage, and a line per stage."""

    def __init__(self, quiet: bool = False) -> None:
        super().__init__(quiet=quiet)

    def stage(self, name: str, what: str) -> None:
        self._say(f"[{name}] {what}")

    def stage_done(self, name: str, seconds: float, budget_s: float | None) -> None:
        self._prepared()
        if self._task is not None:
            self._bar.remove_task(self._task)
            self._task, self._bar.note = None, ""
        self._done = 0
        budget = f" (budget {budget_s:.0f} s)" if budget_s else ""
        self._say(f"[{name}] {seconds:.1f} s{budget}")

    def step(self, what: str, done: int, total: int, note: str) -> None:
        if self._task is None:
            self._task = self._bar.add_task(_shown(what), total=total, rate="")
        self._bar.update(
            self._task, completed=done, total=total, description=_shown(what), rate=note
        )
        if not on_terminal() and time.monotonic() - self._said > PLAIN_EVERY_S:
            self._said = time.monotonic()
            self._say(f"{what}: {done:,}/{total:,} {note}")

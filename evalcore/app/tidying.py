"""Keeps a results folder small while a run writes into it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from evalcore.errors import EvalcoreError
from evalcore.store import ResultStore
from evalcore.store.compaction import CompactReport

log = logging.getLogger("evalcore")

LOOK_S = 120.0
"""How often a run looks whether there are many small segments."""
LEAST_S = 10.0
MOST_SHARE = 0.05
"""At its end a run merges for so long, or for this share of its time."""


class Tidying:
    """What was merged in a run.

    Attributes:
        report: All of it together; None if there was nothing to do.
    """

    def __init__(self, store: ResultStore) -> None:
        self._store = store
        self._stopped = threading.Event()
        self._begun = time.monotonic()
        self.report: CompactReport | None = None

    def run(self) -> None:
        """Looks now and then, until told to stop."""
        while not self._stopped.wait(LOOK_S):
            self._once(MOST_SHARE * LOOK_S)

    def end(self, thread: threading.Thread, *, quickly: bool) -> None:
        """Stops looking; merges what is left unless the run has to end quickly."""
        self._stopped.set()
        thread.join()
        if not quickly:
            self._stopped.clear()
            self._once(max(LEAST_S, MOST_SHARE * (time.monotonic() - self._begun)))

    def lines(self) -> list[str]:
        """For the summary."""
        if self.report is None:
            return []
        before, after = self.report.segments_before, self.report.segments_after
        return [f"{before:,} small result files were merged into {after:,}"]

    def _once(self, seconds: float) -> None:
        try:
            done = self._store.tidy(seconds, self._stopped.is_set)
        except (EvalcoreError, OSError) as error:
            log.info("small segments were not merged: %s", error)
            return
        if done is not None:
            self.report = done if self.report is None else self.report.plus(done)


@contextmanager
def tidying(store: ResultStore, in_a_hurry: Callable[[], bool]) -> Iterator[Tidying]:
    """Merges small segments beside a run and at its end.

    Args:
        store: The results.
        in_a_hurry: Asked at the end whether the run was stopped or failed: then nothing is begun.
    """
    keeper = Tidying(store)
    thread = threading.Thread(target=keeper.run, name="tidying", daemon=True)
    thread.start()
    quickly = True
    try:
        yield keeper
        quickly = in_a_hurry()
    finally:
        keeper.end(thread, quickly=quickly)

"""A counter of progress, one per process: what an engine has done so far, in any unit.

Code that works for long calls :func:`tick` whenever a piece is done (a tensor read, a batch
scored); the driver gives up on a worker whose counter stands still for too long, never on one that
moves.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Literal

Stage = Literal["load", "work"]

BEAT_EVERY_S = 1.0

_count = 0
_stage: Stage = "load"


def tick(pieces: int = 1) -> None:
    """Says that some more work is done; costs nothing worth counting."""
    global _count
    _count += pieces  # a tick lost between two threads does not matter


def enter(stage: Stage) -> None:
    """Says what is worked on: while weights are loaded (an engine may start), silence is longer."""
    global _stage
    _stage = stage
    tick()


def now() -> tuple[int, Stage]:
    """Ticks since the process began, and the stage."""
    return _count, _stage


def beat(send: Callable[[tuple[int, Stage]], object], every_s: float = BEAT_EVERY_S) -> None:
    """Has a thread send the state now and whenever it has changed, until sending fails."""

    def run() -> None:
        said: tuple[int, Stage] | None = None
        wait = threading.Event()
        while True:
            if (state := now()) != said:
                said = state
                try:
                    send(state)
                except Exception:  # the driver is gone
                    return
            wait.wait(every_s)

    threading.Thread(target=run, name="evalcore-pulse", daemon=True).start()

"""Scoring what a training writes while it writes it: complete folders only, one growing report."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from evalcore.app.grid import selected
from evalcore.app.outcome import ScoreOutcome
from evalcore.app.report import report
from evalcore.app.score import score
from evalcore.cluster import StopSignals
from evalcore.config import ScoreConfig
from evalcore.errors import EXIT_CELLS_FAILED, EXIT_STOPPED, InputError, StoppedError
from evalcore.identity.completeness import FileState, file_state, why_incomplete
from evalcore.identity.parents import ParentMap
from evalcore.identity.search import search
from evalcore.scoring import Progress
from evalcore.shown import one_line

Tell = Callable[[str], None]


@dataclass(frozen=True)
class FollowConfig:
    """How a training is followed.

    Attributes:
        every_s: Seconds between looks.
        rest_s: Seconds for which no file of a folder may have changed.
        until: File (a glob, below the folders followed) whose appearance says that the training has
            ended; None: until told.
        idle_s: End when nothing new came for so long; None: never.
        report: Folder of the report; None: no report.
    """

    every_s: float = 60.0
    rest_s: float = 30.0
    until: str | None = None
    idle_s: float | None = None
    report: Path | None = None


@dataclass(frozen=True)
class Look:
    """What lies in the folders at one moment.

    Attributes:
        ready: Folders that are complete and at rest, with the state of their files.
        waiting: Others: folder -> what they wait for.
        checkpoints: Those of both that are checkpoints without a record of their tuning.
    """

    ready: dict[Path, FileState]
    waiting: dict[Path, str]
    checkpoints: tuple[Path, ...]


class Folders:
    """The folders a training writes, looked at again and again."""

    def __init__(self, folders: Sequence[str], leave_out: Sequence[str], rest_s: float) -> None:
        self._folders, self._leave_out, self._rest_s = folders, leave_out, rest_s
        self._since: dict[Path, tuple[FileState, float]] = {}

    def look(self, *, ended: bool = False) -> Look:
        """What is there now.

        Args:
            ended: Nobody writes any more: what is complete need not have been at rest for long.

        Raises:
            InputError: A folder that is followed is missing.
        """
        now, ready, waiting = time.monotonic(), {}, {}
        found = search(self._folders, self._leave_out)
        for folder in (*found.adapters, *found.tuned, *found.checkpoints):
            try:
                state = file_state(folder)
            except OSError:
                continue  # renamed or removed meanwhile
            before, since = self._since.get(folder, (None, now))
            if state != before:
                since = now
            self._since[folder] = (state, since)
            if (reason := why_incomplete(folder)) is not None:
                waiting[folder] = reason
            elif now - since < self._rest_s and not ended:
                waiting[folder] = "its files changed a moment ago"
            else:
                ready[folder] = state
        return Look(ready, waiting, found.checkpoints)

    def has(self, glob: str) -> bool:
        """Whether a file that fits is below one of the folders, or is named by its path."""
        if Path(glob).is_absolute():
            return Path(glob).exists()
        return any(any(Path(f).expanduser().glob(glob)) for f in self._folders)


class _Follower:
    """One training that is followed; see :func:`follow`."""

    def __init__(
        self,
        config: ScoreConfig,
        how: FollowConfig,
        signals: StopSignals,
        tell: Tell,
        shown: Callable[[ScoreOutcome], int],
        progress: Progress | None,
    ) -> None:
        self.config, self.how, self.signals = config, how, signals
        self.tell, self.shown, self.progress = tell, shown, progress
        self.folders = Folders(config.subjects.adapters, config.subjects.leave_out, how.rest_s)
        self.scored: dict[Path, FileState] = {}
        self.refused: dict[Path, tuple[FileState, str]] = {}
        self.status = 0

    def run(self) -> int:
        last_new = time.monotonic()
        while True:
            # Asked first: what appears before the marker is seen by this look.
            ended = self.how.until is not None and self.folders.has(self.how.until)
            look = self.folders.look(ended=ended)
            new = [f for f, state in look.ready.items() if self.scored.get(f) != state]
            if new:
                self._score(look, new)
                last_new = time.monotonic()
                if self.status == EXIT_STOPPED:
                    return self.status
            idle = self.how.idle_s is not None and time.monotonic() - last_new >= self.how.idle_s
            if ended or (idle and not new):
                return self._end(look, "the training has ended" if ended else "nothing new came")
            self._wait()

    def _score(self, look: Look, new: Sequence[Path]) -> None:
        """Asks for the grid of all that is ready; what was refused and is unchanged is left out."""
        self.tell(f"complete: {', '.join(map(one_line, map(str, new)))}")
        out = [f for f, (state, _) in self.refused.items() if look.ready.get(f) == state]
        plain = [str(f) for f in look.checkpoints if f in look.ready and f not in out]
        subjects = replace(
            self.config.subjects,
            leave_out=(*self.config.subjects.leave_out, *map(str, (*look.waiting, *out))),
            checkpoints=(*self.config.subjects.checkpoints, *self._without_parents(plain)),
        )
        if all(f in look.checkpoints or f in out for f in look.ready):
            subjects = replace(subjects, adapters=())  # none yet that could be searched for
        try:
            outcome = score(replace(self.config, subjects=subjects), self.progress, self.signals)
        except StoppedError:
            self.status = EXIT_STOPPED
            return
        except InputError as error:
            self.tell(f"not scored: {error}")
            self.status = max(self.status, EXIT_CELLS_FAILED)
            self.refused |= {folder: (look.ready[folder], str(error)) for folder in new}
        else:
            status = self.shown(outcome)
            self.status = EXIT_STOPPED if status == EXIT_STOPPED else max(self.status, status)
            reasons = dict(outcome.problems)
            self.refused |= {
                folder: (look.ready[folder], reasons[str(folder)])
                for folder in look.ready
                if str(folder) in reasons
            }
            self._report()
        self.scored |= {folder: look.ready[folder] for folder in new}

    def _without_parents(self, plain: Sequence[str]) -> list[str]:
        """Checkpoints that are scored by themselves; a parent map's are found by it."""
        tuned = ParentMap.parse(
            self.config.subjects.parent_map, self.config.subjects.adapters,
            self.config.subjects.leave_out,
        ).tuned  # fmt: skip
        return [path for path in plain if Path(path) not in tuned]

    def _report(self) -> None:
        if self.how.report is None:
            return
        try:
            made = report(self.config.run.output, self.how.report, title="Scores and gains")
        except InputError as error:
            self.tell(f"no report: {error}")
        else:
            self.tell(f"report: {made.page}")

    def _end(self, look: Look, why: str) -> int:
        self.tell(f"{why}; {len(look.ready):,} folders were complete")
        for folder, reason in sorted(look.waiting.items()):
            self.tell(f"not scored: {one_line(str(folder))}: {reason}")
        failed = look.waiting or any(look.ready.get(f) == s for f, (s, _) in self.refused.items())
        return max(self.status, EXIT_CELLS_FAILED if failed else 0)

    def _wait(self) -> None:
        end = time.monotonic() + self.how.every_s
        while (left := end - time.monotonic()) > 0:
            if self.signals():
                raise StoppedError(
                    f"stopped ({self.signals.reason}) while waiting for the training; the same "
                    "command again goes on"
                )
            time.sleep(min(left, 0.25))


def follow(
    config: ScoreConfig,
    how: FollowConfig,
    signals: StopSignals,
    *,
    tell: Tell,
    shown: Callable[[ScoreOutcome], int],
    progress: Progress | None = None,
) -> int:
    """Scores adapters and checkpoints as they appear; returns an exit status.

    Every time something has become complete the grid of all that is complete is asked for again, of
    which only what is missing is scored. A folder that was refused is tried again when its files
    change; what failed while it was scored, with the next round.

    Args:
        config: What to score with, and the folders to follow (``subjects.adapters``).
        how: How often, until when.
        signals: What may stop it, entered already.
        tell: Takes lines for a person.
        shown: Shows the outcome of a round of scoring and gives its exit status.
        progress: Told of the scoring.

    Raises:
        InputError: Nothing can ever be scored as it was asked for.
        StoppedError: It was stopped while it waited.
    """
    if not config.subjects.adapters:
        raise InputError("nothing to watch: give the folders that a training writes")
    if config.run.shard is not None or config.run.dry_run:
        raise InputError("watch takes neither --shard nor --dry-run: what it will find is unknown")
    selected(config.grid)  # a task or prompt that does not exist is told at once
    return _Follower(config, how, signals, tell, shown, progress).run()

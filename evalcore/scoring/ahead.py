"""What a worker's next unit will need, prepared while the present one computes.

Its requests are read and batched, the engine plans them, and where it has another subject, the
files of its weights are read once, so that they are in the memory of the machine when the engine
wants them. Nothing hangs on it: a unit that was not the next one after all costs what was prepared
for it.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from evalcore.identity import weight_files
from evalcore.identity.adapter import adapter_file
from evalcore.machine import available_bytes
from evalcore.scoring.shares import Share, UnitJob
from evalcore.types import ScoreBatch, Subject

Expect = Callable[[ScoreBatch], None]

PIECE_BYTES = 16 << 20
MOST_SHARE = 0.5
"""Of the memory that is free, files of weights larger than this are not read ahead: they would push
each other out."""


class Ahead:
    """A thread that prepares one unit at a time; the latest wish counts."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._wanted = ""
        self._read: set[Path] = set()

    def begin(self, job: UnitJob, present: Sequence[Subject], expect: Expect) -> None:
        """Prepares a unit from now on, beside what this process does.

        Args:
            job: The unit.
            present: Whose weights are in place.
            expect: Told of what the unit will have scored (``Engine.expect``).
        """
        if job.unit.id == self._wanted:
            return
        self._wanted = job.unit.id
        before, self._thread = self._thread, None
        self._thread = threading.Thread(
            target=self._prepare, args=(job, present, expect, before), name="evalcore-ahead",
            daemon=True,
        )  # fmt: skip
        self._thread.start()

    def wait(self) -> None:
        """Until what was begun last is done."""
        if self._thread is not None:
            self._thread.join()

    def stop(self) -> None:
        """Nothing is wanted any more."""
        self._wanted = ""

    def _prepare(
        self,
        job: UnitJob,
        present: Sequence[Subject],
        expect: Expect,
        before: threading.Thread | None,
    ) -> None:
        if before is not None:
            before.join()
        with contextlib.suppress(Exception):  # whoever does the unit says what is wrong with it
            for member in job.unit.members:
                if self._wanted != job.unit.id:
                    return
                share = Share.of(job, member)
                if not any(share.generated):  # what is generated, is planned with it
                    expect(share.scored.batch)
            self._read_weights(job, present)

    def _read_weights(self, job: UnitJob, present: Sequence[Subject]) -> None:
        wanted = set(_files([job.unit.subjects[member] for member in job.unit.members]))
        new = wanted - self._read - set(_files(present))
        if sum(file.stat().st_size for file in new) > MOST_SHARE * (available_bytes() or 0):
            return
        for file in sorted(new):
            read_through(file, lambda: self._wanted == job.unit.id)
        if self._wanted == job.unit.id:
            self._read = wanted


def read_through(path: Path, goes_on: Callable[[], bool]) -> None:
    """Reads a file, and keeps nothing of it but what the system keeps."""
    buffer = bytearray(PIECE_BYTES)
    with path.open("rb", buffering=0) as file:
        while goes_on() and file.readinto(buffer):
            pass


def _files(subjects: Sequence[Subject]) -> Iterator[Path]:
    for subject in subjects:
        if any(part.origin for part in subject.parts):
            continue  # from the hub: fetched ahead by whoever keeps this node's files
        yield from weight_files(Path(subject.checkpoint.path))
        if subject.adapter is not None:
            yield adapter_file(subject.adapter.path)

"""Progress files: what a run under way says of itself, for whoever looks into the folder.

One small checked JSON file per run, replaced whole every few seconds by the run alone, closed by
its last word. Nothing is ever decided by them but what is shown.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from evalcore.checked import JSON_SUFFIX, DamagedFile, read_json, write_json
from evalcore.errors import ResultsError
from evalcore.files import remove_stale_temporaries, utc_stamp
from evalcore.machine import machine_id, process_start
from evalcore.store.access import listed, patiently

FOLDER = "progress"
SILENT_S = 60.0  # a beat is due every few seconds
KEPT_S = 7 * 86400.0  # files of runs that are over are removed by a later run

Life = Literal["running", "silent", "dead", "ended"]


class ProgressFile:
    """The file of this process's run.

    Args:
        results: The results folder; nothing is written before it is one.
        name: Of the run.
    """

    def __init__(self, results: Path, name: str) -> None:
        self.results = results
        self.path = results / FOLDER / f"{name}{JSON_SUFFIX}"
        self._own = {
            "run": name,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "machine": machine_id(),
            "process_start": process_start(os.getpid()),
            "started": utc_stamp(),
        }
        self._tidied = False

    def write(self, record: Mapping[str, Any]) -> None:
        """Replaces it; the run's name, host and process are added.

        Raises:
            OSError: It cannot be written.
        """
        if not (self.results / "store.json").exists():
            return  # nothing is known to be results yet, and a wrong command creates nothing
        self.path.parent.mkdir(exist_ok=True)
        write_json(self.path, {**self._own, "written": utc_stamp(), **record})
        if not self._tidied:
            self._tidied = True
            _tidy(self.path.parent, self.path.stat().st_mtime)


def _tidy(folder: Path, now: float) -> None:
    """Removes what runs of long ago left; ``now`` by the clock of the file system itself."""
    remove_stale_temporaries(folder)
    for path in folder.glob(f"[!.]*{JSON_SUFFIX}"):
        with contextlib.suppress(OSError):  # another run may tidy as well
            if now - path.stat().st_mtime > KEPT_S:
                path.unlink()


@dataclass(frozen=True)
class Seen:
    """One run as its file tells, and whether it lives.

    Attributes:
        record: What it wrote last.
        life: ``running``; ``silent``: nothing for a minute, and nobody can tell from here whether
            its process is there, or it is there and does not move; ``dead``: its process is gone,
            and it has not said that it ended; ``ended``.
        age_s: Since it wrote, by this machine's clock against the file's time; never negative.
        judged_by: In words, how its life was judged.
    """

    record: Mapping[str, Any]
    life: Life
    age_s: float
    judged_by: str


@dataclass
class SeenRuns:
    """All runs that left a file, oldest first, and files that cannot be read, with the reason."""

    runs: list[Seen] = field(default_factory=list)
    damaged: dict[str, str] = field(default_factory=dict)


def read_progress(results: Path) -> SeenRuns:
    """What the progress files of a results folder say; those that cannot be read are listed.

    Raises:
        ResultsError: Their folder cannot be looked into.
    """
    found = SeenRuns()
    for path in listed(results / FOLDER, f"[!.]*{JSON_SUFFIX}"):
        try:
            age_s = max(time.time() - patiently(path, os.stat).st_mtime, 0.0)
            record = patiently(path, read_json)
        except FileNotFoundError:
            continue  # tidied away meanwhile
        except (ResultsError, DamagedFile) as error:
            found.damaged[f"{FOLDER}/{path.name}"] = str(error)
            continue
        found.runs.append(_judged(record, age_s))
    return found


def _judged(record: Mapping[str, Any], age_s: float) -> Seen:
    if record.get("ended"):
        return Seen(record, "ended", age_s, "its own last word")
    here, pid = machine_id(), record.get("pid")
    if here and record.get("machine") == here and isinstance(pid, int):
        if process_start(pid) != record.get("process_start"):
            return Seen(record, "dead", age_s, "its process is gone from this machine")
        if age_s > SILENT_S:
            return Seen(record, "silent", age_s, "its process is there, but does not move")
        return Seen(record, "running", age_s, "its process, on this machine")
    life: Life = "silent" if age_s > SILENT_S else "running"
    return Seen(record, life, age_s, "its file's time against this machine's clock")

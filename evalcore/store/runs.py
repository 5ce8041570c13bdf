"""Records of runs: what was planned, what was done, how long it took, with which versions."""

from __future__ import annotations

import logging
import secrets
from pathlib import Path
from typing import Any

from evalcore.checked import JSON_SUFFIX, DamagedFile, read_json, write_json
from evalcore.errors import ResultsError
from evalcore.files import utc_stamp
from evalcore.store.access import listed, patiently

log = logging.getLogger("evalcore")


class RunLog:
    """JSON records in a folder, one file per run, never changed afterwards."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def append(self, record: dict[str, Any]) -> Path:
        """Writes one record; ``written`` (UTC) is added.

        Raises:
            ResultsError: The folder cannot be written.
        """
        stamp = utc_stamp()
        path = self.folder / f"{stamp}-{secrets.token_hex(4)}{JSON_SUFFIX}"
        try:
            write_json(path, {"written": stamp, **record})
        except OSError as error:
            reason = error.strerror or error
            raise ResultsError(f"cannot write the run record {path}: {reason}") from error
        return path

    def list(self) -> list[dict[str, Any]]:
        """All records, oldest first; unreadable files are named in a warning and left out."""
        records = []
        for path in listed(self.folder, "[!.]*.json"):
            try:
                records.append(patiently(path, read_json))
            except (FileNotFoundError, DamagedFile) as error:
                log.warning("ignored %s: %s", path, error)
        return records

    def examples_per_s(self) -> float | None:
        """Rate of the last run that scored something, its start-up left out; None without one."""
        for record in reversed(self.list()):
            summary = record.get("summary", {})
            working_s = summary.get("wall_s", 0.0) - summary.get("start_s", 0.0)
            if summary.get("examples") and working_s > 0:
                return float(summary["examples"] / working_s)
        return None

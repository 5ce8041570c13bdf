"""Records of runs: what was planned, what was done, how long it took, with which versions."""

from __future__ import annotations

import json
import logging
import secrets
from pathlib import Path
from typing import Any

from evalcore.errors import InputError
from evalcore.store.files import utc_stamp, write_atomically

log = logging.getLogger("evalcore")


class RunLog:
    """JSON records in a folder, one file per run, never changed afterwards."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def append(self, record: dict[str, Any]) -> Path:
        """Writes one record; ``written`` (UTC) is added.

        Raises:
            InputError: The folder cannot be written.
        """
        stamp = utc_stamp()
        path = self.folder / f"{stamp}-{secrets.token_hex(4)}.json"
        text = json.dumps({"written": stamp, **record}, indent=1, default=str) + "\n"
        try:
            write_atomically(path, lambda sink: sink.write(text.encode()))
        except OSError as error:
            reason = error.strerror or error
            raise InputError(f"cannot write the run record {path}: {reason}") from error
        return path

    def list(self) -> list[dict[str, Any]]:
        """All records, oldest first; unreadable files are named in a warning and left out."""
        records = []
        for path in sorted(self.folder.glob("[!.]*.json")):
            try:
                records.append(json.loads(path.read_bytes()))
            except (OSError, ValueError) as error:
                log.warning("ignored %s: %s", path, error)
        return records

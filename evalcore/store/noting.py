"""What readers of a results folder leave out, and saying so once."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from evalcore.store.segments import Segment, SegmentRows

log = logging.getLogger("evalcore")


class Noted:
    """What was found of one folder's files by one reader.

    Args:
        path: The results folder.

    Attributes:
        damage: What is damaged and was left out: file -> one line.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._said: set[str] = set()
        self.damage: dict[str, str] = {}

    def once(self, path: Path, reason: str, *, ignored: bool = True) -> None:
        """Warns of a file that is ignored (or of the folder), the first time it is met."""
        if str(path) not in self._said:
            self._said.add(str(path))
            log.warning("%s: %s", path if ignored else self._path, reason)

    def damaged(self, path: Path, reason: str) -> None:
        """A file is damaged."""
        self.damage[str(path.relative_to(self._path))] = reason
        self.once(path, reason)

    def rows(self, info: Segment, rows: SegmentRows) -> None:
        """Rows of a segment are damaged."""
        text = (
            f"{rows.num_lost} of {info.num_rows} rows are damaged and not used ({rows.reason}); "
            f"`evalcore verify {self._path}` sets them aside, then run again"
        )
        self.damaged(info.path, text)

    def unchecked(self, checked: Sequence[bool]) -> None:
        """Some of the segments have no checksums."""
        if unchecked := checked.count(False):
            text = (
                f"{unchecked} of {len(checked)} segments are from before there were checksums and "
                f"are read unchecked; `evalcore compact {self._path}` writes them anew"
            )
            self.once(self._path / "segments", text, ignored=False)

"""What the first engine of a kind chose, for all that come after: the ``settled`` folder.

An engine may find that it can score in one of several ways. In 16 bits their numbers differ, so
that what is compared has to be scored in one: the first engine to choose writes it down, and
the others, of this run and of later ones, on whatever machine, are told.
"""

from __future__ import annotations

from pathlib import Path

from evalcore.checked import JSON_SUFFIX, DamagedFile, json_bytes, read_json
from evalcore.errors import ResultsError
from evalcore.files import write_once
from evalcore.store.access import patiently
from evalcore.store.cells import not_writable


class Settled:
    """One small file a kind, named by it; it is written once and never changed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, kind: str, chosen: str = "") -> str:
        """The way of scoring of a kind.

        Args:
            kind: Of engines whose numbers are compared; 32 hex digits.
            chosen: What is settled from now on, where nothing is; ``""`` only asks.

        Returns:
            What is settled; ``""`` if nothing is.

        Raises:
            ResultsError: The folder cannot be written, or the record is damaged.
        """
        path = self.folder / f"{kind}{JSON_SUFFIX}"
        found = self._read(path)
        if found is None and chosen:
            try:
                self.folder.mkdir(exist_ok=True)
                write_once(path, json_bytes({"kind": kind, "strategy": chosen}))
            except OSError as error:
                raise not_writable(self.folder, error) from error
            found = self._read(path)  # another's, if that was faster
        return found or ""

    def _read(self, path: Path) -> str | None:
        try:
            return str(patiently(path, read_json)["strategy"])
        except FileNotFoundError:
            return None
        except (DamagedFile, KeyError) as error:
            raise ResultsError(
                f"{path}: {error}; `evalcore verify {self.folder.parent}` sets it aside"
            ) from error

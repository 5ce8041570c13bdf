"""Labels that ``evalcore label`` sets while a run is under way: they win over the run's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from evalcore.app.labels import LABEL_COLUMNS
from evalcore.checked import DamagedFile
from evalcore.store import ResultStore
from evalcore.store.access import listed
from evalcore.store.cell_rows import CellRows
from evalcore.store.cells import read_cells_file

_OWN = ("checkpoint_fingerprint", "adapter_fingerprint")
_SAID = ("labels_from", *LABEL_COLUMNS)


class LabelsSince:
    """What was labelled in the results since a moment: since it was made.

    Only files that are new are read, so that asking again costs nothing where nobody labels.

    Args:
        store: The results.
    """

    def __init__(self, store: ResultStore) -> None:
        self._folder = store.cells_folder
        self._seen = {path.name for path in self._files()}
        self._said: dict[str, Mapping[str, Any]] = {}
        self._steps: dict[str, int] = {}

    def _files(self) -> list[Path]:
        return listed(self._folder, "[!.]*.arrow")

    def own(self, path: Path | None) -> None:
        """Notes a file that the run itself wrote."""
        if path is not None:
            self._seen.add(path.name)

    def applied(self, rows: CellRows) -> CellRows:
        """Rows as they are to be recorded: the newest label that was set since then counts.

        A model's labels are taken as they stand there, as a whole: its cells say the same. A step
        is that of the checkpoint, and counts for all that have it.

        Raises:
            IncompatibleError: A file is of a newer schema.
        """
        self._look()
        if not self._said:
            return rows
        names = [*_OWN, "base", *_SAID]
        told = pa.table({name: rows.column(name) for name in names}).to_pylist()
        for row in told:
            row["step"] = self._steps.get(row["checkpoint_fingerprint"], row["step"])
            said = self._said.get(_weights(row)) if row["base"] is not None else None
            row.update(said or {})
        columns = dict(rows.columns)
        for name in _SAID:
            columns[name] = (pa.array([row[name] for row in told], columns[name][0].type), None)
        return replace(rows, columns=columns)

    def _look(self) -> None:
        """Reads what others wrote meanwhile, in the order in which they did."""
        found = []
        for path in self._files():
            if path.name in self._seen:
                continue
            try:
                written, table = read_cells_file(path)
            except (DamagedFile, OSError):
                continue  # who reads the results is told
            self._seen.add(path.name)
            found.append((written, path.name, table))
        for _, _, table in sorted(found, key=lambda each: each[:2]):
            by_label = pc.fill_null(pc.equal(table["labels_from"], "label"), False)
            for row in table.filter(by_label).select([*_OWN, *_SAID]).to_pylist():
                self._said[_weights(row)] = {name: row[name] for name in _SAID}
                if row["step"] is not None:
                    self._steps[row["checkpoint_fingerprint"]] = row["step"]


def _weights(row: Mapping[str, Any]) -> str:
    """As ``Subject.weights``."""
    return "+".join(row[name] for name in _OWN if row[name] is not None)

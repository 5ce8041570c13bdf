"""Several results folders read as one, for a report: each cell from one folder, never averaged."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evalcore.app.reduction import DocumentCodes, read_cells
from evalcore.errors import InputError, UnknownNameError
from evalcore.store import ResultStore

if TYPE_CHECKING:
    import pyarrow as pa

    from evalcore.analysis import ScoreBook, Way
    from evalcore.analysis.book import ReducedCell


def folder_names(paths: Sequence[Path]) -> list[str]:
    """What folders are called: as much of the ends of their paths as tells them apart.

    Raises:
        InputError: A folder is given twice.
    """
    real = [path.resolve() for path in paths]
    for path in real:
        if real.count(path) > 1:
            raise InputError(f"{path}: given twice; name each results folder once")
    for depth in range(1, max(len(path.parts) for path in real) + 1):
        names = ["/".join(path.parts[-depth:]) for path in real]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in real]


@dataclass
class Folders:
    """Results folders by name; a ``report.sources.Source``.

    Where several hold the same cell, the first of them gives it. ``owners``: cell -> name of the
    folder it was taken from, once :meth:`book` was read.
    """

    stores: dict[str, ResultStore]

    def __post_init__(self) -> None:
        self.owners: dict[str, str] = {}

    def cells(self) -> list[dict[str, Any]]:
        """Rows of all cells tables."""
        return [row for store in self.stores.values() for row in store.cells().to_pylist()]

    def book(self, cells: Collection[str] | None, preferred: Sequence[Way]) -> ScoreBook:
        """The current cells of all folders, with a flag for what several of them hold.

        Raises:
            InputError: There are no rows.
        """
        from evalcore.analysis import Flag, ScoreBook

        codes, lost = DocumentCodes(), 0
        taken: dict[str, tuple[str, ReducedCell]] = {}
        twice: dict[tuple[str, str, str], list[tuple[ReducedCell, ReducedCell]]] = defaultdict(list)
        for name, store in self.stores.items():
            reduced, unknown = read_cells(store, codes, cells=cells)
            lost += unknown
            for cell in reduced:
                if cell.facts.cell in taken:
                    first, other = taken[cell.facts.cell]
                    twice[cell.about["task"], first, name].append((other, cell))
                    continue
                about = {**cell.about, "folder": name}
                taken[cell.facts.cell] = (name, replace(cell, about=about))
        self.owners = {cell: name for cell, (name, _) in taken.items()}
        book = ScoreBook.of(
            [cell for _, cell in taken.values()], codes.names, preferred=preferred, lost=lost,
            clusters=codes.clusters if codes.has_clusters else None,
        )  # fmt: skip
        for (task, first, second), pairs in twice.items():
            book.flags.append(Flag("doubled", task, _both(first, second, pairs), len(pairs)))
        return book

    def of_documents(
        self, columns: Sequence[str], cells: Collection[str], doc_ids: Collection[str]
    ) -> pa.Table:
        import pyarrow as pa

        own = {name: {c for c in cells if self.owners.get(c) == name} for name in self.stores}
        return pa.concat_tables(
            [store.of_documents(columns, own[name], doc_ids) for name, store in self.stores.items()]
        )

    def documents(self, task: str | None = None) -> pa.Table:
        """Of all folders; a document that several have stands there several times."""
        import pyarrow as pa

        return pa.concat_tables([store.documents(task) for store in self.stores.values()])

    def requests(self, cell: str) -> pa.Table:
        owner = self.owners.get(cell)
        if owner is None:
            raise UnknownNameError("cell", cell, self.owners)
        return self.stores[owner].requests(cell)


def _both(first: str, second: str, pairs: Sequence[tuple[ReducedCell, ReducedCell]]) -> str:
    """What is the same cell in two folders."""
    apart = [abs(a.facts.mean - b.facts.mean) for a, b in pairs if a.facts.n == b.facts.n]
    unlike = len(pairs) - len(apart)
    text = f"{len(pairs)} cells stand in {first} and in {second}: those of {first} are shown"
    if apart:
        text += f"; their scores differ by {max(apart):.4f} at most"
    return text + (f"; {unlike} have other numbers of documents" if unlike else "")

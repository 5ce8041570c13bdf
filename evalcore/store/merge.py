"""Several results folders as one: files are copied, for their names are their own."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from evalcore.checked import DamagedFile
from evalcore.errors import InputError, ResultsError
from evalcore.files import write_atomically
from evalcore.store.access import read_bytes, refuse
from evalcore.store.cells import not_writable
from evalcore.store.results import ResultStore

_FOLDERS = (
    "cells", "segments", "makers", "settled", "weights", "documents", "clusters", "requests",
    "runs", "outside",
)  # fmt: skip


@dataclass(frozen=True)
class MergeReport:
    """What a merge did.

    Attributes:
        files: Files copied.
        rows: Examples in the merged folder, doubles counted once, superseded cells too.
        doubled: Examples that more than one part has; of those the one scored first is read.
    """

    files: int
    rows: int
    doubled: int


def merge(parts: Sequence[Path], output: Path) -> MergeReport:
    """Copies results folders into one, new or existing; the parts stay as they are.

    Records of cells, marks and segments keep the times they were written at, so the merged folder
    reads as if all runs had written into it.

    Raises:
        InputError: A part holds no results, or is the output.
        ResultsError: A part is damaged, or the output cannot be written.
    """
    opened = []
    for part in parts:
        if part.resolve() == output.resolve():
            raise InputError(f"{part} is both a part and the output; give another with -o")
        opened.append(ResultStore(part, read_only=True))
    for store in opened:
        report = store.verify(set_aside=False)
        if not report.sound:
            raise ResultsError(
                f"{report.lines()[0]}: nothing was merged; `evalcore verify {store.path}` sets "
                "what is damaged aside"
            )
    merged = ResultStore(output)
    before = merged.coverage().num_examples
    copied = 0
    for store in opened:
        for path in _files(store.path):
            target = merged.path / path.relative_to(store.path)
            if target.parent.name == "settled" and target.exists():
                continue  # what was settled first stays
            copied += _copy(path, target)
    rows = merged.coverage().num_examples
    total = before + sum(store.coverage().num_examples for store in opened)
    return MergeReport(copied, rows, total - rows)


def _files(folder: Path) -> Iterator[Path]:
    for name in _FOLDERS:
        for root, folders, names in os.walk(folder / name, onerror=refuse):
            folders.sort()
            yield from (Path(root) / n for n in sorted(names) if not n.startswith("."))


def _copy(source: Path, target: Path) -> bool:
    data = read_bytes(source)
    try:
        if read_bytes(target) == data:
            return False
    except FileNotFoundError:
        pass
    except DamagedFile as error:
        again = f"`evalcore verify {target.parent.parent}` sets it aside"
        raise ResultsError(f"{target}: {error}; {again}, then merge again") from error
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, lambda sink: sink.write(data))
    except OSError as error:
        raise not_writable(target.parent, error) from error
    return True

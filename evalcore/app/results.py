"""Care of a results folder: checking, superseded and dropped cells, compaction, merging."""

from __future__ import annotations

import fnmatch
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evalcore.app.report import open_results
from evalcore.errors import InputError
from evalcore.store import (
    CellState,
    CompactReport,
    MergeReport,
    ResultStore,
    VerifyReport,
    merge,
    verify_folder,
)

SELECTABLE = ("checkpoint", "adapter", "task", "variant")
_SAME = {"cell", "recorded", "requests", "evalcore_version", "versions", "findings"}


@dataclass(frozen=True)
class CellEntry:
    """One cell of a results folder.

    Attributes:
        state: Whether views take it.
        rows: Documents scored.
        row: Its record (``store.CELL_SCHEMA``).
        differs: Columns in which a superseded cell is not the current one.
    """

    state: CellState
    rows: int
    row: Mapping[str, Any]
    differs: tuple[str, ...] = ()

    @property
    def cell(self) -> str:
        return str(self.row["cell"])


def list_cells(results: Path) -> list[CellEntry]:
    """Every recorded cell, by subject, task, prompt and age."""
    store = open_results(results)
    states, coverage = store.cell_states(), store.coverage()
    rows = {row["cell"]: row for row in store.cells(every=True).to_pylist()}
    current: dict[tuple[Any, ...], Mapping[str, Any]] = {
        _group(row): row for cell, row in rows.items() if states[cell] == "current"
    }
    entries = []
    for cell, row in rows.items():
        differs: tuple[str, ...] = ()
        if states[cell] == "superseded" and _group(row) in current:
            new = current[_group(row)]
            differs = tuple(k for k in row if k not in _SAME and row[k] != new[k])
        entries.append(CellEntry(states[cell], coverage.count(cell), row, differs))
    names = ("checkpoint", "adapter", "task", "variant", "numerics", "recorded")
    return sorted(entries, key=lambda e: [str(e.row[name] or "") for name in names])


def select_cells(
    results: Path, keys: Sequence[str], patterns: Mapping[str, str | None], *, superseded: bool
) -> list[str]:
    """Cells by the beginning of their key, by name patterns, or all that are superseded.

    Raises:
        InputError: Nothing was asked for, or nothing fits.
    """
    given = {name: pattern for name, pattern in patterns.items() if pattern is not None}
    if not (keys or given or superseded):
        raise InputError(
            "which cells? give keys (their first digits, from `list`), --superseded, or "
            + ", ".join(f"--{name} PATTERN" for name in SELECTABLE)
        )
    found = []
    unused = set(keys)
    for entry in list_cells(results):
        mine = {key for key in keys if entry.cell.startswith(key)}
        unused -= mine
        named = all(fnmatch.fnmatchcase(str(entry.row[n]), p) for n, p in given.items())
        if (mine or not keys) and named and (entry.state == "superseded" or not superseded):
            found.append(entry.cell)
    if unused:
        raise InputError(f"no cell of {results} begins with {min(unused)}")
    if not found:
        raise InputError(f"no cell of {results} fits; see: evalcore cells {results} list")
    return found


def drop_cells(results: Path, cells: Sequence[str], *, restore: bool) -> int:
    """Leaves cells out of every view, or takes them in again; returns how many changed."""
    open_results(results)
    return ResultStore(results).drop_cells(cells, restore=restore)


def cell_lines(entries: Sequence[CellEntry], *, every: bool) -> list[str]:
    """A table for a person; without ``every`` current cells are counted, not listed."""
    counts = Counter(entry.state for entry in entries)
    shown = [entry for entry in entries if every or entry.state != "current"]
    lines = []
    by_state: dict[str, list[CellEntry]] = defaultdict(list)
    for entry in shown:
        by_state[entry.state].append(entry)
    for state in ("current", "sampled", "superseded", "dropped"):
        for entry in by_state[state]:
            row = entry.row
            what = ", ".join(str(row[name]) for name in SELECTABLE)
            why = f"; another {', '.join(entry.differs)}" if entry.differs else ""
            lines.append(
                f"{state:<10} {entry.cell[:12]} {entry.rows:>7,} rows  {row['recorded'][:15]}  "
                f"{what}{why}"
            )
    total = ", ".join(
        f"{counts[state]:,} {state}"
        for state in ("current", "sampled", "superseded", "dropped")
        if counts[state] or state != "sampled"
    )
    return [*lines, f"{len(entries):,} cells: {total}"]


def verify(results: Path, *, check_only: bool) -> VerifyReport:
    """Checks every byte; damaged files are set aside unless ``check_only``."""
    # Not opened first: store.json may be what is damaged.
    if not any((results / name).exists() for name in ("store.json", "segments", "cells")):
        raise InputError(f"{results}: no results there; give the folder of `evalcore score -o`")
    return verify_folder(results, set_aside=not check_only)


def compact(results: Path) -> CompactReport:
    """Merges small segments into few."""
    open_results(results)
    return ResultStore(results).compact()


def merge_results(parts: Sequence[Path], output: Path) -> MergeReport:
    """Copies several results folders into one."""
    for part in parts:
        open_results(part)
    return merge(parts, output)


def _group(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("subject", "task", "variant", "numerics"))

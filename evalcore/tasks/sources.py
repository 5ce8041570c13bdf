"""Rows of a data set: from a built-in generator, a folder, or the hub."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evalcore.errors import UnknownNameError
from evalcore.identity import HubError
from evalcore.reading import is_there
from evalcore.tasks.columns import Row
from evalcore.tasks.faults import DataFault, TaskDataError
from evalcore.tasks.hub import check_complete, hub_files
from evalcore.tasks.model import split_range
from evalcore.tasks.rows import ListRows, RangeRows, Rows, names_of_labels, open_files
from evalcore.types import Task

_SUFFIXES = ("parquet", "jsonl", "jsonl.gz", "json", "csv", "arrow")
_ABOUT = ("dataset_info.json", "state.json")


def load_rows(source: Mapping[str, Any], split: str, data_root: Path | None = None) -> list[Row]:
    """All rows of a split, in file order; arguments and errors as of :func:`open_rows`."""
    rows = open_rows(source, split, data_root)
    return rows.take(range(len(rows)))


def open_rows(source: Mapping[str, Any], split: str, data_root: Path | None = None) -> Rows:
    """Rows of a split, to be taken by number.

    Args:
        source: The ``source`` part of a task definition.
        split: Name of the split, with a cut if need be (``train[:1000]``).
        data_root: Folder of local data: ``<path>/<split>.*`` of path sources and
            ``<repo>/<config>/<split>.*`` of hub sources.

    Raises:
        TaskDataError: If the data is missing or broken; says what to fetch and where to put it.
    """
    name, start, stop = split_range(split)
    if source.get("generator"):
        rows: Rows = ListRows(_generated(str(source["dataset"]), name))
    else:
        rows = open_files(data_files(source, name, data_root))
    return rows if (start, stop) == (0, None) else RangeRows(rows, start, stop)


def label_names(
    source: Mapping[str, Any], split: str, column: str, data_root: Path | None = None
) -> tuple[str, ...]:
    """Names of a column's label ids, as the files of a split state them; () if none does.

    Every file is asked; one that states no names does not disagree.

    Raises:
        TaskDataError: If two files name the ids differently: their rows cannot be read as one
            split; or as of :func:`open_rows`.
    """
    if source.get("generator"):
        return ()
    stated: tuple[Path, tuple[str, ...]] | None = None
    for file in data_files(source, split_range(split)[0], data_root):
        names = names_of_labels(file).get(column, ())
        if stated is None:
            stated = (file, names) if names else None
        elif names and names != stated[1]:
            raise TaskDataError(
                DataFault.GOLD_NAMES,
                f"split {split}, column {column}: {stated[0]} calls its labels "
                f"{', '.join(stated[1])} and {file} {', '.join(names)}: the same number means "
                f"another label; write both with one order of names",
            )
    return stated[1] if stated else ()


def data_state(task: Task, data_root: Path | None) -> list[list[Any]]:
    """What the files of a task's splits are now: path, time and size of each.

    Generated rows have no files: they are those of this version of evalcore. A split that is not at
    hand has none either.
    """
    source = task.spec["source"]
    if source.get("generator"):
        return [[source["generator"], source["dataset"]]]
    names = {split_range(str(split))[0] for split in task.spec["splits"].values() if split}
    found: list[list[Any]] = []
    for name in sorted(names):
        try:
            files = data_files(source, name, data_root)
        except TaskDataError:
            files = []
        found.append([name])
        for file in files:
            about = file.stat()
            found.append([str(file), about.st_mtime_ns, about.st_size, about.st_ino])
    return found


def data_files(source: Mapping[str, Any], name: str, data_root: Path | None) -> list[Path]:
    """Files of a whole split, of a folder or the hub."""
    root = data_root if data_root is not None else _environment_root()
    if source.get("path"):
        return _from_path(str(source["path"]), name, root)
    hub = source["hub"]
    if root is not None:
        folder = root / hub["repo"] / (hub.get("config") or "")
        files = split_files(folder, name)
        if files:
            return files
        _check_kinds(folder, name)
        there = _splits_in(folder)
        if there:
            raise TaskDataError(
                DataFault.NO_SUCH_SPLIT,
                f"no rows of split {name!r} in {folder}: there are {', '.join(there)}; put "
                f"{name}.parquet (or .jsonl, .csv, .arrow) of {hub['repo']} beside them",
            )
    return hub_files(hub, name, root)


def _environment_root() -> Path | None:
    given = os.environ.get("EVALCORE_DATA_ROOT")
    return Path(given) if given else None


def _generated(dataset: str, split: str) -> list[Row]:
    from evalcore.tasks import pocket  # generates its text on import-time tables: only if asked for

    if dataset not in pocket.POCKET_DATASETS:
        raise UnknownNameError("pocket data set", dataset, pocket.POCKET_DATASETS)
    try:
        return list(pocket.pocket_rows(dataset, split))
    except (KeyError, ValueError) as error:
        raise TaskDataError(
            DataFault.NO_SUCH_SPLIT, f"pocket data set {dataset} has no split {split!r} ({error})"
        ) from None


def _from_path(path: str, split: str, root: Path | None) -> list[Path]:
    folder = Path(path).expanduser()
    if not folder.is_absolute():
        if root is None:
            raise TaskDataError(
                DataFault.NO_DATA_ROOT, f"data folder {path!r} is relative: give --data-root FOLDER"
            )
        folder = root / folder
    files = split_files(folder, split)
    if not files:
        _check_kinds(folder, split)
        there = _splits_in(folder)
        raise TaskDataError(
            DataFault.NO_SUCH_SPLIT,
            f"no rows of split {split!r}: looked for {folder}/{split}.{{{','.join(_SUFFIXES)}}}"
            + (f"; there are {', '.join(there)}" if there else "; the folder holds no data"),
        )
    return files


def _check_kinds(folder: Path, split: str) -> None:
    """Whether a split lies in a folder as files of kinds that are not read.

    Raises:
        TaskDataError: It does; nothing else is taken in its place.
    """
    found = [f.name for pattern in (f"{split}.*", f"{split}-*-of-*", f"{split}/*")
             for f in sorted(folder.glob(pattern))
             if f.is_file() and f.name not in _ABOUT]  # fmt: skip
    if found:
        raise TaskDataError(
            DataFault.NO_SUCH_SPLIT,
            f"split {split!r} in {folder} is {found[0]}, which is not read; write it as "
            f"{', '.join(_SUFFIXES)}",
        )


def _splits_in(folder: Path) -> list[str]:
    """Names of the splits a folder holds."""
    if not folder.is_dir():
        return []
    names = {
        file.name.removesuffix(f".{suffix}").partition("-0")[0]
        for suffix in _SUFFIXES
        for file in folder.glob(f"*.{suffix}")
    }
    return sorted(names)


def split_files(folder: Path, split: str) -> list[Path]:
    """Files of one split: ``<split>.*``, shards ``<split>-*-of-*.*``, or a folder ``<split>/``.

    Raises:
        TaskDataError: If there are several of these, or shards are missing: which rows are meant
            is then a guess.
    """
    found: dict[str, list[Path]] = {}
    for suffix in _SUFFIXES:
        single = folder / f"{split}.{suffix}"
        if is_there(single):
            found[single.name] = [single]
        shards = sorted(folder.glob(f"{split}-*-of-*.{suffix}"))
        if shards:
            found[f"{split}-*-of-*.{suffix}"] = shards
        # dataset_info.json, state.json lie beside saved arrow files
        inside = [f for f in sorted((folder / split).glob(f"*.{suffix}")) if f.name not in _ABOUT]
        if inside:
            found[f"{split}/*.{suffix}"] = inside
    if len(found) > 1:
        raise TaskDataError(
            DataFault.AMBIGUOUS_FILES,
            f"split {split!r} stands twice in {folder}: {' and '.join(found)}; keep one of them",
        )
    files = next(iter(found.values()), [])
    try:
        check_complete(files)
    except HubError as error:
        raise TaskDataError(
            DataFault.INCOMPLETE_FILES, f"split {split!r} in {folder} {error}"
        ) from None
    return files

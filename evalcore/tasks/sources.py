"""Rows of a data set: from a built-in generator, a folder, or the hub."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from evalcore.errors import DataError, UnknownNameError

_SUFFIXES = ("parquet", "jsonl", "jsonl.gz", "json", "csv", "arrow")

Row = Mapping[str, Any]


def load_rows(source: Mapping[str, Any], split: str, data_root: Path | None = None) -> list[Row]:
    """All rows of a split, in file order.

    Args:
        source: The ``source`` part of a task definition.
        split: Name of the split.
        data_root: Folder of local data: ``<path>/<split>.*`` of path sources and
            ``<repo>/<config>/<split>.*`` of hub sources.

    Raises:
        DataError: If the data is missing or broken; says what to fetch and where to put it.
    """
    if source.get("generator"):
        return _generated(str(source["dataset"]), split)
    root = data_root if data_root is not None else _environment_root()
    if source.get("path"):
        return _from_path(str(source["path"]), split, root)
    return _from_hub(source["hub"], split, root)


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
        raise DataError(f"pocket data set {dataset} has no split {split!r} ({error})") from None


def _from_path(path: str, split: str, root: Path | None) -> list[Row]:
    folder = Path(path).expanduser()
    if not folder.is_absolute():
        if root is None:
            raise DataError(f"data folder {path!r} is relative: give --data-root FOLDER")
        folder = root / folder
    files = split_files(folder, split)
    if not files:
        raise DataError(
            f"no rows of split {split!r}: looked for {folder}/{split}.{{{','.join(_SUFFIXES)}}}"
        )
    return [row for file in files for row in read_rows(file)]


def _from_hub(hub: Mapping[str, Any], split: str, root: Path | None) -> list[Row]:
    repo, config, revision = hub["repo"], hub.get("config"), hub.get("revision")
    if root is not None:
        folder = root / repo / config if config else root / repo
        files = split_files(folder, split)
        if files:
            return [row for file in files for row in read_rows(file)]
    return _download(repo, config, revision, split)


@lru_cache(maxsize=8)
def _download(repo: str, config: str | None, revision: str | None, split: str) -> list[Row]:
    place = f"<data-root>/{repo}/{config + '/' if config else ''}{split}.parquet"
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON")
    try:
        import datasets  # seconds to import: only for hub data

        data = datasets.load_dataset(repo, config, split=split, revision=revision)
        return [dict(row) for row in data]
    except Exception as error:  # the library raises many kinds; each means: not to be had
        why = (
            "HF_HUB_OFFLINE is set and it is not in the cache"
            if offline
            else (f"{type(error).__name__}")
        )
        raise DataError(
            f"data set {repo}{f' ({config})' if config else ''} split {split!r} is not to be had: "
            f"{why}; put its rows at {place} and give --data-root, or fetch it while online"
        ) from None


def split_files(folder: Path, split: str) -> list[Path]:
    """Files of one split: ``<split>.*``, shards ``<split>-*-of-*.*``, or a folder ``<split>/``."""
    for suffix in _SUFFIXES:
        single = folder / f"{split}.{suffix}"
        if single.is_file():
            return [single]
        shards = sorted(folder.glob(f"{split}-*-of-*.{suffix}"))
        if shards:
            return shards
    inside = folder / split
    if inside.is_dir():
        for suffix in _SUFFIXES:
            files = sorted(inside.glob(f"*.{suffix}"))
            if suffix == "json":  # dataset_info.json, state.json lie beside saved arrow files
                files = [f for f in files if f.name not in ("dataset_info.json", "state.json")]
            if files:
                return files
    return []


def read_rows(file: Path) -> list[Row]:
    """Rows of one parquet, jsonl, json, csv or arrow file.

    Raises:
        DataError: If the file is broken.
    """
    import pyarrow as pa

    try:
        if file.name.endswith((".jsonl", ".jsonl.gz", ".json")):
            return _read_json_rows(file)
        return _read_table(file).to_pylist()
    except (OSError, pa.ArrowException, ValueError) as error:
        raise DataError(f"data file {file} is broken: {str(error).splitlines()[0]}") from None


def _read_json_rows(file: Path) -> list[Row]:
    import gzip

    opener = gzip.open if file.suffix == ".gz" else open
    with opener(file, "rt", encoding="utf-8") as lines:
        if file.suffix == ".json":
            rows = json.load(lines)
        else:
            rows = []
            for number, line in enumerate(lines, 1):
                if line.strip():
                    try:
                        rows.append(json.loads(line))
                    except ValueError as error:
                        raise ValueError(f"line {number}: {error}") from None
    if not isinstance(rows, list) or any(not isinstance(row, dict) for row in rows):
        raise ValueError("expected one JSON object per row")
    return rows


def _read_table(file: Path) -> Any:
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    if file.suffix == ".parquet":
        return pyarrow.parquet.read_table(file)
    if file.suffix == ".csv":
        options = pyarrow.csv.ParseOptions(newlines_in_values=True)
        return pyarrow.csv.read_csv(file, parse_options=options)
    with pa.memory_map(str(file)) as source:
        try:
            return pa.ipc.open_file(source).read_all()
        except pa.ArrowInvalid:
            source.seek(0)
            return pa.ipc.open_stream(source).read_all()

"""Rows of a data set: from a built-in generator, a folder, or the hub."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evalcore.errors import InputError, UnknownNameError
from evalcore.reading import check_depth, regular_size
from evalcore.tasks.columns import Row
from evalcore.tasks.faults import DataFault, TaskDataError
from evalcore.tasks.hub import hub_files
from evalcore.tasks.model import split_range

_MAX_LINE = 1 << 28
_SUFFIXES = ("parquet", "jsonl", "jsonl.gz", "json", "csv", "arrow")


def load_rows(source: Mapping[str, Any], split: str, data_root: Path | None = None) -> list[Row]:
    """All rows of a split, in file order.

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
        return _generated(str(source["dataset"]), name)[start:stop]
    root = data_root if data_root is not None else _environment_root()
    if source.get("path"):
        return _from_path(str(source["path"]), name, root)[start:stop]
    hub = source["hub"]
    if root is not None:
        folder = root / hub["repo"] / (hub.get("config") or "")
        files = split_files(folder, name)
        if files:
            return _rows_of(files)[start:stop]
        there = _splits_in(folder)
        if there:
            raise TaskDataError(
                DataFault.NO_SUCH_SPLIT,
                f"no rows of split {name!r} in {folder}: there are {', '.join(there)}; put "
                f"{name}.parquet (or .jsonl, .csv, .arrow) of {hub['repo']} beside them",
            )
    return _rows_of(hub_files(hub, name, root))[start:stop]


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


def _from_path(path: str, split: str, root: Path | None) -> list[Row]:
    folder = Path(path).expanduser()
    if not folder.is_absolute():
        if root is None:
            raise TaskDataError(
                DataFault.NO_DATA_ROOT, f"data folder {path!r} is relative: give --data-root FOLDER"
            )
        folder = root / folder
    files = split_files(folder, split)
    if not files:
        there = _splits_in(folder)
        raise TaskDataError(
            DataFault.NO_SUCH_SPLIT,
            f"no rows of split {split!r}: looked for {folder}/{split}.{{{','.join(_SUFFIXES)}}}"
            + (f"; there are {', '.join(there)}" if there else "; the folder holds no data"),
        )
    return _rows_of(files)


def _rows_of(files: list[Path]) -> list[Row]:
    return [row for file in files for row in read_rows(file)]


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
    """Rows of one parquet, jsonl, json, csv or arrow file; cells of csv are text as written.

    Raises:
        TaskDataError: If the file is broken.
    """
    import pyarrow as pa

    try:
        regular_size(file, "data")
        if file.name.endswith((".jsonl", ".jsonl.gz", ".json")):
            return _read_json_rows(file)
        return _read_table(file).to_pylist()
    except (OSError, EOFError, zlib.error, csv.Error, pa.ArrowException, ValueError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
    except InputError as error:
        reason = str(error)
    except (RecursionError, MemoryError, OverflowError) as error:
        # nested beyond what is read, or sizes no memory has; the library says so in its own ways
        reason = f"it is nested too deeply or too large ({type(error).__name__})"
    raise TaskDataError(DataFault.BROKEN_FILE, f"data file {file} is broken: {reason}")


def _read_json_rows(file: Path) -> list[Row]:
    import gzip

    opener = gzip.open if file.suffix == ".gz" else open
    with opener(file, "rt", encoding="utf-8") as lines:
        if file.suffix == ".json":
            rows = json.load(lines)
        else:
            rows = []
            for number, line in enumerate(iter(lambda: lines.readline(_MAX_LINE + 1), ""), 1):
                if line.strip():
                    try:
                        rows.append(_json_row(line))
                    except ValueError as error:
                        raise ValueError(f"line {number}: {error}") from None
    if not isinstance(rows, list) or any(not isinstance(row, dict) for row in rows):
        raise ValueError("expected one JSON object per row")
    check_depth(rows, f"data: {file}")
    return rows


def _json_row(line: str) -> Any:
    if len(line) > _MAX_LINE:
        raise ValueError(f"is longer than {_MAX_LINE:,} characters")
    row = json.loads(line)
    if "\\ud" in line or "\\uD" in line:  # half of a pair is text no tokenizer takes
        try:
            json.dumps(row, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("half of a surrogate pair (\\ud800 to \\udfff) is no text") from None
    return row


def _read_csv(file: Path) -> Any:
    """Every cell as text: a type guessed by column would turn 1.50 into 1.5 and 00701 into 701.

    Only an empty cell without quotes is missing; NA, null and nan are text like any other.
    """
    import pyarrow as pa
    import pyarrow.csv

    with open(file, encoding="utf-8-sig", newline="") as lines:
        # The first record by a plain reader, bounded: names of columns are short.
        head = "".join(itertools.islice(iter(lambda: lines.read(65_536), ""), 16))
    names = next(csv.reader(io.StringIO(head, newline="")), [])
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"column {twice[0]!r} is given twice")
    return pyarrow.csv.read_csv(
        file,
        parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()),
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
            null_values=[""],
        ),
    )


def _read_table(file: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet

    if file.suffix == ".parquet":
        return pyarrow.parquet.read_table(file)
    if file.suffix == ".csv":
        return _read_csv(file)
    with pa.memory_map(str(file)) as source:
        try:
            table = pa.ipc.open_file(source).read_all()
        except pa.ArrowInvalid:
            source.seek(0)
            table = pa.ipc.open_stream(source).read_all()
    table.validate(full=True)  # the format's reader believes lengths and offsets
    return table

"""Small content-addressed records of a results folder: what made rows, documents, prompts."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from evalcore.checked import (
    ARROW_SUFFIX,
    JSON_SUFFIX,
    DamagedFile,
    check_name,
    name_metadata,
    read_json,
    read_named_table,
    read_table,
    write_json,
    write_table,
)
from evalcore.errors import DataError, InputError
from evalcore.identity.away import Named, NamedWeights
from evalcore.store.access import listed, patiently
from evalcore.store.cells import not_writable
from evalcore.store.schema import DOCUMENT_SCHEMA

log = logging.getLogger("evalcore")
Warn = Callable[[Path, str], None]


class Makers:
    """The ``makers`` folder: one record of an environment per file, named by its content."""

    def __init__(self, folder: Path, warn: Warn) -> None:
        self.folder = folder
        self._warn = warn

    def write(self, record: Mapping[str, Any]) -> str:
        """See ``ResultStore.write_maker``."""
        plain = json.loads(json.dumps(dict(record), sort_keys=True, default=str))
        text = json.dumps(plain, sort_keys=True)
        name = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
        path = self.folder / f"{name}{JSON_SUFFIX}"
        try:
            if _sound_json(path):
                return name
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(path, {"maker": name, **plain})
        except OSError as error:
            raise not_writable(self.folder, error) from error
        return name

    def read(self) -> dict[str, dict[str, Any]]:
        """Id -> record."""
        found = {}
        for path in listed(self.folder, f"[!.]*{JSON_SUFFIX}"):
            try:
                record = patiently(path, read_json)
                found[str(record.pop("maker"))] = record
            except (DamagedFile, FileNotFoundError, KeyError) as error:
                self._warn(path, str(error))
        return found

    def texts(self) -> dict[str, str]:
        """Id -> the record as one line: ``engine=vllm, strategy=packed, vllm=0.32.0 ...``."""
        return {name: _one_line(record) for name, record in self.read().items()}


class WeightNames:
    """The ``weights`` folder: under which fingerprint the weights of some files are scored here.

    A file has what one run, or one worker, came to know; together they say all of it.
    """

    def __init__(self, folder: Path, warn: Warn) -> None:
        self.folder = folder
        self._warn = warn

    def write(self, rows: Iterable[Named]) -> None:
        """See ``ResultStore.write_weights``."""
        known = self.read().by_files
        new = [row for row in rows if known.get(row.files) != _both(known.get(row.files), row)]
        if not new:
            return
        record = {"rows": [asdict(row) for row in new]}
        name = hashlib.blake2b(json.dumps(record).encode(), digest_size=8).hexdigest()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.folder / f"{name}{JSON_SUFFIX}", record)
        except OSError as error:
            raise not_writable(self.folder, error) from error

    def read(self) -> NamedWeights:
        """See ``ResultStore.weights``."""
        found: dict[str, Named] = {}
        for path in listed(self.folder, f"[!.]*{JSON_SUFFIX}"):
            try:
                rows = [Named(**row) for row in patiently(path, read_json)["rows"]]
            except (DamagedFile, FileNotFoundError, KeyError, TypeError) as error:
                self._warn(path, str(error))
                continue
            for row in rows:
                found[row.files] = _both(found.get(row.files), row)
        return NamedWeights(found)


def _both(one: Named | None, other: Named) -> Named:
    """What two rows about the same files say together; a name by content goes before others."""
    if one is None or one == other:
        return other
    content = one.content or other.content
    used = content if content in (one.used, other.used) else min(one.used, other.used)
    return Named(one.files, used, content, one.untrained or other.untrained)


class Documents:
    """The ``documents`` folder: questions, choices and golds of each (task, data), once."""

    def __init__(self, folder: Path, warn: Warn) -> None:
        self.folder = folder
        self._warn = warn

    def write(self, task: str, data: str, rows: Iterable[Mapping[str, Any]]) -> Path | None:
        """See ``ResultStore.write_documents``."""
        folder = self.folder / _folder_name(task, data)
        known = set(self._read(folder)["doc_id"].to_pylist()) if folder.is_dir() else set()
        new: dict[str, dict[str, Any]] = {}
        for row in rows:
            if row["doc_id"] not in known:
                new.setdefault(row["doc_id"], {**row, "task": task, "data": data})
        if not new:
            return None
        digest = hashlib.blake2b("\n".join(sorted(new)).encode(), digest_size=8).hexdigest()
        path = folder / f"{digest}{ARROW_SUFFIX}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_table(path, pa.Table.from_pylist(list(new.values()), DOCUMENT_SCHEMA))
        except OSError as error:
            raise not_writable(self.folder, error) from error
        return path

    def read(self, task: str | None = None, data: str | None = None) -> pa.Table:
        """Documents of a task (None: of all), each once."""
        folders = [f for f in listed(self.folder, "[!.]*") if f.is_dir()]
        table = pa.concat_tables([DOCUMENT_SCHEMA.empty_table(), *map(self._read, folders)])
        for name, value in (("task", task), ("data", data)):
            if value is not None:
                table = table.filter(pa.compute.equal(table[name], value))
        return table

    def _read(self, folder: Path) -> pa.Table:
        tables = [DOCUMENT_SCHEMA.empty_table()]
        seen: set[str] = set()
        for path in listed(folder, f"[!.]*{ARROW_SUFFIX}"):
            try:
                table = patiently(path, read_table)
            except (DamagedFile, FileNotFoundError) as error:
                self._warn(path, str(error))
                continue
            ids = table["doc_id"].to_pylist()
            keep = [doc_id not in seen for doc_id in ids]  # two runs may have written some twice
            seen.update(ids)
            tables.append(table.filter(pa.array(keep, pa.bool_())))
        return pa.concat_tables(tables)


CLUSTER_SCHEMA = pa.schema([("doc_id", pa.string()), ("cluster", pa.string())])
"""One row per document of a task that names what its documents hang together in."""


class Clusters:
    """The ``clusters`` folder: what documents hang together in, once per (task, data)."""

    def __init__(self, folder: Path, warn: Warn) -> None:
        self.folder = folder
        self._warn = warn

    def write(self, task: str, clusters: Mapping[str, str]) -> Path | None:
        """See ``ResultStore.write_clusters``."""
        if not clusters:
            return None
        rows = sorted(clusters.items())
        digest = hashlib.blake2b(json.dumps([task, rows]).encode(), digest_size=8).hexdigest()
        path = self.folder / f"{_folder_name(task, digest)}{ARROW_SUFFIX}"
        if path.is_file():
            return None
        columns = [pa.array(column, pa.string()) for column in zip(*rows, strict=True)]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_table(path, pa.Table.from_arrays(columns, schema=CLUSTER_SCHEMA))
        except OSError as error:
            raise not_writable(self.folder, error) from error
        return path

    def read(self) -> dict[str, str]:
        """Document id -> cluster; where two files differ, that of the later name counts."""
        found: dict[str, str] = {}
        for path in listed(self.folder, f"[!.]*{ARROW_SUFFIX}"):
            try:
                table = patiently(path, read_table)
                documents, clusters = (table[name].to_pylist() for name in CLUSTER_SCHEMA.names)
                found.update(zip(documents, clusters, strict=True))
            except (DamagedFile, FileNotFoundError, KeyError) as error:
                self._warn(path, str(error))
        return found


class Requests:
    """The ``requests`` folder: prompts as token ids, by the name cells have for them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, name: str) -> Path:
        """Where prompts of that name lie."""
        return self.folder / f"{Path(name).name.split('.')[0]}{ARROW_SUFFIX}"

    def write(self, name: str, table: pa.Table) -> Path:
        """See ``ResultStore.write_requests``."""
        path = self.path(name)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_table(path, table, metadata=name_metadata(path))
        except OSError as error:
            raise not_writable(self.folder, error) from error
        return path

    def has(self, name: str) -> bool:
        """See ``ResultStore.has_requests``."""
        try:
            patiently(self.path(name), check_name)
        except (DamagedFile, FileNotFoundError):
            return False
        return True

    def read(self, name: str) -> pa.Table:
        """See ``ResultStore.requests``."""
        path = self.path(name)
        try:
            return patiently(path, read_named_table)[0]
        except FileNotFoundError:
            raise InputError(
                f"{path}: these prompts were not kept (--no-documents, or an earlier evalcore); "
                "run the same command again to keep them"
            ) from None
        except DamagedFile as error:
            raise DataError(f"{path}: {error}; `evalcore verify` sets it aside") from error


def _sound_json(path: Path) -> bool:
    try:
        patiently(path, read_json)
    except (DamagedFile, FileNotFoundError):
        return False
    return True


def _one_line(record: Mapping[str, Any]) -> str:
    parts: Sequence[str] = [
        f"{key}={value if isinstance(value, str) else json.dumps(value)}"
        for key, value in sorted(record.items())
        if value is not None
    ]
    return ", ".join(parts)


def _folder_name(task: str, data: str) -> str:
    """A readable name; the digest tells apart what the file system may not."""
    safe = "".join(c if c.isascii() and (c.isalnum() or c in "_.-") else "_" for c in task)[:64]
    digest = hashlib.blake2b(f"{task}\n{data}".encode(), digest_size=6).hexdigest()
    return f"{safe.lstrip('.') or 'task'}-{digest}"

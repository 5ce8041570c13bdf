"""``store.json``: what a results folder is, and by which schema."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from evalcore.checked import DamagedFile, read_json, write_json
from evalcore.errors import IncompatibleError, InputError
from evalcore.reading import is_there
from evalcore.store.access import patiently
from evalcore.store.cells import not_writable
from evalcore.store.migration import check_version
from evalcore.store.schema import SCHEMA_VERSION

FORMAT_NAME = "evalcore-results"
SETTINGS_FILE = "store.json"
_LAST_UNCHECKED = 2


def open_settings(folder: Path, *, read_only: bool) -> int:
    """Checks that the folder is a results folder this evalcore reads; returns its schema.

    Unless ``read_only``, the file is made where it is missing, and a folder of an earlier schema is
    marked as one of the present: new files go into it, the old ones stay as they are.

    Raises:
        IncompatibleError: Another format, a newer schema, or a damaged file.
        ResultsError: The file cannot be read or written.
        InputError: It is missing.
    """
    path = folder / SETTINGS_FILE
    if not read_only and not is_there(path):
        write_settings(folder)  # two processes may both come here: they write the same
    version = check_settings(path)
    if not read_only and version < SCHEMA_VERSION:
        write_settings(folder)
    return version


def write_settings(folder: Path) -> None:
    """Writes ``store.json`` for the present schema."""
    try:
        record = {"format": FORMAT_NAME, "schema_version": SCHEMA_VERSION}
        write_json(folder / SETTINGS_FILE, record)
    except OSError as error:
        raise not_writable(folder, error) from error


def check_settings(path: Path) -> int:
    """The schema version that a ``store.json`` states; raises as :func:`open_settings` does."""
    again = "give another results folder, or let `evalcore verify` write it anew"
    try:
        content = patiently(path, _read)
        name, version = content["format"], content["schema_version"]
    except FileNotFoundError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except DamagedFile as error:
        raise IncompatibleError(f"{path} is damaged or not evalcore's: {error}; {again}") from error
    except KeyError as error:
        raise IncompatibleError(
            f"{path} is not evalcore's (it must name format and schema_version); {again}"
        ) from error
    if name != FORMAT_NAME:
        raise IncompatibleError(f"{path} is of format {name!r}, not {FORMAT_NAME!r}; {again}")
    version = check_version(version, str(path))
    if version > _LAST_UNCHECKED and not _has_checksum(path):
        raise IncompatibleError(f"{path} is damaged: its checksum is missing; {again}")
    if version <= _LAST_UNCHECKED and len(content) != 2:
        raise IncompatibleError(f"{path} is damaged: it has other keys than it should; {again}")
    return version


def _read(path: Path) -> dict[str, Any]:
    return read_json(path, required=False)


def _has_checksum(path: Path) -> bool:
    try:
        patiently(path, lambda path: read_json(path, required=True))
    except (DamagedFile, FileNotFoundError):
        return False
    return True

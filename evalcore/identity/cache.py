"""Cache of facts: about files, keyed by (path, size, mtime_ns, inode), or about a state of things;
safe for many processes."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from evalcore.errors import InputError

logger = logging.getLogger("evalcore")

# A file changed twice within one clock tick keeps its mtime; do not remember files this young.
SETTLED_AFTER_S = 2.0
_BLOB_NAME = re.compile(r"^[0-9a-f]{64}$")


def cache_dir() -> Path:
    """Folder of evalcore's caches: ``EVALCORE_CACHE``, else ``~/.cache/evalcore``."""
    given = os.environ.get("EVALCORE_CACHE")
    return Path(given) if given else Path.home() / ".cache" / "evalcore"


def cached_file_fact(path: Path, kind: str, compute: Callable[[Path], Any]) -> Any:
    """Returns ``compute(path)``, from the cache if the file is the one seen before.

    Args:
        path: An existing file. Links are followed; a blob of the hub's cache is known by the
            sha256 that is its name, so that it is read once however often it is downloaded.
        kind: Name and version of the fact; a changed ``compute`` needs a new kind.
        compute: Gives a JSON-able value.

    Raises:
        InputError: If the file cannot be read or changes while it is read.
    """
    try:
        real = path.resolve(strict=True)
        before = os.stat(real)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    blob = real.parent.name == "blobs" and bool(_BLOB_NAME.match(real.name))
    if blob:
        state: list[Any] = [real.name, before.st_size]
        name = f"blob:{real.name}"
    else:
        state = [str(real), before.st_size, before.st_mtime_ns, before.st_ino]
        name = str(real)
    entry = _entry_path(kind, name)
    known = _read_entry(entry)
    if known is not None and known.get("state") == state:
        return known["value"]
    try:
        value = compute(real)
        after = os.stat(real)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise InputError(
            f"{path} changed while it was read; wait until it is written and run again"
        )
    if blob or time.time() - after.st_mtime > SETTLED_AFTER_S:
        _write_entry(entry, {"state": state, "value": value})
    return value


def cached_fact(kind: str, state: str, compute: Callable[[], Any]) -> Any:
    """Returns ``compute()``, from the cache if it was computed for the same state before.

    Args:
        kind: Name and version of the fact; a changed ``compute`` needs a new kind.
        state: Fingerprint of everything that decides the fact.
        compute: Gives a JSON-able value.
    """
    entry = _entry_path(kind, f"state:{state}")
    known = _read_entry(entry)
    if known is not None and known.get("state") == state:
        return known["value"]
    value = compute()
    _write_entry(entry, {"state": state, "value": value})
    return value


def last_file_fact(path: Path, kind: str) -> Any:
    """What was last remembered of a path, even if another file lies there now; None if nothing."""
    known = _read_entry(_entry_path(kind, str(path.resolve())))
    return known["value"] if known is not None else None


def _entry_path(kind: str, name: str) -> Path:
    digest = hashlib.blake2b(f"{kind}\0{name}".encode("utf-8", "surrogatepass"), digest_size=16)
    return cache_dir() / "fingerprints" / f"{digest.hexdigest()}.json"


def _read_entry(path: Path) -> dict[str, Any] | None:
    try:
        entry = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return entry if isinstance(entry, dict) and "value" in entry else None


def _write_entry(path: Path, entry: dict[str, Any]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(entry), "utf-8")
        os.replace(temporary, path)
    except OSError as error:  # a read-only home costs time, not the run
        logger.debug("fingerprint cache not written: %s", error)

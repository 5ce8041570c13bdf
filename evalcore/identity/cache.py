"""Cache of facts: about files, keyed by (path, size, mtime_ns, inode), or about a state of things.

Safe for many processes: of those that miss the same fact one computes it and the others wait for it
(array jobs start at once over the same checkpoints). Where the folder cannot be locked, each
computes for itself. Every entry carries a sum of what it says; one that was damaged is made again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Generic, TypeVar

from evalcore.errors import InputError
from evalcore.files import try_lock

T = TypeVar("T")
logger = logging.getLogger("evalcore")

# A file changed twice within one clock tick keeps its mtime; do not remember files this young.
SETTLED_AFTER_S = 2.0
WAIT_S = 1800.0
"""Whoever waits longer than this for another one's fact computes it, too."""
_BLOB_NAME = re.compile(r"^[0-9a-f]{64}$")


def cache_dir() -> Path:
    """Folder of evalcore's caches: ``EVALCORE_CACHE``, else ``~/.cache/evalcore``."""
    given = os.environ.get("EVALCORE_CACHE")
    return Path(given) if given else Path.home() / ".cache" / "evalcore"


def cached_file_fact(
    path: Path,
    kind: str,
    compute: Callable[[Path], Any],
    beside: Callable[[], Mapping[str, Any]] | None = None,
) -> Any:
    """Returns ``compute(path)``, from the cache if the file is the one seen before.

    Args:
        path: An existing file. Links are followed; a blob of the hub's cache is known by the
            sha256 that is its name, so that it is read once however often it is downloaded.
        kind: Name and version of the fact; a changed ``compute`` needs a new kind.
        compute: Gives a JSON-able value.
        beside: Asked after ``compute``: other facts of the same reading, by their kind.

    Raises:
        InputError: If the file cannot be read or changes while it is read.
    """
    try:
        real = path.resolve(strict=True)
        before = os.stat(real)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    blob = hub_name(real) is not None
    name, state = _file_state(real, before)
    entry = _entry_path(kind, name)

    def made() -> Any:
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
            _write_entry(entry, state, value)
            for other, also in (beside() if beside is not None else {}).items():
                _write_entry(_entry_path(other, name), state, also)
        return value

    return _kept_or(entry, state, made)


def _kept_or(entry: Path, state: Any, make: Callable[[], Any]) -> Any:
    """What an entry has for a state, else what ``make`` gives: one process makes, others wait."""
    known = _read_entry(entry, state)
    if known is None:
        with locked(entry):
            known = _read_entry(entry, state)
            if known is None:
                return make()
    return known[0]


def hub_name(real: Path) -> str | None:
    """The sha256 that names a blob of the hub's cache; None for any other file."""
    return real.name if real.parent.name == "blobs" and _BLOB_NAME.match(real.name) else None


def known_file_fact(path: Path, kind: str) -> Any:
    """What is remembered of a file as it is now; None if nothing."""
    try:
        real = path.resolve(strict=True)
        name, state = _file_state(real, os.stat(real))
    except OSError:
        return None
    known = _read_entry(_entry_path(kind, name), state)
    return known[0] if known is not None else None


def _file_state(real: Path, about: os.stat_result) -> tuple[str, list[Any]]:
    """(name by which a file is remembered, what has to be as it was)."""
    if hub_name(real) is not None:
        return f"blob:{real.name}", [real.name, about.st_size]
    return str(real), [str(real), about.st_size, about.st_mtime_ns, about.st_ino]


def known_fact(kind: str, state: str) -> Any:
    """What was noted for a state; None if nothing."""
    known = _read_entry(_entry_path(kind, f"state:{state}"), state)
    return known[0] if known is not None else None


def note_fact(kind: str, state: str, value: Any) -> None:
    """Notes a fact for a state, as :func:`cached_fact` keeps what it computes."""
    _write_entry(_entry_path(kind, f"state:{state}"), state, value)


def cached_fact(kind: str, state: str, compute: Callable[[], Any]) -> Any:
    """Returns ``compute()``, from the cache if it was computed for the same state before.

    Args:
        kind: Name and version of the fact; a changed ``compute`` needs a new kind.
        state: Fingerprint of everything that decides the fact.
        compute: Gives a JSON-able value.
    """
    entry = _entry_path(kind, f"state:{state}")

    def made() -> Any:
        value = compute()
        _write_entry(entry, state, value)
        return value

    return _kept_or(entry, state, made)


class FileMemo(Generic[T]):
    """What was read of the last few files, by (path, size, mtime_ns, inode), for this process.

    Args:
        read: Reads a file.
        copy: Of a value, for whoever asks: values may be changed.
        most: Files kept.
    """

    def __init__(self, read: Callable[[Path], T], copy: Callable[[T], T], most: int = 64) -> None:
        self._read, self._copy, self._most = read, copy, most
        self._known: dict[tuple[str, int, int, int], T] = {}

    def of(self, path: Path) -> T:
        """What is in a file now; files too young to be known by their time are read each time."""
        try:
            about = os.stat(path)
        except (OSError, ValueError):
            return self._read(path)  # which says what is wrong
        if time.time() - about.st_mtime <= SETTLED_AFTER_S:
            return self._read(path)
        at = (str(path), about.st_size, about.st_mtime_ns, about.st_ino)
        found = self._known.get(at)
        if found is None:
            found = self._read(path)
            if len(self._known) >= self._most:
                self._known.pop(next(iter(self._known)), None)
            self._known[at] = found
        return self._copy(found)


def last_file_fact(path: Path, kind: str) -> Any:
    """What was last remembered of a path, even if another file lies there now; None if nothing."""
    known = _read_entry(_entry_path(kind, str(path.resolve())), None)
    return known[0] if known is not None else None


def _entry_path(kind: str, name: str) -> Path:
    digest = hashlib.blake2b(f"{kind}\0{name}".encode("utf-8", "surrogatepass"), digest_size=16)
    return cache_dir() / "fingerprints" / f"{digest.hexdigest()}.json"


def _read_entry(path: Path, state: Any) -> tuple[Any] | None:
    """(value,) of an entry that is whole and of a state (None: of any); None: there is none."""
    try:
        entry = json.loads(path.read_text("utf-8"))
        own = (entry["state"], entry["value"])
    except (OSError, ValueError, LookupError, TypeError):
        return None
    # Entries of earlier versions have no sum.
    if "sum" in entry and entry["sum"] != _sum_of(*map(json.dumps, own)):
        return None
    return own[1:] if state is None or own[0] == state else None


def _write_entry(path: Path, state: Any, value: Any) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}")
    try:
        parts = [json.dumps(part) for part in (state, value)]  # which stay as they are when read
        text = f'{{"state": {parts[0]}, "value": {parts[1]}, "sum": "{_sum_of(*parts)}"}}'
        try:
            temporary.write_text(text, "utf-8")
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(text, "utf-8")
        os.replace(temporary, path)
    except OSError as error:  # a read-only home costs time, not the run
        logger.debug("fingerprint cache not written: %s", error)


def _sum_of(state: str, value: str) -> str:
    """Over the JSON of an entry's parts."""
    return hashlib.blake2b(f"[{state}, {value}]".encode(), digest_size=8).hexdigest()


@contextmanager
def locked(entry: Path) -> Iterator[None]:
    """While one process or thread is in here, others that want this entry wait.

    What they wait for may be there then: whoever has waited looks again before it computes.
    """
    lock = entry.with_suffix(".lock")
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = open(lock, "ab")  # noqa: SIM115
    except OSError:  # a read-only home
        yield
        return
    with file:
        until = time.monotonic() + WAIT_S
        while try_lock(file) is False and time.monotonic() < until:
            time.sleep(0.02)
        try:
            yield
        finally:
            # Whoever waits for the lock of this file looks at the entry again before computing.
            with suppress(OSError):
                lock.unlink(missing_ok=True)

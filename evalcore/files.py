"""Files that are either whole or not there: temporary name, fsync, rename, fsync of the folder."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from evalcore.machine import machine_id, process_start

STALE_TEMPORARY_S = 24 * 3600
_TEMPORARY_SUFFIX = ".tmp"
_SCRATCH = "evalcore-"
# What file systems answer that know no fsync of this kind (FUSE, CIFS, object stores).
_NO_FSYNC = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.EACCES}

_NO_LINK = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EACCES}


def write_atomically(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Makes ``path`` appear with its full contents, durably, or not at all.

    The temporary file lies in the same folder (rename is atomic only within a file system) and its
    name starts with a dot, so that dataset readers pointed at the folder skip it.

    Args:
        path: Final name; an existing file is replaced.
        write: Writes the contents to the open binary file.

    Raises:
        OSError: The file cannot be written; nothing is left behind.
    """
    whose = _writer(os.getpid())
    temporary = path.parent / f".{path.name}.{whose}.{secrets.token_hex(4)}{_TEMPORARY_SUFFIX}"
    try:
        with open(temporary, "xb") as sink:
            write(sink)
            sink.flush()
            _fsync(sink.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    fsync_folder(path.parent)


def write_once(path: Path, data: bytes) -> None:
    """Like :func:`write_atomically`, only where there is no such file yet; else nothing is done.

    Raises:
        OSError: The file cannot be written.
    """
    # A link fails where a rename would replace.
    whose = _writer(os.getpid())
    own = path.with_name(f".{path.name}.{whose}.{secrets.token_hex(4)}{_TEMPORARY_SUFFIX}")
    try:
        write_atomically(own, lambda sink: sink.write(data))
        os.link(own, path)
        fsync_folder(path.parent)
    except FileExistsError:
        pass
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        if not path.exists():
            write_atomically(path, lambda sink: sink.write(data))
    finally:
        with contextlib.suppress(OSError):
            own.unlink()


def pinned(path: Path) -> Path:
    """A path without its links, where it has some: one pointed elsewhere later moves nothing."""
    real = Path(os.path.realpath(path))
    return path if real == Path(os.path.abspath(path)) else real


def try_lock(file: IO[Any]) -> bool | None:
    """Takes the lock of an open file for this process, without waiting; closing it gives it back.

    Returns:
        Whether it was free; None where the file system knows no locks.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def fsync_folder(folder: Path) -> None:
    """Makes names created, renamed or removed in ``folder`` survive a power cut.

    Where the file system knows no such thing, nothing is done: the names are there all the same.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        if error.errno in _NO_FSYNC:
            return
        raise
    try:
        _fsync(descriptor)
    finally:
        os.close(descriptor)


def _fsync(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FSYNC:
            raise


def try_folder(folder: Path) -> None:
    """Tries what results rest on: a file renamed into a folder is listed, whole, and can go again.

    Some mounts (object stores, caching network folders) accept every call and keep no such promise.

    Raises:
        OSError: The folder cannot be written, or does not do as it should.
    """
    text = secrets.token_bytes(64)
    path = folder / f".probe.{_writer(os.getpid())}.{secrets.token_hex(4)}{_TEMPORARY_SUFFIX}"
    write_atomically(path, lambda sink: sink.write(text))
    try:
        if path.name not in os.listdir(folder):
            raise OSError(errno.EIO, "a file renamed into it is not listed at once")
        if path.read_bytes() != text:
            raise OSError(errno.EIO, "a file written to it reads back otherwise")
    finally:
        path.unlink(missing_ok=True)
    if path.name in os.listdir(folder):
        raise OSError(errno.EIO, "a file removed from it is still listed")


def remove_stale_temporaries(folder: Path, older_than_s: float = STALE_TEMPORARY_S) -> int:
    """Removes what dead writers left.

    Those of this machine are known by the process in the name; of others, whatever is old by the
    file system's own clock: younger files may belong to a writer that still lives, and this
    machine's clock may have jumped.

    Returns:
        How many files were removed.
    """
    removed = 0
    now: float | None = None
    for entry in os.scandir(folder):
        if not (entry.name.startswith(".") and entry.name.endswith(_TEMPORARY_SUFFIX)):
            continue
        # Another process may clean the same folder.
        with contextlib.suppress(OSError):
            dead = _is_of_the_dead(entry.name)
            if not dead:
                now = _time_of(folder) if now is None else now
            if dead or (now is not None and entry.stat().st_mtime < now - older_than_s):
                os.unlink(entry.path)
                removed += 1
    return removed


@contextlib.contextmanager
def scratch_folder(kind: str, within: Path | None = None) -> Iterator[Path]:
    """A folder of this process that goes when it is left; what killed ones left there goes first.

    Args:
        kind: For its name.
        within: Where; None: the folder for temporary files.
    """
    top = Path(tempfile.gettempdir()) if within is None else within
    remove_dead_scratch(top)
    hidden = "" if within is None else "."  # beside what people look for
    whose = f"{_writer(os.getpid())}.{secrets.token_hex(4)}"
    folder = top / f"{hidden}{_SCRATCH}{kind}.{whose}{_TEMPORARY_SUFFIX}"
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_dead_scratch(top: Path) -> int:
    """Removes scratch folders of processes of this machine and user that are gone; how many."""
    removed = 0
    with contextlib.suppress(OSError):
        for entry in os.scandir(top):
            if not entry.name.lstrip(".").startswith(_SCRATCH) or not _is_of_the_dead(entry.name):
                continue
            with contextlib.suppress(OSError):
                about = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(about.st_mode) and about.st_uid == os.getuid():
                    shutil.rmtree(entry.path)
                    removed += 1
    return removed


def _time_of(folder: Path) -> float:
    """Now, as the file system of a folder writes it to files (seconds since 1970)."""
    with tempfile.TemporaryFile(dir=folder) as probe:
        probe.write(b" ")
        probe.flush()
        return os.fstat(probe.fileno()).st_mtime


def _writer(pid: int) -> str:
    """A process of this machine: in no other machine or time is one called the same."""
    where = hashlib.blake2b(machine_id().encode(), digest_size=6).hexdigest()
    return f"{where}-{pid}-{process_start(pid) or 0}"


def _is_of_the_dead(name: str) -> bool:
    """Whether a temporary file is of a process of this machine that is gone."""
    found = re.search(r"\.([0-9a-f]{12})-([0-9]+)-([0-9]+)\.[0-9a-f]{8}\.tmp$", name)
    if found is None or not machine_id() or found[3] == "0":
        return False
    here = _writer(int(found[2]))
    return here.split("-")[0] == found[1] and here != f"{found[1]}-{found[2]}-{found[3]}"


def utc_stamp(time_ns: int | None = None) -> str:
    """Time as file names carry it: ``20260131T235959.123456Z``; text order is time order."""
    now_ns = time.time_ns() if time_ns is None else time_ns
    moment = datetime.fromtimestamp(now_ns // 1_000_000_000, tz=UTC)
    return f"{moment:%Y%m%dT%H%M%S}.{now_ns // 1000 % 1_000_000:06d}Z"

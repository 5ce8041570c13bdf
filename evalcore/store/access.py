"""Reading a file of a results folder: what cannot be read now is not damaged."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TypeVar

from evalcore.checked import DamagedFile, require_regular
from evalcore.errors import ResultsError

_T = TypeVar("_T")
_PAUSES_S = (0.05, 0.2, 0.5)


def patiently(path: Path, read: Callable[[Path], _T]) -> _T:
    """``read(path)``, tried a few times where the system refuses.

    Raises:
        DamagedFile: The bytes are not those that were written.
        FileNotFoundError: There is no such file.
        ResultsError: It cannot be read (no permission, a disk or network that fails, too many
            open files): whether it is damaged cannot be told.
    """
    for pause in (*_PAUSES_S, None):
        try:
            return read(path)
        except FileNotFoundError:
            raise
        except OSError as error:
            if error.errno is None:  # Arrow's word about bytes that it was given
                raise DamagedFile(str(error).strip().split("\n")[0][:200]) from error
            if pause is None:
                raise ResultsError(
                    f"{path} cannot be read ({error.strerror or error}); it was left as it is"
                ) from error
            time.sleep(pause)
    raise AssertionError("unreachable")


def read_bytes(path: Path) -> bytes:
    """All bytes of a regular file; raises as :func:`patiently` does."""

    def read(path: Path) -> bytes:
        require_regular(path)
        return path.read_bytes()

    return patiently(path, read)


def listed(folder: Path, pattern: str) -> list[Path]:
    """Paths in a folder whose names fit, sorted; none where there is no such folder.

    Raises:
        ResultsError: It cannot be looked into: what is in it cannot be told.
    """
    try:
        names = patiently(folder, os.listdir)
    except (FileNotFoundError, DamagedFile):
        return []
    return [folder / name for name in sorted(names) if fnmatchcase(name, pattern)]


def refuse(error: OSError) -> None:
    """What a walk through folders makes of one that it cannot look into.

    Raises:
        ResultsError: It is still there.
    """
    if not isinstance(error, FileNotFoundError):
        raise ResultsError(f"{error.filename} cannot be read ({error.strerror})") from error

"""Whether an adapter or a checkpoint is written to its end, as far as its files tell."""

from __future__ import annotations

from pathlib import Path

from evalcore.errors import InputError
from evalcore.identity.adapter import ADAPTER_CONFIG, adapter_config, adapter_file
from evalcore.identity.header import read_header
from evalcore.identity.search import unfinished
from evalcore.identity.tokenizer_files import has_vocabulary
from evalcore.identity.weights import weight_layout
from evalcore.reading import read_json

_TEMPORARY = (".tmp", ".temp", ".part", ".partial", ".incomplete", ".lock")
_TEMPORARY_FOLDER = ("tmp-checkpoint", "tmp_checkpoint")

FileState = tuple[tuple[str, int, int], ...]
"""(name, bytes, time of change in ns) of each file, by name."""


def file_state(folder: Path) -> FileState:
    """What its files are like now; of those in it, not below it.

    Raises:
        OSError: The folder, or a file of it, is gone or cannot be looked at.
    """
    found = []
    for path in folder.iterdir():
        if path.is_file():
            about = path.stat()
            found.append((path.name, about.st_size, about.st_mtime_ns))
    return tuple(sorted(found))


def why_incomplete(folder: Path) -> str | None:
    """What a folder with an adapter or a checkpoint lacks, in a few words; None: nothing.

    Headers and lists of shards are read, weights are not: who writes a file at its full length
    before its contents is found out only by looking twice (:func:`file_state`).
    """
    if (problem := unfinished(folder)) is not None:
        return problem.message
    if folder.name.startswith(_TEMPORARY_FOLDER):
        return "its name says that it is temporary"
    try:
        names = sorted(path.name for path in folder.iterdir())
        if busy := [name for name in names if name.endswith(_TEMPORARY)]:
            return f"it holds {busy[0]}"
        if ADAPTER_CONFIG in names:
            adapter_config(folder)
            read_header(adapter_file(folder))
            return None
        read_json(folder / "config.json", "checkpoint")
        weight_layout(folder)
        return None if has_vocabulary(folder) else "it has no tokenizer"
    except InputError as error:
        return str(error)
    except OSError as error:
        return f"it cannot be read ({error.strerror or error})"

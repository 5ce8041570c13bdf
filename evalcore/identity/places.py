"""How users say where a model is: a path, a place on the hub, a list of those."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evalcore.errors import InputError
from evalcore.reading import read_text

_PREFIX = "hf:"
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_FOLDER = re.compile(r"[\w.+=-]+(/[\w.+=-]+)*")
_FORM = "expected hf:ORG/NAME@REVISION or hf:ORG/NAME@REVISION#FOLDER"


@dataclass(frozen=True, slots=True)
class HubPlace:
    """A place on the hub.

    Attributes:
        repo: Its repository.
        revision: A commit, branch or tag.
        folder: Inside the repository; empty: its top.
    """

    repo: str
    revision: str
    folder: str = ""

    @classmethod
    def parse(cls, text: str) -> HubPlace | None:
        """``[hf:]REPO@REV[#FOLDER]``; None where it is a local path.

        Raises:
            InputError: It begins with ``hf:`` and goes on otherwise.
        """
        said = text.startswith(_PREFIX)
        if not said and ("@" not in text or Path(text).expanduser().exists()):
            return None
        repo, _, at = text.removeprefix(_PREFIX).partition("@")
        revision, sign, folder = at.partition("#")
        folder = folder.strip("/")
        plain = bool(_REPO.fullmatch(repo) and revision) and not sign
        inside = bool(_REPO.fullmatch(repo) and revision and _FOLDER.fullmatch(folder))
        if plain or (inside and ".." not in folder.split("/")):
            return cls(repo, revision, folder)
        if said:
            raise InputError(f"{text[:200]!r} is no place on the hub: {_FORM}")
        return None

    def at(self, commit: str) -> HubPlace:
        """The same at a commit."""
        return HubPlace(self.repo, commit, self.folder)

    @property
    def below(self) -> str:
        """What stands before the names of its files in the repository."""
        return f"{self.folder}/" if self.folder else ""

    def __str__(self) -> str:
        inside = f"#{self.folder}" if self.folder else ""
        return f"{self.repo}@{self.revision}{inside}"


def looks_like_hub(text: str) -> bool:
    """Whether a text that is no path may be a repository whose revision was left out."""
    return bool(_REPO.fullmatch(text)) and not text.startswith(".")


def listed(entries: Sequence[str], what: str) -> tuple[str, ...]:
    """Entries, those of lists (``@FILE``) in the place of the list, each once.

    A list has an entry a line; blank lines and what follows `` #`` or begins with ``#`` are passed
    over. Paths in it are relative to its folder.

    Args:
        entries: Paths, places on the hub, lists.
        what: Names them in messages (``--checkpoint``).

    Raises:
        InputError: A list cannot be read, holds nothing, or a line of it names nothing there is.
    """
    found: dict[str, None] = {}
    for entry in entries:
        if entry.startswith("@") and not Path(entry).exists():
            found.update(dict.fromkeys(_lines(Path(entry[1:]).expanduser(), what)))
        else:
            found[entry] = None
    return tuple(found)


def _lines(file: Path, what: str) -> list[str]:
    try:
        text = read_text(file, f"list of {what}")
    except InputError as error:
        raise InputError(f"{what} @{file}: {error}") from None
    entries = []
    for number, line in enumerate(text.splitlines(), 1):
        line = re.sub(r"(^|\s)#.*", "", line).strip()
        if line:
            entries.append(_entry(line, file, f"{file}, line {number}"))
    if not entries:
        raise InputError(f"{what} @{file}: the list is empty; give a path or REPO@REV a line")
    return entries


def _entry(line: str, file: Path, where: str) -> str:
    if line.startswith("@"):
        raise InputError(f"{where}: {line[:200]!r}: a list cannot name another list")
    try:
        beside = file.parent / Path(line).expanduser()
        if beside.exists():
            return str(beside)
        place = HubPlace.parse(line)
    except (InputError, OSError, ValueError) as error:
        raise InputError(f"{where}: {error}") from None
    if place is None:
        raise InputError(
            f"{where}: {line[:200]!r} is neither a path that is there ({beside}) nor "
            f"ORG/NAME@REVISION"
        )
    return line

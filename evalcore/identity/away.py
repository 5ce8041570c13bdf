"""Weights on the hub that are not here: what a plan needs of them, without their bytes.

The hub lists every file of a commit with its sha256. Whoever has read weights whole notes what they
hold under those hashes and the numeric configuration (:func:`note_weights`); a commit with the same
hashes holds the same. A folder whose weights are known so is *away*: layout and digests are those
that were noted, and the files are fetched by the first who needs them (:func:`bring`).

Nothing is taken for known in part: every file of the weights has to be listed with a sha256, and
all of them together have to have been read and found right. Weights that nobody has read may be
away too, where they only pass through the disks of those who score them (:class:`AwayRule`): they
are named by their files' hashes then, and their layout comes from their headers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evalcore.errors import InputError
from evalcore.identity.cache import known_fact, note_fact
from evalcore.identity.hashing import text_fingerprint
from evalcore.identity.hub import HubError, HubRepository
from evalcore.identity.places import HubPlace

if TYPE_CHECKING:
    from evalcore.identity.header import TensorInfo

_KIND = "weights-1"
"""A further check of weights that needs their bytes raises the number: see ``sources``."""

Layout = dict[str, tuple[str, tuple[int, ...]]]


@dataclass(frozen=True, slots=True)
class Held:
    """What weights hold.

    Attributes:
        layout: Tensor name -> (dtype, shape).
        digests: Tensor name -> digest over name, dtype, shape and bytes.
    """

    layout: Layout
    digests: dict[str, str]


@dataclass(frozen=True, slots=True)
class Named:
    """What a results folder knows of the weights in some files.

    Attributes:
        files: Fingerprint of their hashes and the numeric configuration (:func:`files_state`).
        used: The fingerprint under which they are scored there.
        content: The fingerprint of what is in them, if anybody has read them; else empty.
        untrained: Of an adapter that was read: whether all it does is nothing.
    """

    files: str
    used: str
    content: str = ""
    untrained: bool = False


@dataclass(frozen=True)
class NamedWeights:
    """What a results folder knows of weights: by their files, and by what is in them."""

    by_files: Mapping[str, Named] = field(default_factory=dict)

    def used(self, content: str) -> str:
        """The fingerprint under which what has this content is scored: mostly this one."""
        return self._others.get(content, content)

    @property
    def _others(self) -> dict[str, str]:
        # Where weights were scored before anybody had read them. Two such: the first by name.
        rows = sorted(self.by_files.values(), key=lambda row: row.used, reverse=True)
        plain = {row.content for row in rows if row.used == row.content}
        return {row.content: row.used for row in rows if row.content and row.content not in plain}


@dataclass(frozen=True)
class AwayRule:
    """Which weights may stay on the hub until they are read.

    Attributes:
        known: What the results folder knows.
        budget: Bytes that a node lends to weights that pass through; then those that nobody has
            read stay away, too. None: those are fetched and read to plan.
    """

    known: NamedWeights = NamedWeights()
    budget: int | None = None


@dataclass(frozen=True, slots=True)
class Away:
    """Weights of one commit that are not here.

    Attributes:
        place: Where they are, at a commit.
        files: The weight files beside the configuration -> sha256.
        patterns: What to fetch.
        ignore: Of that what not.
        layout: Tensor name -> (dtype, shape).
        headers: File -> its header, where that was asked for.
        digests: Of their tensors, if they are known.
        name: What is known of them in the results; else they are named by their files.
        passes: Whether they are never fetched to plan.
    """

    place: HubPlace
    files: Mapping[str, str]
    patterns: tuple[str, ...]
    ignore: tuple[str, ...]
    layout: Layout
    headers: Mapping[str, tuple[dict[str, TensorInfo], int]]
    digests: dict[str, str] | None
    name: Named | None
    passes: bool

    @property
    def names(self) -> frozenset[str]:
        """Names of the weight files."""
        return frozenset(self.files)

    def fingerprint(self, state: str) -> tuple[str, str]:
        """(the fingerprint to use, that of the content if it is another one and known).

        Args:
            state: Of the files, see :func:`files_state`.
        """
        if self.name is None:
            return unread_fingerprint(state), ""
        return self.name.used, self.name.content if self.name.content != self.name.used else ""


# folder -> its weights; of this process, as workers are handed folders that are complete
_AWAY: dict[str, Away] = {}


def set_away(folder: Path, away: Away) -> None:
    """Lets the weights of a folder be away."""
    _AWAY[_key(folder)] = away


def away_at(folder: str | Path) -> Away | None:
    """The weights of a folder if they are away."""
    return _AWAY.get(_key(folder)) if _AWAY else None


def is_here(folder: str | Path) -> None:
    """Notes that a folder holds its weights."""
    _AWAY.pop(_key(folder), None)


def bring(folder: str | Path) -> None:
    """Fetches the weights of a folder if they are away.

    Raises:
        InputError: They are not to be had, or only pass through.
    """
    away = away_at(folder)
    if away is None:
        return
    if away.passes:
        raise InputError(
            f"{away.place} has to be read to plan this, and its weights only pass through "
            f"(--disk-budget); run without a budget, or download it and give the path"
        )
    try:
        HubRepository("model", away.place.repo).fetch(
            away.place.revision, away.patterns, away.ignore
        )
    except HubError as error:
        raise InputError(f"checkpoint {away.place} {error}, or give a local path") from None
    is_here(folder)


def known_weights(config: Mapping[str, Any], hashes: Collection[str]) -> Held | None:
    """What was noted of weights whose files have these sha256; None if nothing was.

    Args:
        config: The numeric part of the config.json beside them.
        hashes: Of all files of the weights.
    """
    found = known_fact(_KIND, files_state(config, hashes)) if hashes else None
    if found is None:
        return None
    layout = {name: (dtype, tuple(shape)) for name, (dtype, shape) in found["layout"].items()}
    return Held(layout, found["digests"]) if layout.keys() == found["digests"].keys() else None


def note_weights(
    config: Mapping[str, Any], hashes: Sequence[str | None], read: Callable[[], Held]
) -> None:
    """Notes what weights hold that were read whole and passed every check.

    Args:
        config: The numeric part of the config.json beside them.
        hashes: sha256 of each file of the weights; nothing is noted where one is not known.
        read: Gives what they hold.
    """
    every = [sha256 for sha256 in hashes if sha256 is not None]
    if len(every) != len(hashes) or not every or known_weights(config, every) is not None:
        return
    held = read()
    value = {"layout": held.layout, "digests": held.digests}
    note_fact(_KIND, files_state(config, every), value)


def files_state(config: Mapping[str, Any], hashes: Collection[str]) -> str:
    """32 hex digits over the sha256 of weight files and the numeric configuration beside them."""
    return text_fingerprint(["weights", config, sorted(hashes)])


def unread_fingerprint(state: str) -> str:
    """The fingerprint of weights that nobody has read, by :func:`files_state`."""
    return text_fingerprint(["unread", 1, state])


def _key(folder: str | Path) -> str:
    return str(Path(folder).resolve())

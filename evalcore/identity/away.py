"""Weights on the hub that are known and not here: what a plan needs of them, without their bytes.

The hub lists every file of a commit with its sha256. Whoever has read weights whole notes what they
hold under those hashes and the numeric configuration (:func:`note_weights`); a commit with the same
hashes holds the same. A folder whose weights are known so is *away*: layout and digests are those
that were noted, and the files are fetched by the first who needs them (:func:`bring`).

Nothing is taken for known in part: every file of the weights has to be listed with a sha256, and
all of them together have to have been read and found right.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evalcore.errors import InputError
from evalcore.identity.cache import known_fact, note_fact
from evalcore.identity.hashing import text_fingerprint
from evalcore.identity.hub import HubError, HubRepository

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
class Away:
    """Weights of one commit that are not here.

    Attributes:
        repository: On the hub.
        commit: Of it.
        names: The safetensors files beside its config.json.
        patterns: What to fetch.
        ignore: Of that what not.
        held: What is in them.
    """

    repository: HubRepository
    commit: str
    names: frozenset[str]
    patterns: tuple[str, ...]
    ignore: tuple[str, ...]
    held: Held


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
        InputError: They are not to be had.
    """
    away = away_at(folder)
    if away is None:
        return
    try:
        away.repository.fetch(away.commit, away.patterns, away.ignore)
    except HubError as error:
        name = f"{away.repository.name}@{away.commit}"
        raise InputError(f"checkpoint {name} {error}, or give a local path") from None
    is_here(folder)


def known_weights(config: Mapping[str, Any], hashes: Collection[str]) -> Held | None:
    """What was noted of weights whose files have these sha256; None if nothing was.

    Args:
        config: The numeric part of the config.json beside them.
        hashes: Of all files of the weights.
    """
    found = known_fact(_KIND, _state(config, hashes)) if hashes else None
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
    note_fact(_KIND, _state(config, every), value)


def _state(config: Mapping[str, Any], hashes: Collection[str]) -> str:
    return text_fingerprint(["weights", config, sorted(hashes)])


def _key(folder: str | Path) -> str:
    return str(Path(folder).resolve())

"""Adapters on the hub: folders with their small files, whose weights come when they are scored."""

from __future__ import annotations

import glob
import logging
from collections.abc import Sequence
from pathlib import Path

from evalcore.errors import InputError
from evalcore.identity.adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS, numeric_adapter_config
from evalcore.identity.away import Away, AwayRule, away_at, files_state, is_here, set_away
from evalcore.identity.hub import HubError, HubRepository
from evalcore.identity.listings import (
    adapter_folders,
    check_budget,
    files_of,
    is_whole,
    remote_header,
)
from evalcore.identity.places import HubPlace
from evalcore.identity.unasked import is_offline

logger = logging.getLogger("evalcore")


def open_hub_adapters(place: HubPlace, rule: AwayRule | None) -> dict[Path, HubPlace]:
    """The adapters at a place on the hub and below it: local folder -> place at a commit.

    Args:
        place: On the hub.
        rule: Which weights may stay there until they are read; None: they are fetched.

    Raises:
        InputError: There are none, or they are not to be had.
    """
    repository = HubRepository("model", place.repo)
    try:
        commit, note = repository.resolve(place.revision)
        listing = repository.listing(commit)
        places = adapter_folders(listing, place.at(commit))
        if not places and not listing:
            places = _cached(repository, place.at(commit))
        found = {_opened(repository, one, rule): one for one in places}
        repository.remember(place.revision, commit)
    except HubError as error:
        raise InputError(f"adapter {place} {error}, or give a local folder") from None
    if note is not None:
        level = logging.INFO if is_offline() else logging.WARNING
        logger.log(level, "adapter: %s: %s", place.repo, note)
    if not found:
        raise InputError(
            f"no adapters found in {place}: looked for {ADAPTER_CONFIG} there and below; give the "
            f"place of a PEFT LoRA adapter, or a checkpoint with --checkpoint"
        )
    return found


def _cached(repository: HubRepository, place: HubPlace) -> list[HubPlace]:
    """What of a place is in the hub's cache, where no hub can be asked."""
    top = repository.folder / "snapshots" / place.revision
    configs = sorted((top / place.folder).rglob(ADAPTER_CONFIG))
    folders = [str(file.parent.relative_to(top)) for file in configs]
    return [HubPlace(place.repo, place.revision, f if f != "." else "") for f in folders]


def _opened(repository: HubRepository, place: HubPlace, rule: AwayRule | None) -> Path:
    """Folder of one adapter, its weights in it or away."""
    folder = repository.folder / "snapshots" / place.revision / place.folder
    files = files_of(repository.listing(place.revision), place)
    if away_at(folder) is None and is_whole(folder, files, place):
        return folder
    weights = files.get(place.below + ADAPTER_WEIGHTS)
    small = [name for name in files if not name.endswith(ADAPTER_WEIGHTS)]
    if rule is not None and weights is not None and weights.sha256 is not None:
        check_budget(files, rule.budget, f"adapter {place}")
        _fetch(repository, place, small, quiet=True)
        try:
            state = files_state(numeric_adapter_config(folder), [weights.sha256])
        except InputError:
            return folder  # what is wrong with it is said by whoever describes it
        name = rule.known.by_files.get(state)
        if name is not None or rule.budget is not None:
            header = remote_header(repository, place, ADAPTER_WEIGHTS, weights)
            set_away(
                folder,
                Away(
                    place, {ADAPTER_WEIGHTS: weights.sha256}, tuple(map(glob.escape, files)), (),
                    {}, {ADAPTER_WEIGHTS: header}, None, name, rule.budget is not None,
                ),
            )  # fmt: skip
            return folder
    _fetch(repository, place, list(files))
    is_here(folder)
    return folder


def _fetch(
    repository: HubRepository, place: HubPlace, names: Sequence[str], quiet: bool = False
) -> None:
    repository.fetch(place.revision, [glob.escape(name) for name in names], quiet=quiet)

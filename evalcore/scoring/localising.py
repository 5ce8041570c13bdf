"""A unit's subjects as this machine has them: what is from the hub is fetched here.

What was planned from the hub's hashes alone is read here for the first time: its files' sha256 are
compared, it is checked as any checkpoint is before planning, and what is in it is noted in the
results folder.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from evalcore.cluster import pulse
from evalcore.errors import EvalcoreError, InputError, NodeError
from evalcore.identity import weight_files, weight_layout, weight_names
from evalcore.identity.adapter import (
    ADAPTER_CONFIG,
    adapter_file,
    adapter_fingerprint,
    adapter_is_zero,
    check_finite,
    numeric_adapter_config,
)
from evalcore.identity.away import Held, Named, files_state, note_weights, unread_fingerprint
from evalcore.identity.bases import check_tied
from evalcore.identity.checkpoint import checkpoint_fingerprint, numeric_config, weight_digests
from evalcore.identity.hub import HubError, holds
from evalcore.identity.passing import Item, NodeCache
from evalcore.identity.places import HubPlace
from evalcore.identity.provenance import read_provenance
from evalcore.planning import Unit
from evalcore.store import ResultStore
from evalcore.types import Adapter, Checkpoint, Subject

log = logging.getLogger("evalcore")

LOOK_S = 5.0
"""Longest that a machine looks for the folders of a run before its first unit."""


class Localiser:
    """Finds or fetches what subjects are made of, on the machine of one worker.

    Args:
        store: Where it is noted what is in weights that nobody had read.
        budget: Bytes of the node's cache; None: what is fetched stays in the hub's cache.
        settled: Called before files are given up: whoever still reads them comes to an end.
    """

    def __init__(
        self, store: ResultStore, budget: int | None, settled: Callable[[], object]
    ) -> None:
        self._store, self._settled = store, settled
        self._cache = NodeCache(budget, pulse.tick)
        self._read: dict[str, Checkpoint | Adapter] = {}  # origin -> as it was read here
        self._holds: frozenset[str] = frozenset()
        self._next: threading.Thread | None = None

    def unit(self, unit: Unit) -> Unit:
        """A unit whose subjects have the paths of this machine.

        Raises:
            NodeError: Something cannot be seen or fetched here.
            InputError: What was fetched is broken.
        """
        made = [each for i in unit.members for each in unit.subjects[i].parts if each.origin]
        origins = {each.origin for each in made if not _is_here(each)}
        if self._holds - origins:
            self._settled()
        self._holds = frozenset(origins)
        folders = {each.origin: Path(each.path) for each in made}
        if origins:
            pulse.enter("load")
            places = {origin: _place(origin) for origin in origins}
            found = self._cache.take(_items(places.values()))
            folders |= {origin: found[place] for origin, place in places.items()}
        local = [
            self._local(s, folders) if i in unit.members else s for i, s in enumerate(unit.subjects)
        ]
        return replace(unit, subject=local[0], siblings=tuple(local[1:]))

    def ahead(self, subject: Subject | None) -> None:
        """Begins to fetch what a later unit needs, if there is room for it."""
        if subject is None or (self._next is not None and self._next.is_alive()):
            return
        origins = [made.origin for made in subject.parts if made.origin and not _is_here(made)]
        if origins and not self._holds >= set(origins):
            self._next = threading.Thread(target=self._fetch_ahead, args=(origins,), daemon=True)
            self._next.start()

    def _fetch_ahead(self, origins: Sequence[str]) -> None:
        try:
            self._cache.ahead(_items(map(_place, origins)))
        except (EvalcoreError, OSError) as error:
            log.warning("fetching ahead: %s", error)  # whoever needs it tries again

    def release(self) -> None:
        """Nothing is under way: others may have the room."""
        self._holds = frozenset()
        self._cache.release()

    def _local(self, subject: Subject, folders: dict[str, Path]) -> Subject:
        moved = {
            made.path: str(folders[made.origin].resolve()) for made in subject.parts if made.origin
        }
        checkpoint, adapter, own = subject.checkpoint, subject.adapter, subject.own
        if checkpoint.origin:
            checkpoint = self._checkpoint(checkpoint, folders[checkpoint.origin])
        if adapter is not None and adapter.origin:
            adapter = self._adapter(adapter, folders[adapter.origin])
        tokenizer = moved.get(checkpoint.tokenizer_path, checkpoint.tokenizer_path)
        checkpoint = replace(checkpoint, tokenizer_path=tokenizer)
        if own is not None:
            path = moved.get(own.path, own.path)
            tokenizer = moved.get(own.tokenizer_path, own.tokenizer_path)
            own = replace(own, path=path, tokenizer_path=tokenizer, content=checkpoint.content)
        return Subject(checkpoint, adapter, own)

    def _checkpoint(self, planned: Checkpoint, folder: Path) -> Checkpoint:
        found = self._read.get(planned.origin)
        if not isinstance(found, Checkpoint):
            found = self._first_read(planned, folder)
            self._read[planned.origin] = found
        return replace(planned, path=str(folder.resolve()), content=found.content)

    def _first_read(self, planned: Checkpoint, folder: Path) -> Checkpoint:
        """What a checkpoint that was planned by its hashes holds, checked as any is."""
        if planned.content:
            return planned
        config, files = numeric_config(folder), weight_files(folder)
        hashes = _listed(planned.origin, files)
        state = files_state(config, hashes)
        if planned.fingerprint != unread_fingerprint(state):
            return planned  # it was planned by what is in it, which the engine compares
        _check(planned.origin, files, hashes)
        layout = weight_layout(folder)
        check_tied(folder, config, layout)
        content = checkpoint_fingerprint(folder)
        _require_recorded(folder, planned.origin, content, "checkpoint_fingerprint")
        note_weights(config, hashes, lambda: Held(layout, weight_digests(folder)))
        self._store.write_weights([Named(state, planned.fingerprint, content)])
        return replace(planned, content=content)

    def _adapter(self, planned: Adapter, folder: Path) -> Adapter:
        found = self._read.get(planned.origin)
        if not isinstance(found, Adapter):
            found = planned
            files = [adapter_file(folder)]
            hashes = _listed(planned.origin, files)
            state = files_state(numeric_adapter_config(folder), hashes)
            if not planned.content and planned.fingerprint == unread_fingerprint(state):
                _check(planned.origin, files, hashes)
                check_finite(folder)
                content = adapter_fingerprint(folder)
                _require_recorded(folder, planned.origin, content, "adapter_fingerprint")
                zero = adapter_is_zero(folder)
                self._store.write_weights([Named(state, planned.fingerprint, content, zero)])
                found = replace(planned, content=content)
            self._read[planned.origin] = found
        return replace(planned, path=str(folder.resolve()), content=found.content)


def _place(origin: str) -> HubPlace:
    place = HubPlace.parse(f"hf:{origin}")
    assert place is not None
    return place


def _items(places: Iterable[HubPlace]) -> list[Item]:
    try:
        return [Item.at(place) for place in places]
    except HubError as error:
        raise NodeError(f"the hub's list of files {error}") from None


def _is_here(made: Checkpoint | Adapter) -> bool:
    """Whether this machine has it where the driver does."""
    path = Path(made.path)
    try:
        if isinstance(made, Adapter):
            return adapter_file(path).is_file() and (path / ADAPTER_CONFIG).is_file()
        return bool(weight_names(path)) and (path / "config.json").is_file()
    except InputError:
        return False


def _listed(origin: str, files: Sequence[Path]) -> list[str]:
    """sha256 of files by the hub's listing; empty for those that it does not know."""
    (item,) = _items([_place(origin)])
    known = {Path(name).name: about.sha256 or "" for name, about in item.files.items()}
    return [known.get(file.name, "") for file in files]


def _check(origin: str, files: Sequence[Path], hashes: Sequence[str]) -> None:
    """Compares the bytes of files with what the hub lists.

    Raises:
        NodeError: They are others.
    """
    for file, sha256 in zip(files, hashes, strict=True):
        if not holds(file, sha256):
            raise NodeError(
                f"{origin}: {file.name} holds other bytes on {socket.gethostname()} than the hub "
                f"names; remove {file.parent} there and run again"
            )


def _require_recorded(folder: Path, origin: str, content: str, key: str) -> None:
    record = read_provenance(folder)
    recorded = getattr(record, key) if record is not None else None
    if recorded not in (None, content):
        raise InputError(
            f"{origin} is not what its record describes: fingerprint {content[:12]}, recorded "
            f"{str(recorded)[:12]}"
        )


def require_seen(subjects: Sequence[Subject]) -> None:
    """Names what this machine does not see of subjects that it cannot load.

    Raises:
        NodeError: The first that is missing, and the machine.
    """
    for subject in subjects:
        paths = [made.path for made in subject.parts]
        paths += [one.tokenizer for one in (subject.checkpoint, subject.own) if one is not None]
        for path in dict.fromkeys(paths):
            if not Path(path).exists():
                raise NodeError(
                    f"{path} is not seen on {socket.gethostname()}; mount it there at the same "
                    f"path, or give it as a place on the hub"
                )


def folders_of(subjects: Iterable[Subject]) -> tuple[str, ...]:
    """Folders that hold the checkpoints and adapters of subjects, without what is on the hub."""
    made = (each for subject in subjects for each in subject.parts if not each.origin)
    return tuple(dict.fromkeys(str(Path(each.path).parent) for each in made))


def unseen(folders: Sequence[str]) -> tuple[str, ...]:
    """A line on the folders that this machine does not see; none if it sees them all."""
    begin = time.monotonic()
    missing = []
    for number, folder in enumerate(folders):
        if not os.path.isdir(folder):
            missing.append(folder)
        if time.monotonic() - begin > LOOK_S:  # of the others, units say so
            folders = folders[: number + 1]
            break
    if not missing:
        return ()
    more = f" and {len(missing) - 1:,} more" if len(missing) > 1 else ""
    return (
        f"before the first unit: does not see {missing[0]}{more} of {len(folders):,} folders of "
        f"checkpoints and adapters; what lies there is scored by machines that do",
    )

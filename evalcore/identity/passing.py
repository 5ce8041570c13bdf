"""The node's own cache of what comes from the hub: fetched once, shared, given up under a budget.

Below ``EVALCORE_CACHE`` each checkpoint or adapter has a folder of its own, laid out as the hub's
cache, and three files beside it: ``KEY.use`` is locked (shared) by every process that reads it,
``KEY.fetch`` by the one that fetches it, ``KEY.json`` says how many bytes it takes. Locks go with
their process, whatever ends it. Nothing outside this folder is ever removed.

A process waits for room only while it holds nothing, so that two never wait for each other.
"""

from __future__ import annotations

import fcntl
import glob
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from evalcore.errors import NodeError
from evalcore.files import try_lock
from evalcore.identity.cache import cache_dir
from evalcore.identity.hashing import text_fingerprint
from evalcore.identity.hub import HubError, HubFile, HubRepository, hub_cache_dir
from evalcore.identity.listings import files_of, is_whole, size_text, total_bytes
from evalcore.identity.places import HubPlace

WAIT_S = 0.2
"""Between two looks whether there is room."""
GROWTH_S = 5.0
"""Between two looks how far a fetch is."""


@dataclass(frozen=True)
class Item:
    """A checkpoint or an adapter at a commit.

    Attributes:
        place: Where it is on the hub, at a commit.
        files: Names in its repository -> what the hub says of them.
    """

    place: HubPlace
    files: Mapping[str, HubFile]

    @classmethod
    def at(cls, place: HubPlace) -> Item:
        """What a place holds; asked once and remembered.

        Raises:
            HubError: The hub does not say.
        """
        listing = HubRepository("model", place.repo).listing(place.revision)
        return cls(place, files_of(listing, place))

    @property
    def key(self) -> str:
        """Name of its folder."""
        return text_fingerprint(["passing", str(self.place)])[:24]

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return total_bytes(self.files)

    def folder_in(self, cache: Path) -> Path:
        """Where its files are in a cache laid out as the hub's."""
        repository = f"models--{self.place.repo.replace('/', '--')}"
        return cache / repository / "snapshots" / self.place.revision / self.place.folder


class NodeCache:
    """What one process holds of the node's cache.

    Args:
        budget: Bytes that all of it may take, over all processes of the node; None: no limit, and
            files go to the hub's own cache, where they stay.
        tick: Called while it waits.
    """

    def __init__(self, budget: int | None, tick: Callable[[], object] = lambda: None) -> None:
        self._budget, self._tick = budget, tick
        self._root = cache_dir() / "passing"
        self._held: dict[str, IO[bytes]] = {}
        self._ahead: set[str] = set()  # held for later
        self._coming: set[str] = set()  # of those, what is being fetched
        self._own = threading.RLock()  # over these three

    def take(self, items: Iterable[Item]) -> dict[HubPlace, Path]:
        """Fetches items, or finds them, and keeps them until others are taken: place -> folder.

        Raises:
            NodeError: They are not to be had, or can never be held together.
        """
        wanted = {item.key: item for item in items}
        found = {key: self._there(item) for key, item in wanted.items()}
        missing = {key: item for key, item in wanted.items() if found[key] is None}
        if self._budget is None:
            return {i.place: found[k] or self._fetched(i, None) for k, i in wanted.items()}
        if (together := sum(item.size for item in missing.values())) > self._budget:
            names = " and ".join(str(item.place) for item in missing.values())
            raise NodeError(
                f"{names} take {size_text(together)}, more than --disk-budget "
                f"{size_text(self._budget)}; give at least that much"
            )
        with self._own:
            self._ahead -= missing.keys()
            self._keep_only(missing.keys() | self._ahead)
        while not self._reserved(missing.values()):
            self.release()
            self._tick()
            time.sleep(WAIT_S)
        return {
            item.place: found[key] or self._fetched(item, self._root / key)
            for key, item in wanted.items()
        }

    def ahead(self, items: Iterable[Item]) -> bool:
        """Fetches items for later if there is room now; whether it did."""
        missing = {item.key: item for item in items if self._there(item) is None}
        with self._own:
            self._keep_only(self._held.keys() - self._ahead | missing.keys())
            self._ahead = set(missing) - self._held.keys() | self._ahead & missing.keys()
            if self._budget is not None and not self._reserved(missing.values()):
                self._ahead = set()
                return False
            self._coming = set(missing)
        try:
            for key, item in missing.items():
                self._fetched(item, None if self._budget is None else self._root / key)
        finally:
            self._coming = set()
        return True

    def release(self) -> None:
        """Needs nothing any more: what is there stays until somebody needs the room."""
        with self._own:
            self._ahead.clear()
            self._keep_only(())

    def _keep_only(self, keys: Iterable[str]) -> None:
        """Lets others remove the rest, but what is being fetched."""
        with self._own:
            for key in self._held.keys() - set(keys) - self._coming:
                now = time.time_ns()  # the system's own is some milliseconds coarse
                with suppress(OSError):  # the last to be used is the last to go
                    os.utime(self._root / f"{key}.use", ns=(now, now))
                self._held.pop(key).close()

    @staticmethod
    def _there(item: Item) -> Path | None:
        """Where an item is whole in the user's own cache of the hub."""
        folder = item.folder_in(hub_cache_dir())
        return folder if is_whole(folder, item.files, item.place) else None

    def _reserved(self, items: Iterable[Item]) -> bool:
        """Holds items, and room for those that are not there; whether that was to be had.

        What nobody holds makes room.
        """
        assert self._budget is not None
        self._root.mkdir(parents=True, exist_ok=True)
        with self._own, self._state():
            taken: dict[str, IO[bytes]] = {}
            for item in items:
                if item.key not in self._held:
                    taken[item.key] = _opened(self._root / f"{item.key}.use")
                    fcntl.flock(taken[item.key], fcntl.LOCK_SH)
            sizes = self._sizes()
            new = {i.key: i.size for i in items if i.key not in sizes}
            room = self._budget - sum(sizes.values()) - sum(new.values())
            for key in self._idle(sizes, taken.keys() | self._held.keys()):
                if room >= 0:
                    break
                room += sizes[key]
                self._remove(key)
            if room < 0:
                for file in taken.values():
                    file.close()
                return False
            for key, size in new.items():
                (self._root / f"{key}.json").write_text(json.dumps({"bytes": size}))
            self._held |= taken
            return True

    def _sizes(self) -> dict[str, int]:
        """Bytes that each item takes, or will when it is fetched."""
        found = {}
        for file in self._root.glob("*.json"):
            try:
                found[file.stem] = int(json.loads(file.read_text())["bytes"])
            except (OSError, ValueError, LookupError, TypeError):  # a crash while it was written
                found[file.stem] = _bytes_in(self._root / file.stem)
        return found

    def _idle(self, sizes: Mapping[str, int], own: set[str]) -> Iterator[str]:
        """Items nobody holds, the longest unused first; each is given up by whoever asks."""

        def used(key: str) -> int:
            with suppress(OSError):
                return (self._root / f"{key}.use").stat().st_mtime_ns
            return 0

        for key in sorted(set(sizes) - own, key=used):
            with _opened(self._root / f"{key}.use") as file:
                if try_lock(file):
                    yield key

    def _remove(self, key: str) -> None:
        shutil.rmtree(self._root / key, ignore_errors=True)
        for ending in ("json", "use", "fetch"):
            (self._root / f"{key}.{ending}").unlink(missing_ok=True)

    def _fetched(self, item: Item, own: Path | None) -> Path:
        """Folder of an item; one process of the node fetches, others wait for it.

        Args:
            item: What.
            own: Its folder in the node's cache; None: the hub's cache.
        """
        cache = own or hub_cache_dir()
        folder = item.folder_in(cache)
        self._root.mkdir(parents=True, exist_ok=True)
        with _opened(self._root / f"{item.key}.fetch") as lock:
            while try_lock(lock) is False:
                self._tick()
                time.sleep(WAIT_S)
            if not is_whole(folder, item.files, item.place):
                names = [glob.escape(name) for name in item.files]
                repository = HubRepository("model", item.place.repo)
                try:
                    with self._watched(folder.parents[1 + item.place.folder.count("/")]):
                        repository.fetch(item.place.revision, names, into=own)
                except HubError as error:
                    raise NodeError(f"{item.place} {error}") from None
        return folder

    @contextmanager
    def _watched(self, folder: Path) -> Iterator[None]:
        """Ticks while what is in a folder grows."""
        ended = threading.Event()

        def watch() -> None:
            before = -1
            while not ended.wait(GROWTH_S):
                now = _bytes_in(folder)
                if now != before:
                    self._tick()
                before = now

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    @contextmanager
    def _state(self) -> Iterator[None]:
        with _opened(self._root / "lock") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _opened(path: Path) -> IO[bytes]:
    return open(path, "ab")


def _bytes_in(folder: Path) -> int:
    files = (file for file in folder.rglob("*") if file.is_file() and not file.is_symlink())
    total = 0
    for file in files:
        with suppress(OSError):
            total += file.stat().st_size
    return total

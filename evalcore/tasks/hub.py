"""Rows of data sets on the hub: through its cache, offline if told so, with the commit resolved."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from evalcore.tasks.faults import DataFault, TaskDataError

logger = logging.getLogger("evalcore")

_COMMIT = re.compile(r"^[0-9a-f]{40}$")
_TRUE = {"1", "TRUE", "YES", "ON"}

# (repo, config, revision asked for) -> commit the rows came from, for the record of a run
_RESOLVED: dict[tuple[str, str | None, str | None], str] = {}


def is_commit(revision: str | None) -> bool:
    """Whether a revision is a commit, which can never mean other rows."""
    return bool(revision and _COMMIT.match(revision))


def resolved_commit(hub: Mapping[str, Any]) -> str | None:
    """The commit the rows of a source were read from in this process, if they came from the hub."""
    return _RESOLVED.get((hub["repo"], hub.get("config"), hub.get("revision")))


def hub_table(hub: Mapping[str, Any], split: str, root: Path | None) -> Any:
    """A split of a data set as an Arrow table, from the cache or (unless offline) the hub.

    Args:
        hub: The ``source.hub`` part of a task.
        split: A whole split, without a cut.
        root: The data root that was looked into before, named in the error.

    Raises:
        TaskDataError: If it is not to be had; says what to fetch and where to put it.
    """
    key = (hub["repo"], hub.get("config"), hub.get("revision"), hub.get("files"), split)
    try:
        if not _cached(hub["repo"]) and (offline() or not _reachable()):
            why = "HF_HUB_OFFLINE is set" if offline() else "the hub cannot be reached"
            raise FileNotFoundError(f"{why} and it is not in the cache")
        table, commit = _fetch(*key)
    except Exception as error:  # the libraries raise many kinds; each means: not to be had
        raise TaskDataError(DataFault.NOT_FETCHED, _wanted(hub, split, root, error)) from None
    asked = (hub["repo"], hub.get("config"), hub.get("revision"))
    if commit and _RESOLVED.get(asked) != commit:
        _RESOLVED[asked] = commit
        if not is_commit(hub.get("revision")):
            logger.info("data set %s: not pinned, resolved to %s", hub["repo"], commit)
    return table


def offline() -> bool:
    """Whether the hub may not be asked."""
    names = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
    return any(os.environ.get(name, "").upper() in _TRUE for name in names)


def _cached(repo: str) -> bool:
    """Whether anything of a data set lies in a cache; spares seconds of imports where not."""
    from huggingface_hub import constants

    hub = Path(constants.HF_HUB_CACHE) / f"datasets--{repo.replace('/', '--')}"
    home = os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME) / "datasets"
    return hub.is_dir() or (Path(home) / repo.replace("/", "___")).is_dir()


@lru_cache(maxsize=1)
def _reachable() -> bool:
    """Whether the hub answers; asked once, because its library tries for half a minute."""
    import socket
    from urllib.parse import urlsplit
    from urllib.request import getproxies

    from huggingface_hub import constants

    place = urlsplit(constants.ENDPOINT)
    if getproxies().get(place.scheme):
        return True  # the proxy knows; a direct connection says nothing
    port = place.port or (443 if place.scheme == "https" else 80)
    try:
        socket.create_connection((place.hostname or "", port), timeout=5).close()
    except OSError:
        return False
    return True


@lru_cache(maxsize=4)
def _fetch(
    repo: str, config: str | None, revision: str | None, files: str | None, split: str
) -> tuple[Any, str | None]:
    """(Arrow table, commit) of one split."""
    if files is not None:
        return _fetch_files(repo, revision, files.replace("{split}", split))
    import datasets  # seconds to import: only for data that really comes from the hub

    data = datasets.load_dataset(repo, config, split=split, revision=revision)
    # the folder the library keeps the rows in is named after the commit, online and offline
    parts = [part for file in data.cache_files for part in Path(file["filename"]).parts]
    commit = next((part for part in parts if _COMMIT.match(part)), None)
    return data.data.table, commit


def _fetch_files(repo: str, revision: str | None, pattern: str) -> tuple[Any, str]:
    import pyarrow as pa
    import pyarrow.parquet
    from huggingface_hub import snapshot_download

    folder = Path(
        snapshot_download(
            repo, repo_type="dataset", revision=revision, allow_patterns=[pattern],
            local_files_only=offline() or not _reachable(),
        )
    )  # fmt: skip
    found = sorted(folder.glob(pattern))
    if not found:
        raise FileNotFoundError(f"no file {pattern} at commit {folder.name}")
    return pa.concat_tables([pyarrow.parquet.read_table(f) for f in found]), folder.name


def _wanted(hub: Mapping[str, Any], split: str, root: Path | None, error: Exception) -> str:
    """The line that says what is missing, why, what to fetch and where to put it."""
    repo, config, revision = hub["repo"], hub.get("config"), hub.get("revision")
    place = Path(root or "<data-root>") / repo / (config or "") / f"{split}.parquet"
    what = f"data set {repo}"
    what += f", configuration {config}" if config else ""
    what += f", split {split!r}, revision {revision or 'main (not pinned)'}"
    what += f", files {hub['files'].replace('{split}', split)}" if hub.get("files") else ""
    why = " ".join(str(error).split()) or type(error).__name__
    if not isinstance(error, FileNotFoundError) or len(why) > 160:
        why = f"{type(error).__name__}: {why[:160]}"
    give = "" if root else " and give --data-root <data-root>"
    return (
        f"{what} is not to be had ({why}); put its rows at {place} "
        f"(or .jsonl, .csv, .arrow){give}, or load it once while online"
    )

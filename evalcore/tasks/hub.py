"""Rows of data sets on the hub: the files of one split at one commit, checked to be those.

Files are fetched by huggingface_hub at a resolved commit, never by ``datasets.load_dataset``: that
serves any cached revision when the hub cannot be asked (datasets 4 and 5), whatever was pinned.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from evalcore.identity import HubError, HubRepository, is_as_named, is_commit, is_offline
from evalcore.tasks.faults import DataFault, TaskDataError
from evalcore.types import Task

logger = logging.getLogger("evalcore")

SUFFIXES = ("parquet", "jsonl", "jsonl.gz", "json", "csv", "arrow")
_ENDINGS = tuple(f".{suffix}" for suffix in SUFFIXES)
_SHARD = re.compile(r"^(?P<name>.+)-(?P<number>\d+)-of-(?P<of>\d+)\.")
_CARD = "README.md"
_WAS_CHANGED = "changed since it was fetched (its hash is not its name in the cache)"


@dataclass(frozen=True, slots=True)
class Resolution:
    """Where the rows of a source came from in this process.

    Attributes:
        commit: The commit.
        note: What is to be said about how the revision asked for became it.
    """

    commit: str
    note: str | None = None


# (repo, config, revision asked for) -> what its rows came from, for the record of a run
_RESOLVED: dict[tuple[str, str | None, str | None], Resolution] = {}


def data_resolution(task: Task) -> Resolution | None:
    """What the rows of a task were read from in this process, if they came from the hub."""
    hub = (task.spec.get("source") or {}).get("hub")
    return _RESOLVED.get((hub["repo"], hub.get("config"), hub.get("revision"))) if hub else None


def data_commits() -> dict[str, str]:
    """Data sets read from the hub in this process, ``repo[/config][@revision asked for]`` ->
    commit."""
    return {
        f"{repo}{f'/{config}' if config else ''}{f'@{revision}' if revision else ''}": found.commit
        for (repo, config, revision), found in sorted(
            _RESOLVED.items(), key=lambda item: tuple(str(part) for part in item[0])
        )
    }


def note_commit(repo: str, config: str | None, revision: str | None, cached: Sequence[str]) -> None:
    """Notes what ``datasets`` read, for tasks that have to use it.

    Args:
        repo: The data set.
        config: Its configuration.
        revision: What was asked for.
        cached: Files the library keeps the rows in: their folder is named after the commit.

    Raises:
        TaskDataError: If a commit was asked for and another one was read.
    """
    commits = {part for file in cached for part in Path(file).parts if is_commit(part)}
    if "/" not in repo or len(commits) != 1:
        return  # files of the task's own, or a library that names its folders otherwise
    (commit,) = commits
    if is_commit(revision) and commit != revision:
        raise TaskDataError(
            DataFault.NOT_FETCHED,
            f"data set {repo} was asked for at {revision} and `datasets` read {commit} from its "
            f"cache (it takes any cached revision when the hub cannot be asked); fetch it while "
            f"online, or put its rows under --data-root",
        )
    _RESOLVED[repo, config, revision] = Resolution(commit)


def hub_files(hub: Mapping[str, Any], split: str, root: Path | None) -> list[Path]:
    """Files of a split of a data set, from the cache or (unless offline) the hub.

    Args:
        hub: The ``source.hub`` part of a task.
        split: A whole split, without a cut.
        root: The data root that was looked into before, named in the error.

    Raises:
        TaskDataError: If they are not to be had, or not as the hub has them; says what to fetch
            and where to put it.
    """
    repo, config, revision = hub["repo"], hub.get("config"), hub.get("revision")
    try:
        resolved = _resolved(repo, revision, is_offline())
        found = _fetched(repo, config, resolved.commit, hub.get("files"), split)
        HubRepository("dataset", repo).remember(revision, resolved.commit)
    except HubError as error:
        raise TaskDataError(DataFault.NOT_FETCHED, _wanted(hub, split, root, error)) from None
    for file in found:
        _check_content(file)
    if _RESOLVED.get((repo, config, revision)) != resolved:
        _RESOLVED[repo, config, revision] = resolved
        if not is_commit(revision):
            logger.info("data set %s: not pinned, resolved to %s", repo, resolved.commit)
    return list(found)


@lru_cache(maxsize=64)
def _resolved(repo: str, revision: str | None, offline: bool) -> Resolution:
    """Once for all splits of a process: a branch may not move between them."""
    return Resolution(*HubRepository("dataset", repo).resolve(revision))


@lru_cache(maxsize=64)
def _fetched(
    repo: str, config: str | None, commit: str, pattern: str | None, split: str
) -> tuple[Path, ...]:
    repository = HubRepository("dataset", repo)
    patterns = [pattern.replace("{split}", split)] if pattern else []
    if not patterns:
        card = repository.fetch(commit, [_CARD]) / _CARD
        patterns = _of_card(card, config, split) or _usual(config, split)
    folder = repository.fetch(commit, patterns)
    for one in patterns:
        files = sorted(f for f in folder.glob(one) if f.is_file() and f.name.endswith(_ENDINGS))
        if files:
            check_complete(files)
            kinds = sorted(
                {ending for f in files for ending in _ENDINGS if f.name.endswith(ending)}
            )
            if len(kinds) > 1:
                raise HubError(
                    f"has {one} in several formats ({', '.join(kinds)}) at commit {commit}; name "
                    f"one in source.hub.files"
                )
            return tuple(files)
    raise HubError(
        f"has no files {' or '.join(patterns[:3])}{', ...' if len(patterns) > 3 else ''} at commit "
        f"{commit}; name them in source.hub.files"
    )


def _of_card(card: Path, config: str | None, split: str) -> list[str]:
    """Patterns that the front matter of a data set's card gives for a split; [] if it does not."""
    import yaml

    try:
        text = card.read_text("utf-8")
        head = text.split("\n---", 1)[0].removeprefix("---") if text.startswith("---") else ""
        configs = (yaml.safe_load(head) or {}).get("configs") or []
    except (OSError, UnicodeDecodeError, yaml.YAMLError, AttributeError):
        return []
    named = [c for c in configs if isinstance(c, dict)]
    wanted = config or "default"
    chosen = [c for c in named if c.get("config_name", "default") == wanted]
    if not chosen and config is None:
        chosen = [c for c in named if c.get("default")] or (named if len(named) == 1 else [])
    if not chosen:
        if config is not None and named:
            there = ", ".join(str(c.get("config_name")) for c in named[:8])
            raise HubError(f"has no configuration {config}: there are {there}")
        return []
    files = chosen[0].get("data_files")
    parts = files if isinstance(files, list) else [files]
    entries = [
        part if isinstance(part, dict) else {"split": "train", "path": part}
        for part in parts
        if part
    ]
    found = [entry.get("path") for entry in entries if entry.get("split") == split]
    if entries and not found:
        raise HubError(
            f"has no split {split}: there are {', '.join(str(e['split']) for e in entries)}"
        )
    folder = str(chosen[0].get("data_dir") or "").strip("/")
    patterns = [one for path in found for one in (path if isinstance(path, list) else [path])]
    return [f"{folder}/{one}".strip("/") if folder else str(one) for one in patterns]


def _usual(config: str | None, split: str) -> list[str]:
    """Where files of a split lie in data sets whose card does not say."""
    folders = [f"{config}/"] if config else ["data/", "default/", ""]
    return [
        f"{folder}{name}.{suffix}"
        for folder in folders
        for name in (split, f"{split}-*", f"{split}/*")
        for suffix in SUFFIXES
    ]


def check_complete(files: Sequence[Path]) -> None:
    """Whether files named ``<name>-<number>-of-<count>`` are all there.

    Raises:
        HubError: If some are missing; names the first.
    """
    groups: dict[tuple[str, int], set[int]] = {}
    for file in files:
        shard = _SHARD.match(file.name)
        if shard is not None:
            groups.setdefault((shard["name"], int(shard["of"])), set()).add(int(shard["number"]))
    for (name, count), there in groups.items():
        missing = [number for number in range(count) if number not in there]
        if missing:
            raise HubError(
                f"is incomplete: {len(missing)} of {count} files {name}-*-of-{count:05d} are "
                f"missing in {files[0].parent} (first: number {missing[0]}); fetch them"
            )


def _check_content(file: Path) -> None:
    """Whether a file in the cache still is what the hub named it for.

    Raises:
        TaskDataError: If it is not.
    """
    blob = file.resolve()
    about = blob.stat()
    if not _is_intact(blob, about.st_mtime_ns, about.st_size):
        raise TaskDataError(
            DataFault.BROKEN_FILE, f"data file {file} {_WAS_CHANGED}; delete {blob} and run again"
        )


@lru_cache(maxsize=256)
def _is_intact(blob: Path, mtime_ns: int, size: int) -> bool:
    """Once for each state of the file."""
    return is_as_named(blob)


def _wanted(hub: Mapping[str, Any], split: str, root: Path | None, error: Exception) -> str:
    """The line that says what is missing, why, what to fetch and where to put it."""
    repo, config, revision = hub["repo"], hub.get("config"), hub.get("revision")
    place = Path(root or "<data-root>") / repo / (config or "") / f"{split}.parquet"
    what = f"data set {repo}"
    what += f", configuration {config}" if config else ""
    what += f", split {split!r}, revision {revision or 'main (not pinned)'}"
    what += f", files {hub['files'].replace('{split}', split)}" if hub.get("files") else ""
    give = "" if root else " and give --data-root <data-root>"
    return f"{what}: {error}; or put its rows at {place} (or .jsonl, .csv, .arrow){give}"

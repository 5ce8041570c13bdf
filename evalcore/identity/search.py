"""Folders of adapters and fully tuned checkpoints: which directories are which."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from evalcore.errors import InputError
from evalcore.identity.adapter import ADAPTER_CONFIG
from evalcore.identity.globs import fits
from evalcore.identity.labels import path_names
from evalcore.identity.provenance import PROVENANCE_FILE, UNFINISHED_FILE

MAX_FOLDERS = 200_000
"""Folders looked into below one that is given (a link may lead to a whole disk)."""


@dataclass(frozen=True, slots=True)
class Problem:
    """An adapter or a checkpoint that cannot be scored; the others are.

    Attributes:
        path: Its directory, or how it was named.
        message: One line for a person.
        kind: ``broken``, ``unfinished``, ``misfit`` (made for another base) or ``uncertain`` (it
            is not certain which checkpoint is its base).
    """

    path: str
    message: str
    kind: str = "broken"


@dataclass(frozen=True, slots=True)
class Found:
    """What there is in the given folders.

    Attributes:
        adapters: Directories with an adapter_config.json, sorted.
        tuned: Directories of fully tuned checkpoints, sorted.
        checkpoints: Directories of other checkpoints (a configuration and safetensors), sorted.
        problems: Folders that could not be looked into.
    """

    adapters: tuple[Path, ...]
    tuned: tuple[Path, ...]
    checkpoints: tuple[Path, ...]
    problems: tuple[Problem, ...]


def search(paths: Sequence[str | Path], leave_out: Sequence[str] = ()) -> Found:
    """Looks through folders for adapters and fully tuned checkpoints, links to folders included.

    Each real folder is looked into once, whatever links lead to it; a link to a folder above the
    one it stands in is left alone. Fully tuned checkpoints are known by their provenance record.

    Args:
        paths: Folders.
        leave_out: Globs; what their path or name fits is not there. What lies below it may be.

    Raises:
        InputError: If a folder is missing, or there are too many below it.
    """
    adapters: dict[str, Path] = {}
    tuned: dict[str, Path] = {}
    others: dict[str, Path] = {}
    problems: list[Problem] = []
    for given in paths:
        folder = Path(given).expanduser()
        if not folder.is_dir():
            raise InputError(f"adapter folder {given} does not exist{_missing_hint(given)}")
        root = folder.resolve()
        for path, names in _folders(folder, problems):
            if leave_out and _left_out(path, root, leave_out):
                continue
            if ADAPTER_CONFIG in names:
                adapters.setdefault(os.path.realpath(path), path)
            elif weights := sorted(n for n in names if n.startswith("adapter_model.")):
                problems.append(
                    Problem(
                        str(path),
                        f"adapter {path}: {weights[0]} has no {ADAPTER_CONFIG} beside it; copy the "
                        f"one it was saved with",
                    )
                )
            elif PROVENANCE_FILE in names and "config.json" in names:
                tuned.setdefault(os.path.realpath(path), path)
            elif "config.json" in names and any(n.endswith(".safetensors") for n in names):
                others.setdefault(os.path.realpath(path), path)
    unique = {problem.path: problem for problem in problems}
    return Found(
        tuple(sorted(adapters.values())),
        tuple(sorted(tuned.values())),
        tuple(sorted(others.values())),
        tuple(unique.values()),
    )


def _missing_hint(given: str | Path) -> str:
    """What may have been meant by a folder that is not there."""
    if any(sign in str(given) for sign in "*?["):
        return "; folders are searched to the bottom, so give the one above it, without a pattern"
    if len(Path(given).parts) == 1:
        return "; if it is a task or a prompt: several are joined by commas (-t A,B -p C,D)"
    return ""


def _left_out(path: Path, root: Path, globs: Sequence[str]) -> bool:
    names = [str(path), path.name, *path_names(path.resolve(), [root])]
    return any(fits(glob, names) for glob in globs)


def _folders(root: Path, problems: list[Problem]) -> Iterator[tuple[Path, frozenset[str]]]:
    """(folder, names in it) of a folder and all below; those behind links come last."""
    top = os.path.realpath(root)
    pending, links = [root], list[Path]()
    seen: set[str] = set()
    while pending or links:
        folder = pending.pop() if pending else links.pop(0)
        real = os.path.realpath(folder)
        if real in seen:
            continue
        if len(seen) >= MAX_FOLDERS:
            raise InputError(
                f"{root} has more than {MAX_FOLDERS:,} folders below it; give the folders of the "
                f"adapters themselves"
            )
        seen.add(real)
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name, reverse=True)
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(folder / entry.name)
                elif entry.is_symlink() and _leads_down(entry, top):
                    links.append(folder / entry.name)
        except OSError as error:
            reason = f"{folder} cannot be looked into ({error.strerror}); left out"
            problems.append(Problem(str(folder), reason))
            continue
        yield folder, frozenset(entry.name for entry in entries)


def _leads_down(link: os.DirEntry[str], top: str) -> bool:
    """Whether a link leads to a folder that does not hold the folder searched."""
    try:
        target = os.path.realpath(link.path)
        return link.is_dir() and os.path.commonpath([target, top]) != target
    except OSError:  # a link to itself
        return False


def find_adapters(paths: Sequence[str | Path], *, required: bool = True) -> list[Path]:
    """Directories with an adapter_config.json in the given folders (see :func:`search`).

    Raises:
        InputError: If a folder is missing, or (``required``) none holds an adapter.
    """
    adapters = search(paths).adapters
    if required and paths and not adapters:
        raise nothing_found(paths)
    return list(adapters)


def find_tuned(paths: Sequence[str | Path]) -> list[Path]:
    """Directories of fully tuned checkpoints in the given folders (see :func:`search`)."""
    return list(search(paths).tuned)


def nothing_found(paths: Sequence[str | Path]) -> InputError:
    """What to say of folders without adapters."""
    searched = ", ".join(str(path) for path in paths)
    return InputError(
        f"no adapters found in {searched}: looked for {ADAPTER_CONFIG} there and below; "
        f"give a folder of PEFT LoRA adapters, or checkpoints with --checkpoint"
    )


def unfinished(path: Path) -> Problem | None:
    """What there is to say of a directory whose making was cut short; None if it was not."""
    if not (path / UNFINISHED_FILE).exists():
        return None
    return Problem(
        str(path), f"{path} is unfinished (file {UNFINISHED_FILE}); left out", "unfinished"
    )

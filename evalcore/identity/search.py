"""Folders of adapters and fully tuned checkpoints: which directories are which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evalcore.errors import InputError
from evalcore.identity.adapter import ADAPTER_CONFIG
from evalcore.identity.provenance import PROVENANCE_FILE, UNFINISHED_FILE


@dataclass(frozen=True, slots=True)
class Problem:
    """An adapter that cannot be scored; the others are.

    Attributes:
        path: Its directory.
        message: One line for a person.
        kind: ``broken`` or ``unfinished``.
    """

    path: str
    message: str
    kind: str = "broken"


def find_adapters(paths: Sequence[str | Path], *, required: bool = True) -> list[Path]:
    """Directories with an adapter_config.json in the given folders (recursive, sorted, unique).

    Raises:
        InputError: If a folder is missing, or (``required``) none holds an adapter.
    """
    found: dict[Path, Path] = {}
    for given in paths:
        folder = Path(given).expanduser()
        if not folder.is_dir():
            raise InputError(f"adapter folder {given} does not exist")
        for file in sorted(folder.rglob(ADAPTER_CONFIG)):
            found.setdefault(file.parent.resolve(), file.parent)
    if not found and paths and required:
        searched = ", ".join(str(path) for path in paths)
        raise InputError(
            f"no adapters found in {searched}: looked for {ADAPTER_CONFIG} there and below; "
            f"give a folder of PEFT LoRA adapters, or checkpoints with --checkpoint"
        )
    return sorted(found.values())


def find_tuned(paths: Sequence[str | Path]) -> list[Path]:
    """Directories of fully tuned checkpoints in the given folders (recursive, sorted, unique).

    They are those with a provenance record of their own that are not adapters.
    """
    found: dict[Path, Path] = {}
    for given in paths:
        for file in sorted(Path(given).expanduser().rglob(PROVENANCE_FILE)):
            folder = file.parent
            if (folder / "config.json").is_file() and not (folder / ADAPTER_CONFIG).is_file():
                found.setdefault(folder.resolve(), folder)
    return sorted(found.values())


def unfinished(path: Path) -> Problem | None:
    """What there is to say of a directory whose making was cut short; None if it was not."""
    if not (path / UNFINISHED_FILE).exists():
        return None
    return Problem(
        str(path), f"{path} is unfinished (file {UNFINISHED_FILE}); left out", "unfinished"
    )

"""Which subjects the parts of an array job cut their shares from, whenever each of them starts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from evalcore.checked import JSON_SUFFIX, DamagedFile, json_bytes, read_json
from evalcore.errors import InputError, ResultsError
from evalcore.files import write_once
from evalcore.store.access import patiently
from evalcore.store.cells import not_writable
from evalcore.types import Subject

VARIABLES = ("EVALCORE_GRID", "SLURM_ARRAY_JOB_ID")


def grid_name() -> str | None:
    """What the parts of one array job have in common; None where nothing says."""
    found = next((os.environ[name] for name in VARIABLES if os.environ.get(name)), None)
    if found is not None and not found.replace("-", "").replace("_", "").isalnum():
        raise InputError(f"EVALCORE_GRID is {found!r}; expected letters, digits, - and _")
    return found


def agreed(
    results: Path, subjects: Sequence[Subject], name: str
) -> tuple[list[Subject], list[str]]:
    """The subjects of the grid of this name: those its first part found, for all its parts.

    Returns:
        The subjects that are scored; ids that the first part found and this one does not.

    Raises:
        ResultsError: The list can neither be read nor written.
    """
    path = results / "grids" / f"{name}{JSON_SUFFIX}"
    try:
        wanted = _wanted(path)
        if wanted is None:
            try:
                path.parent.mkdir(exist_ok=True)
                write_once(path, json_bytes({"subjects": [subject.id for subject in subjects]}))
            except OSError as error:
                raise not_writable(path.parent, error) from error
            wanted = _wanted(path)  # another part's, if that was faster
        if wanted is None:
            raise DamagedFile("it is gone again")
    except (DamagedFile, KeyError, TypeError) as error:
        raise ResultsError(
            f"{path}: the list of subjects cannot be used ({error}); `evalcore verify {results}` "
            "sets a damaged one aside: then start all parts of the array again"
        ) from error
    known = {subject.id: subject for subject in subjects}
    return [known[i] for i in wanted if i in known], [i for i in wanted if i not in known]


def _wanted(path: Path) -> list[str] | None:
    """Ids of the subjects of a list; None where there is none."""
    try:
        return list(patiently(path, read_json)["subjects"])
    except FileNotFoundError:
        return None

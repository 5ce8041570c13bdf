"""Which subjects the parts of an array job cut their shares from, whenever each of them starts."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from evalcore.checked import JSON_SUFFIX, DamagedFile, read_json, write_json
from evalcore.errors import InputError, ResultsError
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
        path.parent.mkdir(exist_ok=True)
        if not path.exists():
            own = path.with_name(f"{name}.{os.getpid()}.part")
            write_json(own, {"subjects": [subject.id for subject in subjects]})
            with contextlib.suppress(FileExistsError):  # another part was first: its list holds
                os.link(own, path)
            own.unlink()
        wanted = read_json(path)["subjects"]
    except (OSError, DamagedFile, KeyError, TypeError) as error:
        raise ResultsError(
            f"{path}: the list of subjects cannot be used ({error}); `evalcore verify {results}` "
            "sets a damaged one aside: then start all parts of the array again"
        ) from error
    known = {subject.id: subject for subject in subjects}
    return [known[i] for i in wanted if i in known], [i for i in wanted if i not in known]

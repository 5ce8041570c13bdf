"""What is handed to a worker at once."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from evalcore.types import Subject

RowArray = npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False, slots=True)
class UnitSlice:
    """Rows of one cell's request file.

    Attributes:
        cell_key: The cell.
        requests_path: File of encoded requests.
        rows: int32 [k], ascending row numbers in it.
        member: Whose cell it is: index into the unit's subjects.
    """

    cell_key: str
    requests_path: str
    rows: RowArray
    member: int = 0


@dataclass(frozen=True, eq=False)
class Unit:
    """What is handed to a worker at once: slices of one or more cells of one subject or more.

    Attributes:
        id: 16 hex digits over subject, cells and rows.
        subject: What to load; where there are siblings, the first of them.
        slices: In planned order; at least one, none empty.
        num_examples: Rows in all slices.
        prompt_tokens: Sum of their costs.
        siblings: Further subjects of the same checkpoint that are worked on together with it (their
            adapters are applied beside the weights). All units of such a group name all of it, even
            where a unit has no slice of some.
    """

    id: str
    subject: Subject
    slices: tuple[UnitSlice, ...]
    num_examples: int
    prompt_tokens: int
    siblings: tuple[Subject, ...] = ()

    @property
    def subjects(self) -> tuple[Subject, ...]:
        """What ``UnitSlice.member`` counts in."""
        return (self.subject, *self.siblings)

    @property
    def members(self) -> list[int]:
        """Members that have slices, ascending."""
        return sorted({part.member for part in self.slices})

    @property
    def label(self) -> str:
        """Its subject, or its subjects, for people."""
        here = [self.subjects[i] for i in self.members]
        more = f" +{len(here) - 1} adapters" if len(here) > 1 else ""
        return f"{here[0].label}{more}"

    def apart(self) -> list[Unit]:
        """The same work as a unit per subject."""
        units = []
        for i in self.members:
            slices = tuple(replace(part, member=0) for part in self.slices if part.member == i)
            examples = sum(len(part.rows) for part in slices)
            tokens = self.prompt_tokens * examples // self.num_examples
            units.append(make_unit((self.subjects[i],), slices, examples, tokens))
        return units


def make_unit(
    subjects: tuple[Subject, ...], slices: tuple[UnitSlice, ...], examples: int, tokens: int
) -> Unit:
    """A unit, named by what it asks for."""
    asked = [subjects[0].id.encode()]
    for part in slices:
        asked.append(f"\n{part.cell_key}\n{len(part.rows)}\n".encode())
        asked.append(part.rows.astype("<i4", copy=False).tobytes())
    digest = hashlib.blake2b(b"".join(asked), digest_size=8)
    return Unit(digest.hexdigest(), subjects[0], slices, examples, tokens, subjects[1:])

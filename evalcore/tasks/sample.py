"""Which documents a limit takes: a seeded random sample that grows, or the first ones by name."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from evalcore.errors import InputError
from evalcore.types import Document

_FORM = re.compile(r"^(first:)?([1-9]\d{0,8})$")


@dataclass(frozen=True, slots=True)
class RowLimit:
    """At most so many documents of each task.

    Files are often ordered (by genre, source or label), so that the first rows are a sample of
    nothing. Documents are therefore ordered by a hash of their ids: the same sample for every
    subject, and a larger one contains the smaller one.

    Attributes:
        count: How many.
        first: The first ones of the file instead, for those who want them by name.
    """

    count: int
    first: bool = False

    @classmethod
    def of(cls, text: int | str | None) -> RowLimit | None:
        """Reads ``20`` or ``first:20``.

        Raises:
            InputError: If it is neither.
        """
        if text is None:
            return None
        found = _FORM.match(str(text))
        if found is None:
            raise InputError(
                f"limit {text!r}: expected a number of documents (a random sample), or first:N for "
                f"the first N of each file"
            )
        return cls(int(found[2]), found[1] is not None)

    def take(self, documents: Sequence[Document]) -> list[Document]:
        """The documents of the sample, in file order."""
        if self.first or len(documents) <= self.count:
            return list(documents[: self.count])
        chosen = sorted(range(len(documents)), key=lambda i: sample_rank(documents[i].id))
        return [documents[i] for i in sorted(chosen[: self.count])]


def sample_rank(document_id: str) -> bytes:
    """What documents are ordered by before a sample is cut."""
    return hashlib.blake2b(f"sample\0{document_id}".encode(), digest_size=16).digest()

"""What several plans say of cells, by the cells' keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeVar

T = TypeVar("T")


class Joined(Mapping[str, T]):
    """Mappings as one, of which nothing is copied; of one key the last that was added counts.

    Attributes:
        parts: The mappings, in the order in which they were added.
    """

    def __init__(self, *parts: Mapping[str, T]) -> None:
        self.parts = list(parts)

    def add(self, part: Mapping[str, T]) -> None:
        """Takes in another one."""
        self.parts.append(part)

    def __getitem__(self, key: str) -> T:
        for part in reversed(self.parts):
            try:
                return part[key]
            except KeyError:
                continue
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(key for part in self.parts for key in part))

    def __len__(self) -> int:
        return len(self.parts[0]) if len(self.parts) == 1 else sum(1 for _ in self)

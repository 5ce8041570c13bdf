"""Rows of the built-in pocket tasks: seeded, deterministic, made without any I/O.

``pocket_rows("nli", "test")`` gives plain dictionaries; ``POCKET_DATASETS`` says which data sets,
splits and columns there are. The world they speak of is in :mod:`evalcore.tasks.pocket.world`.
"""

from __future__ import annotations

from evalcore.tasks.pocket.rows import POCKET_DATASETS, SPLIT_SIZES, pocket_rows

__all__ = ["POCKET_DATASETS", "SPLIT_SIZES", "pocket_rows"]

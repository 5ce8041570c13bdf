"""How rows that an earlier evalcore wrote become rows of the present schema.

A column that did not exist then is null. What is more than that stands in :data:`MIGRATIONS`, a
step from one version to the next; rows pass all steps from their own version on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from evalcore.errors import IncompatibleError
from evalcore.store.schema import (
    CELL_SCHEMA,
    FULLY_TUNED,
    NO_ADAPTER,
    SCHEMA_VERSION,
    conform,
)

OLDEST_VERSION = 2


@dataclass(frozen=True)
class Migration:
    """One step: from the version it is filed under to the next."""

    cells: Callable[[pa.Table], pa.Table]


def _base_rows_have_a_name(cells: pa.Table) -> pa.Table:
    """2 -> 3: the adapter of a subject without one was null."""
    full = pc.equal(cells["method"].cast(pa.string()), "full")
    named = pc.if_else(pc.fill_null(full, False), FULLY_TUNED, NO_ADAPTER)
    at = cells.column_names.index("adapter")
    return cells.set_column(at, "adapter", pc.coalesce(cells["adapter"], named))


MIGRATIONS: dict[int, Migration] = {2: Migration(cells=_base_rows_have_a_name)}


def check_version(version: object, where: str) -> int:
    """A schema version that this evalcore can read.

    Raises:
        IncompatibleError: It is newer, or no version at all.
    """
    if isinstance(version, bool) or not isinstance(version, int) or version < OLDEST_VERSION:
        raise IncompatibleError(
            f"{where}: schema {version!r} is none that evalcore has written; give another results "
            "folder"
        )
    if version > SCHEMA_VERSION:
        raise IncompatibleError(
            f"{where}: written by a newer evalcore (schema {version}; this one reads up to schema "
            f"{SCHEMA_VERSION}): update evalcore, or give another results folder"
        )
    return version


def upgrade_cells(cells: pa.Table, version: int, where: str) -> pa.Table:
    """Rows of the cells table, as :data:`CELL_SCHEMA` has them now.

    Raises:
        IncompatibleError: They do not fit.
    """
    for step in range(version, SCHEMA_VERSION):
        if step in MIGRATIONS:
            cells = MIGRATIONS[step].cells(cells)
    return conform(cells, CELL_SCHEMA, where)

"""Pure planning: grid + coverage -> ordered units, queue, shards; distinct-prefix counts."""

from evalcore.planning.chunks import Sequences, in_parts
from evalcore.planning.estimate import estimate_seconds
from evalcore.planning.order import prefix_ranks
from evalcore.planning.prefixes import (
    PrefixProfile,
    Ragged,
    block_limit,
    prefix_profile,
    profile_of_sequences,
    token_limit,
)
from evalcore.planning.unit import Unit, UnitSlice
from evalcore.planning.units import (
    NO_PLAN,
    Plan,
    PlanCounts,
    PlannedCell,
    plan_units,
    shard,
)
from evalcore.planning.workqueue import WorkQueue

__all__ = [
    "NO_PLAN",
    "Plan",
    "PlanCounts",
    "PlannedCell",
    "PrefixProfile",
    "Ragged",
    "Sequences",
    "Unit",
    "UnitSlice",
    "WorkQueue",
    "block_limit",
    "estimate_seconds",
    "in_parts",
    "plan_units",
    "prefix_profile",
    "prefix_ranks",
    "profile_of_sequences",
    "shard",
    "token_limit",
]

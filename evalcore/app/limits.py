"""The token limit of a plan: what no evaluator can go below (see ``planning.token_limit``)."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pyarrow as pa

from evalcore.planning import Plan, token_limit
from evalcore.prompting import read_requests
from evalcore.scoring.batching import score_requests


def token_limits(plan: Plan) -> dict[str, int]:
    """Distinct prefix positions a plan needs, summed over subjects (weights differ, so states do).

    Subjects that ask for the same rows of the same request files are counted once and multiplied:
    in a full grid all do.
    """
    asked: dict[str, dict[str, list[np.ndarray]]] = defaultdict(lambda: defaultdict(list))
    for unit in plan.units:
        for part in unit.slices:
            asked[unit.subject.id][part.requests_path].append(np.asarray(part.rows))
    known: dict[tuple, int] = {}
    total = 0
    for files in asked.values():
        rows = {path: np.sort(np.concatenate(parts)) for path, parts in sorted(files.items())}
        key = tuple((path, r.tobytes()) for path, r in rows.items())
        if key not in known:
            known[key] = _limit(rows)
        total += known[key]
    return {"token_limit": total}


def _limit(rows: dict[str, np.ndarray]) -> int:
    tables = [read_requests(path).take(pa.array(r)) for path, r in rows.items()]
    return token_limit([score_requests(pa.concat_tables(tables)).batch])

"""What a plan needs at least: what no evaluator can go below (see ``planning.prefix_profile``)."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from evalcore.app.flops import attended
from evalcore.planning import Plan, prefix_profile
from evalcore.prompting import read_requests
from evalcore.scoring.batching import generate_requests, score_requests
from evalcore.types import GenerationSettings, generation_of

BLOCK_SIZE = 16
"""Cache block that the block limit is told for; vLLM's own on GPUs."""


class File(NamedTuple):
    """A request file and, where text is generated from it, the settings."""

    path: str
    generation: GenerationSettings | None


def token_limits(plan: Plan) -> dict[str, int]:
    """Least work of a plan, summed over subjects (weights differ, so states do).

    Subjects that ask for the same rows of the same request files are counted once and multiplied:
    in a full grid all do.

    Returns:
        ``token_limit``: distinct prefix positions; ``block_limit``: the same where a cache shares
        whole blocks only; ``attended``: positions attended to at the token limit;
        ``continuation_tokens``: tokens whose log-probability is asked for.
    """
    asked: dict[str, dict[File, list[np.ndarray]]] = defaultdict(lambda: defaultdict(list))
    for unit in plan.units:
        for part in unit.slices:
            cell = plan.cells[part.cell_key]
            file = File(part.requests_path, generation_of(cell.task, cell.variant))
            asked[unit.subject.id][file].append(np.asarray(part.rows))
    known: dict[tuple, Counter[str]] = {}
    total = Counter(token_limit=0, block_limit=0, attended=0, continuation_tokens=0)
    for files in asked.values():
        rows = {
            file: np.sort(np.concatenate(files[file]))
            for file in sorted(files, key=lambda f: f.path)
        }
        key = tuple((file, r.tobytes()) for file, r in rows.items())
        if key not in known:
            known[key] = _limits(rows)
        total.update(known[key])
    return dict(total)


def _limits(rows: dict[File, np.ndarray]) -> Counter[str]:
    tables = {file: read_requests(file.path).take(pa.array(r)) for file, r in rows.items()}
    scored = score_requests(pa.concat_tables(tables.values())).batch
    generated = [
        generate_requests(table, file.generation).batch
        for file, table in tables.items()
        if file.generation is not None
    ]
    profile = prefix_profile([scored, *generated])
    return Counter(
        token_limit=profile.token_limit,
        block_limit=profile.block_limit(BLOCK_SIZE),
        attended=attended(profile.lengths, profile.shared),
        continuation_tokens=len(scored.continuation_tokens),
    )

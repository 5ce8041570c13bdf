"""What a plan needs at least: what no evaluator can go below (see ``planning.prefix_profile``)."""

from __future__ import annotations

from collections import Counter, defaultdict
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from evalcore.app.flops import attended
from evalcore.planning import Plan, Ragged, Sequences, UnitSlice, in_parts
from evalcore.prompting import read_requests
from evalcore.scoring.batching import Lists, flat_lists, scorable
from evalcore.types import Cell, GenerationSettings, generation_of

_ASKED = ["contexts", "continuations", "unconditional_context", "unconditional", "prompt", "flags"]


class File(NamedTuple):
    """A request file and, where text is generated from it, the settings."""

    path: str
    generation: GenerationSettings | None


def token_limits(plan: Plan, block_size: int) -> dict[str, int]:
    """The limits of one plan; see :class:`Limits`."""
    return Limits(block_size).of(plan)


class Limits:
    """Least work of plans, summed over subjects (weights differ, so states do).

    Subjects that ask for the same rows of the same request files are counted once and multiplied:
    in a full grid all do.

    Args:
        block_size: Tokens of a cache block.
    """

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._known: dict[tuple[tuple[File, bytes], ...], Counter[str]] = {}

    def of(self, plan: Plan) -> dict[str, int]:
        """Least work of a plan.

        Returns:
            ``token_limit``: distinct prefix positions; ``block_limit``: the same where a cache
            shares whole blocks only; ``attended``: positions attended to at the token limit;
            ``continuation_tokens``: tokens whose log-probability is asked for.
        """
        asked: dict[str, list[tuple[UnitSlice, Cell]]] = defaultdict(list)
        for unit in plan.units:
            own = [member.id for member in unit.subjects]
            for part in unit.slices:
                asked[own[part.member]].append((part, plan.cells[part.cell_key]))
        same: dict[tuple[Any, ...], Counter[str]] = {}  # by object, which the plan keeps
        total = Counter(token_limit=0, block_limit=0, attended=0, continuation_tokens=0)
        for parts in asked.values():
            alike = tuple(
                [(p.requests_path, id(p.rows), id(c.task), id(c.variant)) for p, c in parts]
            )
            if alike not in same:
                rows = _rows(parts)
                key = tuple((file, r.tobytes()) for file, r in rows.items())
                if key not in self._known:
                    self._known[key] = _limits(rows, self._block_size)
                same[alike] = self._known[key]
            total.update(same[alike])
        return dict(total)


def _rows(parts: list[tuple[UnitSlice, Cell]]) -> dict[File, npt.NDArray[np.int32]]:
    """Rows of each file that a subject asks for, ascending."""
    found: dict[File, list[npt.NDArray[np.int32]]] = defaultdict(list)
    for part, cell in parts:
        file = File(part.requests_path, generation_of(cell.task, cell.variant))
        found[file].append(np.asarray(part.rows))
    return {f: np.sort(np.concatenate(found[f])) for f in sorted(found, key=lambda f: f.path)}


def _limits(rows: dict[File, np.ndarray], block_size: int) -> Counter[str]:
    total: Counter[str] = Counter()
    for part in in_parts([partial(_sequences, file, own) for file, own in rows.items()]):
        lengths, shared = part.profile.lengths, part.profile.shared
        total.update(
            token_limit=part.profile.token_limit,
            block_limit=part.profile.block_limit(block_size),
            attended=attended(lengths, shared),
            continuation_tokens=part.continuation_tokens,
        )
    return total


def _sequences(file: File, rows: np.ndarray) -> Sequences:
    """What the scorable rows of a request file ask for."""
    table = read_requests(file.path).select(_ASKED)
    rows = rows[scorable(table)[rows]]
    if len(rows) < len(table):
        table = table.take(pa.array(rows))
    own, tails = Lists.of(table["contexts"]), Lists.of(table["continuations"])
    bare, alone = flat_lists(table["unconditional_context"]), Lists.of(table["unconditional"])
    prompts = flat_lists(table["prompt"])
    going_on = np.flatnonzero(np.diff(prompts[1]) > 0)
    if file.generation is None:
        going_on = going_on[:0]
    contexts = Ragged.joined([(own.flat, own.inner), bare, prompts])
    continuations = Ragged.joined([(tails.flat, tails.inner), (alone.flat, alone.inner)])
    first_bare, first_prompt = len(own.inner) - 1, len(own.inner) - 1 + len(table)
    scored = np.arange(len(continuations))
    return Sequences(
        contexts,
        continuations,
        np.concatenate([own.of_each(tails), first_bare + alone.owners(), first_prompt + going_on]),
        np.concatenate([scored, np.full(len(going_on), -1)]),
    )

"""A run's subjects in pieces that can be prepared one after the other, and in shards.

What hangs together stays together: checkpoints of the same weights, parents and what was tuned from
them, and adapters of a checkpoint that is asked by their own tokenizers too. The adapters of any
other checkpoint may lie in several pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from evalcore.planning.sharding import balanced_bounds, check_shard
from evalcore.types import Subject

FIRST_CELLS = 1_000
MOST_CELLS = 100_000
"""Pieces grow from the one to the other: the first one is soon there, the others cost little beyond
what their cells do, and none takes much memory."""


def families(subjects: Sequence[Subject]) -> list[list[Subject]]:
    """Subjects that hang together, in the order of their first ones."""
    leader: dict[str, str] = {}

    def find(name: str) -> str:
        while leader.setdefault(name, name) != name:
            leader[name] = name = leader[leader[name]]
        return name

    here = {subject.checkpoint.fingerprint for subject in subjects}
    for subject in subjects:
        parent = (subject.checkpoint.parent or "").partition("~")[0]
        if parent in here:
            leader[find(subject.checkpoint.fingerprint)] = find(parent)
    found: dict[str, list[Subject]] = {}
    for subject in subjects:
        found.setdefault(find(subject.checkpoint.fingerprint), []).append(subject)
    return list(found.values())


def atoms(subjects: Sequence[Subject], *, whole: bool = False) -> list[list[Subject]]:
    """What no piece divides.

    Args:
        subjects: All of them.
        whole: Whether adapters of a checkpoint stay together in any case.
    """
    found: list[list[Subject]] = []
    for family in families(subjects):
        plain = len({s.checkpoint.id for s in family}) == 1 and all(s.own is None for s in family)
        found += [[subject] for subject in family] if plain and not whole else [family]
    return found


def pieces(
    subjects: Sequence[Subject], cells_of: Callable[[Subject], int], *, whole: bool = False
) -> list[list[Subject]]:
    """Subjects in order, in pieces that grow.

    Args:
        subjects: All of them.
        cells_of: Cells of a subject.
        whole: As for :func:`atoms`.
    """
    found: list[list[Subject]] = []
    room, most = 0, FIRST_CELLS // 2
    for atom in atoms(subjects, whole=whole):
        if room <= 0:
            found.append([])
            room = most = min(2 * most, MOST_CELLS)
        found[-1] += atom
        room -= sum(map(cells_of, atom))
    return found


def shard_of(
    subjects: Sequence[Subject], cost_of: Callable[[Subject], int], shard: tuple[int, int]
) -> list[Subject] | None:
    """The subjects of the i-th of n shards, before anything of them is planned.

    The dearest shard is as cheap as can be; what is covered counts, so that jobs that start at
    different times cut alike.

    Raises:
        InputError: There is no such shard.

    Returns:
        None where there are fewer subjects than shards, whose units have to be divided then.
    """
    i, n = shard
    check_shard(i, n)
    costs = [(atom, sum(map(cost_of, atom))) for atom in atoms(subjects)]
    costs = [(atom, cost) for atom, cost in costs if cost]
    if len(costs) < n:
        return None
    bounds = balanced_bounds([cost for _, cost in costs], n)
    return [subject for atom, _ in costs[bounds[i] : bounds[i + 1]] for subject in atom]

"""Which tasks stand for what: declared by the study, or by what the tasks say of themselves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from evalcore.analysis.gains import Gain
from evalcore.analysis.subjects import Flag, SubjectInfo, TaskInfo
from evalcore.tasks import list_tasks

Role = Literal["own", "far", "outside", "unknown"]
"""Of a task for a tuned model: learned by it, of its kind but other data, of another kind."""

FINE_TUNING, PRE_TRAINING, OUT_OF_DOMAIN = (
    "learned in fine-tuning", "learned in pre-training", "out of domain",
)  # fmt: skip


@dataclass(frozen=True)
class Group:
    """Tasks whose scores are averaged in the table per checkpoint.

    Attributes:
        name: What it is called.
        tasks: Names, each counted once.
        tuned_by: Gains are those of models tuned on this; None: each task's own ``tuned_by``,
            every tuning where it has none here.
        prompts: Only these prompts (by their texts' names, without ``:shots=4`` and the like);
            empty: all of the primary way of asking.
    """

    name: str
    tasks: tuple[str, ...]
    tuned_by: str | None = None
    prompts: tuple[str, ...] = ()

    def asks(self, variant: str) -> bool:
        """Whether a prompt variant counts."""
        names = (variant, variant.partition(":")[0])
        return not self.prompts or any(name in self.prompts for name in names)


def mixes_of(tasks: Mapping[str, TaskInfo], tuned: Collection[str]) -> frozenset[str]:
    """Tunings (of ``tuned``) that no task is in the domain of: instruction mixes.

    Neither a task that was scored, nor one that comes with evalcore: a tuning whose own task was
    only not scored here is none.
    """
    inside = {t.tuned_by for t in tasks.values() if t.domain != "out"}
    candidates = {t.tuned_by for t in tasks.values() if t.tuned_by in tuned} - inside
    if candidates:
        inside |= {t.tuned_by for t in list_tasks() if t.domain == "in"}
    return frozenset(n for n in candidates if n is not None and n not in inside)


def role_of(task: TaskInfo, subject: SubjectInfo, mixes: Collection[str]) -> Role:
    """What a task is to a tuned model; an instruction mix has its out-of-domain tasks as own."""
    if subject.tuned_on is None:
        return "unknown"
    if task.tuned_by != subject.tuned_on:
        return "outside"
    return "own" if task.domain != "out" or subject.tuned_on in mixes else "far"


def default_groups(tasks: Mapping[str, TaskInfo], tuned: Collection[str]) -> list[Group]:
    """Every task in exactly one group, by its ``tuned_by`` and ``domain``.

    A task with a tuning here whose domain it is in was learned in fine-tuning. One of an
    instruction mix, or that no tuning here was meant for, was learned in pre-training. One that has
    an in-domain sibling under the same tuning is out of domain.
    """
    mixes = mixes_of(tasks, tuned)
    names: dict[str, list[str]] = {FINE_TUNING: [], PRE_TRAINING: [], OUT_OF_DOMAIN: []}
    for task in sorted(tasks.values(), key=lambda t: t.name):
        if task.tuned_by not in tuned or task.tuned_by in mixes:
            names[PRE_TRAINING].append(task.name)
        else:
            names[OUT_OF_DOMAIN if task.domain == "out" else FINE_TUNING].append(task.name)
    return [Group(name, tuple(found)) for name, found in names.items() if found]


def check_groups(groups: Sequence[Group], tasks: Mapping[str, TaskInfo]) -> list[Flag]:
    """Tasks that stand in several groups or in none, and names without scores."""
    count = Counter(name for group in groups for name in group.tasks)
    flags = [
        Flag("group", name, f"counted {n} times in the groups of the table per checkpoint", n)
        for name, n in count.items()
        if n > 1
    ]
    flags += [
        Flag("group", name, "in no group of the table per checkpoint")
        for name in sorted(tasks.keys() - count.keys())
    ]
    flags += [
        Flag("group", name, f"in group {group.name}, but there are no scores of it")
        for group in groups
        for name in group.tasks
        if name not in tasks
    ]
    return flags


def gains_of(group: Group, gains: Sequence[Gain], tuned: Collection[str]) -> dict[str, list[Gain]]:
    """Task -> the gains that count for it in a group, of one checkpoint and method."""
    found: dict[str, list[Gain]] = {}
    for gain in gains:
        wanted = group.tuned_by or gain.task.tuned_by
        mine = gain.subject.tuned_on == wanted if wanted in tuned else group.tuned_by is None
        if gain.task.name in group.tasks and mine:
            found.setdefault(gain.task.name, []).append(gain)
    return found

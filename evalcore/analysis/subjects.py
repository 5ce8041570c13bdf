"""Subjects and tasks as the cells table describes them, and what is odd about them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from evalcore.shown import natural
from evalcore.store.schema import FULLY_TUNED, NO_ADAPTER


@dataclass(frozen=True, slots=True)
class Flag:
    """Something a reader must know.

    Attributes:
        kind: Short word for grouping (``missing``, ``doubled``, ``overflow`` ...).
        where: What it is about.
        text: One sentence.
        count: How many documents or cells, where that means something.
    """

    kind: str
    where: str
    text: str
    count: int = 0


@dataclass(frozen=True)
class SubjectInfo:
    """A scored subject as the cells table describes it.

    Attributes:
        tuning: Name of the tuning that made it: what tables and pictures call it.
        tuned_on: Table group it was tuned for (``tuned_by`` of the task it learned), whatever the
            tuning is called.
        method: ``lora`` or ``full``; None if it is not known.
        tuning_step: Step of the tuning it was saved at, if known.
        labels_from: Who says what it was tuned on (see ``types.Checkpoint``).
        runs: Ids of the subjects it stands for, where training seeds are taken together (see
            :func:`models_of`); empty for a subject as it was scored.
        seeds: The seeds of ``runs``.
        adapters: The names of the adapters of ``runs``.
    """

    id: str
    checkpoint: str
    step: int | None
    base: str | None
    adapter: str | None
    tuning: str | None
    control: str | None
    seed: int | None
    untrained: bool
    tuned_on: str | None = None
    method: str | None = None
    tuning_step: int | None = None
    labels_from: str | None = None
    runs: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    adapters: tuple[str, ...] = ()

    @property
    def run_ids(self) -> tuple[str, ...]:
        """Ids of the subjects behind it: its own, or those of every seed."""
        return self.runs or (self.id,)

    @property
    def run_seeds(self) -> tuple[int | None, ...]:
        """Training seed of each of ``run_ids``."""
        return self.seeds or (self.seed,)

    @property
    def run_adapters(self) -> tuple[str, ...]:
        """The adapters' own names, however tables call them; none without adapters."""
        return self.adapters or ((self.adapter,) if self.adapter is not None else ())

    @property
    def label(self) -> str:
        own = self.adapter
        if self.runs:
            own = (self.tuning or "tuned") + (f"-{self.control}" if self.control else "")
            own += "" if self.tuning_step is None else f"/step-{self.tuning_step}"
            return f"{self.checkpoint} + {own} ({len(self.runs)} seeds)"
        if own is None and self.base is not None:
            own = self.tuning or self.method or "tuned"
            own += "" if self.tuning_step is None else f"/step-{self.tuning_step}"
        return self.checkpoint if own is None else f"{self.checkpoint} + {own}"


@dataclass(frozen=True)
class TaskInfo:
    """A task as the cells table describes it.

    Attributes:
        metric: Per-document metric that is compared (the primary one, if it has such values).
        continuous: A metric without a threshold, shown beside it.
        baseline: Score of the trivial answer, in units of the primary metric.
    """

    name: str
    group: str
    tuned_by: str | None
    domain: str
    output_type: str
    metric: str
    continuous: str
    baseline: float


def subject_order(subject: SubjectInfo) -> tuple[Any, ...]:
    step = subject.step
    return (
        step is None, step or 0, natural(subject.checkpoint), subject.base is not None,
        subject.tuning or "", subject.control or "", subject.seed or 0, subject.tuning_step or 0,
        natural(subject.adapter or ""),
    )  # fmt: skip


def subject_of(about: Mapping[str, Any]) -> SubjectInfo:
    """A subject from the columns of one of its cells."""
    recorded = about["labels_from"] in (None, "record")  # there a tuning's name means a task
    return SubjectInfo(
        id=about["subject"], checkpoint=about["checkpoint"], step=about["step"],
        base=about["base"], adapter=_adapter(about["adapter"]), tuning=about["tuning"],
        control=about["control"], seed=about["seed"], untrained=bool(about["untrained"]),
        tuned_on=about["tuned_on"] or (about["tuning"] if recorded else None),
        method=about["method"], tuning_step=about["tuning_step"],
        labels_from=about["labels_from"],
    )  # fmt: skip


def _adapter(name: str | None) -> str | None:
    """An adapter's name; None for the names that subjects without one have in the store."""
    return None if name in (NO_ADAPTER, FULLY_TUNED) else name


def with_parents(subjects: dict[str, SubjectInfo]) -> dict[str, SubjectInfo]:
    """The subjects; a fully tuned checkpoint stands with its parent, as an adapter does."""
    return {
        id_: replace(s, checkpoint=subjects[s.base].checkpoint)
        if s.adapter is None and s.base in subjects else s
        for id_, s in subjects.items()
    }  # fmt: skip


def subject_infos(cells: pa.Table) -> dict[str, SubjectInfo]:
    """Subject id -> what the cells table says of it."""
    found: dict[str, SubjectInfo] = {}
    for row in cells.to_pylist():
        if row["subject"] is not None:
            found.setdefault(row["subject"], subject_of(row))
    return with_parents(found)


def settle_tuned(subjects: dict[str, SubjectInfo], tasks: dict[str, TaskInfo]) -> None:
    """Lets a label be the task's own name: it then means that task's group, if it has one.

    A tuning that a label or name calls like a task was tuned on it; a trainer's folder may be
    called anything.
    """
    known = {*tasks, *(task.tuned_by for task in tasks.values())}
    for id_, subject in subjects.items():
        named = subject.tuned_on is None and subject.labels_from != "folder"
        if named and subject.tuning in known:
            subject = subjects[id_] = replace(subject, tuned_on=subject.tuning)
        task = tasks.get(subject.tuned_on or "")
        if task is not None and task.tuned_by is not None:
            subjects[id_] = replace(subject, tuned_on=task.tuned_by)
    labels = {s.tuned_on for s in subjects.values()}
    for name, task in tasks.items():
        if task.tuned_by is None and name in labels:
            tasks[name] = replace(task, tuned_by=name)


def models_of(subjects: Iterable[SubjectInfo]) -> list[SubjectInfo]:
    """Subjects with those that differ in the training seed alone taken together.

    Methods, grid points, controls and steps of a tuning stay apart, and so does everything of a
    tuning in which a seed stands twice: nobody can say which of the two is meant.
    """
    subjects = sorted(subjects, key=subject_order)
    same: dict[tuple[Any, ...], list[SubjectInfo]] = defaultdict(list)
    for s in subjects:
        same[_apart_from_seed(s)].append(s)
    out, done = [], set()
    for s in subjects:
        key = _apart_from_seed(s)
        group = same[key]
        seeds = [g.seed for g in group if g.seed is not None]
        if s.base is None or s.tuning is None or len(group) < 2 or len(set(seeds)) < len(group):
            out.append(s)
        elif key not in done:
            done.add(key)
            out.append(
                replace(
                    s, id="|".join(g.id for g in group), adapter=None, seed=None,
                    untrained=all(g.untrained for g in group),
                    runs=tuple(g.id for g in group), seeds=tuple(seeds),
                    adapters=tuple(g.adapter for g in group if g.adapter is not None),
                )
            )  # fmt: skip
    return out


def _apart_from_seed(s: SubjectInfo) -> tuple[Any, ...]:
    return (s.base, s.tuning, s.tuned_on, s.method, s.control, s.tuning_step, s.base or s.id)


def flag_subjects(subjects: dict[str, SubjectInfo], flags: list[Flag]) -> None:
    for subject in subjects.values():
        if subject.untrained:
            flags.append(Flag("untrained", subject.label, "every delta of the adapter is zero"))
        if subject.base is not None and subject.tuned_on is None:
            flags.append(
                Flag("tuning", subject.label, "what it was tuned on is unknown; gains only")
            )
    same = Counter(
        (s.base, s.tuning, s.control, s.seed, s.tuning_step)
        for s in subjects.values() if s.base and s.tuning
    )  # fmt: skip
    for (base, tuning, control, seed, _), count in same.items():
        if count > 1:
            owner = next(s for s in subjects.values() if s.base == base)
            named = f"{tuning}{f' ({control})' if control else ''}"
            flags.append(
                Flag("doubled", f"{owner.checkpoint}, {named}",
                     f"{count} adapters with the same seed ({seed}); shown one by one", count)
            )  # fmt: skip


def names_apart(models: Iterable[SubjectInfo]) -> dict[str, str]:
    """What tells models apart that a table would call alike; ids of the others are left out.

    Alike are models of one base, tuning, control, seed and step: told apart by their method where
    that does it, else by the adapter's own name.
    """
    alike: dict[tuple[Any, ...], list[SubjectInfo]] = {}
    for s in models:
        if s.base is not None:
            key = (s.base, s.tuning, s.control, s.seed, s.tuning_step, s.seeds)
            alike.setdefault(key, []).append(s)
    names = {}
    for group in alike.values():
        methods = {s.method for s in group}
        for s in group if len(group) > 1 else ():
            by_method = len(methods) == len(group) and None not in methods
            names[s.id] = str(s.method) if by_method else s.adapter or s.checkpoint
    return names

"""Subjects with their labels: which source says what of which model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from evalcore.errors import InputError
from evalcore.identity.globs import typed
from evalcore.identity.labels import (
    LABEL_FILES,
    Labels,
    NamePattern,
    Rule,
    path_names,
    read_labels,
    trainer_labels,
)
from evalcore.reading import is_there
from evalcore.shown import listed, one_line
from evalcore.types import Adapter, Checkpoint, Subject


@dataclass(frozen=True)
class LabelSources:
    """Where labels come from, beside provenance records.

    Attributes:
        rules: Of ``--tuned-on``, the later before the earlier.
        pattern: Of ``--name-pattern``.
        folders: Folders that were searched for models; labels files lie there or below.
        known: Weights of a subject, however they are asked (``Subject.weights``) -> (labels, who
            said so) of what was scored before.
        vet: Called with the rules of the command line, and with those of each labels file that is
            read; may raise.
    """

    rules: tuple[Rule, ...] = ()
    pattern: NamePattern | None = None
    folders: tuple[Path, ...] = ()
    known: Mapping[str, tuple[Labels, str]] = field(default_factory=dict)
    vet: Callable[[Sequence[Rule]], None] = lambda rules: None


def label_subjects(
    subjects: Sequence[Subject], sources: LabelSources
) -> tuple[tuple[Subject, ...], tuple[str, ...]]:
    """Gives every tuned subject what is known of its tuning, and checkpoints their steps.

    What ``evalcore label`` mended before goes first; then the order of :mod:`~.labels`; what was
    known of a subject when it was scored before comes last.

    Returns:
        (the subjects in the same order, notes for a person).

    Raises:
        InputError: A rule or the pattern fits no model, a labels file is wrong, or two sources
            give a checkpoint different steps.
    """
    finder = _Finder(sources)
    found: dict[str, tuple[Labels, str | None]] = {}
    for subject in subjects:
        found[subject.id] = finder.labels(subject)
    finder.check_used(any(s.base_id is not None for s in subjects))
    steps = _steps(subjects, found)
    labelled = [_labelled(s, *found[s.id], steps.get(s.checkpoint.fingerprint)) for s in subjects]
    return tuple(labelled), tuple(finder.notes)


class _Finder:
    def __init__(self, sources: LabelSources) -> None:
        self.sources = sources
        sources.vet(sources.rules)
        self.roots = tuple(folder.expanduser().resolve() for folder in sources.folders)
        self.notes: list[str] = []
        self._files: dict[Path, tuple[Rule, ...]] = {}
        self._used: set[int] = set()
        self._fitted = False
        self._recorded = 0
        self._there: list[str] = []

    def labels(self, subject: Subject) -> tuple[Labels, str | None]:
        """(labels, who says so) of a subject."""
        own = subject.made
        known, said_by = self.sources.known.get(subject.weights, (Labels(), ""))
        if subject.base_id is None:
            return Labels(step=known.step), None
        self._there.append(subject.label)
        paths = [Path(own.path)]
        paths += [Path(copy) for copy in getattr(own, "copies", ())]  # named by any of its places
        names = [name for path in paths for name in path_names(path, self.roots)]
        record = _record(own)
        options = self._of_rules(self.sources.rules, names)
        if not record.empty and not options.empty:
            self._recorded += 1
        candidates = [
            (known if said_by == "label" else Labels(), "label"),
            (record, "record"),
            (options, "option"),
            (_first(self._of_files(path) for path in paths), "file"),
            (_first(self._of_pattern(path) for path in paths), "pattern"),
            (known, said_by),
            (_of_trainer(paths), "folder"),
        ]
        labels, who = Labels(), None
        for more, name in candidates:
            if who is None and (more.tuned_on or more.tuning):
                who = name
            labels = labels.over(more)
        return labels, who or next((name for more, name in candidates if not more.empty), None)

    def _of_rules(self, rules: Iterable[Rule], names: Sequence[str]) -> Labels:
        labels = Labels()
        for rule in rules:
            if rule.matches(names):
                self._used.add(id(rule))
                labels = labels.over(rule.labels)
        return labels

    def _of_files(self, path: Path) -> Labels:
        """Of the labels files from the model's own folder's parent up to the folder searched."""
        labels = Labels()
        for folder in self._folders(path):
            names = path_names(path, (folder,))
            if path.is_relative_to(folder):  # in a file, paths are those below it
                parts = path.relative_to(folder).parts
                names += ["/".join(parts[i:]) for i in range(len(parts))]
            labels = labels.over(self._of_rules(reversed(self._rules(folder)), names))
        return labels

    def _folders(self, path: Path) -> list[Path]:
        above = [
            parent for parent in path.parents
            if any(parent.is_relative_to(root) for root in self.roots)
        ]  # fmt: skip
        return list(dict.fromkeys([*above, *self.roots]))  # a linked model lies elsewhere

    def _rules(self, folder: Path) -> tuple[Rule, ...]:
        if folder not in self._files:
            there = [folder / name for name in LABEL_FILES if is_there(folder / name)]
            if len(there) > 1:
                names = ", ".join(file.name for file in there)
                raise InputError(f"{folder} has {names}: keep one, so that one is believed")
            self._files[folder] = tuple(read_labels(there[0])) if there else ()
            self.sources.vet(self._files[folder])
        return self._files[folder]

    def _of_pattern(self, path: Path) -> Labels:
        pattern = self.sources.pattern
        labels = pattern.labels(path.as_posix()) if pattern is not None else None
        if labels is None:
            return Labels()
        self._fitted = True
        return labels

    def check_used(self, any_tuned: bool) -> None:
        """Tells of rules that fit nothing: those of the command line are errors."""
        if not any_tuned:
            return
        for rule in self.sources.rules:
            if id(rule) not in self._used:
                raise InputError(
                    f"{rule.where}: no model's path or name fits {typed(rule.glob)} "
                    f"(there: {listed(self._there, 3)})"
                )
        for rule in (rule for rules in self._files.values() for rule in rules):
            if id(rule) not in self._used:
                self.notes.append(f"{rule.where}: fits no model here")
        if self.sources.pattern is not None and not self._fitted:
            raise InputError(f"--name-pattern {self.sources.pattern.text!r}: fits no model's path")
        if self._recorded:
            self.notes.append(
                f"--tuned-on: {self._recorded} models have a provenance record, which is believed; "
                f"`evalcore label` mends what is recorded in the results"
            )


def _first(found: Iterable[Labels]) -> Labels:
    labels = Labels()
    for more in found:
        labels = labels.over(more)
    return labels


def _of_trainer(paths: Sequence[Path]) -> Labels:
    """Of the trainer's folders; ``checkpoint-500`` knows its step better than the run's own."""
    found = [trainer_labels(path) for path in paths]
    exact = [labels for path, labels in zip(paths, found, strict=True)
             if labels.tuning == one_line(path.parent.name)]  # fmt: skip
    return _first([*exact, *found])


def _record(own: Adapter | Checkpoint) -> Labels:
    return Labels(
        tuned_on=own.tuned_on, tuning=own.tuning, seed=own.seed, control=own.control,
        tuning_step=own.tuning_step,
    )  # fmt: skip


def _steps(
    subjects: Sequence[Subject], found: Mapping[str, tuple[Labels, str | None]]
) -> dict[str, int]:
    """Checkpoint fingerprint -> step, where its own name or record does not say it."""
    steps: dict[str, int] = {}
    for subject in subjects:
        said = found[subject.id][0].step
        if said is None:
            continue
        checkpoint = subject.checkpoint
        before = steps.get(checkpoint.fingerprint, checkpoint.step)
        if before is not None and before != said and found[subject.id][1] != "label":
            raise InputError(
                f"{subject.label}: its labels say step {said}, but checkpoint {checkpoint.name} "
                f"is of step {before} (step: pre-training; tuning_step: step of the tuning)"
            )
        steps[checkpoint.fingerprint] = said
    return steps


def _labelled(subject: Subject, labels: Labels, who: str | None, step: int | None) -> Subject:
    checkpoint = subject.checkpoint
    if step is not None:
        checkpoint = replace(checkpoint, step=step)
        own = subject.own and replace(subject.own, step=step)
        subject = replace(subject, checkpoint=checkpoint, own=own)
    if subject.base_id is None:
        return subject
    about: dict[str, Any] = {
        "tuned_on": labels.tuned_on, "tuning": labels.tuning or labels.tuned_on,
        "seed": labels.seed, "control": labels.control, "method": labels.method,
        "tuning_step": labels.tuning_step, "labels_from": who,
    }  # fmt: skip
    if subject.adapter is None:
        return replace(subject, checkpoint=replace(checkpoint, **about))
    name = subject.adapter.name
    path = Path(subject.adapter.path)
    run = one_line(path.parent.name)
    if who is not None and name == one_line(path.name) and trainer_labels(path).tuning == run:
        name = f"{run}/{name}"  # "checkpoint-500" alone would not say of which run
    return replace(subject, adapter=replace(subject.adapter, name=name, **about))

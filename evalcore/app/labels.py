"""What models were tuned on: found while scoring, and mended afterwards in the results."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evalcore.errors import InputError, UnknownNameError
from evalcore.identity import Applied, Resolved, resolve_subjects, search
from evalcore.identity.away import AwayRule
from evalcore.identity.globs import fits, plain, split_at, typed
from evalcore.identity.labelling import LabelSources, label_subjects
from evalcore.identity.labels import (
    Labels,
    NamePattern,
    Rule,
    parse_tuned_on,
    path_names,
    read_labels,
)
from evalcore.identity.parents import ParentMap
from evalcore.identity.places import HubPlace, listed
from evalcore.shown import listed as joined
from evalcore.shown import natural
from evalcore.store import ResultStore
from evalcore.store.schema import FULLY_TUNED
from evalcore.tasks import list_tasks
from evalcore.types import Subject

if TYPE_CHECKING:
    from evalcore.app.cells import Question
    from evalcore.config import SubjectsConfig

_LIKE = 0.8  # difflib's ratio from which on a name is another one mistyped
LABEL_COLUMNS = tuple(f.name for f in fields(Labels))


def labelled_subjects(
    options: SubjectsConfig,
    store: ResultStore,
    applied: Applied = "either",
    disk_budget: int | None = None,
    task_path: Sequence[Path] = (),
) -> Resolved:
    """The subjects of a run, with bases and parents, and with what is known of their tuning.

    Args:
        options: What is to be scored.
        store: The results, where labels may have been mended.
        applied: What the engine does with adapters (see ``resolve_subjects``).
        disk_budget: Bytes of weights from the hub that a node may hold; None: any.
        task_path: Folders with more task definitions.

    Raises:
        InputError: Nothing is found, a checkpoint given is missing, or labels are wrong.
    """
    given, checkpoints = listed(options.adapters, "ADAPTERS"), listed(options.checkpoints, "-m")
    local = [each for each in given if HubPlace.parse(each) is None]
    parents = ParentMap.parse(options.parent_map, local, options.leave_out)
    folders: Sequence[str] = given
    rule = AwayRule(store.weights(), disk_budget)
    if parents.tuned:
        there = search(local, options.leave_out)
        if not (there.adapters or there.tuned):
            folders = [each for each in given if each not in local]
    resolved = resolve_subjects(
        folders,
        (*checkpoints, *map(str, parents.tuned), *parents.parents),
        base_map=options.base_map,
        assume_base=options.assume_base,
        include_bases=options.include_bases,
        tokenizer=options.tokenizer,
        applied=applied,
        leave_out=options.leave_out,
        rule=rule,
    )
    broken = [problem.path for problem in resolved.problems]
    subjects = _with_known_parents(parents.applied(resolved.subjects, local, broken, rule), store)
    if not options.include_bases:
        asked_for = {*checkpoints, *map(str, parents.tuned)}
        subjects = [
            s for s in subjects
            if s.base_id is not None or s.checkpoint.source in asked_for or not parents.entries
        ]  # fmt: skip
    sources = LabelSources(
        rules=tuple(parse_tuned_on(entry) for entry in reversed(options.tuned_on)),
        pattern=NamePattern.parse(options.name_pattern) if options.name_pattern else None,
        folders=tuple(Path(folder) for folder in local),
        known=known_labels(store),
        vet=lambda rules: check_mistyped(rules, task_path),
    )
    labelled, notes = label_subjects(subjects, sources)
    return replace(resolved, subjects=labelled, notes=(*resolved.notes, *notes))


def _with_known_parents(subjects: Sequence[Subject], store: ResultStore) -> list[Subject]:
    """Parents that earlier runs or ``evalcore label`` recorded, where nothing else names one."""
    cells = store.cells().select(["subject", "base", "checkpoint_fingerprint"]).to_pylist()
    full = [row for row in cells if row["base"] and "+" not in row["subject"]]
    # What follows ~ is how a cell is asked, which is settled cell by cell.
    known = {row["checkpoint_fingerprint"]: row["base"].partition("~")[0] for row in full}
    steps = {s.weights: s.checkpoint.step for s in subjects}
    out = []
    for subject in subjects:
        parent = known.get(subject.weights) if subject.base_id is None else None
        if parent is not None:  # a number in its name is a step of the tuning
            step = steps.get(parent)
            tuned = replace(subject.checkpoint, parent=parent, step=step)
            subject = replace(subject, checkpoint=tuned)
        out.append(subject)
    return out


def known_labels(store: ResultStore) -> dict[str, tuple[Labels, str]]:
    """Weights (``Subject.weights``) -> (labels, who said so) of everything in the results."""
    found: dict[str, tuple[Labels, str]] = {}
    own = ["checkpoint_fingerprint", "adapter_fingerprint"]
    columns = [*own, "base", "labels_from", *LABEL_COLUMNS]
    for row in store.cells().select(columns).to_pylist():
        if row["base"] is not None and row["labels_from"] is not None:
            # A checkpoint's step is asked of its name again, unless it was mended here.
            names = [n for n in LABEL_COLUMNS if n != "step" or row["labels_from"] == "label"]
            labels = Labels(**{name: row[name] for name in names})
            weights = "+".join(row[name] for name in own if row[name] is not None)
            if row["labels_from"] == "label" or found.get(weights, ((), ""))[1] != "label":
                found[weights] = (labels, row["labels_from"])
    return found


def check_mistyped(
    rules: Iterable[Rule], task_path: Sequence[Path] = (), known: Collection[str] = ()
) -> None:
    """Refuses labels that are nearly, but not quite, a task's name.

    A name that is like no task's is let through: models are tuned on other data as well.

    Args:
        rules: What models are said to be tuned on.
        task_path: Folders with more task definitions.
        known: Names besides those of the tasks.

    Raises:
        InputError: Of the first of them; it says how such a name is given all the same.
    """
    given = {r.labels.tuned_on: r.where for r in rules if r.labels.tuned_on is not None}
    unknown = [name for name in given if name not in known]
    if not unknown:
        return
    names = {name for task in list_tasks(task_path) for name in (task.name, task.tuned_by) if name}
    names |= set(known)
    for name in unknown:
        near = difflib.get_close_matches(name, sorted(names), n=3, cutoff=_LIKE)
        if name not in names and near:
            raise InputError(
                f"{given[name]}: no task is called {name!r}; nearest: {', '.join(near)}; what was "
                "tuned on other data is labelled by tuning alone (GLOB=-,tuning=NAME)"
            )


def untaught_notes(subjects: Sequence[Subject], asked: Sequence[Question]) -> list[str]:
    """Notes on labels that name no task of the run: no gain will count as the tuning's own."""
    names = {name for each in asked for name in (each.task.name, each.task.tuned_by)}
    odd: dict[str, int] = {}
    for subject in subjects:
        if subject.tuned_on and subject.made.labels_from != "record":
            odd[subject.tuned_on] = odd.get(subject.tuned_on, 0) + (subject.tuned_on not in names)
    return [
        f"{count} models are labelled as tuned on {name!r}, which is no task of this run"
        for name, count in odd.items()
        if count
    ]


@dataclass(frozen=True)
class ModelLabels:
    """A tuned model of the results and what is known of it.

    Attributes:
        model: Its name.
        labels: As they are recorded now.
        said_by: Who said so (``record``, ``option``, ``file``, ``pattern``, ``folder``,
            ``label``); None if nobody did.
        changed: Whether this call changed them.
        cells: Cells it has.
        otherwise: Those of them whose labels are others than ``labels``.
    """

    model: str
    labels: Labels
    said_by: str | None
    changed: bool
    cells: int
    otherwise: int = 0


def not_scored_lines(results: Path, models: Sequence[ModelLabels]) -> list[str]:
    """A line for each label just given that no scored task answers to: it may be mistyped."""
    rows = _open(results).cells().select(["task", "tuned_by"]).to_pylist()
    there = {name for row in rows for name in row.values() if name}
    given = {m.labels.tuned_on for m in models if m.changed and m.labels.tuned_on}
    names = ", ".join(sorted(there))
    return [
        f"note: no task scored here is {name}, or is tuned by it (there: {names})"
        for name in sorted(given - there)
    ]


def label(
    results: Path,
    *,
    tuned_on: Sequence[str] = (),
    labels: Path | None = None,
    name_pattern: str | None = None,
    parent_map: Sequence[str] = (),
) -> list[ModelLabels]:
    """Mends what models were tuned on, in the results alone: nothing is scored again.

    Globs are matched with a model's name (``CHECKPOINT/ADAPTER``, ``ADAPTER``) and with where the
    adapter lay when it was scored. What is given here wins over every other source, now and in
    later runs into the same folder; ``KEY=-`` takes a label away.

    Args:
        results: A results folder.
        tuned_on: ``GLOB=TASK[,seed=..,control=..]``, the later wins.
        labels: A labels file (see :func:`~evalcore.identity.labels.read_labels`).
        name_pattern: For example ``{step}/{tuning}-seed{seed}``.
        parent_map: ``GLOB=CHECKPOINT``: a scored checkpoint that others were fully tuned from.

    Returns:
        Every tuned model of the results; without any label given, nothing is changed.

    Raises:
        InputError: There are no results, a glob fits no model, or a task's name is mistyped.
    """
    store = _open(results)
    rows = store.cells().to_pylist()
    rules = [parse_tuned_on(entry) for entry in reversed(tuned_on)]
    rules += reversed(read_labels(labels)) if labels else []
    scored = {row[name] for row in rows for name in ("task", "tuned_by") if row[name]}
    check_mistyped(rules, known=scored)
    _set_parents(rows, parent_map)
    by_subject: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["base"] is not None:
            by_subject.setdefault(row["subject"], []).append(row)
    pattern = NamePattern.parse(name_pattern) if name_pattern else None
    used: set[str] = set()
    models = []
    steps: dict[str, int] = {}
    for cells in by_subject.values():
        new, clears = _given(cells[0], rules, pattern, used)
        if not new.empty or clears:
            for row in cells:
                _relabel(row, new, clears)
        if new.step is not None:
            steps[cells[0]["checkpoint_fingerprint"]] = new.step
        models.append(_model(cells))
    for row in rows:  # a checkpoint's step is that of its base and of all tuned from it
        step = steps.get(row["checkpoint_fingerprint"], row["step"])
        if row["step"] != step:
            row.update(step=step, _changed=True)
    wanted = [(r.where, r.glob) for r in rules]
    wanted += [(f"--name-pattern {pattern.text!r}", pattern.text)] if pattern else []
    for where, glob in wanted:
        if where not in used:
            names = joined(sorted((m.model for m in models), key=natural), 3) or "none"
            raise InputError(
                f"{where}: {typed(glob)} fits no tuned model of {results} (there: {names})"
            )
    _write(results, [row for row in rows if row.pop("_changed", False)])
    return sorted(models, key=lambda m: natural(m.model))


def _open(results: Path) -> ResultStore:
    return ResultStore(results, read_only=True)


def _write(results: Path, rows: list[dict[str, Any]]) -> None:
    if rows:
        ResultStore(results).write_cells(rows)


def _set_parents(rows: Sequence[dict[str, Any]], entries: Sequence[str]) -> None:
    """Sets the parents of checkpoints that stand by themselves."""
    alone = {row["subject"]: row for row in rows if "+" not in row["subject"]}
    for entry in entries:
        *globs, name = split_at(entry, "=")
        glob, name = "=".join(globs), plain(name)
        if not (glob and name):
            raise InputError(
                f"--parent-map {typed(entry)}: expected GLOB=CHECKPOINT of the results"
            )
        parents = [s for s, row in alone.items() if row["checkpoint"] == name or s == name]
        if len(parents) != 1:
            known = [row["checkpoint"] for row in alone.values()]
            raise UnknownNameError("checkpoint", name, known, f"--parent-map {typed(entry)}")
        fitting = [
            s for s, row in alone.items()
            if s != parents[0] and fits(glob, _names(row))
        ]  # fmt: skip
        if not fitting:
            raise InputError(
                f"--parent-map {typed(entry)}: no other checkpoint's name fits {typed(glob)}"
            )
        for row in rows:
            if row["subject"] in fitting and row["base"] != parents[0]:
                row.update(base=parents[0], method="full", adapter=FULLY_TUNED, _changed=True)
                row["step"] = alone[parents[0]]["step"]


def _names(row: Mapping[str, Any]) -> list[str]:
    names = [row["checkpoint"]]
    if "+" in row["subject"]:
        names = [row["adapter"], f"{row['checkpoint']}/{row['adapter']}"]
    place = row["adapter_source"] if "+" in row["subject"] else row["checkpoint_source"]
    return names + (path_names(Path(place)) if place else [])


def _given(
    row: Mapping[str, Any], rules: Sequence[Rule], pattern: NamePattern | None, used: set[str]
) -> tuple[Labels, tuple[str, ...]]:
    """(labels to set, labels to take away) of a model."""
    new, clears, names = Labels(), list[str](), _names(row)
    for rule in rules:
        if rule.matches(names):
            used.add(rule.where)
            clears += [key for key in rule.clears if getattr(new, key) is None]
            new = new.over(rule.labels)
    if pattern is not None:
        inside = next((found for name in names if (found := pattern.labels(name))), None)
        if inside is not None:
            used.add(f"--name-pattern {pattern.text!r}")
            new = new.over(inside)
    return new, tuple(clears)


def _relabel(row: dict[str, Any], new: Labels, clears: Sequence[str]) -> None:
    values = {name: getattr(new, name) for name in LABEL_COLUMNS}
    values = {name: value for name, value in values.items() if value is not None}
    if "tuned_on" in clears:
        values.setdefault("tuning", None)
    wanted = {**dict.fromkeys(clears), **values, "labels_from": "label"}
    if any(row[name] != value for name, value in wanted.items()):
        row.update(wanted, _changed=True)


def _model(cells: Sequence[Mapping[str, Any]]) -> ModelLabels:
    row = next((row for row in cells if row["labels_from"] == "label"), cells[0])
    said = [Labels(**{name: each[name] for name in LABEL_COLUMNS}) for each in (row, *cells)]
    labels, otherwise = said[0], sum(each != said[0] for each in said)
    name = row["checkpoint"] + (f" + {row['adapter']}" if "+" in row["subject"] else "")
    changed = any("_changed" in row for row in cells)
    return ModelLabels(name, labels, row["labels_from"], changed, len(cells), otherwise)

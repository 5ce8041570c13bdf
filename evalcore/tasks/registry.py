"""Finding tasks by name or group."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from evalcore.errors import UnknownNameError
from evalcore.identity import text_fingerprint
from evalcore.tasks.documents import is_scorable
from evalcore.tasks.faults import TaskError, TaskFault
from evalcore.tasks.model import TaskDefinition
from evalcore.tasks.reading import definition_error, once_per_state, read_yaml
from evalcore.types import GenerationSettings, Task

DEFINITIONS = Path(__file__).parent / "definitions"
_WORDS = {"description", "licence", "citation", "home", "published", "cluster"}


@once_per_state(1024)
def read_task(path: Path) -> Task:
    """Reads one task file.

    Raises:
        DefinitionError: If it is not what the schema says (one line: file, key, expected).
    """
    try:
        definition = TaskDefinition.model_validate(read_yaml(path, "task file"))
    except ValidationError as error:
        raise definition_error(error, "task file", path, TaskDefinition) from None
    return task_from_definition(definition)


def task_from_definition(definition: TaskDefinition) -> Task:
    """The frozen value other modules use."""
    # Defaults are left out, so that keys added to the schema change no identity; words about the
    # data, and what intervals take together, are no part of what is scored.
    spec = definition.model_dump(mode="json", exclude_defaults=True)
    generation = GenerationSettings(run_on=True)
    if definition.generation is not None:
        given = spec["generation"] = definition.generation.model_dump(mode="json")
        stops = tuple(given["stops"])
        generation = GenerationSettings(given["max_tokens"], stops, run_on=True)
    content = {key: value for key, value in spec.items() if key not in _WORDS}
    return Task(
        name=definition.name,
        version=definition.version,
        group=definition.group,
        output_type=definition.output_type,
        metrics=tuple(definition.metrics),
        primary=definition.primary,
        tuned_by=definition.tuned_by,
        domain=definition.domain,
        choices=tuple((definition.choices.labels if definition.choices else None) or ()),
        words=tuple(
            (label, tuple(texts))
            for label, texts in sorted(
                (definition.choices.words if definition.choices else {}).items()
            )
        ),
        generation=generation,
        description=definition.description,
        fingerprint=text_fingerprint(["task", content]),
        spec=spec,
    )


def _files(search: Sequence[Path]) -> list[Path]:
    files: list[Path] = []
    for place in (*search, DEFINITIONS):
        place = Path(place)
        if place.is_file():
            files.append(place)
        elif place.is_dir():
            files += sorted([*place.glob("*.yaml"), *place.glob("*.yml")])
        else:
            raise TaskError(TaskFault.NO_SUCH_FOLDER, f"task folder {place} does not exist")
    return files


def list_tasks(search: Sequence[Path] = ()) -> list[Task]:
    """All tasks: those of the given folders and files, then the built-in ones, by name.

    Raises:
        DefinitionError: If a file is broken, or two given files define one name.
    """
    tasks: dict[str, tuple[Task, Path]] = {}
    for file in _files(search):
        task = read_task(file)
        known = tasks.get(task.name)
        if known is not None and known[1].resolve() != file.resolve():
            raise TaskError(
                TaskFault.DEFINED_TWICE,
                f"task {task.name} is defined twice: {known[1]} and {file}; rename one",
            )
        tasks[task.name] = (task, file)
    return [tasks[name][0] for name in sorted(tasks)]


def load_task(name: str, search: Sequence[Path] = ()) -> Task:
    """The task of that name (or in the YAML file of that path).

    Raises:
        UnknownNameError: With the nearest names.
        DefinitionError: If a file is broken.
    """
    if name.endswith((".yaml", ".yml")):
        return read_task(Path(name))
    tasks = {task.name: task for task in list_tasks(search)}
    if name not in tasks:
        raise UnknownNameError("task", name, tasks, "see: evalcore tasks list")
    return tasks[name]


def select_tasks(selection: str, search: Sequence[Path] = ()) -> list[Task]:
    """Tasks of a comma-separated list of names, groups, patterns, YAML files, or ``all``.

    ``all`` leaves out tasks that are for tuning only. A group stands for all its tasks; a name
    that is both means the task alone (``name*`` takes its relatives too). Order as given, each
    task once.

    Raises:
        UnknownNameError: With the nearest names.
        DefinitionError: If a file is broken, the selection is empty, or a file given by its path
            defines a task that is known by that name with another definition.
    """
    names = [part.strip() for part in selection.split(",") if part.strip()]
    if not names:
        raise TaskError(
            TaskFault.NOTHING_SELECTED, "no tasks given: expected names joined by commas, or all"
        )
    tasks = list_tasks(search)
    by_name = {task.name: task for task in tasks}
    groups = {task.group for task in tasks}
    from_files: dict[str, Task] = {}
    chosen: dict[str, Task] = {}
    for name in names:
        if name == "all":
            found = [task for task in tasks if is_scorable(task)]
        elif name in by_name:
            found = [by_name[name]]
        elif name in groups:
            found = [task for task in tasks if task.group == name]
        elif name.endswith((".yaml", ".yml")):
            own = read_task(Path(name))
            for other in (by_name.get(own.name), from_files.get(own.name)):
                _check_once(other, own, name)
            found = [from_files.setdefault(own.name, own)]
        else:
            found = [task for task in tasks if fnmatch.fnmatchcase(task.name, name)]
        if not found:
            known = {*by_name, *groups, "all"}
            raise UnknownNameError("task", name, known, "see: evalcore tasks list")
        for task in found:
            chosen.setdefault(task.name, task)
    return list(chosen.values())


def _check_once(known: Task | None, task: Task, file: str) -> None:
    """Refuses a file whose name another definition has; descriptions and the like may differ."""
    if known is None:
        return
    same_intervals = known.spec.get("cluster") == task.spec.get("cluster")
    if known.fingerprint != task.fingerprint or not same_intervals:
        raise TaskError(
            TaskFault.DEFINED_TWICE,
            f"task {task.name} is defined twice: {file} differs from the task already known by "
            f"that name; give the file's task another name",
        )

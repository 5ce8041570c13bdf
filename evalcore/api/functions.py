"""The commands as functions: score, open, tasks, prompts, finetune and run."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from evalcore.api.frame import Frame
from evalcore.api.results import Results, frame_of
from evalcore.api.words import called_from_python, in_python
from evalcore.errors import InputError, StoppedError, TrainingError, UnknownNameError

if TYPE_CHECKING:
    from evalcore.app import ScoreOutcome
    from evalcore.cli.progress import ScoreProgress, StudyProgress
    from finetune import TuneSummary

PathLike = str | os.PathLike[str]
Paths = PathLike | Sequence[PathLike]


class EvalcoreWarning(UserWarning):
    """Something of a run was left out; the rest stands."""


def score(
    adapters: Paths = (),
    *,
    tasks: str | Sequence[str],
    prompts: str | Sequence[str] | Mapping[str, str | Sequence[str]] = "default",
    output: PathLike,
    checkpoints: Paths = (),
    limit: int | None = None,
    num_fewshot: int | None = None,
    chat: bool = False,
    data_root: PathLike | None = None,
    task_path: Paths = (),
    prompt_path: Paths = (),
    base_map: str | Sequence[str] = (),
    assume_base: str | None = None,
    parent_map: str | Sequence[str] = (),
    tuned_on: str | Sequence[str] = (),
    name_pattern: str | None = None,
    engine: Literal["vllm", "hf"] = "vllm",
    cluster: Literal["local", "ray"] = "local",
    workers: int | None = None,
    strict: bool = False,
    progress: bool = True,
    **more: Any,
) -> Results:
    """Scores what is missing of adapters, their bases and checkpoints, and gives the results.

    What is in ``output`` already is not scored again. Workers are processes of their own (or Ray
    actors), so this may be called from a notebook, a thread, or a driver that has initialised Ray.

    Args:
        adapters: Folders searched for adapters (and fully tuned checkpoints).
        tasks: Task names or groups (``"mnli_matched,arc_easy"`` or a list).
        prompts: Prompt variants, joined by commas or as a list; or a mapping from tasks (or groups)
            to their own, in which ``"*"`` stands for all others.
        output: Results folder, made if need be.
        checkpoints: Paths or ``REPO@REV`` scored by themselves.
        limit: Only the first so many documents of a task.
        num_fewshot: Shots of every prompt.
        chat: Use the tokenizer's chat template.
        data_root: Folder with the tasks' data instead of the hub.
        task_path: Folders with more task definitions.
        prompt_path: Folders with more prompt variants.
        base_map: ``GLOB=PATH|REPO@REV``: bases of adapters.
        assume_base: Base of adapters that name none.
        parent_map: ``GLOB=PATH|REPO@REV``: what fully tuned checkpoints were tuned from.
        tuned_on: ``GLOB=TASK[,seed=N,...]``: what models were tuned on.
        name_pattern: The same inside paths, for example ``{tuning}-seed{seed}``.
        engine: ``vllm``, or the slow reference ``hf``.
        cluster: Workers as child processes, or as Ray actors.
        workers: Engines at a time.
        strict: Findings about the data are errors.
        progress: Show how far it is, on standard error.
        **more: Any other field of ``evalcore.config.ScoreConfig`` (``dtype``, ``max_length``,
            ``shard``, ``time_limit``, ``certify``, ``ray_address`` ...; docs/configuration.md).

    Returns:
        The results; ``.outcome`` says what the run did. What could not be scored is in
        ``.problems`` and warned of (:class:`EvalcoreWarning`).

    Raises:
        InputError: Something given is wrong; nothing was scored.
        StoppedError: It was asked to stop; what is done is committed, the same call goes on.
    """
    from evalcore.app import prompt_blocks
    from evalcore.app import score as run_score
    from evalcore.config import ScoreConfig, all_options

    known = [*all_options(), *signature(score).parameters]
    _check_known(more, known, "dry_run", "grid", "more")
    with _progress(progress) as shown, called_from_python():
        config = ScoreConfig.of(
            grid=prompt_blocks(_joined(tasks, "tasks"), _prompts(prompts), _paths(task_path)),
            output=Path(output),
            adapters=_texts(adapters), checkpoints=_texts(checkpoints), limit=limit,
            num_fewshot=num_fewshot, chat=chat,
            data_root=None if data_root is None else Path(data_root),
            task_path=_paths(task_path), prompt_path=_paths(prompt_path),
            base_map=_texts(base_map), assume_base=assume_base, parent_map=_texts(parent_map),
            tuned_on=_texts(tuned_on), name_pattern=name_pattern, engine=engine, cluster=cluster,
            workers=workers, strict=strict, **more,
        )  # fmt: skip
        outcome = run_score(config, shown)
    return _finished(outcome)


def open(path: PathLike) -> Results:
    """Opens results; nothing is written.

    Args:
        path: The folder that ``score`` wrote.

    Raises:
        InputError: There are no results.
    """
    return Results(path)


def tasks(task_path: Paths = ()) -> Frame:
    """Every task: name, prompt group, what is asked, primary metric, the tuning it belongs to.

    Args:
        task_path: Folders with more task definitions.
    """
    import pyarrow as pa

    from evalcore.tasks import is_scorable, list_tasks

    text = ("task", "group", "output_type", "primary", "tuned_by", "domain", "description")
    rows = [
        {
            "task": t.name, "group": t.group, "output_type": t.output_type, "primary": t.primary,
            "tuned_by": t.tuned_by, "domain": t.domain, "scorable": is_scorable(t),
            "metrics": list(t.metrics), "description": t.description,
        }
        for t in list_tasks(search=_paths(task_path))
    ]  # fmt: skip
    schema = [(name, pa.string()) for name in text]
    schema += [("scorable", pa.bool_()), ("metrics", pa.list_(pa.string()))]
    frame = frame_of(rows, pa.schema(schema))
    return Frame(frame.to_arrow(), ("task", "group", "output_type", "primary", "tuned_by"))


def prompts(
    tasks: str | Sequence[str] = "all", *, task_path: Paths = (), prompt_path: Paths = ()
) -> Frame:
    """The prompt variants of some tasks' groups.

    Args:
        tasks: Task names or groups.
        task_path: Folders with more task definitions.
        prompt_path: Folders with more prompt variants.
    """
    import pyarrow as pa

    from evalcore.prompting import list_prompts
    from evalcore.tasks import select_tasks

    chosen = select_tasks(_joined(tasks, "tasks"), search=_paths(task_path))
    rows = [
        {
            "group": group, "prompt": variant.name, "template": variant.template,
            "target": variant.target,
            "tasks": [task.name for task in chosen if task.group == group],
        }
        for group in sorted({task.group for task in chosen})
        for variant in list_prompts(group, _paths(prompt_path))
    ]  # fmt: skip
    schema = [(name, pa.string()) for name in ("group", "prompt", "template", "target")]
    frame = frame_of(rows, pa.schema([*schema, ("tasks", pa.list_(pa.string()))]))
    return Frame(frame.to_arrow(), ("group", "prompt", "template"))


def finetune(
    study: PathLike, *, output: PathLike | None = None, progress: bool = True, **more: Any
) -> TuneSummary:
    """Tunes the models of a study that are missing.

    Args:
        study: The study file.
        output: Folder for adapters; None: the study file's.
        progress: Show how far it is, on standard error.
        **more: Other fields of ``evalcore.app.StudyOptions``, and of
            ``evalcore.config.ScoreConfig``: what is given goes before the study file.

    Returns:
        What was trained (``results``), what was not (``failures``), seconds and tokens.

    Raises:
        InputError: The study file or something it names is wrong.
        StoppedError: It was asked to stop; finished models stay.
        TrainingError: No model could be trained.
    """
    from evalcore.app import finetune as run_finetune

    with _study_progress(progress) as shown, called_from_python():
        summary = run_finetune(_study_options(study, output, more), shown)
    _check_tuned(summary)
    return summary


def run(
    study: PathLike, *, output: PathLike | None = None, progress: bool = True, **more: Any
) -> Results:
    """Runs a study: tunes what is missing, scores what is missing, writes the report.

    Args:
        study: The study file.
        output: Folder for adapters, results and report; None: the study file's.
        progress: Show how far it is, on standard error.
        **more: Other fields of ``evalcore.app.StudyOptions``, and of
            ``evalcore.config.ScoreConfig``: what is given goes before the study file.

    Returns:
        The results; the report lies beside them.

    Raises:
        InputError: The study file or something it names is wrong.
        StoppedError: It was asked to stop; the same call goes on.
    """
    from evalcore.app import study as run_study

    with _study_progress(progress) as shown, called_from_python():
        outcome = run_study(_study_options(study, output, more), shown)
    if outcome.tuned is not None:
        _check_tuned(outcome.tuned)
    if outcome.scored is None:
        raise InputError(f"{study}: the study has no evaluation block, so there are no results")
    return _finished(outcome.scored)


def _finished(outcome: ScoreOutcome) -> Results:
    """Results of a run that ended; a stop is an exception, failed cells are a warning."""
    summary = outcome.summary
    if summary.stopped:
        raise StoppedError(
            f"stopped ({summary.stopped}); {summary.examples:,} examples of this run are committed "
            f"in {outcome.output}: the same call goes on"
        )
    results = Results(outcome.output, outcome)
    for line in [f"data: {finding}" for finding in outcome.findings]:
        warnings.warn(in_python(line), EvalcoreWarning, stacklevel=3)
    if results.problems:
        more = f" (+{len(results.problems) - 1} more in .problems)" * (len(results.problems) > 1)
        warnings.warn(f"not scored: {results.problems[0]}{more}", EvalcoreWarning, stacklevel=3)
    return results


def _check_tuned(summary: TuneSummary) -> None:
    if summary.stopped:
        raise StoppedError("tuning was stopped; finished models stay: the same call goes on")
    if summary.failures and not summary.results:
        first = summary.failures[0]
        raise TrainingError(f"nothing could be tuned: {first.job_id}: {first.error}", "failed")
    for failure in summary.failures:
        warnings.warn(
            f"not tuned: {failure.job_id}: {failure.error}", EvalcoreWarning, stacklevel=3
        )


def _study_options(study: PathLike, output: PathLike | None, more: dict[str, Any]) -> Any:
    from evalcore.app import StudyOptions
    from evalcore.app.study import SAID_BY_THE_STUDY
    from evalcore.config import all_options

    own = {f.name for f in fields(StudyOptions)} - {"file", "output", "given"}
    scoring = set(all_options()) - SAID_BY_THE_STUDY - {"dry_run", "data_root"}
    _check_known(more, [*own, *scoring])
    file = Path(study)
    return StudyOptions(
        file,
        Path(output) if output is not None else file.parent,
        given={name: value for name, value in more.items() if name in scoring},
        **{name: value for name, value in more.items() if name in own},
    )


def _check_known(more: dict[str, Any], known: Sequence[str], *taken: str) -> None:
    for name in more:
        if name not in known or name in taken:
            raise UnknownNameError("argument", name, set(known) - set(taken))


def _joined(value: str | Sequence[str], what: str) -> str:
    text = value if isinstance(value, str) else ",".join(value)
    if not text.strip():
        raise InputError(f"{what}: give at least one name")
    return text


def _prompts(prompts: str | Sequence[str] | Mapping[str, str | Sequence[str]]) -> list[str]:
    """As the command line's ``-p``."""
    if not isinstance(prompts, Mapping):
        return [_joined(prompts, "prompts")]
    own = {task: _joined(names, f"prompts of {task}") for task, names in prompts.items()}
    return [names if task == "*" else f"{task}={names}" for task, names in own.items()]


def _texts(value: Paths) -> tuple[str, ...]:
    return tuple(str(v) for v in ([value] if isinstance(value, str | os.PathLike) else value))


def _paths(value: Paths) -> tuple[Path, ...]:
    return tuple(Path(text) for text in _texts(value))


def _progress(shown: bool) -> AbstractContextManager[ScoreProgress | None]:
    if not shown:
        return nullcontext()
    from evalcore.cli.progress import ScoreProgress

    return ScoreProgress()


def _study_progress(shown: bool) -> AbstractContextManager[StudyProgress]:
    from evalcore.cli.progress import StudyProgress

    return StudyProgress(quiet=not shown)
